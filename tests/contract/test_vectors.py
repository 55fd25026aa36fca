"""What a call changes rows by is held once, however many samples and sites have it."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import REGISTRY

from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    Served,
    collect,
    eventually,
    fetch,
    generate,
    intervention,
    serving,
    site,
)
from tests.contract.readouts import kept

SITES = [site(layer) for layer in range(4)]
TOKENS, SAMPLES = 50, 16
PROMPT = "a" * (TOKENS - 1)  # And the token that begins a text.
ROW_BYTES = 4 * 16
"""Of float32, in which every row is changed."""


def _held() -> float | None:
    return REGISTRY.get_sample_value("actserve_vector_bytes")


async def _keep(served: Served) -> str:
    request = fetch(PROMPT, capture={"sites": SITES, "keep": {}})
    return kept(await collect(served.generation.FetchActivations(request)))[0]


def _patched(rows: Mapping[str, Any]) -> Any:
    """Samples in which kept rows replace those of the whole prompt at every site."""
    change = intervention(
        *SITES,
        replace={"rows": {"kept": rows}},
        positions={"list": {"positions": range(TOKENS)}},
    )
    sampling = {"max_tokens": 1000, "samples": SAMPLES}
    return generate(prompt={"text": PROMPT}, sampling=sampling, interventions=[change])


async def test_the_samples_of_a_call_hold_their_vectors_once() -> None:
    fake = FakeEngine(token_delay_s=0.01)
    async with serving(fake) as served:
        name = await _keep(served)
        call = served.generation.Generate(_patched({"name": name}))
        await call.read()
        await eventually(lambda: len(fake.counters.running) == SAMPLES, within_s=30)
        assert _held() == 4 * TOKENS * ROW_BYTES
        call.cancel()
        await eventually(lambda: not _held(), within_s=30)


async def test_sites_that_take_the_same_kept_rows_hold_them_once() -> None:
    fake = FakeEngine(token_delay_s=0.01, element_type=ElementType.BF16)
    async with serving(fake) as served:
        name = await _keep(served)
        assert served.app.kept.copies.held_bytes == 0
        call = served.generation.Generate(_patched({"name": name, "site": SITES[0]}))
        await call.read()
        await eventually(lambda: len(fake.counters.running) == SAMPLES, within_s=30)
        assert _held() == served.app.kept.copies.held_bytes == TOKENS * ROW_BYTES
        call.cancel()
        await eventually(lambda: not _held(), within_s=30)
        await eventually(lambda: not served.app.kept.copies.held_bytes, within_s=30)
