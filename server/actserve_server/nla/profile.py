"""What a natural language autoencoder is: one profile for every family of checkpoints.

Loaders (`sidecar.py`, `pair_families.py`) turn what checkpoints carry into a profile; all else
works from profiles alone.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from actserve_server.domain.runs import Sampling
from actserve_server.domain.sites import Site


@dataclass(frozen=True, slots=True)
class ReplaceEmbedding:
    """The vector takes the place of the slot's embedding (Fraser-Taliente et al., 2026)."""

    scale: float | None
    """L2 norm that the vector is scaled to; None leaves it as it is."""


@dataclass(frozen=True, slots=True)
class AddAtBlock:
    """The vector is added to the residual stream at the slot (activation oracles,
    arXiv 2512.15674): h + coefficient |h| v / |v|, where h is the output of a block."""

    layer: int
    """The block whose output is changed, zero-based."""
    coefficient: float = 1.0


Injection = ReplaceEmbedding | AddAtBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where in the AV's prompt vectors go: consecutive tokens of one kind."""

    text: str
    """The marker as the template holds it, once for each vector."""
    token_id: int
    """The one token that the marker is."""
    left_id: int | None = None
    """The token before the first marker; not checked when None."""
    right_id: int | None = None
    """The token after the last marker; not checked when None."""
    count: int = 1
    """How many markers there are; every one gets the same vector."""


class Form(Enum):
    """The form in which explanations are written."""

    TAGS = "tags"
    """Between <explanation> and </explanation>."""
    LINES = "lines"
    """One item a line."""
    RAW = "raw"
    """As they come."""


UNTRUNCATED = Sampling(temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0, max_tokens=200)
"""As AVs are trained to write, whatever a generation config holds for chats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbalizerProfile:
    """How the AV, a language model, is asked about a vector."""

    injection: Injection
    template: str
    """What the user's turn says. `{injection_char}` stands for the markers, `{question}` for the
    caller's question and `{layer}` for the layer of the NLA, where the template has them."""
    slot: Slot
    enable_thinking: bool | None = None
    """Passed to the chat template; not passed when None."""
    prefill: str = ""
    """What the answer begins with; it counts as part of the answer when it is parsed."""
    form: Form = Form.TAGS
    sampling: Sampling = UNTRUNCATED
    """With the stop strings. `max_tokens` is the most a request may ask for."""

    @property
    def answers_questions(self) -> bool:
        return "{question}" in self.template


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructorProfile:
    """How the AR, a language model cut off after the NLA's layer, is asked about a text."""

    template: str
    """`{explanation}` stands for the text."""
    suffix_ids: tuple[int, ...] = ()
    """What the tokens of every prompt end with; not checked when empty."""
    special_tokens: bool = True
    """Whether the tokenizer's special tokens are added, BOS above all."""
    normalize_state: bool = False
    """Whether the state is scaled to an L2 norm of sqrt(width) before the head."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """What the fraction of variance explained is relative to: rows that were each scaled to an L2
    norm of sqrt(width)."""

    variance: float
    """The mean over elements of the variance over rows."""
    mean: np.ndarray | None = None
    """The mean row, float32 [width]; None if it is not known."""
    median_norm: float | None = None
    """Median L2 norm of the rows as they were; None if it is not known."""
    rows: int = 0
    """Rows it was measured from; zero if that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NlaProfile:
    """A pair, or one half of one."""

    family: str
    base_checkpoint: str
    site: Site
    """Where the explained rows come from, with an absolute layer."""
    width: int
    verbalizer: VerbalizerProfile | None
    reconstructor: ReconstructorProfile | None
    baseline: Baseline | None = None
    """What the checkpoint itself says scores are relative to."""
