"""Study results: studies from what the server sent."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actserve._checks import INT32, distinct
from actserve.errors import ActserveError, InvalidRequest
from actserve.prompts import is_many
from actserve.results import Activations, Generation, sum_of
from actserve.studies import AttentionMap, Comparison, LogitLens, TextScore
from actserve.tokens import checked_tokens


def single_prompt(prompt: Any) -> Any:
    """One prompt. Raises `InvalidRequest` for a list of prompts."""
    if is_many(prompt):
        raise InvalidRequest(
            "this asks about one prompt, but a list of prompts was given; ask for each",
            reason="FIELD_INVALID",
            path=("prompt",),
        )
    return prompt


def checked_answers(answers: Any) -> Sequence[int | str]:
    """One answer, or the right one and the wrong one. Raises `InvalidRequest`."""
    tokens = checked_tokens(answers)
    if len(tokens) not in (1, 2):
        raise InvalidRequest(
            f"answers has {len(tokens)} tokens; give the answer, or the right one and the wrong "
            "one, as in answers=(' Paris', ' Rome')",
            reason="FIELD_INVALID",
            path=("answers",),
        )
    return tokens


def chosen_layers(layers: Any, count: int) -> tuple[int, ...]:
    """Layers, zero-based, of a model that has so many. Raises `InvalidRequest`."""
    if isinstance(layers, str) and layers == "all":
        return tuple(range(count))
    if isinstance(layers, str):
        raise InvalidRequest(
            f"layers is {layers!r}; give numbers, as in layers=[5, 9], or 'all'",
            reason="LAYER_OUT_OF_RANGE",
        )
    given = distinct(layers, "a layer", INT32, "LAYER_OUT_OF_RANGE")
    if beyond := [layer for layer in given if not -count <= layer < count]:
        raise InvalidRequest(
            f"layer {beyond[0]} is out of range; the model has layers 0 to {count - 1}",
            reason="LAYER_OUT_OF_RANGE",
        )
    chosen = tuple(layer % count for layer in given)
    if not chosen or len({*chosen}) < len(chosen):
        raise InvalidRequest(
            f"the layers {list(given)} are none, or one is named twice; name each once",
            reason="LAYER_OUT_OF_RANGE",
        )
    return chosen


def logit_lens(acts: Activations, asked: Sequence[int | str]) -> LogitLens:
    """The lens of a prompt whose predictions were fetched."""
    found = [*acts.predictions.values()]
    return LogitLens(
        tokens=acts.tokens,
        token_ids=acts.token_ids,
        request_id=acts.request_id,
        usage=acts.usage,
        sites=tuple(acts.predictions),
        positions=found[0].positions,
        top_ids=np.stack([each.top_ids for each in found]),
        top_tokens=np.stack([each.top_tokens for each in found]),
        top_logprobs=np.stack([each.top_logprobs for each in found]),
        asked=tuple(map(str, asked)),
        logprobs=np.stack([each.token_logprobs for each in found]),
    )


def attention_map(acts: Activations, layers: Sequence[int]) -> AttentionMap:
    """The patterns of some layers, all of the same heads and queries."""
    heads = tuple(dict.fromkeys(head for _, head in acts.attention))
    some = acts.attention[layers[0], heads[0]]
    return AttentionMap(
        tokens=acts.tokens,
        token_ids=acts.token_ids,
        request_id=acts.request_id,
        usage=acts.usage,
        layers=tuple(layers),
        heads=heads,
        queries=some.queries,
        weights=np.stack(
            [np.stack([acts.attention[layer, head].weights for head in heads]) for layer in layers]
        ),
    )


def scored(acts: Any) -> Any:
    """The score of a text, or of each of a list of texts."""
    if isinstance(acts, list):
        return [scored(each) for each in acts]
    if isinstance(acts, ActserveError):
        return acts
    logprobs = acts.predictions["final_norm"].next_token_logprobs
    return TextScore(
        tokens=acts.tokens,
        token_ids=acts.token_ids,
        request_id=acts.request_id,
        usage=acts.usage,
        # What is predicted at a position is the token after it.
        logprobs=np.concatenate([np.full(1, np.nan, np.float32), logprobs[:-1]]),
    )


def compared_tokens(likely: Sequence[Activations]) -> Mapping[int, str]:
    """The likeliest next tokens of all runs, by id."""
    return {
        token_id: token
        for acts in likely
        for found in [acts.predictions["final_norm"]]
        for token_id, token in zip(found.top_ids[0].tolist(), found.top_tokens[0], strict=True)
    }


def comparison(
    plain: Generation,
    steered: Generation,
    tokens: Mapping[int, str],
    likely: Sequence[Activations],
    acts: Sequence[Activations],
) -> Comparison:
    """Two runs of a prompt, with what each makes of the same next tokens."""
    before, after = (each.predictions["final_norm"].token_logprobs[0] for each in acts)
    order = np.argsort(before - after, kind="stable")
    ids = np.array([*tokens], np.int64)
    used = [plain.usage, steered.usage, *(each.usage for each in (*likely, *acts))]
    return Comparison(
        tokens=plain.prompt_tokens,
        token_ids=plain.prompt_token_ids,
        request_id=acts[-1].request_id,
        usage=sum_of(used),
        plain=plain,
        steered=steered,
        next_ids=ids[order],
        next_tokens=tuple(tokens[token_id] for token_id in ids[order].tolist()),
        plain_logprobs=before[order],
        steered_logprobs=after[order],
    )
