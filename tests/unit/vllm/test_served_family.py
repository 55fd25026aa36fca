"""What vLLM is not started with."""

from types import SimpleNamespace
from typing import cast

import pytest
from vllm.config import SpeculativeConfig, VllmConfig

from actserve_server.engine.vllm.families import FAMILIES
from actserve_server.engine.vllm.startup import served_family


def _config(architecture: str, speculative: SpeculativeConfig | None = None) -> VllmConfig:
    """As much of vLLM's configuration as is looked at."""
    model = SimpleNamespace(architecture=architecture)
    return cast(VllmConfig, SimpleNamespace(model_config=model, speculative_config=speculative))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_family_is_that_of_the_architecture(architecture: str) -> None:
    assert served_family(_config(architecture)) is FAMILIES[architecture]


def test_an_architecture_that_is_not_known_has_none() -> None:
    assert served_family(_config("GPT9")) is None


def test_speculative_decoding_is_refused() -> None:
    """vLLM turns it on by itself for a checkpoint that is a speculator and names its model."""
    guessing = SpeculativeConfig(method="ngram", num_speculative_tokens=2)
    with pytest.raises(ValueError, match="speculative decoding is not served"):
        served_family(_config("LlamaForCausalLM", guessing))
