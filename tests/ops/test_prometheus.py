"""The dashboard and the alert rules: Prometheus takes them, and a server tells all they name."""

import contextlib
import json
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from actserve.v1 import generation_service_pb2_grpc, monitor_service_pb2_grpc
from tests.contract.harness import addition, fetch, generate
from tests.contract.monitors import create
from tests.contract.program import Program
from tests.contract.refusals import WIDTH
from tests.prometheus_server import Prometheus, program

ROOT = Path(__file__).parents[2]
RULES = ROOT / "ops/prometheus/rules.yaml"
RULES_TEST = ROOT / "ops/prometheus/rules_test.yaml"
DASHBOARD = ROOT / "ops/grafana/actserve.json"
OPERATIONS = ROOT / "docs/operations.md"

SERIES = re.compile(r"\b((?:actserve_|grpc_server_|vllm:)[a-z_]+)(?:\{([^}]*)\})?")
"""A series in an expression, and what is in its braces."""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
"""Of the calls that are made."""
TRACED = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),)

GROUPED = re.compile(r"\b(?:by|without) \(([^)]*)\)")
"""The labels that an expression groups by."""


def panels() -> list[dict[str, Any]]:
    return [
        panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"
    ]


def shown() -> dict[str, str]:
    """The expressions of the dashboard by their panel, as Grafana asks them."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$instance", ".*")
        .replace("$__rate_interval", "1m")
        for panel in panels()
        for target in panel["targets"]
    }


def alerts() -> dict[str, dict[str, Any]]:
    """The rules by name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


EVERY_EXPRESSION = {**shown(), **{name: rule["expr"] for name, rule in alerts().items()}}
EXPRESSIONS = {name: each for name, each in EVERY_EXPRESSION.items() if "vllm:" not in each}
"""Those of a server without vLLM; the others `tests/integration/test_service.py` looks for."""


def named_in(expression: str) -> list[tuple[str, set[str]]]:
    """The series of an expression, each with the labels that it has to have."""
    grouped = {
        label.strip() for labels in GROUPED.findall(expression) for label in labels.split(",")
    }
    found = [
        (series, {each.split("=")[0].rstrip("!") for each in matchers.split(",") if each})
        for series, matchers in SERIES.findall(expression)
    ]
    assert found, expression
    return [(series, labels | (grouped - {"le"})) for series, labels in found]


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", "--lint-fatal", RULES)


def test_each_rule_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", RULES_TEST)


def test_each_rule_has_an_example_of_firing_and_one_of_not() -> None:
    tests = yaml.safe_load(RULES_TEST.read_text())["tests"]
    tried = [
        (each["alertname"], bool(each.get("exp_alerts")))
        for test in tests
        for each in test["alert_rule_test"]
    ]
    assert sorted(tried) == sorted((name, fires) for name in alerts() for fires in (False, True))


def test_panels_lie_beside_each_other_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert panel["description"]
        taken |= cells
    ids = [panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(set(ids)) == len(ids)


@dataclass(frozen=True)
class Run:
    """A server that has made calls, and a Prometheus that scrapes it."""

    prometheus: Prometheus
    metrics: str
    """Its page."""
    exemplars: str
    """The same in the format of OpenMetrics."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("prometheus")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        target = f"127.0.0.1:{free.getsockname()[1]}"
    port = target.rpartition(":")[2]
    server = Program("--metrics-port", port, "--data-dir", str(folder / "data"))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            use(channel)
            prometheus = Prometheus(folder, target, RULES)
            try:
                # Of the calls; and once more, so that there is a rate.
                use(channel)
                prometheus.wait("sum(increase(actserve_alerts_total[1m])) > 0")
                prometheus.wait("actserve_alerts_stored > 0")
                openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
                yield Run(prometheus, page(target), page(target, openmetrics))
            finally:
                prometheus.close()
    finally:
        server.stop()


def page(target: str, headers: Mapping[str, str] | None = None) -> str:
    """The metrics of a server."""
    request = urllib.request.Request(f"http://{target}/metrics", headers=dict(headers or {}))
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def use(channel: grpc.Channel) -> None:
    """Makes calls of each kind that the dashboard shows, watched by a monitor that raises an alert
    at each, one of them with a vector added."""
    monitors = monitor_service_pb2_grpc.MonitorServiceStub(channel)
    with contextlib.suppress(grpc.RpcError):  # It is there already.
        monitors.CreateMonitor(create("harm", upper={"threshold": -1e6}))
    stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
    steered = generate(interventions=[addition([1.0] * WIDTH)])
    for call in (
        stub.FetchActivations(fetch("hello"), metadata=TRACED),
        stub.Generate(generate(), metadata=TRACED),
        stub.Generate(steered, metadata=TRACED),
    ):
        for _ in call:
            pass
    with pytest.raises(grpc.RpcError):
        list(stub.Generate(generate(model="models/none")))


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_server_tells_all_that_an_expression_names(run: Run, name: str) -> None:
    for series, wanted in named_in(EXPRESSIONS[name]):
        found = run.prometheus.query(series)
        assert found, series
        assert wanted <= {label for each in found for label in each["metric"]}, series


@pytest.mark.parametrize("name", shown().keys() & EXPRESSIONS.keys())
def test_the_dashboard_shows_something(run: Run, name: str) -> None:
    expression = EXPRESSIONS[name]
    found = run.prometheus.query(expression)
    # What is above nothing has happened.
    assert found or expression.endswith("> 0")


def test_no_rule_fails_or_fires_for_a_server_that_is_well(run: Run) -> None:
    run.prometheus.wait("count(ALERTS) or vector(1)")
    rules = run.prometheus.rules()
    assert {rule["name"] for rule in rules} == set(alerts())
    for rule in rules:
        assert rule["health"] == "ok", rule
        assert rule["state"] == "inactive", rule


def test_every_series_is_documented_and_every_documented_one_is_told(run: Run) -> None:
    told = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(run.metrics)
        if family.name.startswith("actserve_") and not family.name.endswith("_created")
    }
    documented = set(re.findall(r"`(actserve_[a-z_]+)(?:\{[a-z_, ]*\})?`", OPERATIONS.read_text()))
    assert documented == told


def test_every_label_is_documented(run: Run) -> None:
    found = re.findall(r"`(actserve_[a-z_]+)\{([a-z_, ]*)\}`", OPERATIONS.read_text())
    documented = {name: frozenset(labels.split(", ")) for name, labels in found}
    told = {
        family.name + ("_total" if family.type == "counter" else ""): frozenset(
            label for sample in family.samples for label in sample.labels if label != "le"
        )
        for family in text_string_to_metric_families(run.metrics)
        if family.name.startswith("actserve_") and not family.name.endswith("_created")
    }
    # Of what has not happened there is no series, and no label, yet.
    assert {name: labels for name, labels in told.items() if labels}.items() <= documented.items()


def test_every_alert_is_documented_with_what_to_do() -> None:
    rows = re.findall(
        r"^\| `(Actserve[A-Za-z]+)` \| (.+) \| (.+) \|$", OPERATIONS.read_text(), re.MULTILINE
    )
    assert sorted(name for name, _, _ in rows) == sorted(alerts())


def test_exemplars_lead_from_a_histogram_to_traces(run: Run) -> None:
    """As a scrape in the format of OpenMetrics has them."""
    told = run.exemplars
    for name in ("actserve_stage_seconds_bucket", "grpc_server_handling_seconds_bucket"):
        assert re.search(rf'^{name}\{{.*\}} .* # \{{.*trace_id="{TRACE}".*\}} ', told, re.MULTILINE)
