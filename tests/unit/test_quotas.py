"""Quotas by the minute: what a tenant has used up comes back evenly, and is nobody else's."""

import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import Principal, Role
from actserve_server.domain.tenant_rules import NO_RULES, TenantRules
from actserve_server.rpc.transport import quotas
from actserve_server.rpc.transport.calls import Call
from actserve_server.rpc.transport.quotas import Meter, Quotas


class Clock:
    now = 500.0

    def __call__(self) -> float:
        return self.now


def of(clock: Clock, **rules: float) -> Quotas:
    """Quotas of the tenant a; b has none."""
    made = TenantRules(**rules)  # pyright: ignore[reportArgumentType]
    return Quotas(lambda tenant: made if tenant == "a" else NO_RULES, clock)


def refused(of: Quotas, tenant: str = "a") -> ActserveError:
    with pytest.raises(ActserveError) as error:
        of.enter(tenant)
    assert error.value.reason is Reason.QUOTA_EXCEEDED
    assert error.value.retry_after_s is not None
    return error.value


def test_a_minute_has_so_many_requests_and_they_come_back_evenly() -> None:
    clock = Clock()
    a = of(clock, requests_a_minute=30)
    for _ in range(30):
        a.enter("a")
    error = refused(a)
    assert error.retry_after_s == pytest.approx(2, abs=0.01)
    assert error.metadata == {"quota": "requests_a_minute", "limit": "30"}
    a.enter("b")
    clock.now += 1.9
    refused(a)
    clock.now += 0.1
    a.enter("a")
    refused(a)
    clock.now += 3600  # No more is saved than a minute's worth.
    for _ in range(30):
        a.enter("a")
    refused(a)


def test_after_the_time_that_is_told_a_request_is_let_in() -> None:
    clock = Clock()
    a = of(clock, requests_a_minute=7, tokens_a_minute=100)
    for _ in range(7):
        a.enter("a")
    a.take("a", tokens=150, captured_bytes=0)
    for _ in range(3):
        clock.now += refused(a).retry_after_s or 0
        try:
            a.enter("a")
        except ActserveError:
            continue
        return
    raise AssertionError("what was told did not come true")


def test_fewer_than_one_request_a_minute_is_one_now_and_then() -> None:
    clock = Clock()
    a = of(clock, requests_a_minute=0.5)
    a.enter("a")
    assert refused(a).retry_after_s == pytest.approx(120, abs=0.01)
    clock.now += 120.01
    a.enter("a")


def test_what_was_consumed_beyond_a_quota_is_waited_for() -> None:
    clock = Clock()
    a = of(clock, tokens_a_minute=600, captured_bytes_a_minute=6000)
    call = Call(principal=Principal(tenant="a/part", role=Role.READER))
    meter = Meter(a, call)
    call.prompt_tokens, call.output_tokens = 400, 100
    meter.read()
    meter.read()  # Nothing more was consumed.
    a.enter("a")
    call.output_tokens = 220
    meter.read()
    assert refused(a).metadata["quota"] == "tokens_a_minute"
    assert refused(a).retry_after_s == pytest.approx(2, abs=0.01)
    clock.now += 2.001
    a.enter("a")
    call.activation_bytes = 9000
    meter.read()
    assert refused(a).metadata["quota"] == "captured_bytes_a_minute"
    assert refused(a).retry_after_s == pytest.approx(30, abs=0.01)


def test_a_refused_request_takes_nothing() -> None:
    clock = Clock()
    a = of(clock, requests_a_minute=2, tokens_a_minute=60)
    a.take("a", tokens=61, captured_bytes=0)
    for _ in range(50):
        refused(a)
    clock.now += 1.001
    a.enter("a")
    a.enter("a")


def test_full_buckets_of_many_tenants_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "MAX_BUCKETS", 10)
    clock = Clock()
    every = Quotas(lambda _: TenantRules(tokens_a_minute=60), clock)
    every.take("busy", tokens=1000, captured_bytes=0)
    for index in range(1000):
        every.take(str(index), tokens=1, captured_bytes=0)
        clock.now += 1
    assert len(every._buckets) <= 10
    clock.now -= 990
    every = Quotas(lambda _: TenantRules(tokens_a_minute=1), clock)
    every.take("busy", tokens=100, captured_bytes=0)
    for index in range(100):
        every.take(str(index), tokens=0, captured_bytes=0)
    with pytest.raises(ActserveError):
        every.enter("busy")


def test_tenants_without_end_that_are_in_debt_are_not_looked_through_at_each_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Signed tokens name tenants that nobody has listed."""
    monkeypatch.setattr(quotas, "MAX_BUCKETS", 10)
    looks = 0

    class Rules:
        def __call__(self, tenant: str) -> TenantRules:
            nonlocal looks
            looks += 1
            return TenantRules(tokens_a_minute=1)

    made = Quotas(Rules(), Clock())
    for index in range(1000):
        made.take(str(index), tokens=100, captured_bytes=0)
    assert looks < 5000, "each call looks at its own tenant's rules, and few at those of all"
