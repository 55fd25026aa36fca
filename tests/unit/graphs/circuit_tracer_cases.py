"""What circuit-tracer and actserve both make graphs of. Imported in the environments of both."""

from dataclasses import dataclass
from pathlib import Path

from actserve_server.dictionaries.dictionary import ActivationKind, LoadedDictionary
from tests.unit.graphs import random_transcoders

PROMPT = (5, 17, 3, 88, 17)
FEATURES = 16
"""Of each transcoder, few enough for small files."""
LOGITS = 3
NODES, EDGES = 0.8, 0.98
"""Thresholds of what is kept."""


@dataclass(frozen=True)
class Case:
    """A tiny random model, and transcoders for its layers."""

    family: str
    activation: ActivationKind
    skip: bool

    def transcoder(self, layer: int) -> LoadedDictionary:
        return random_transcoders.transcoder(
            layer, self.activation, skip=self.skip, features=FEATURES
        )

    @property
    def file(self) -> Path:
        """What circuit-tracer made of it."""
        return Path(__file__).parent / "files" / f"circuit_tracer_{self.family}.safetensors"


CASES = (
    Case("llama", ActivationKind.RELU, skip=False),
    Case("qwen3", ActivationKind.JUMP_RELU, skip=True),
    Case("gemma3", ActivationKind.RELU, skip=False),
)
