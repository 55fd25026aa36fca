"""Sites lie at tap points and stages so that edits and captures meet in the right order."""

import pytest

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.points import Stage, Tap, tap_of

CASES = [
    (Site(HookPoint.EMBEDDING), Tap(0, Stage.STREAM)),
    (Site(HookPoint.RESID_PRE, 0), Tap(0, Stage.NEXT)),
    (Site(HookPoint.ATTN_OUT, 0), Tap(1, Stage.BRANCH)),
    (Site(HookPoint.RESID_MID, 0), Tap(1, Stage.STREAM)),
    (Site(HookPoint.MLP_OUT, 0), Tap(2, Stage.BRANCH)),
    (Site(HookPoint.RESID_POST, 0), Tap(2, Stage.STREAM)),
    (Site(HookPoint.RESID_PRE, 1), Tap(2, Stage.NEXT)),
    (Site(HookPoint.RESID_POST, 29), Tap(60, Stage.STREAM)),
]


@pytest.mark.parametrize(("site", "tap"), CASES, ids=lambda value: str(value))
def test_every_site_has_its_tap(site: Site, tap: Tap) -> None:
    assert tap_of(site) == tap


def test_taps_sort_in_the_order_the_model_computes_them() -> None:
    taps = [tap_of(site) for site, _ in CASES]
    assert taps == sorted(taps)
