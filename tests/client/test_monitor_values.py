"""What monitors are made of: aggregators by their names, levels, examples, and how well scores
do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actserve import (
    Add,
    Aggregator,
    AttentionSmoothing,
    ByCharacters,
    ByText,
    Ema,
    Example,
    HiddenLayer,
    InvalidRequest,
    Level,
    Pause,
    ProbeNetwork,
    RollingMean,
    Stop,
    Watch,
    aggregators,
)
from actserve._show.shown import Shown
from actserve.aggregators import aggregator, aggregator_from_proto
from actserve.monitors import MonitorScore, StoredLevel
from actserve.qualities import measured
from actserve.replays import Replay, ReplayedItem

from . import made_results as made

AGGREGATORS: dict[str, tuple[Aggregator, Any]] = {
    "last": (Aggregator(), "each"),
    "mean": (Aggregator(None, "mean"), "mean"),
    "max": (Aggregator(reduce="max"), "max"),
    "ema(0.5)": (aggregators.ema(0.5), Ema(0.5)),
    "ema_max(0.125)": (aggregators.ema_max(0.125), Aggregator(Ema(0.125), "max")),
    "rolling_mean(3)": (aggregators.rolling_mean(3), RollingMean(3)),
    "rolling_mean_max(10)": (
        aggregators.rolling_mean_max(10),
        Aggregator(RollingMean(10), "max"),
    ),
    "attention": (aggregators.attention(), AttentionSmoothing()),
    "attention_max": (aggregators.attention_max(), "attention_max"),
    "attention(5)": (aggregators.attention(5), AttentionSmoothing(5)),
    "rolling_attention_max(10)": (
        aggregators.rolling_attention_max(10),
        "rolling_attention_max( 10 )",
    ),
}


@pytest.mark.parametrize("text", AGGREGATORS)
def test_an_aggregator_is_one_thing_however_it_is_written(text: str) -> None:
    made, otherwise = AGGREGATORS[text]
    assert aggregator(text) == aggregator(otherwise) == aggregator(made) == made
    assert str(made) == text
    assert aggregator_from_proto(made.to_proto()) == made


@pytest.mark.parametrize(
    "given",
    [
        *("", "mode", "ema", "ema(0)", "ema(2)", "ema(.5.)", "mean(3)", "attention()"),
        *("rolling_mean(0)", "rolling_mean(1.5)", "rolling_mean(2000)", 3, None, Aggregator),
    ],
)
def test_what_is_no_aggregator_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequest):
        aggregator(given)


ROW = np.ones(4)
REFUSED = {
    "a threshold that is no number": lambda: Level("high"),  # pyright: ignore[reportArgumentType]
    "a threshold that is not finite": lambda: Level(float("inf")),
    "an action that is none": lambda: Level(1, "stop"),  # pyright: ignore[reportArgumentType]
    "no interventions": lambda: Level(1, []),
    "the name of a vector": lambda: Level(1, ["joy"]),  # pyright: ignore[reportArgumentType]
    "no time": lambda: Pause(0),
    "a share of nothing": lambda: Watch(share=0),
    "an end user without a name": lambda: Watch(end_users=[""]),
    "a webhook that is no text": lambda: Level(1, webhook=3),  # pyright: ignore[reportArgumentType]
    "no sites": lambda: ProbeNetwork([], ROW),
    "two rows of values": lambda: ProbeNetwork("z.0", np.ones((2, 4))),
    "queries of other heads": lambda: ProbeNetwork("z.0", ROW, queries=np.ones((2, 4))),
    "values of another width": lambda: ProbeNetwork("z.0", ROW, HiddenLayer(np.ones((3, 4)))),
    "a bias of another width": lambda: HiddenLayer(np.ones((3, 4)), np.ones(4)),
    "a layer that is none": lambda: ProbeNetwork("z.0", ROW, ROW),  # pyright: ignore[reportArgumentType]
    "a smoothing that is none": lambda: Aggregator("ema"),  # pyright: ignore[reportArgumentType]
    "a group that is too long": lambda: Example("a", True, group="x" * 257),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_where_it_is_written(case: str) -> None:
    with pytest.raises(InvalidRequest):
        REFUSED[case]()


def test_an_action_that_steers_is_what_steer_takes() -> None:
    one = Add("z.0", ROW)
    assert Level(1, one).action == (one,)
    assert Level(1, iter([one])).action == (one,)
    assert Level(1, Stop()).action == Stop()


ROWS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "text": ({"text": "a", "label": True}, ("a", True, None, "")),
    "prompt": ({"prompt": [1, 2], "label": 0}, ([1, 2], False, None, "")),
    "messages": (
        {"messages": [{"role": "user", "content": "a"}], "label": "neg", "tools": None},
        ({"messages": [{"role": "user", "content": "a"}]}, False, None, ""),
    ),
    "span of characters": (
        {"text": "abc", "label": "Positive", "span": [0, 2]},
        ("abc", True, ByCharacters(0, 2), ""),
    ),
    "span of text": (
        {"text": "abc", "label": np.int64(1), "span": "b", "group": 3},
        ("abc", True, ByText("b"), "3"),
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_of_a_data_set_is_an_example(case: str) -> None:
    row, expected = ROWS[case]
    made = Example.of(row)
    assert (made.prompt, made.positive, made.positions, made.group) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 1}, "one of prompt, text, messages"),
        ({"text": "a"}, "a label"),
        ({"text": "a", "label": "rude"}, "'rude' is no label"),
        ({"text": "a", "label": 2}, "2 is no label"),
        ({"text": "a", "label": 1, "span": 3}, "the span is 3"),
    ],
)
def test_a_row_that_is_none_says_what_is_missing(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Example.of(row)


def naive_recall(up: np.ndarray, down: np.ndarray, share: float) -> float:
    """The best recall of all thresholds that keep to a share of false positives."""
    found = 0.0
    for threshold in np.unique(down):
        if (down > threshold).mean() <= share:
            found = max(found, float((up > threshold).mean()))
    return found


@pytest.mark.parametrize(
    ("positives", "negatives", "values"), [(1, 1, 2), (7, 5, 3), (40, 60, 20), (30, 1500, 4000)]
)
def test_a_quality_is_what_its_words_say(positives: int, negatives: int, values: int) -> None:
    rng = np.random.default_rng(positives)
    ups = rng.integers(0, values, positives) + float(values // 3)
    downs = rng.integers(0, values, negatives).astype(float)
    found = measured([*ups, *downs], [True] * positives + [False] * negatives)
    pairs = (ups[:, None] > downs).mean() + 0.5 * (ups[:, None] == downs).mean()
    assert found.auroc == pytest.approx(pairs)
    assert found.interval[0] <= found.interval[1]
    assert found.recall_at_1_percent == pytest.approx(naive_recall(ups, downs, 0.01))
    assert found.recall_at_01_percent == pytest.approx(naive_recall(ups, downs, 0.001))
    shares = np.geomspace(1e-3, 1e-1, 101)
    naive = np.mean([naive_recall(ups, downs, share) for share in shares])
    assert found.log_auroc == pytest.approx(naive, abs=0.02)
    false, true = found.roc()
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    area = float(np.diff(false) @ (true[1:] + true[:-1]) / 2)
    assert area == pytest.approx(found.auroc)


def test_examples_of_one_group_are_drawn_together() -> None:
    rng = np.random.default_rng(3)
    values, kinds = rng.normal(size=200), rng.random(200) < 0.5
    values += kinds
    alone = measured(values.tolist(), kinds.tolist())
    grouped = measured(values.tolist(), kinds.tolist(), [str(at // 40) for at in range(200)])
    assert alone.interval == measured(values.tolist(), kinds.tolist()).interval
    assert alone.interval != grouped.interval
    assert alone.interval[0] < alone.auroc < alone.interval[1]


def test_scores_of_one_kind_tell_nothing_apart() -> None:
    with pytest.raises(InvalidRequest, match="some of both"):
        measured([1.0, 2.0], [True, True])


def test_a_report_is_drawn_as_curves_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = made.report()
    ax: Any = report.plot_roc()
    held_out, shuffled, _ = ax.get_lines()
    assert held_out.get_label() == "held out, AUROC 0.900"
    assert shuffled.get_label() == "shuffled, AUROC 0.900"
    assert (ax.get_xscale(), ax.get_xlim()) == ("log", (1e-3, 1.0))
    assert held_out.get_ydata()[-1] == 1.0
    scores: Any = report.plot_scores()
    assert len(scores.get_legend().get_texts()) == 2
    report.plot(tmp_path / "report.svg")
    assert (tmp_path / "report.svg").stat().st_size > 1000
    report.print_plot()
    assert "held out, AUROC 0.900" in capsys.readouterr().out
    assert report.to_pandas().loc["held out", "auroc_low"] == 0.8


def test_a_report_that_is_not_there_yet_cannot_be_drawn() -> None:
    report = replace(made.report(), held_out=None, shuffled=None)
    for draw in (report.plot_roc, report.plot_scores, report.print_plot):
        with pytest.raises(ValueError, match="measured"):
            draw()


def test_a_history_is_drawn_by_hour_the_oldest_first() -> None:
    history = made.history(("a", "b", "c"))
    ax: Any = history.plot()
    assert [each.get_text() for each in ax.get_yticklabels()] == ["≥1", "≥0", "<0"]
    shares = ax.images[0].get_array()
    assert shares[:, 0].tolist() == [1 / 5, 2 / 5, 2 / 5]  # Of the oldest, which has counts 2 2 1.
    with pytest.raises(ValueError, match="nothing was watched"):
        made.history(()).plot()


def text_of(shown: Shown) -> str:
    return shown._repr_html_()


def test_a_stored_level_is_written_as_it_is_read() -> None:
    level = StoredLevel(0.5, "pause", 0, 30.0, True, True, None, "")
    assert str(level) == "0.5, pause=30, proceed, flag"


def test_a_replay_says_where_no_token_counted() -> None:
    nothing = MonitorScore("new", 0, None, None, None, "")
    item = ReplayedItem("c-1", 0, None, {"new": nothing})
    assert "in 1 no token counted" in text_of(Replay((item,), ("new",), made.USAGE))


def test_a_history_of_several_versions_names_them() -> None:
    one = made.history()
    assert "version" not in text_of(one)
    changed = replace(one, hours=(replace(one.hours[0], monitor_etag="0123456789"), *one.hours))
    assert "version" in text_of(changed)
    assert "0123456" in text_of(changed)


def test_a_report_of_few_calibration_texts_says_to_give_more() -> None:
    few = made.report()
    assert "give more benign" in text_of(few)
    assert "give more benign" not in text_of(replace(few, calibration_texts=100))
