"""What the commands about monitors and alerts promise."""

import contextlib
import http.server
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rich.console import Console

import actserve
from actserve import Add, Level, Pause, Stop
from actserve.alerts import alert_from_proto
from actserve.cli import top
from actserve.cli.metrics_page import Page, parsed
from actserve.cli.monitor_levels import read_level
from actserve.v1 import alert_pb2
from actserve.v1 import monitor_service_pb2 as pb

from .conftest import Run, cells
from .fake_monitors import GONE, MODEL, alert, whole
from .fake_server import LAYERS, Model
from .fake_vectors import site

BIG = ("--model", "big")
PROBE = ("--probe", "resid_post.1=rude+0.5")


def told(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Any, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", " ").split())


def lines(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


LEVELS: dict[str, Level] = {
    "0.9": Level(0.9),
    "-1,stop": Level(-1, Stop()),
    "0.9,pause=30,proceed,flag": Level(0.9, Pause(30.0, proceed_after=True), flag=True),
    "0.5,pause,explain=words": Level(0.5, Pause(), explain="words"),
    "0.5,explain,webhook=https://a.example/b?c=d": Level(
        0.5, explain=True, webhook="https://a.example/b?c=d"
    ),
    "2,intervene=resid_post.1=calm*4,intervene=resid_post.2=calm": Level(
        2, [Add("resid_post.1", "calm", 4.0), Add("resid_post.2", "calm")]
    ),
}


@pytest.mark.parametrize("text", LEVELS)
def test_a_level_is_written_on_one_line(text: str) -> None:
    made, expected = read_level(text), LEVELS[text]
    for name in ("threshold", "flag", "explain", "webhook"):
        assert getattr(made, name) == getattr(expected, name)
    assert repr(made.action) == repr(expected.action)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("high,stop", "'high' is not a threshold"),
        ("1,stop,pause", "one of stop, pause and intervene"),
        ("1,halt", "'halt' is nothing that happens"),
        ("1,stop,proceed", "how a pause ends"),
        ("1,pause=long", "no number of seconds"),
        ("1,intervene=calm*4", "say where to add"),
        ("inf", "finite"),
    ],
)
def test_a_level_that_is_none_says_what_to_write(run: Run, text: str, message: str) -> None:
    refused(run("monitors", "create", "rude", *PROBE, "--upper", text, *BIG), message)


def test_a_monitor_is_made_changed_and_deleted(run: Run, model: Model, tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.ones(4))
    made = told(
        run(
            "monitors", "create", "rude", *PROBE, "--probe", f"resid_post.2={tmp_path}/w.npy",
            "--aggregator", "rolling_mean_max(10)", "--positions", "generated",
            "--upper", "0.9,stop,flag", "--share", "0.5", "--label", "a=b", *BIG, "--json",
        )
    )  # fmt: skip
    assert (made["name"], made["aggregator"]) == (whole("rude"), "rolling_mean_max(10)")
    sent = model.monitors.stored[whole("rude")]
    assert (sent.probes[0].bias, sent.watch.share) == (0.5, 0.5)
    (row,) = [each for each in cells(run("monitors", "list", *BIG)) if "rude" in each]
    assert row[-2] == "some"
    changed = told(
        run("monitors", "update", "rude", "--lower", "0.5", "--no-upper", *BIG, "--json")
    )
    assert (changed["lower"]["threshold"], changed["upper"]) == (0.5, None)
    assert changed["labels"] == {"a": "b"}
    for command, paused in (("pause", True), ("resume", False)):
        assert run("monitors", command, "rude", *BIG).exit_code == 0
        assert told(run("monitors", "show", "rude", *BIG, "--json"))["paused"] is paused
    assert run("monitors", "rm", "rude", *BIG).exit_code == 0
    assert run("monitors", "show", "rude", *BIG).exit_code == 1
    refused(run("monitors", "create", "rude", "--upper", "1", *BIG), "at least one --probe")


@pytest.mark.parametrize(
    ("options", "watch"),
    [
        (("--named-only",), pb.MonitorWatch(named_only=True)),
        (
            ("--end-user", "u1", "--end-user", "u2", "--share", "0.25"),
            pb.MonitorWatch(end_users=["u1", "u2"], share=0.25),
        ),
        (("--all-calls",), pb.MonitorWatch()),
    ],
)
def test_what_a_monitor_watches_is_changed_as_it_is_made(
    run: Run, model: Model, options: tuple[str, ...], watch: pb.MonitorWatch
) -> None:
    made = run("monitors", "create", "rude", *PROBE, "--upper", "1", "--end-user", "ann", *BIG)
    assert made.exit_code == 0
    assert run("monitors", "update", "rude", *options, *BIG).exit_code == 0
    assert model.monitors.stored[whole("rude")].watch == watch
    assert model.requests[-1].update_mask.paths == ["watch"]  # The rest stays.


def test_what_a_monitor_watches_is_one_thing(run: Run) -> None:
    both = ("--all-calls", "--share", "0.5")
    refused(run("monitors", "update", "rude", *both, *BIG), "--all-calls goes with none")
    for name in ("create", "update"):
        share = run("monitors", name, "rude", *PROBE, "--share", "2", *BIG)
        refused(share, "above 0 and at most 1")


EXAMPLES = (
    {"text": "a b c", "label": True, "group": "g", "span": "b"},
    {"text": "a b", "label": "neg"},
    {"messages": [{"role": "user", "content": "a"}], "label": 0},
)


def test_a_fit_reads_a_file_waits_and_shows_how_well_it_does(
    run: Run, model: Model, tmp_path: Path
) -> None:
    data = lines(tmp_path / "Very_rude.jsonl", *EXAMPLES)
    benign = lines(tmp_path / "benign.jsonl", "c")
    out = tmp_path / "roc.png"
    result = run(
        "monitors", "fit", data, "--site", "resid_post.*", "--method", "mlp", "--benign", benign,
        "--false-positives", "0.01", "--plot", str(out), "--draw", *BIG,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "held out" in result.stdout
    assert "actserve monitors resume very-rude" in result.stderr.replace("\n", " ")
    assert out.stat().st_size > 1000
    request = next(each for each in model.requests if isinstance(each, pb.FitMonitorRequest))
    assert [*request.sites] == [site(layer) for layer in range(LAYERS)]
    assert [each.positive for each in request.examples] == [True, False, False]
    assert request.examples[0].group == "g"
    assert len(request.benign_examples) == 1
    again = told(run("monitors", "show", "very-rude", *BIG, "--json"))
    assert again["fit"]["held_out"]["auroc"] == 1.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "a"}, "line 1 of"),
        ({"text": "a", "label": "rude"}, "'rude' is no label"),
        ("a", "is no record"),
        ({"texts": "a", "label": 1}, "one of prompt, text, messages"),
    ],
)
def test_a_line_that_is_no_example_is_named(
    run: Run, tmp_path: Path, line: Any, message: str
) -> None:
    data = lines(tmp_path / "d.jsonl", line)
    refused(run("monitors", "fit", data, "-s", "resid_post.0", *BIG), message)


def test_a_monitor_is_tested_on_a_file(run: Run, model: Model, tmp_path: Path) -> None:
    assert run("monitors", "create", "new", *PROBE, "--upper", "2.5", *BIG).exit_code == 0
    data = lines(tmp_path / "d.jsonl", *EXAMPLES[:2], {"text": "a", "label": 0})
    found = told(run("monitors", "test", "new", data, *BIG, "--json"))
    assert (found["auroc"], found["positives"], found["negatives"]) == (1.0, 1, 2)
    assert found["levels"] == {"upper": {"recall": 1.0, "false_positives": 0.0}}
    shown = run("monitors", "test", "new", data, *BIG)
    assert "100.0%" in shown.stdout
    told(run("monitors", "test", "new", data, *BIG, "--json", "--positions", "last"))
    asked = [each for each in model.requests if isinstance(each, pb.ReplayMonitorsRequest)]
    items = [item for each in asked for item in each.items]
    which = [item.positions.WhichOneof("selection") for item in items]
    own = which[0]
    assert which == [own, None, None, own, None, None, own, "last", "last"]
    assert own not in (None, "last")


def test_a_replay_shows_where_two_monitors_disagree(run: Run, model: Model, tmp_path: Path) -> None:
    traffic = lines(
        tmp_path / "t.jsonl",
        {"key": "c-1", "text": "a b c"},
        {"text": "a"},
        {"key": "c-3", "messages": [{"role": "user", "content": "a b c d e"}]},
    )
    out = tmp_path / "scores.jsonl"
    arguments = ("--candidate", "new", "--against", "old", *BIG)
    result = run("monitors", "replay", traffic, *arguments, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "c-1" in result.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["key"], row["new.level"], row["old.level"]) for row in rows[:2]] == [
        ("c-1", "lower", ""),
        ("2", "", ""),
    ]
    assert run("monitors", "replay", traffic, *arguments, "--positions", "all").exit_code == 0
    asked = [each for each in model.requests if isinstance(each, pb.ReplayMonitorsRequest)]
    assert [each.items[0].HasField("positions") for each in (asked[0], asked[-1])] == [False, True]
    failing = lines(tmp_path / "f.jsonl", {"key": "x", "text": GONE}, {"text": "a"})
    result = run("monitors", "replay", failing, *arguments)
    assert result.exit_code == 1
    assert "x: it is gone" in result.stdout


def test_scores_are_shown_by_hour(run: Run, tmp_path: Path) -> None:
    assert run("monitors", "create", "new", *PROBE, "--upper", "2.5", *BIG).exit_code == 0
    out = tmp_path / "scores.svg"
    shown = run("monitors", "scores", "new", "--plot", str(out), *BIG)
    assert "2001-09-09 02:00" in shown.stdout
    assert out.exists()
    assert told(run("monitors", "scores", "new", *BIG, "--json"))["drift"] == 0.25


def test_alerts_are_listed_decided_about_and_deleted(run: Run, model: Model) -> None:
    paused = alert(2, action=alert_pb2.ALERT_ACTION_PAUSE, end_user="u", text="[bold]\x1b[2J")
    model.monitors.alerts = [alert(1), paused]
    shown = run("alerts", "list", *BIG)
    assert "a2" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert [
        each["name"] for each in told(run("alerts", "list", "--limit", "1", *BIG, "--json"))
    ] == [f"{MODEL}/alerts/a2"]
    assert "a2 is stopped" in run("alerts", "decide", "a2", "stop", *BIG).stderr
    refused(run("alerts", "decide", "a2", "halt", *BIG), "'proceed' or 'stop'")
    refused(run("alerts", "rm", *BIG), "--all alone")
    refused(run("alerts", "rm", "--all", "--level", "upper", *BIG), "--all alone")
    refused(run("alerts", "list", "--before", "soon", *BIG), "no time")
    assert "deleted 1 alerts" in run("alerts", "rm", "--end-user", "u", *BIG).stderr
    assert "deleted 1 alerts" in run("alerts", "rm", "--all", *BIG).stderr


def test_an_alert_is_decided_about_by_how_its_id_begins(run: Run, model: Model) -> None:
    kind = alert_pb2.ALERT_ACTION_PAUSE
    model.monitors.alerts = [alert(23, action=kind), alert(24, action=kind), alert(35, action=kind)]
    assert "a35 goes on" in run("alerts", "decide", "a3…", "proceed", *BIG).stderr
    refused(run("alerts", "decide", "a2", "stop", *BIG), "2 alerts that wait for a decision")
    refused(run("alerts", "decide", "a3", "stop", *BIG), "no alerts that wait for a decision")


@pytest.fixture
def process(target: str) -> Iterator[Any]:
    """Starts the command as a program of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {"ACTSERVE_SERVER": target, "PYTHONPATH": ":".join(sys.path)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "actserve", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        return started[-1]

    # What runs in a shell's background ignores Ctrl-C, and so does what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield start
    signal.signal(signal.SIGINT, before)
    for each in started:
        each.kill()
        each.wait()


def interrupted(process: subprocess.Popen[str]) -> str:
    """What it said; Ctrl-C is pressed again where it was lost in native code."""
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
            break
    _, said = process.communicate(timeout=5)
    assert "Traceback" not in said, said
    assert process.returncode == 130
    return said


def test_alerts_are_followed_as_lines_of_json_until_ctrl_c(process: Any, model: Model) -> None:
    model.monitors.alerts = [alert(1, text="\n\x1b[2J"), alert(2)]
    watching = process("alerts", "watch", "--from-oldest", "--json", *BIG)
    found = [json.loads(watching.stdout.readline()) for _ in range(2)]
    assert [each["position"] for each in found] == [1, 2]
    interrupted(watching)
    going_on = process("alerts", "watch", "--resume-from", "a1", "--json", *BIG)
    assert json.loads(going_on.stdout.readline())["position"] == 2
    interrupted(going_on)


def test_a_watch_says_when_the_server_is_gone_and_when_it_is_back(run: Run, model: Model) -> None:
    model.monitors.alerts = [alert(1), alert(2), alert(3)]
    model.monitors.cut_after = 1

    def before(request: Any, context: Any) -> None:
        count = sum(isinstance(each, pb.WatchAlertsRequest) for each in model.requests)
        if count in (2, 3):
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting\x1b[2J")
        if count == 5:  # It would go on for ever.
            context.abort(grpc.StatusCode.INTERNAL, "broken")

    model.before = before
    result = run("alerts", "watch", "--from-oldest", "--json", *BIG)
    assert [json.loads(line)["position"] for line in result.stdout.splitlines()] == [1, 2]
    gone, back, *error = result.stderr.splitlines()
    assert "no server" in gone
    assert "restarting" in gone
    assert "\x1b" not in gone
    assert "connected again after" in back
    assert "broken" in " ".join(error)
    assert not logging.getLogger("actserve").handlers


def test_a_watch_ends_when_the_server_was_gone_for_as_long_as_told(run: Run, model: Model) -> None:
    model.monitors.alerts, model.monitors.cut_after = [alert(1), alert(2)], 1

    def before(request: Any, context: Any) -> None:
        if sum(isinstance(each, pb.WatchAlertsRequest) for each in model.requests) > 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    model.before = before
    result = run("alerts", "watch", "--from-oldest", "--give-up-after", "0.1", *BIG)
    assert result.exit_code == 1
    assert "gone" in result.stderr.splitlines()[-1]


def test_ctrl_c_leaves_a_fit_running_and_says_where_to_look(
    process: Any, model: Model, tmp_path: Path
) -> None:
    data = lines(tmp_path / "rude.jsonl", *EXAMPLES)
    model.monitors._worked = lambda monitor: monitor  # It is never done.
    for options, left in ((), True), (("--cancel-on-interrupt",), False):
        model.monitors.stored.clear()
        model.requests.clear()
        fitting = process("monitors", "fit", data, "-s", "resid_post.0", *options, *BIG)
        while not any(isinstance(each, pb.GetMonitorRequest) for each in model.requests):
            assert fitting.poll() is None, fitting.stderr.read()
            time.sleep(0.02)
        said = interrupted(fitting)
        assert (whole("rude") in model.monitors.stored) is left
        assert ("actserve monitors show rude" in said) is left


PAGE = """\
# HELP actserve_runs_in_flight Sequences being run.
# TYPE actserve_runs_in_flight gauge
actserve_runs_in_flight 3.0
actserve_alerts_total{monitor="a}\\"b",level="upper"} 5.0
actserve_alerts_total{monitor="c",level="lower"} 2
actserve_kept_bytes 2.0e+06 1700000000
"""


def test_a_page_of_metrics_is_read_summed_over_labels() -> None:
    found = parsed(PAGE)
    assert found == {
        "actserve_runs_in_flight": 3,
        "actserve_alerts_total": 7,
        "actserve_kept_bytes": 2e6,
    }
    first, second = Page(0.0, {"n": 1.0}), Page(2.0, {"n": 5.0})
    assert (second.rate("n", first), second.rate("n", None)) == (2.0, None)
    assert first.rate("n", second) is None


def test_a_page_that_is_none_is_read_to_its_end() -> None:
    # Each line would be looked at to the end of the page, for hours.
    assert parsed("a{\n" * 500_000 + "n 1\n" + 'b{x="\n' * 500_000) == {"n": 1}


@pytest.fixture
def page() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()


def test_top_shows_monitors_alerts_and_what_the_page_of_metrics_says(
    run: Run, model: Model, page: str
) -> None:
    assert run("monitors", "create", "rude", *PROBE, "--upper", "2.5", *BIG).exit_code == 0
    new = alert(1)
    new.raise_time.FromSeconds(int(time.time()))
    model.monitors.alerts = [alert(2), new]
    options = ("--metrics", page, "--every", "0.2", *BIG)
    found = told(run("top", *options, "--json"))
    assert found["numbers"]["runs"] == 3
    assert found["numbers"]["alerts"] == 0
    assert found["monitors"] == [{"id": "rude", "paused": False, "alerts": 1, "drift": 0.25}]
    assert [each["position"] for each in found["alerts"]] == [1, 2]
    shown = run("top", *options, "--once")
    assert shown.exit_code == 0, shown.output
    for text in ("runs 3", "1.907 MiB", "rude", "0.25", "newest alerts", "a2"):
        assert text in shown.stdout


def test_top_works_without_metrics_and_says_what_it_cannot_see(run: Run, model: Model) -> None:
    closed = "http://127.0.0.1:1/metrics"
    found = told(run("top", "--metrics", closed, "--json", *BIG))
    assert found["numbers"] == {}
    assert closed in found["problems"]["metrics"]
    refused(run("top", "--metrics", "file:///etc/passwd", *BIG), "no address")

    def fails(request: Any, context: Any) -> Any:
        raise AssertionError(request)

    model.monitors.answer = fails
    found = told(run("top", "--metrics", closed, "--json", *BIG))
    assert {*found["problems"]} == {"metrics", "monitors"}


def test_top_goes_on_through_a_restart_of_the_server(target: str, model: Model) -> None:
    def before(request: Any, context: Any) -> None:
        if gone:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    gone, model.before = False, before
    model.monitors.alerts = [alert(1)]
    with actserve.Client(target, model="big") as client:
        watcher = top.Watcher(client, None)
        assert shown(watcher.look()).count("server") == 0
        gone = True
        first, second = watcher.look(), watcher.look()
        assert first.gone_since == second.gone_since == first.time
        assert [each.id for each in second.alerts] == ["a1"]  # As it was.
        assert "no server since" in shown(second)
        gone = False
        back = watcher.look()
        assert (back.gone_since, back.problems) == (None, {})
        assert "connected again at" in shown(back)
        assert "no server" not in shown(back)
        assert "connected again at" in shown(watcher.look())


def shown(seen: top.Seen) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(top.rendered(seen))
    return capture.get()


def test_rates_are_of_the_last_minutes_alone() -> None:
    seen = top.Seen()
    assert seen.recent("rude") == []
    old = alert_from_proto(alert(1))
    seen.alerts = [old]
    assert seen.recent("rude") == []
    seen.time = old.raise_time
    assert seen.recent("rude") == [old]
    assert seen.recent("other") == []
    assert seen.rate("rude") == pytest.approx(1 / 10)
    assert seen.rate("other") == 0


def test_a_rate_of_more_alerts_than_are_read_is_of_the_time_that_they_span() -> None:
    old = alert_from_proto(alert(1))
    seen = top.Seen(alerts=[old] * top._ALERTS, time=old.raise_time + timedelta(minutes=2))
    assert seen.rate("rude") == pytest.approx(top._ALERTS / 2)
