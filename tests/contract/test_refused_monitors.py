"""Monitors that cannot be are refused with a reason, before anything is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import site_pb2
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import failure, inline, intervention, serving, site
from tests.contract.monitors import create, full, numbers, probe
from tests.contract.nlas import SITE, Tiny
from tests.contract.refusals import WIDTH

LOGITS = site(None, site_pb2.HOOK_POINT_LOGITS)
NAN, INF = float("nan"), float("inf")
STOPS = {"threshold": 1.0, "stop": {}}
ZERO = intervention(zero={})


def network(**changes: Any) -> dict[str, Any]:
    """Fields of a monitor with a linear network, with `changes` of it."""
    fields: dict[str, Any] = {
        "sites": [site(1), site(2)],
        "values": inline(numbers(1, 2 * WIDTH)),
        **changes,
    }
    made = {name: value for name, value in fields.items() if value is not None}
    return {"probes": None, "network": made}


def attending(**changes: Any) -> dict[str, Any]:
    """The same with attention."""
    heads = {"values": inline(numbers(2, 2 * WIDTH)), "queries": inline(numbers(2, 2 * WIDTH))}
    return {**network(**{**heads, **changes}), "aggregator": {"attention": {}}}


def intervening(*interventions: Any) -> dict[str, Any]:
    return {"upper": {"threshold": 1.0, "intervene": {"interventions": interventions}}}


def selected(**selection: Any) -> dict[str, Any]:
    return {"positions": selection}


# What is wrong, the fields of a monitor, the reason, the field of the monitor (None where no field
# is told), and what the message holds.
WRONG: list[tuple[str, dict[str, Any], str, str | None, str]] = [
    ("a name", {"name": full("x")}, "FIELD_INVALID", "name", "unset"),
    ("an etag", {"etag": "x"}, "FIELD_INVALID", "etag", "unset"),
    ("no probe", {"probes": None}, "FIELD_REQUIRED", "probes", "no probe"),
    ("probes and a network", {**network(), "probes": [probe()]}, "FIELD_INVALID", "network", ""),
    ("65 probes", {"probes": [probe()] * 65}, "FIELD_INVALID", "probes", "64"),
    (
        "two probes at a site",
        {"probes": [probe(1), probe(2), probe(1)]},
        "SITE_INVALID",
        "probes[2].site",
        "resid_post.1",
    ),
    (
        "no site",
        {"probes": [{"direction": inline([1])}]},
        "SITE_INVALID",
        "probes[0].site.hook_point",
        "",
    ),
    ("a layer", {"probes": [probe(9)]}, "LAYER_OUT_OF_RANGE", "probes[0].site", "9"),
    (
        "a site that is not served",
        {"probes": [{**probe(), "site": site(1, site_pb2.HOOK_POINT_ATTN_OUT)}]},
        "SITE_NOT_SERVED",
        "probes[0].site",
        "attn_out",
    ),
    (
        "logits",
        {"probes": [{**probe(), "site": LOGITS, "direction": inline(numbers(256))}]},
        "SITE_INVALID",
        "probes[0].site",
        "final_norm",
    ),
    (
        "no direction",
        {"probes": [{"site": site(1)}]},
        "FIELD_REQUIRED",
        "probes[0].direction",
        "16",
    ),
    (
        "a width",
        {"probes": [probe(1, numbers(3))]},
        "TENSOR_WIDTH_MISMATCH",
        "probes[0].direction.tensor.shape",
        "16",
    ),
    (
        "a zero direction",
        {"probes": [probe(1, np.zeros(WIDTH))]},
        "TENSOR_DEGENERATE",
        "probes[0].direction",
        "zero",
    ),
    (
        "a direction that is not finite",
        {"probes": [probe(1, [NAN] * WIDTH)]},
        "TENSOR_NOT_FINITE",
        "probes[0].direction.tensor.data",
        "nan",
    ),
    (
        "an edit",
        {"probes": [{"site": site(1), "direction": {"edit": {}}}]},
        "FIELD_INVALID",
        "probes[0].direction.edit",
        "edit",
    ),
    (
        "a vector that is not there",
        {
            "probes": [
                {
                    "site": site(1),
                    "direction": {"steering_vector": "models/fake/steeringVectors/none"},
                }
            ]
        },
        "RESOURCE_NOT_FOUND",
        "probes[0].direction.steering_vector",
        "none",
    ),
    (
        "rows that are not there",
        {
            "probes": [
                {"site": site(1), "direction": {"kept": {"name": "keptActivations/" + "A" * 22}}}
            ]
        },
        "KEPT_NOT_FOUND",
        None,
        "",
    ),
    ("a bias", {"probes": [probe(bias=INF)]}, "FIELD_INVALID", "probes[0].bias", "inf"),
    ("no sites", network(sites=None), "FIELD_REQUIRED", "network.sites", ""),
    ("65 sites", network(sites=[site(1)] * 65), "SITE_INVALID", "network.sites[1]", "twice"),
    (
        "a site twice",
        network(sites=[site(1), site(1)]),
        "SITE_INVALID",
        "network.sites[1]",
        "twice",
    ),
    (
        "logits of a network",
        network(sites=[site(1), LOGITS]),
        "SITE_INVALID",
        "network.sites[1]",
        "final_norm",
    ),
    ("no values", network(values=None), "FIELD_REQUIRED", "network.values", "[n, 32]"),
    (
        "values of one site",
        network(values=inline(numbers(1, WIDTH))),
        "TENSOR_WIDTH_MISMATCH",
        "network.values.tensor.shape",
        "32",
    ),
    (
        "zero values",
        network(values=inline(np.zeros((1, 2 * WIDTH)))),
        "TENSOR_DEGENERATE",
        "network.values",
        "zero",
    ),
    (
        "two rows of values",
        network(values=inline(numbers(2, 2 * WIDTH))),
        "TENSOR_SIZE_MISMATCH",
        "network.values",
        "queries",
    ),
    (
        "kept rows of several sites",
        network(values={"kept": {"name": "x"}}),
        "KEPT_NOT_FOUND",
        None,
        "",
    ),
    ("a bias of a network", network(bias=NAN), "FIELD_INVALID", "network.bias", "nan"),
    ("no weights", network(hidden={}), "FIELD_REQUIRED", "network.hidden.weights", "[n, 32]"),
    (
        "513 units",
        network(hidden={"weights": inline(np.ones((513, 2 * WIDTH)))}),
        "FIELD_INVALID",
        "network.hidden.weights",
        "512",
    ),
    (
        "a bias of units",
        network(hidden={"weights": inline(numbers(3, 2 * WIDTH)), "bias": inline([1, 2])}),
        "TENSOR_WIDTH_MISMATCH",
        "network.hidden.bias.tensor.shape",
        "3",
    ),
    (
        "values as wide as rows",
        network(hidden={"weights": inline(numbers(3, 2 * WIDTH))}),
        "TENSOR_WIDTH_MISMATCH",
        "network.values.tensor.shape",
        "3",
    ),
    (
        "65 heads",
        attending(
            values=inline(np.ones((65, 2 * WIDTH))), queries=inline(np.ones((65, 2 * WIDTH)))
        ),
        "FIELD_INVALID",
        "network.values",
        "64",
    ),
    (
        "queries of other heads",
        attending(queries=inline(numbers(3, 2 * WIDTH))),
        "TENSOR_SIZE_MISMATCH",
        "network.queries",
        "2 heads",
    ),
    (
        "queries without attention",
        {**attending(), "aggregator": {}},
        "FIELD_REQUIRED",
        "aggregator.attention",
        "queries",
    ),
    (
        "attention without queries",
        {"aggregator": {"attention": {}}},
        "FIELD_INVALID",
        "aggregator.attention",
        "queries",
    ),
    (
        "a weight",
        {"aggregator": {"ema": {"weight": 0}}},
        "FIELD_INVALID",
        "aggregator.ema.weight",
        "0",
    ),
    (
        "a window",
        {"aggregator": {"rolling_mean": {"tokens": 2000}}},
        "FIELD_INVALID",
        "aggregator.rolling_mean.tokens",
        "1024",
    ),
    (
        "a window of attention",
        {**attending(), "aggregator": {"attention": {"tokens": 129}}},
        "FIELD_INVALID",
        "aggregator.attention.tokens",
        "128",
    ),
    ("an empty selector", selected(), "FIELD_REQUIRED", "positions", ""),
    ("no positions", selected(list={}), "FIELD_REQUIRED", "positions.list.positions", ""),
    ("no token ids", selected(token_ids={}), "FIELD_REQUIRED", "positions.token_ids.ids", ""),
    ("no level", {"upper": None}, "FIELD_REQUIRED", "upper", "level"),
    ("no threshold", {"upper": {}}, "FIELD_REQUIRED", "upper.threshold", ""),
    ("a threshold", {"lower": {"threshold": NAN}}, "FIELD_INVALID", "lower.threshold", "nan"),
    (
        "levels in the wrong order",
        {"lower": {"threshold": 2.0}},
        "FIELD_INVALID",
        "upper.threshold",
        "exchange",
    ),
    ("equal levels", {"lower": STOPS}, "FIELD_INVALID", "upper.threshold", "above"),
    ("no interventions", intervening(), "FIELD_REQUIRED", "upper.intervene.interventions", ""),
    (
        "65 interventions",
        intervening(*[intervention(zero={})] * 65),
        "TOO_MANY_INTERVENTIONS",
        "upper.intervene.interventions",
        "64",
    ),
    (
        "65 interventions of both levels",
        {
            "lower": {"threshold": 0.0, "intervene": {"interventions": [ZERO] * 33}},
            "upper": {"threshold": 1.0, "intervene": {"interventions": [ZERO] * 32}},
        },
        "TOO_MANY_INTERVENTIONS",
        "upper.intervene.interventions",
        "33 interventions and the upper one 32 on top of them, 65 together",
    ),
    (
        "no operation",
        intervening(intervention()),
        "FIELD_REQUIRED",
        "upper.intervene.interventions[0]",
        "",
    ),
    (
        "rows for each position",
        intervening(intervention(replace={"rows": inline(numbers(2, WIDTH))})),
        "TENSOR_SIZE_MISMATCH",
        "upper.intervene.interventions[0].replace.rows.tensor",
        "one row",
    ),
    (
        "a pause that is too long",
        {"upper": {"threshold": 1.0, "pause": {"time_limit": Duration(seconds=601)}}},
        "FIELD_INVALID",
        "upper.pause.time_limit",
        "600",
    ),
    (
        "a pause of no time",
        {"upper": {"threshold": 1.0, "pause": {"time_limit": Duration()}}},
        "FIELD_INVALID",
        "upper.pause.time_limit",
        "0",
    ),
    (
        "a pause of less",
        {"upper": {"threshold": 1.0, "pause": {"time_limit": Duration(seconds=-1)}}},
        "FIELD_INVALID",
        "upper.pause.time_limit",
        "",
    ),
    (
        "an address",
        {"upper": {"threshold": 1.0, "webhook": {"url": "https://x.test"}}},
        "WEBHOOK_NOT_ALLOWED",
        "upper.webhook.url",
        "https://x.test",
    ),
    (
        "no address",
        {"upper": {"threshold": 1.0, "webhook": {}}},
        "FIELD_REQUIRED",
        "upper.webhook.url",
        "",
    ),
    (
        "no NLA",
        {"upper": {"threshold": 1.0, "explain": {}}},
        "FEATURE_DISABLED",
        "upper.explain.nla",
        "--nla",
    ),
    ("share 0", {"watch": {"share": 0.0}}, "FIELD_INVALID", "watch.share", ""),
    ("share 2", {"watch": {"share": 2.0}}, "FIELD_INVALID", "watch.share", "1"),
    ("share nan", {"watch": {"share": NAN}}, "FIELD_INVALID", "watch.share", ""),
    (
        "named only and share",
        {"watch": {"named_only": True, "share": 0.5}},
        "FIELD_INVALID",
        "watch.named_only",
        "",
    ),
    (
        "65 end users",
        {"watch": {"end_users": ["a"] * 65}},
        "FIELD_INVALID",
        "watch.end_users",
        "64",
    ),
    (
        "an empty end user",
        {"watch": {"end_users": [""]}},
        "FIELD_INVALID",
        "watch.end_users[0]",
        "",
    ),
    (
        "a long end user",
        {"watch": {"end_users": ["a" * 257]}},
        "FIELD_INVALID",
        "watch.end_users[0]",
        "256",
    ),
    ("labels", {"labels": {"": "x"}}, "FIELD_INVALID", "labels", "empty"),
    ("a long selector", selected(list={"positions": range(50_000)}), "FIELD_INVALID", "", "65536"),
]


@pytest.mark.parametrize(
    ("fields", "reason", "field", "says"),
    [case[1:] for case in WRONG],
    ids=[case[0] for case in WRONG],
)
async def test_a_monitor_that_cannot_be_is_refused_and_nothing_is_stored(
    fields: dict[str, Any], reason: str, field: str | None, says: str, tmp_path: Path
) -> None:
    fake = FakeEngine(unserved={HookPoint.ATTN_OUT: "not verified"})
    async with serving(fake, data_dir=tmp_path) as served:
        refused = await failure(served.monitors.CreateMonitor(create(**fields)))
        where = "" if field is None else "monitor" + (f".{field}" if field else "")
        assert (refused.reason, refused.field) == (reason, where), refused
        assert says in refused.message
        # The same of an update, which leaves what is there.
        if reason != "FIELD_INVALID" or field not in ("name", "etag"):
            await served.monitors.CreateMonitor(create())
            wanted = create(**fields).monitor
            wanted.name = full("harm")
            request = pb.UpdateMonitorRequest(monitor=wanted)
            again = await failure(served.monitors.UpdateMonitor(request))
            assert (again.reason, again.field) == (reason, where), again
        page = await served.monitors.ListMonitors(pb.ListMonitorsRequest())
        assert [each.update_time == each.create_time for each in page.monitors] in ([], [True])
    assert fake.counters.started == 0


@pytest.mark.parametrize("nla", ["", "models/fake/nlas/tiny"])
async def test_an_nla_that_cannot_explain_is_refused(nla: str) -> None:
    mute = Tiny(av=None)
    async with serving(FakeEngine(), mute.loaded()) as served:
        explains = create(
            probes=[probe(SITE.layer or 0)], upper={"threshold": 1.0, "explain": {"nla": nla}}
        )
        refused = await failure(served.monitors.CreateMonitor(explains))
        assert (refused.reason, refused.field) == ("FEATURE_DISABLED", "monitor.upper.explain.nla")
        assert f"{mute.name} is loaded without a verbalizer" in refused.message
        page = await served.monitors.ListMonitors(pb.ListMonitorsRequest())
        assert not page.monitors


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"request_id": ""}, "FIELD_REQUIRED", "request_id"),
        ({"request_id": "x" * 129}, "FIELD_INVALID", "request_id"),
        ({"model": "models/other"}, "MODEL_NOT_FOUND", "model"),
    ],
)
async def test_a_request_that_cannot_be_is_refused(
    changes: dict[str, Any], reason: str, field: str
) -> None:
    async with serving() as served:
        refused = await failure(served.monitors.CreateMonitor(create(**changes)))
        assert (refused.reason, refused.field) == (reason, field)


@pytest.mark.parametrize("name", ["Harm", "1a", "a_b", "a" * 64, "-a"])
async def test_an_id_that_cannot_be_is_refused(name: str) -> None:
    async with serving() as served:
        refused = await failure(served.monitors.CreateMonitor(create(name)))
        assert (refused.reason, refused.field) == ("FIELD_INVALID", "monitor_id")


async def test_a_page_token_of_somebody_else_is_refused() -> None:
    async with serving() as served:
        refused = await failure(
            served.monitors.ListMonitors(pb.ListMonitorsRequest(page_token="eCB5"))
        )
        assert (refused.reason, refused.field) == ("FIELD_INVALID", "page_token")


@pytest.mark.parametrize("fields", [{}, network()], ids=["probes", "a network"])
async def test_where_networks_failed_their_self_test_no_monitor_is_made(
    fields: dict[str, Any],
) -> None:
    async with serving(FakeEngine(monitors_unserved="failed the self-test: off by 1")) as served:
        refused = await failure(served.monitors.CreateMonitor(create(**fields)))
    assert refused.reason == "SITE_NOT_SERVED"
    assert "off by 1" in refused.message
