"""Monitors that an operator sets for a tenant watch all that it generates, whatever it asks, and
steer it where they are to; which its receipts tell."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from actserve.v1 import generation_service_pb2 as generation_pb
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.principals import Role
from tests.contract.harness import (
    Served,
    addition,
    bearing,
    collect,
    eventually,
    failure,
    generate,
    serving,
    write_tokens,
)
from tests.contract.monitors import create, full, numbers
from tests.contract.refusals import WIDTH
from tests.contract.sweeps import cells, sweep

VISION, LANGUAGE = bearing("of-vision"), bearing("of-language")
OPERATOR = bearing("of-an-operator")
ALWAYS = -1e6
OWN, SET = full("steer"), full("platform.steer")


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    return write(tmp_path / "tenants.yaml", "tenants: {vision: {monitors: [platform/steer]}}")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
async def served(tmp_path: Path, tenants: Path) -> AsyncIterator[Served]:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("of-vision", "vision", Role.READER),
        ("of-language", "language", Role.READER),
        ("of-an-operator", "platform", Role.OPERATOR),
    )
    async with serving(token_file=tokens, tenant_file=tenants) as running:
        yield running


async def set_up(served: Served) -> None:
    """Steers whatever is generated."""
    change = addition(numbers(WIDTH) * 50)
    level = {"threshold": ALWAYS, "intervene": {"interventions": [change]}}
    request = create("steer", upper=level, watch={"named_only": True})
    await served.monitors.CreateMonitor(request, metadata=OPERATOR)


async def finished(served: Served, metadata: Any, **changes: Any) -> Any:
    request = generate(score_detail=generation_pb.SCORE_DETAIL_SAMPLE, **changes)
    call = served.generation.Generate(request, metadata=metadata)
    (last,) = [
        event.sample_finished
        for event in await collect(call)
        if event.WhichOneof("event") == "sample_finished"
    ]
    return last


async def test_all_of_a_tenant_is_steered_and_told_so_and_nobody_else(served: Served) -> None:
    await set_up(served)
    told = await finished(served, VISION)
    assert [score.monitor for score in told.monitor_scores] == [SET]
    (changed,) = told.monitor_interventions
    assert changed.monitor == SET
    assert changed.interventions[0].changed_rows > 0
    part = (*VISION, ("actserve-tenant", "part"))
    assert (await finished(served, part)).monitor_interventions
    for metadata in (LANGUAGE, OPERATOR):
        other = await finished(served, metadata)
        assert not other.monitor_scores
        assert not other.monitor_interventions


async def test_what_it_raises_is_the_tenants_own_to_read(served: Served) -> None:
    await set_up(served)
    await finished(served, VISION)
    for metadata, names in ((VISION, [SET]), (LANGUAGE, []), (OPERATOR, [])):
        listed = await served.monitors.ListAlerts(
            pb.ListAlertsRequest(model="models/fake"), metadata=metadata
        )
        assert [alert.monitor for alert in listed.alerts] == names


async def test_the_tenant_can_neither_see_nor_stop_it(served: Served) -> None:
    await set_up(served)
    for name in (OWN, SET):
        for call in (
            served.monitors.GetMonitor(pb.GetMonitorRequest(name=name), metadata=VISION),
            served.generation.Generate(generate(monitors=[name]), metadata=VISION),
        ):
            refused = await failure(call)
            assert refused.code in (
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.INVALID_ARGUMENT,
            )


async def test_a_tenants_own_monitor_of_that_name_cannot_be(served: Served) -> None:
    """Or its alerts could be taken for the operator's."""
    refused = await failure(
        served.monitors.CreateMonitor(create("platform.steer"), metadata=OPERATOR)
    )
    assert (refused.reason, refused.field) == ("FIELD_INVALID", "monitor_id")


async def test_nothing_is_generated_unwatched(served: Served, tenants: Path) -> None:
    refused = await failure(served.generation.Generate(generate(), metadata=VISION))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "RESOURCE_NOT_READY"
    assert "operator" in refused.message
    await finished(served, LANGUAGE)
    write(tenants, "{}")

    async def is_answered() -> bool:
        try:
            await finished(served, VISION)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(is_answered, within_s=30)


async def test_what_no_monitor_watches_generates_nothing(served: Served) -> None:
    """A sweep of one plain variant would be a way around all of them."""
    await set_up(served)
    asked = sweep(variants=[{"key": "plain"}])
    refused = await failure(served.sweeps.RunSweep(asked, metadata=VISION))
    assert (refused.reason, refused.field) == ("RESOURCE_NOT_READY", "sampling")
    asked.ClearField("sampling")
    asked.answers.add(name="yes", text="yes")
    assert cells(await collect(served.sweeps.RunSweep(asked, metadata=VISION)))
    assert cells(await collect(served.sweeps.RunSweep(sweep(), metadata=OPERATOR)))


async def test_one_that_its_owner_pauses_watches_nothing(served: Served) -> None:
    await set_up(served)
    await served.monitors.UpdateMonitor(
        pb.UpdateMonitorRequest(
            monitor={"name": OWN, "paused": True}, update_mask={"paths": ["paused"]}
        ),
        metadata=OPERATOR,
    )

    async def is_left_alone() -> bool:
        return not (await finished(served, VISION)).monitor_scores

    await eventually(is_left_alone, within_s=30)
    plain = sweep(variants=[{"key": "plain"}])
    assert cells(await collect(served.sweeps.RunSweep(plain, metadata=VISION)))
