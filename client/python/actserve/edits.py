"""Edits: an explanation rewritten, as a vector.

From Fraser-Taliente, Kantamneni, Ong et al., "Natural Language Autoencoders Produce Unsupervised
Explanations of LLM Activations", 2026.
"""

from dataclasses import dataclass

from actserve._checks import described, unicode
from actserve.errors import InvalidRequest
from actserve.nlas import nla_name
from actserve.paths import format_path
from actserve.v1 import source_pb2


@dataclass(frozen=True)
class ExplanationEdit:
    """The reconstruction of an edited explanation less that of the original: the vector of an
    intervention at the site of the NLA.

    Both are of L2 norm sqrt(width), so only the direction of the difference has a meaning: use
    `Add(..., relative=True)`, `Ablate` or `Clamp`.

    - `original`: the explanation as it was.
    - `edited`: the explanation as it should be.
    - `nla`: the id of the NLA that reconstructs; not needed where the site has only one.

    Raises `InvalidRequest`.
    """

    original: str
    edited: str
    nla: str | None = None

    def __post_init__(self) -> None:
        check_text(self.original, "original")
        check_text(self.edited, "edited")
        # The reconstructor reads texts without the space around them.
        if self.edited.strip() == self.original.strip():
            raise InvalidRequest(
                "edited says the same as original, so their difference is zero; change it",
                reason="FIELD_INVALID",
                path=("edited",),
            )
        nla_name(self.nla)

    def to_proto(self) -> source_pb2.ExplanationEdit:
        """The edit as the contract writes it."""
        return source_pb2.ExplanationEdit(
            nla=nla_name(self.nla), original=self.original, edited=self.edited
        )


def check_text(text: object, *path: str | int) -> str:
    """A text that can be reconstructed. Raises `InvalidRequest` for anything else."""
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest(
            f"{format_path(path)} is {described(text)}; give an explanation, a string that says "
            "something",
            reason="FIELD_REQUIRED",
            path=path,
        )
    return unicode(text, format_path(path), *path)
