"""However many callers there are, and whatever they send, a server has no more series than it can
say beforehand; and tenants are counted by classes that the operator names."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from actserve.v1 import monitor_service_pb2 as monitor_pb
from actserve_server.domain.principals import Role
from actserve_server.domain.tenant_rules import TenantRules
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc.transport import class_metrics
from tests.contract.harness import (
    addition,
    bearing,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    serving,
    site,
    write_tokens,
)
from tests.contract.refusals import WIDTH

LABELS = {
    # Of the contract and the code.
    "action", "grpc_code", "grpc_method", "grpc_service", "grpc_type", "kind", "le", "level",
    "operation", "origin", "outcome", "path", "quota", "reason", "stage", "state", "status",
    # Of what the operator has named.
    "model", "nla", "tenant_class",
    # Of callers, 200 at a time (tests/unit/monitors/test_measures.py).
    "monitor",
}  # fmt: skip
"""Every label that there may be. None is a tenant, or of a prompt or an output."""


def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """What a scrape would have."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in REGISTRY.collect()
        if family.name.startswith(("actserve_", "grpc_server_"))
        for sample in family.samples
    }


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def write_tenants(path: Path, *lines: str) -> Path:
    path.write_text("tenants:\n" + "".join(f"  {line}\n" for line in lines))
    return path


def test_labels_have_values_that_are_known_beforehand() -> None:
    assert {label for _, labels in series() for label, _ in labels} <= LABELS


async def test_many_tenants_and_names_make_no_more_series(tmp_path: Path) -> None:
    callers = [(f"token-{each}", f"tenant-{each}", Role.EXPERIMENTER) for each in range(12)]
    tokens = write_tokens(tmp_path / "tokens.yaml", *callers)

    async with serving(token_file=tokens) as served:

        async def call(number: int) -> None:
            metadata = (*bearing(f"token-{number}"), ("actserve-tenant", f"tenant-{number}/part"))
            stub = served.generation
            asked = generate(
                prompt={"text": f"prompt {number}"},
                interventions=[addition([number + 1.0] * WIDTH)],
            )
            await collect(stub.Generate(asked, metadata=metadata))
            await collect(stub.FetchActivations(fetch(f"text {number}"), metadata=metadata))
            await failure(stub.Generate(generate(model=f"models/{number}"), metadata=metadata))
            await failure(
                served.monitors.GetMonitor(
                    monitor_pb.GetMonitorRequest(name=f"models/fake/monitors/m{number}"),
                    metadata=metadata,
                )
            )

        await call(0)
        before = series()
        for number in range(1, 12):
            await call(number)
        after = series()
    assert after == before


async def test_the_load_of_tenants_is_told_by_their_class(tmp_path: Path) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("a-token", "vision", Role.READER),
        ("b-token", "speech", Role.READER),
        ("c-token", "guest", Role.READER),
    )
    tenants = write_tenants(
        tmp_path / "tenants.yaml", "vision: {class: research}", "speech: {class: research}"
    )
    options = {"token_file": tokens, "tenant_file": tenants, "max_running": 2}
    async with serving(FakeEngine(token_delay_s=0.01), **options, tenant_share=1.0) as served:
        request = generate(sampling={"max_tokens": 1000}, capture={"sites": [site()]})
        calls = []
        for token in ("a-token", "b-token", "c-token"):
            calls.append(served.generation.Generate(request, metadata=bearing(token)))
            await calls[-1].read()
        name = "actserve_class_runs_in_flight"
        await eventually(lambda: metric(name, tenant_class="research") == 2)
        await eventually(lambda: metric("actserve_class_runs_waiting", tenant_class="default") == 1)
        assert metric(name, tenant_class="default") == 0
        held = metric("actserve_class_capture_reserved_bytes", tenant_class="research")
        assert held == metric("actserve_capture_reserved_bytes") > 0
        for call in calls:
            call.cancel()
        await eventually(lambda: metric(name, tenant_class="research") == 0)


@pytest.mark.parametrize(
    ("rule", "quota"),
    [("requests_a_minute: 1", "requests_a_minute"), ("concurrent_calls: 0", "concurrent_calls")],
)
async def test_what_is_refused_for_a_quota_is_counted_by_class_and_quota(
    tmp_path: Path, rule: str, quota: str
) -> None:
    tokens = write_tokens(tmp_path / "tokens.yaml", ("a-token", "vision", Role.READER))
    tenants = write_tenants(tmp_path / "tenants.yaml", f"vision: {{class: small, {rule}}}")

    def refused() -> float:
        return metric("actserve_quota_refusals_total", tenant_class="small", quota=quota)

    before = refused()
    async with serving(token_file=tokens, tenant_file=tenants) as served:
        asked = [
            asyncio.create_task(
                collect(served.generation.Generate(generate(), metadata=bearing("a-token")))
            )
            for _ in range(3)
        ]
        ended = await asyncio.gather(*asked, return_exceptions=True)
    assert refused() - before == sum(isinstance(each, Exception) for each in ended) >= 2


async def test_tokens_are_counted_by_class(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens.yaml", ("a-token", "vision", Role.READER))
    tenants = write_tenants(tmp_path / "tenants.yaml", "vision: {class: research}")

    def count(kind: str) -> float:
        return metric("actserve_class_tokens_total", tenant_class="research", kind=kind)

    before = count("prompt"), count("output")
    async with serving(token_file=tokens, tenant_file=tenants) as served:
        await collect(served.generation.Generate(generate(), metadata=bearing("a-token")))
        await eventually(
            lambda: (count("prompt"), count("output")) == (before[0] + 6, before[1] + 5)
        )


def test_classes_beyond_those_that_there_is_room_for_are_counted_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(class_metrics, "_classes", class_metrics._Classes())
    names = [f"class-{each}" for each in range(2 * class_metrics.MAX_CLASSES)]
    for name in names:
        class_metrics.tokens_consumed(TenantRules(tenant_class=name), 1, 1)
    counted = [metric("actserve_class_tokens_total", tenant_class=n, kind="output") for n in names]
    assert sum(counted) == class_metrics.MAX_CLASSES - 1  # And the default.
    other = metric("actserve_class_tokens_total", tenant_class="other", kind="output")
    assert other == class_metrics.MAX_CLASSES + 1
