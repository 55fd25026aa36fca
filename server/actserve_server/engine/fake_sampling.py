"""How the fake engine chooses tokens, and when it stops: as vLLM does, on made-up scores.

What is not imitated: top_p, top_k and min_p, which only matter where scores mean something.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from actserve_server.domain.runs import FinishReason, RepetitionDetection, Sampling
from actserve_server.engine.fake_tokenizer import Vocabulary


class Choice:
    """Chooses the tokens of one run."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], default_seed: int, end_token: int
    ) -> None:
        self._sampling = sampling
        self._end_token = end_token
        # Placed vectors have ids below zero, and no logit.
        self._prompt = [token for token in prompt if token >= 0]
        self._seed = default_seed if sampling.seed is None else sampling.seed % (1 << 63)
        self._temperature = 1.0 if sampling.temperature is None else sampling.temperature

    def next(self, logits: np.ndarray, generated: Sequence[int], length: int) -> int:
        """The token after `length` others, of which the last are `generated`."""
        scores = self._scores(logits.astype(np.float64), generated)
        if self._temperature > 0:
            noise = np.random.default_rng([self._seed, length]).gumbel(size=len(scores))
            scores = scores / self._temperature + noise
        return int(np.argmax(scores))

    def _scores(self, scores: np.ndarray, generated: Sequence[int]) -> np.ndarray:
        sampling = self._sampling
        if sampling.allowed_token_ids:
            taken = np.ones(len(scores), bool)
            taken[list(sampling.allowed_token_ids)] = False
            scores[taken] = -np.inf
        for *before, last in sampling.bad_words:
            if list(generated[len(generated) - len(before) :]) == before:
                scores[last] = -np.inf
        for token, bias in sampling.logit_bias:
            scores[token] += bias
        if len(generated) < sampling.min_tokens:
            scores[[self._end_token, *sampling.stop_token_ids]] = -np.inf
        if (penalty := sampling.repetition_penalty) is not None:
            seen = sorted({*self._prompt, *generated})
            scores[seen] = np.where(
                scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty
            )
        for token, count in Counter(generated).items():
            scores[token] -= count * (sampling.frequency_penalty or 0.0)
            scores[token] -= sampling.presence_penalty or 0.0
        return scores


def end_of(
    sampling: Sampling, generated: Sequence[int], end_token: int
) -> tuple[FinishReason, int | None] | None:
    """Why tokens that were just generated end the run, and the end token if that does it; None if
    it goes on. Stop strings are `TextStream`'s."""
    last = generated[-1]
    if last in sampling.stop_token_ids or (last == end_token and not sampling.ignore_eos):
        return FinishReason.STOP, last
    if len(generated) >= sampling.max_tokens:
        return FinishReason.LENGTH, None
    repetition = sampling.repetition_detection
    if repetition and len(generated) >= sampling.min_tokens and _repeats(repetition, generated):
        return FinishReason.REPETITION, None
    return None


def _repeats(wanted: RepetitionDetection, generated: Sequence[int]) -> bool:
    for size in range(wanted.min_pattern_size, wanted.max_pattern_size + 1):
        tail = list(generated[-size * wanted.min_count :])
        if tail == tail[:size] * wanted.min_count:
            return True
    return False


class TextStream:
    """The text of generated tokens, holding back what may begin a stop string."""

    def __init__(self, sampling: Sampling, vocabulary: Vocabulary) -> None:
        self._sampling = sampling
        self._vocabulary = vocabulary
        self._held = ""
        self.stop_string: str | None = None
        """The one found, which ends the run."""

    def add(self, token: int, generated: int, end: FinishReason | None) -> str:
        """What the last of so many generated tokens lets out; `end` is why it ends the run."""
        sampling = self._sampling
        if not (end is FinishReason.STOP and not sampling.include_stop):
            hidden = sampling.skip_special_tokens and token in self._vocabulary.special
            self._held += "" if hidden else self._vocabulary.decode([token])
        stops = sampling.stop
        if generated >= sampling.min_tokens:
            found = [(self._held.index(stop), stop) for stop in stops if stop in self._held]
            if found:
                start, stop = min(found)
                self.stop_string = stop
                return self._held[: start + len(stop) * sampling.include_stop]
        hold = 0 if end else max((_overlap(self._held, stop) for stop in stops), default=0)
        cut = len(self._held) - hold
        released, self._held = self._held[:cut], self._held[cut:]
        return released


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper beginning of `stop` that `text` ends with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
