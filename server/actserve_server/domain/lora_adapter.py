"""A LoRA adapter (Hu et al., 2021) that the model can run with: low-rank changes of some of its
matrices, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

ATTENTION_OUTPUTS = frozenset({"o_proj", "c_proj", "out_proj", "dense", "wo"})
"""What the matrix that reads the heads' results is called in checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapter:
    """One that the operator has loaded."""

    id: str
    """The last part of its name."""
    path: str
    """The folder that holds it."""
    rank: int
    """The largest of its changes."""
    shapes: Mapping[str, tuple[int, int]] = field(repr=False)
    """(outputs, inputs) of each matrix that it changes, by the module's path in the checkpoint,
    such as `model.layers.0.self_attn.q_proj`."""
    sha256: str
    """Of its files, in hexadecimal."""

    @property
    def modules(self) -> frozenset[str]:
        """The last parts of the names of the modules that it changes."""
        return frozenset(name.rpartition(".")[2] for name in self.shapes)

    @property
    def changes_attention_outputs(self) -> bool:
        """Whether what a head adds to the stream is not what the base's matrix makes of it."""
        return bool(self.modules & ATTENTION_OUTPUTS)
