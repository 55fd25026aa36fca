"""Sites: how people write them, and which layer they mean."""

import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (Site(HookPoint.RESID_POST, 10), "resid_post.10"),
        (Site(HookPoint.EMBEDDING), "embedding"),
        (Site(HookPoint.FINAL_NORM), "final_norm"),
        (Site(HookPoint.Z, 0), "z.0"),
        (Site(HookPoint.MLP_OUT, -1), "mlp_out.-1"),
    ],
)
def test_a_site_reads_as_people_write_it(site: Site, text: str) -> None:
    assert str(site) == text


@pytest.mark.parametrize(("layer", "resolved"), [(0, 0), (3, 3), (-1, 3), (-4, 0)])
def test_layers_count_from_either_end(layer: int, resolved: int) -> None:
    site = Site(HookPoint.RESID_PRE, layer)
    assert site.resolve(4, ("site",)) == Site(HookPoint.RESID_PRE, resolved)


@pytest.mark.parametrize("hook_point", sorted(LAYERLESS))
def test_what_exists_once_has_no_layer(hook_point: HookPoint) -> None:
    assert Site(hook_point).resolve(4, ("site",)) == Site(hook_point)


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (Site(HookPoint.RESID_PRE, 4), Reason.LAYER_OUT_OF_RANGE),
        (Site(HookPoint.RESID_PRE, -5), Reason.LAYER_OUT_OF_RANGE),
        (Site(HookPoint.RESID_PRE), Reason.SITE_INVALID),
        (Site(HookPoint.MLP_ACT), Reason.SITE_INVALID),
        *((Site(hook_point, 0), Reason.SITE_INVALID) for hook_point in sorted(LAYERLESS)),
    ],
    ids=str,
)
def test_a_site_that_is_not_there_is_refused(site: Site, reason: Reason) -> None:
    with pytest.raises(ActserveError) as caught:
        site.resolve(4, ("capture", "sites", 2))
    assert (caught.value.reason, caught.value.field) == (reason, ("capture", "sites", 2))
