"""How long rows are is found in parts, whatever comes in which order, without the first row."""

from collections.abc import AsyncGenerator
from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.model import Limits
from actserve_server.domain.runs import Run, RunEvent
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.engine import row_norms as module
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.row_norms import TEXT, TOKENS, row_norms


class Watched(FakeEngine):
    """Tells which sites its runs capture, and from where on."""

    captured: list[tuple[Site, ...]]

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        (capture,) = run.captures
        self.captured = [*getattr(self, "captured", []), capture.sites]
        assert capture.selection.among(run.token_ids)[0] == 1
        assert run.computes_all  # And leaves nothing in the cache of rows.
        async for event in super().run(run):
            yield event


POINTS = (HookPoint.RESID_POST, HookPoint.MLP_ACT, HookPoint.LOGITS)
UNSERVED = {point: "not wanted" for point in HookPoint if point not in POINTS}


def engine(tokens: int = 20, element_type: ElementType = ElementType.F32) -> Watched:
    limits = Limits(max_sequence_tokens=tokens)
    return Watched(unserved=UNSERVED, limits=limits, element_type=element_type)


async def expected(fake: FakeEngine, site: Site) -> float:
    ids = (await fake.tokenize(module.TextPrompt(TEXT))).ids[:19]
    norms = [np.linalg.norm(fake.row(site, ids[: n + 1]).astype(np.float64)) for n in range(1, 19)]
    return float(np.median(norms))


async def test_every_served_site_has_the_median_of_all_rows_but_the_first() -> None:
    fake = engine()
    found = await row_norms(fake, fake.info)
    assert found.keys() == {
        *(Site(point, layer) for point in POINTS[:2] for layer in range(4)),
        Site(HookPoint.LOGITS),
    }
    for site in (Site(HookPoint.RESID_POST, 2), Site(HookPoint.LOGITS)):
        assert found[site] == pytest.approx(await expected(fake, site), rel=1e-12)


async def test_large_sites_are_read_in_parts_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = engine()
    whole = await row_norms(fake, fake.info)
    fake.captured = []
    monkeypatch.setattr(module, "RUN_BYTES", 19 * 4 * (16 + 24))
    assert await row_norms(fake, fake.info) == whole
    assert len(fake.captured) > 3
    every = [site for part in fake.captured for site in part]
    assert len(every) == len(set(every)) == len(whole)


async def test_a_text_is_no_longer_than_it_need_be() -> None:
    assert len(TEXT) > TOKENS


async def test_one_token_tells_nothing() -> None:
    fake = engine(tokens=2)
    assert await row_norms(fake, fake.info) == {}


async def test_a_site_whose_rows_are_zero_or_overflow_has_no_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = engine()
    rows = {HookPoint.RESID_POST: 0.0, HookPoint.MLP_ACT: np.inf, HookPoint.LOGITS: 2.0}
    widths = {point: fake.info.hook_points[point].width for point in POINTS}
    monkeypatch.setattr(
        fake._model,
        "row",
        lambda site, ids, changes: np.full(
            widths[site.hook_point], rows[site.hook_point], np.float32
        ),
    )
    wanted = 2 * np.sqrt(widths[HookPoint.LOGITS])
    assert await row_norms(fake, replace(fake.info)) == {Site(HookPoint.LOGITS): wanted}
