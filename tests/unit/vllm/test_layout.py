"""Sites lie at places, in an order, so that edits and captures meet as the model computes."""

import pytest

from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from actserve_server.engine.vllm.layout import FINAL_NORM, LOGITS, Layout, SiteKey
from tests.unit.vllm.steps import site


@pytest.mark.parametrize("hook_point", HookPoint)
def test_a_site_comes_back_from_its_two_ints(hook_point: HookPoint) -> None:
    original = Site(hook_point, None if hook_point in LAYERLESS else 3)
    assert SiteKey(*map(int, SiteKey.of(original))).site == original


def test_every_site_has_ints_of_its_own() -> None:
    sites = [
        Site(hook_point, layer)
        for hook_point in HookPoint
        for layer in ([None] if hook_point in LAYERLESS else [0, 1, 29])
    ]
    assert len({*map(SiteKey.of, sites)}) == len(sites)
    assert (LOGITS.site, FINAL_NORM.site) == (site("logits"), site("final_norm"))


def _layout() -> Layout:
    layout = Layout()
    layout.add_place([(site("q.0"), False)], sharded=True)
    layout.add_place(
        [(site("mlp_out.0"), False), (site("resid_post.0"), True), (site("resid_pre.1"), True)]
    )
    layout.add_place([(site("final_norm"), False)])
    return layout


def test_places_are_numbered_as_they_are_reached_and_sites_ordered_within() -> None:
    layout = _layout()
    found = {
        str(key.site): (at.place, at.order, at.stream, at.sharded)
        for key, at in layout.sites.items()
    }
    assert found == {
        "q.0": (0, 0, False, True),
        "mlp_out.0": (1, 0, False, False),
        "resid_post.0": (1, 1, True, False),
        "resid_pre.1": (1, 2, True, False),
        "final_norm": (2, 0, False, False),
    }
    assert layout.place_count == 3


def test_some_sites_come_in_the_order_of_the_pass_however_they_are_asked_for() -> None:
    keys = [SiteKey.of(site(name)) for name in ("resid_pre.1", "final_norm", "mlp_out.0", "q.0")]
    got = [str(key.site) for key, _ in _layout().in_order(keys)]
    assert got == ["q.0", "mlp_out.0", "resid_pre.1", "final_norm"]


def test_a_layout_knows_its_hook_points() -> None:
    assert {str(hook_point) for hook_point in _layout().hook_points} == {
        "q",
        "mlp_out",
        "resid_post",
        "resid_pre",
        "final_norm",
    }
