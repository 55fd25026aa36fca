"""Explanations: activations in words, and how far to trust them.

A model writes them and may be wrong in every detail: themes are right more often than details.
Flags, scores and claims say what speaks for each one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from actserve._readers import finish_reason
from actserve._show.shown import Shown
from actserve.errors import BadResponse
from actserve.results import InterventionReport, TokenSource, Usage
from actserve.v1 import explanation_service_pb2 as pb

_FLAG = "EXPLANATION_FLAG_"


@dataclass(frozen=True, slots=True)
class Score:
    """How well a text accounts for a row. Only directions are compared: the row and its
    reconstruction are both scaled to an L2 norm of sqrt(width)."""

    cosine: float
    """Of the row and its reconstruction, -1 to 1."""
    normalized_mse: float
    """Mean squared error, 2 (1 - cosine): 0 to 4."""
    variance_explained: float | None
    """Fraction of variance explained (FVE), 1 - normalized_mse / variance of the baseline: at most
    1. 0 is the error of the baseline's mean row unscaled; a reconstruction that is always the mean
    row, scaled as all are, has -(1 - a) / (1 + a) with a = sqrt(1 - variance). None without a
    baseline."""
    centered_cosine: float | None
    """Cosine after the baseline's mean row is subtracted from both; None without one."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an explanation, and what speaks for it."""

    text: str
    start: int
    """Its first character in the explanation: `explanation.text[start:end]`."""
    end: int
    """One past its last character."""
    mse_increase: float | None
    """How much `Score.normalized_mse` grows when it is left out; None unless asked for, and where
    it is the only sentence."""
    variance_explained_drop: float | None
    """How much `Score.variance_explained` drops when it is left out; None without a baseline
    too."""
    recurrence: float | None
    """The share of its content words that the explanations of neighbouring positions contain, on
    average; None unless asked for, and where no neighbour was explained."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a verbalizer says of one row."""

    text: str
    """Without the tags around it; as it was written if it could not be parsed."""
    row: int
    """Which of the rows given, or of the positions explained."""
    sample: int
    """Which of the row's samples."""
    position: int | None
    """The row's token position, where it is known."""
    norm: float
    """L2 norm of the row."""
    finish_reason: str
    """"stop" or "length"."""
    output_tokens: int
    """Tokens written."""
    injections: int
    """Vectors put into the verbalizer's prompt: as many as it has slots for one."""
    flags: tuple[str, ...]
    """What may be wrong with it: "early_position", "norm_outlier", "unparsed", "failed_injection",
    "truncated"."""
    score: Score | None
    """None unless asked for, and for a text that the reconstructor cannot read."""
    claims: tuple[Claim, ...]
    """Its sentences; empty unless asked for."""


@dataclass(frozen=True, slots=True, repr=False)
class ExplainedText(Shown):
    """A prompt, and what its model thinks at some of its tokens. Iteration yields each explanation
    with its token: `for token, explanation in explained`."""

    token_ids: tuple[int, ...]
    """The prompt as the model saw it."""
    tokens: tuple[str, ...]
    """Each token decoded alone."""
    sources: tuple[TokenSource, ...]
    """Where each token comes from; empty for a prompt of token ids."""
    positions: tuple[int, ...]
    """The positions explained, ascending."""
    explanations: tuple[Explanation, ...]
    """By position, then by sample."""
    interventions: tuple[InterventionReport, ...]
    """What each intervention did, in the order of `intervene`."""
    nla: str
    """The id of the NLA that explained."""
    site: str
    """The canonical name of the site explained."""
    usage: Usage
    """What the call consumed, over the model, the verbalizer and the reconstructor."""
    request_id: str
    """The server's id for the call, also in its logs."""

    def __iter__(self) -> Iterator[tuple[str, Explanation]]:
        for explanation in self.explanations:
            yield self.tokens[self.positions[explanation.row]], explanation

    def __len__(self) -> int:
        return len(self.explanations)

    def __repr__(self) -> str:
        return (
            f"ExplainedText({len(self)} explanations of {len(self.positions)} of "
            f"{len(self.tokens)} tokens at {self.site}, by {self.nla})"
        )


def explanation_from_proto(sent: pb.Explanation, row: int) -> Explanation:
    """An explanation as the contract writes it, of a row that the caller counts as this one."""
    return Explanation(
        text=sent.text,
        row=row,
        sample=sent.sample_index,
        position=sent.position if sent.HasField("position") else None,
        norm=sent.norm,
        finish_reason=finish_reason(sent.finish_reason),
        output_tokens=sent.output_tokens,
        injections=sent.injections,
        flags=tuple(_flag(each) for each in sent.flags),
        score=score_from_proto(sent.score) if sent.HasField("score") else None,
        claims=tuple(_claim(claim, sent.text) for claim in sent.claims),
    )


def score_from_proto(sent: pb.ExplanationScore) -> Score:
    """A score as the contract writes it."""
    return Score(
        cosine=sent.cosine,
        normalized_mse=sent.normalized_mse,
        variance_explained=sent.variance_explained if sent.HasField("variance_explained") else None,
        centered_cosine=sent.centered_cosine if sent.HasField("centered_cosine") else None,
    )


def _claim(sent: pb.Claim, text: str) -> Claim:
    if not sent.start < sent.end <= len(text):
        raise BadResponse(
            f"the server sent a claim of characters [{sent.start}, {sent.end}) of a text of "
            f"{len(text)}"
        )
    return Claim(
        text=text[sent.start : sent.end],
        start=sent.start,
        end=sent.end,
        mse_increase=sent.mse_increase if sent.HasField("mse_increase") else None,
        variance_explained_drop=sent.variance_explained_drop
        if sent.HasField("variance_explained_drop")
        else None,
        recurrence=sent.recurrence if sent.HasField("recurrence") else None,
    )


def _flag(value: int) -> str:
    # By number if this client does not know it: an unknown warning is still one.
    name = {number: name for name, number in pb.ExplanationFlag.items()}.get(value, str(value))
    return name.removeprefix(_FLAG).lower()
