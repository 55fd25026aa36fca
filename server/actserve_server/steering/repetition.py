"""How much a sequence repeats itself, by its 4-grams."""

from collections.abc import Sequence

GRAM_TOKENS = 4


def repetition(token_ids: Sequence[int]) -> float | None:
    """Of the runs of 4 tokens, the part that is equal to an earlier one; None for fewer than 5
    tokens, of which there are not two runs.

    One less the share of distinct 4-grams, as in Welleck et al., "Neural Text Generation with
    Unlikelihood Training", 2020.
    """
    grams = [tuple(token_ids[at : at + GRAM_TOKENS]) for at in range(len(token_ids) - 3)]
    return (len(grams) - len(set(grams))) / len(grams) if len(grams) > 1 else None
