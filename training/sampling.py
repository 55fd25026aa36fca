"""Explanations of many rows at once, from the AV as it is trained."""

import torch

from training.models import embed, unembed
from training.progress import track
from training.train_av import TrainedVerbalizer

_BATCH = 256
"""Sequences that are written together."""


@torch.inference_mode()
def sample(
    verbalizer: TrainedVerbalizer,
    rows: torch.Tensor,
    *,
    count: int,
    temperature: float,
    max_tokens: int,
    end: int,
    seed: int,
    name: str,
) -> list[list[list[int]]]:
    """`count` answers to each row [rows, width], as token ids without `end`, the token they end
    with; greedy at temperature zero."""
    generator = torch.Generator().manual_seed(seed)
    # On CPUs the fused attention is the faster one where nothing is learned: it repeats no keys.
    verbalizer.model.set_attn_implementation("sdpa")
    try:
        answers: list[list[int]] = []
        each = max(1, _BATCH // count)
        for start in track(range(0, len(rows), each), name):
            some = rows[start : start + each].repeat_interleave(count, dim=0)
            answers += _write(verbalizer, some, temperature, max_tokens, end, generator)
    finally:
        verbalizer.model.set_attn_implementation("eager")
    return [answers[start : start + count] for start in range(0, len(answers), count)]


def _write(
    verbalizer: TrainedVerbalizer,
    rows: torch.Tensor,
    temperature: float,
    max_tokens: int,
    end: int,
    generator: torch.Generator,
) -> list[list[int]]:
    model = verbalizer.model
    cache = verbalizer.read_head(len(rows))
    answers: list[list[int]] = [[] for _ in range(len(rows))]
    writing = list(range(len(rows)))
    inputs = verbalizer.embed(rows)
    for _ in range(max_tokens):
        hidden = model.base_model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)[0]
        tokens = _choose(unembed(model, hidden[:, -1]), temperature, generator)
        going = [place for place, token in enumerate(tokens.tolist()) if token != end]
        for place in going:
            answers[writing[place]].append(int(tokens[place]))
        if not going:
            break
        if len(going) < len(writing):
            cache.batch_select_indices(torch.tensor(going))
            tokens = tokens[going]
            writing = [writing[place] for place in going]
        inputs = embed(model, tokens)[:, None]
    return answers


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    # By the cumulative distribution: torch.multinomial draws a number for every token there is,
    # which took a quarter of the time.
    reached = (logits / temperature).softmax(-1).cumsum_(-1)
    drawn = torch.rand(len(logits), 1, generator=generator) * reached[:, -1:]
    return torch.searchsorted(reached, drawn, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
