"""Control vectors that others wrote steer the model as transformers does with `direction.L` added
to what block L gives, which is how repeng and llama.cpp use them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import actserve
from tests.integration.conftest import Served

REPENG = Path(__file__).parent.parent / "client/files/repeng_smollm2.gguf"
"""What scripts/repeng_control_vector.py had repeng make of this model."""
PROMPT = "I went to the cinema, and I thought that the film was"
SITES = ["resid_post.9", "resid_post.10", "resid_post.12", "resid_post.15", "resid_post.29"]
"""Before the first changed layer, at it and after it."""
TOKENS = 12


def of_the_library(folder: Path) -> Path:
    """A control vector that the `gguf` library wrote, without anything of ours."""
    path = folder / "library.gguf"
    rows = np.random.default_rng(3).normal(size=(2, 576)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(rows))
    for layer, row in zip((10, 14), rows, strict=True):
        writer.add_tensor(f"direction.{layer}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def transformers_model(model_path: Callable[[str], Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_path("smollm2-135m"), dtype=torch.float32)


@pytest.fixture(params=["repeng", "library"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path, float]]:
    """What to call it, its file, and a coefficient that changes the text."""
    if request.param == "repeng":  # Whose directions are of norm one.
        yield "repeng", REPENG, 30.0
    else:
        yield "library", of_the_library(tmp_path), -1.5


def there(
    model: Any, path: Path, coefficient: float, ids: list[int]
) -> tuple[dict[str, np.ndarray], list[int]]:
    """The rows of each site and the greedy tokens, with the directions of a file added by hooks."""

    def adding(direction: np.ndarray) -> Callable[[Any, Any, Any], Any]:
        delta = torch.from_numpy(coefficient * direction)

        def hook(_block: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + delta, *output[1:])
            return output + delta

        return hook

    found: dict[str, np.ndarray] = {}

    def keeping(site: str) -> Callable[[Any, Any, Any], None]:
        def hook(_block: Any, _inputs: Any, output: Any) -> None:
            found[site] = (output[0] if isinstance(output, tuple) else output)[0].numpy().copy()

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for tensor in gguf.GGUFReader(path).tensors:
            layer = int(tensor.name.removeprefix("direction."))
            block = model.model.layers[layer]
            hooks.callback(block.register_forward_hook(adding(np.array(tensor.data))).remove)
        prompt = torch.tensor([ids])
        told = model.generate(prompt, do_sample=False, max_new_tokens=TOKENS)[0, len(ids) :]
        for site in SITES:
            block = model.model.layers[int(site.partition(".")[2])]
            hooks.callback(block.register_forward_hook(keeping(site)).remove)
        model(prompt)
    return found, told.tolist()


def test_a_control_vector_of_others_steers_as_it_does_there(
    case: tuple[str, Path, float], served: Served, transformers_model: Any
) -> None:
    name, path, coefficient = case
    client = served.client
    stored = client.vectors.store(name, actserve.load_vectors(path))
    steer = stored.add(coefficient)
    ids = [*client.tokenize(PROMPT).token_ids]
    rows, tokens = there(transformers_model, path, coefficient, ids)

    ours = client.fetch(PROMPT, SITES, intervene=steer)
    out = client.generate(PROMPT, intervene=steer, max_tokens=TOKENS, temperature=0)

    for site in SITES:
        scale = np.linalg.norm(rows[site], axis=1, keepdims=True)
        assert (np.abs(ours[site] - rows[site]) / scale).max() <= 1e-4, site
    assert [*out.token_ids] == tokens
    # It must matter, or the comparison would prove nothing; and nothing before it changes.
    plain = client.fetch(PROMPT, SITES)
    np.testing.assert_allclose(ours[SITES[0]], plain[SITES[0]], rtol=1e-4, atol=1e-4)
    assert np.linalg.norm(ours[SITES[1]] - plain[SITES[1]], axis=1).min() > 20
    assert out.text != client.generate(PROMPT, max_tokens=TOKENS, temperature=0).text
