"""The Python client's vectors and sweeps on the fake engine: names mean what their numbers mean,
and a sweep that is cut, by its reader or by the end of the server, comes to the same table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import Ablate, Add, Clamp, NotFound, Probe, Sweep, Variant
from tests.contract.harness import Served, serving

WIDTH = 16
RNG = np.random.default_rng(3)
JOY = {f"resid_post.{layer}": RNG.normal(size=WIDTH) for layer in range(3)}
SITE = "resid_post.1"


def client_of(served: Served) -> actserve.AsyncClient:
    return actserve.AsyncClient(f"127.0.0.1:{served.app.port}")


async def test_a_name_steers_as_its_numbers_do_through_a_file_of_any_kind(tmp_path: Path) -> None:
    async with serving() as served, client_of(served) as client:
        joy = await client.vectors.store("joy", JOY)
        for suffix in (".safetensors", ".npz"):
            path = tmp_path / f"joy{suffix}"
            actserve.save_vectors(path, await client.vectors.get(joy, elements=True))
            again = await client.vectors.store(f"again-{suffix[1:]}", actserve.load_vectors(path))
            assert again.content_sha256 == joy.content_sha256
        for make in (
            lambda vector: Add(SITE, vector, 2.0),
            lambda vector: Add(SITE, vector, 0.5, relative=True),
            lambda vector: Ablate(SITE, vector),
            lambda vector: Clamp(SITE, vector, 1.0),
        ):
            by_name, by_numbers = await client.generate(
                ["hello world"] * 2,
                intervene=[[make("joy")], [make(JOY[SITE])]],
                max_tokens=8,
                temperature=0.0,
                sites=SITE,
            )
            assert by_name.text == by_numbers.text
            np.testing.assert_array_equal(by_name.activations[SITE], by_numbers.activations[SITE])
        everywhere, each = await client.generate(
            ["hello world"] * 2,
            intervene=[[joy], [Add(at, values) for at, values in JOY.items()]],
            sites="resid_post.*",
            max_tokens=2,
            temperature=0.0,
        )
        for at in everywhere.activations:
            np.testing.assert_array_equal(everywhere.activations[at], each.activations[at])


async def test_an_unknown_name_tells_those_that_are_near() -> None:
    async with serving() as served, client_of(served) as client:
        await client.vectors.store("joy", JOY)
        for call in (client.vectors.get("joi"), client.generate("a", intervene=Add(SITE, "joi"))):
            with pytest.raises(NotFound, match="joy"):
                await call


async def test_vectors_are_listed_over_many_pages(tmp_path: Path) -> None:
    async with serving() as served, client_of(served) as client:
        for index in range(120):
            labels = {"odd": str(index % 2)}
            await client.vectors.store(f"v{index:03}", RNG.normal(size=WIDTH), SITE, labels=labels)
        listed = [vector.id async for vector in client.vectors.list({"odd": "1"})]
        assert listed == [f"v{index:03}" for index in range(1, 120, 2)]


ASKED: dict[str, Any] = {
    "prompts": {f"p{index}": f"prompt {index}" for index in range(15)},
    "variants": {
        "joy": Variant("joy", np.linspace(-2, 2, 13).tolist(), list(JOY)),
    },
    "answers": {"good": " good"},
    "scores": {"joy": Probe(SITE, JOY[SITE], reduce="mean")},
}
CELLS = 15 * (1 + 13 * 3)
"""600. tests/contract/test_resumed_sweeps.py cuts one of 3,000."""


def numbers(sweep: Sweep) -> list[Any]:
    return [
        (cell.prompt, cell.variant, cell.site, cell.coefficient, cell.answers, cell.scores)
        for cell in sweep.cells
    ]


@pytest.mark.slow
async def test_a_sweep_that_is_cut_comes_to_the_same_table(tmp_path: Path) -> None:
    partial, data = tmp_path / "joy.jsonl", tmp_path / "data"
    async with serving(data_dir=data) as served, client_of(served) as client:
        await client.vectors.store("joy", JOY)
        whole = await client.sweep(**ASKED, afresh=True)
        assert len(whole) == CELLS
    # The server of the first half, the end of which takes the reader with it.
    async with serving(data_dir=data) as served, client_of(served) as client:
        cells = client.sweep_iter(**ASKED, afresh=True, partial=partial)
        came = [await anext(cells) for _ in range(CELLS // 2)]
    await cells.aclose()
    async with serving(data_dir=data) as served, client_of(served) as client:
        again = await client.sweep(**ASKED, afresh=True, partial=partial)
        assert numbers(again) == numbers(whole)
        assert sum(not cell.stored for cell in came) == CELLS // 2
        # And without the file the server has all of them.
        stored = await client.sweep(**ASKED)
        assert numbers(stored) == numbers(whole)
        assert all(cell.stored for cell in stored.cells)
