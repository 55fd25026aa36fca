"""Baselines are found again by tenant and name, in every database, and so many at most."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.nla.autoencoder import NlaInfo
from actserve_server.nla.profile import Baseline, NlaProfile
from actserve_server.nla.stored_baselines import MAX_OF_ONE, BaselineQuota, StoredBaselines
from actserve_server.storage.database import Database
from actserve_server.storage.database_places import place

ROWS = (np.random.default_rng(0).standard_normal((60, 32)) + 2).astype(np.float32)
OWN = Baseline(variance=0.7335)
PROFILE = NlaProfile(
    family="tiny",
    base_checkpoint="a/fake",
    site=Site(HookPoint.RESID_POST, 1),
    width=32,
    verbalizer=None,
    reconstructor=None,
)
PLAIN = NlaInfo(id="tiny", model_id="fake", profile=PROFILE)
NLA = replace(PLAIN, profile=replace(PROFILE, baseline=OWN))
FIELD = ("spec", "baseline")
MAX = 128


@pytest.fixture
async def database(store: dict[str, str]) -> AsyncIterator[Database]:
    folder = store.get("data_dir")
    opened = Database(place(store.get("database_url"), Path(folder) if folder else None))
    yield opened
    opened.close()


@pytest.fixture
def stored(database: Database) -> StoredBaselines:
    return StoredBaselines(database, BaselineQuota(max_baselines=MAX))


async def found(
    stored: StoredBaselines, name: str = "", tenant: str = "", nla: NlaInfo = NLA
) -> int | None:
    """Of how many rows the baseline is that is used; zero for the checkpoint's."""
    baseline = await stored.get(nla, name, FIELD, tenant)
    return None if baseline is None else baseline.rows


async def counts(stored: StoredBaselines, tenant: str = "", nla: NlaInfo = NLA) -> dict[str, int]:
    return {name: each.rows for name, each in (await stored.all(nla, tenant)).items()}


async def test_a_baseline_is_read_as_it_was_measured(stored: StoredBaselines) -> None:
    measured = await stored.measure(NLA, "mine", ROWS, "")
    again = (await stored.all(NLA, ""))["mine"]
    assert measured.mean is not None
    assert again.mean is not None
    np.testing.assert_array_equal(again.mean, measured.mean)
    assert (again.variance, again.median_norm, again.rows) == (
        measured.variance,
        measured.median_norm,
        60,
    )


async def test_the_default_is_the_checkpoints_until_one_is_measured(
    stored: StoredBaselines,
) -> None:
    assert await counts(stored) == {"default": 0}
    assert (await found(stored), await found(stored, nla=PLAIN)) == (0, None)
    await stored.measure(NLA, "default", ROWS[:30], "")
    await stored.measure(NLA, "default", ROWS, "")
    assert (await found(stored), await counts(stored)) == (60, {"default": 60})
    await stored.delete(NLA, "default", "")
    assert await found(stored) == 0


async def test_one_that_is_not_there_is_refused_with_those_that_are(
    stored: StoredBaselines,
) -> None:
    await stored.measure(NLA, "wikipedia", ROWS, "")
    with pytest.raises(ActserveError) as refused:
        await stored.get(NLA, "gutenberg", FIELD, "")
    assert (refused.value.reason, refused.value.field) == (Reason.BASELINE_NOT_FOUND, FIELD)
    assert "'gutenberg' of this NLA, which has default, wikipedia" in refused.value.message
    assert refused.value.metadata["resource_name"] == "gutenberg"


async def test_a_tenant_sees_its_own_and_else_those_of_all(stored: StoredBaselines) -> None:
    await stored.measure(NLA, "wikipedia", ROWS[:30], "mine")
    await stored.measure(NLA, "wikipedia", ROWS, "operator", shared=True)
    await stored.measure(NLA, "other", ROWS, "theirs")
    assert await counts(stored, "mine") == {"default": 0, "wikipedia": 30}
    assert await counts(stored, "theirs") == {"default": 0, "wikipedia": 60, "other": 60}
    with pytest.raises(ActserveError, match="no baseline 'other' of this NLA"):
        await stored.get(NLA, "other", FIELD, "mine")
    await stored.delete(NLA, "wikipedia", "mine")
    assert await counts(stored, "mine") == {"default": 0, "wikipedia": 60}
    with pytest.raises(ActserveError, match="was measured for your tenant"):
        await stored.delete(NLA, "wikipedia", "mine")


async def test_one_of_another_site_width_or_model_is_not_seen(stored: StoredBaselines) -> None:
    await stored.measure(NLA, "mine", ROWS, "")
    for other in (
        replace(NLA, profile=replace(PROFILE, site=Site(HookPoint.RESID_POST, 2))),
        replace(NLA, profile=replace(PROFILE, width=16)),
        replace(NLA, model_id="another"),
        replace(NLA, id="another"),
    ):
        assert await counts(stored, nla=other) == {
            name: 0 for name in ["default"] if other.profile.baseline
        }


async def test_what_cannot_be_measured_replaces_nothing(stored: StoredBaselines) -> None:
    await stored.measure(NLA, "mine", ROWS, "")
    with pytest.raises(ActserveError, match="1 rows have no variance"):
        await stored.measure(NLA, "mine", ROWS[:1], "")
    assert await found(stored, "mine") == 60


@pytest.mark.parametrize(
    ("quota", "most", "says"),
    [
        (BaselineQuota(max_baselines=0), 0, "stores no baselines"),
        (BaselineQuota(max_baselines=8, tenant_share=0.25), 2, "at most 2 may be"),
        (BaselineQuota(max_baselines=3), 3, "at most 3 may be"),
    ],
)
async def test_a_tenant_stores_no_more_than_its_share(
    database: Database, quota: BaselineQuota, most: int, says: str
) -> None:
    stored = StoredBaselines(database, quota)
    for number in range(most):
        await stored.measure(NLA, f"b{number}", ROWS[:2], f"team/{number}")
    with pytest.raises(ActserveError, match=says) as refused:
        await stored.measure(NLA, "one-more", ROWS, "team/more")
    assert (refused.value.reason, refused.value.field) == (Reason.STORE_QUOTA_EXCEEDED, ("name",))
    if most:
        await stored.measure(NLA, "b0", ROWS, "team/0")
        assert await found(stored, "b0", "team/0") == 60


async def test_for_one_and_over_all_no_more_are_stored_than_the_limits(
    stored: StoredBaselines,
) -> None:
    for number in range(MAX_OF_ONE):
        await stored.measure(NLA, f"b{number}", ROWS[:2], "")
    with pytest.raises(ActserveError, match=f"at most {MAX_OF_ONE} may be"):
        await stored.measure(NLA, "one-more", ROWS[:2], "")
    for number in range(MAX - MAX_OF_ONE):
        await stored.measure(NLA, f"b{number}", ROWS[:2], "", shared=True)
    with pytest.raises(ActserveError, match="other tenants leave no room"):
        await stored.measure(NLA, "one-more", ROWS[:2], "late")
