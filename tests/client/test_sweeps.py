"""Sweeps: every cell once, through whatever connection, and the table that they make."""

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import matplotlib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from google.rpc import error_details_pb2

import actserve
from actserve import (
    Ablate,
    Add,
    BadResponse,
    ByTokenId,
    Ema,
    InvalidRequest,
    NotFound,
    Probe,
    ResourceExhausted,
    RollingMean,
    SteeringVector,
    Stored,
    StreamCutShort,
    Sweep,
    SweepCell,
    Variant,
)
from actserve.sites import site_name
from actserve.v1 import model_service_pb2
from actserve.v1 import sweep_service_pb2 as pb

from . import fake_sweeps
from .failing import abort
from .fake_server import Model
from .fake_vectors import site

V = [1.0, 2.0, 3.0, 4.0]
JOY = "models/big/steeringVectors/joy"
PROMPTS = ["a b c", "a"]
GRID: dict[str, Any] = {"coefficients": [2, -1, 0], "sites": ["resid_post.0", "resid_post.2"]}
ANSWERS = {"good": " good", "bad": " bad"}


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect(model="big")


def _any(value: Any) -> Any:
    return value


def swept(client: Any, **options: Any) -> Sweep:
    return client.sweep(PROMPTS, "joy", **{**GRID, "answers": ANSWERS, **options})


def requests(model: Model) -> list[pb.RunSweepRequest]:
    return [each for each in model.requests if isinstance(each, pb.RunSweepRequest)]


def test_a_table_has_every_prompt_at_every_point_and_the_model_as_it_is(client: Any) -> None:
    sweep = swept(client)
    assert len(sweep) == 2 + 2 * 3 * 2
    plain = [(cell.variant, cell.prompt) for cell in sweep.cells[:2]]
    assert plain == [("plain", "0"), ("plain", "1")]
    assert [(cell.site, cell.coefficient, cell.prompt_index) for cell in sweep.cells[2:]] == [
        (at, factor, prompt)
        for at in GRID["sites"]
        for factor in GRID["coefficients"]
        for prompt in (0, 1)
    ]
    for cell in sweep.cells:
        index = GRID["sites"].index(cell.site) if cell.site else 0
        expected = fake_sweeps.answer((3, 1)[cell.prompt_index], cell.coefficient or 0, index, 0)
        assert cell.answers == {"good": expected, "bad": expected - 0.5}
        assert (cell.error, cell.text, cell.stored) == (None, "", False)
        assert len(cell.interventions) == (cell.variant != "plain")
    assert sweep.cells[-1].relative_change == 0.0
    assert sweep.cells[0].relative_change is None
    assert (sweep.request_id, sweep.usage) == ("r0", actserve.Usage(7, 14, 0))


def test_what_is_asked_for_travels(client: Any, model: Model) -> None:
    scores = {
        "joy": Probe("resid_post.1", "joy", 0.5, Ema(0.25), "max"),
        "anger": Probe("resid_post.-1", V, smoothing=RollingMean(8)),
    }
    client.sweep(
        {"first": "a b", "second": [1, 2]},
        variants={
            "none": Variant(),
            "joy": Variant("joy", [1.5, -2], "resid_post.*", ["all", "generated"]),
            "both": Variant([Add("resid_post.0", V, 3.0), Ablate("embedding", Stored("x"))]),
        },
        baseline=False,
        answers=[" good"],
        scores=scores,
        perplexity=True,
        afresh=True,
        max_tokens=5,
        seed=3,
    )
    (request,) = requests(model)
    assert [(each.key, each.prompt.text) for each in request.prompts] == [
        ("first", "a b"),
        ("second", ""),
    ]
    none, joy, both = request.variants
    assert (none.key, len(none.interventions)) == ("none", 0)
    (add,) = joy.interventions
    assert add.add.vector.steering_vector == JOY
    assert not add.add.HasField("coefficient")
    assert not add.sites
    assert not add.HasField("positions")
    assert [*joy.coefficients] == [1.5, -2]
    assert [*joy.sites] == [site(layer) for layer in range(3)]
    assert [each.ListFields()[0][0].name for each in joy.positions] == ["all", "generated"]
    assert [each.WhichOneof("operation") for each in both.interventions] == ["add", "ablate"]
    assert both.interventions[0].add.coefficient == 3.0
    assert [(each.name, each.text) for each in request.answers] == [(" good", " good")]
    one, other = request.scores
    assert (one.name, one.probe.bias, one.probe.direction.steering_vector) == ("joy", 0.5, JOY)
    assert (one.aggregator.ema.weight, one.aggregator.reduction) == (0.25, 3)
    assert (other.aggregator.rolling_mean.tokens, other.aggregator.reduction) == (8, 0)
    assert (request.perplexity, request.afresh, request.model) == (True, True, "models/big")
    assert (request.sampling.max_tokens, request.sampling.seed) == (5, 3)
    assert request.sampling.temperature == 0.0


GENERATES: dict[str, tuple[dict[str, Any], bool]] = {
    "answers alone": ({}, False),
    "a parameter": ({"max_tokens": 3}, True),
    "a parameter that is None": ({"seed": None}, False),
    "perplexity": ({"perplexity": True}, True),
    "nothing to compare": ({"answers": ()}, True),
    "scores alone": ({"answers": (), "scores": {"joy": Probe("embedding", V)}}, False),
}


@pytest.mark.parametrize("case", GENERATES)
def test_text_is_generated_where_it_is_wanted(client: Any, model: Model, case: str) -> None:
    options, generates = GENERATES[case]
    sweep = swept(client, **options)
    assert requests(model)[-1].HasField("sampling") == generates
    assert all(bool(cell.text) == generates for cell in sweep.cells)
    assert sweep.cells[0].finish_reason == ("length" if generates else "")
    assert sweep.cells[0].repetition == (0.25 if generates else None)


STEERS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "a vector at its site": ({"intervene": SteeringVector("resid_post.1", V)}, [site(1)]),
    "an array at a site": ({"intervene": V, "sites": "resid_post.1"}, []),
    "an intervention": ({"intervene": Add("resid_post.1", V)}, [site(1)]),
    "several": (
        {"intervene": [Add("resid_post.1", V), SteeringVector("resid_post.1", V)]},
        [site(1)],
    ),
}


@pytest.mark.parametrize("case", STEERS)
def test_what_steers_is_given_as_anywhere(client: Any, model: Model, case: str) -> None:
    options, sites = STEERS[case]
    client.sweep("a", coefficients=[1], answers=" good", **options)
    _, variant = requests(model)[-1].variants
    assert {each.WhichOneof("operation") for each in variant.interventions} == {"add"}
    assert all([*each.sites] == sites for each in variant.interventions)


def test_a_stored_vector_without_sites_is_added_at_its_own(client: Any, model: Model) -> None:
    client.vectors.store("joy", [SteeringVector("resid_post.0", V), SteeringVector("z.1", V)])
    for intervene in ("joy", Stored("joy"), JOY, client.vectors.get("joy")):
        client.sweep("a", intervene, coefficients=[1, 2], answers="x")
        client.sweep("a", variants={"it": Variant(intervene, [1, 2])}, answers="x")
        for request in requests(model)[-2:]:
            (intervention,) = request.variants[1].interventions
            assert [site_name(each) for each in intervention.sites] == ["resid_post.0", "z.1"]
            assert intervention.add.vector.steering_vector == JOY
            assert not intervention.add.HasField("coefficient")
    with pytest.raises(NotFound):
        client.sweep("a", "anger", answers="x")


def test_positions_are_told_as_they_were_written(client: Any) -> None:
    where = ["generated", slice(1, 3), [0, 1], ByTokenId("a")]
    sweep = client.sweep("a b c", Add("embedding", V), positions=where, answers=" x")
    assert [cell.positions for cell in sweep.cells[1:]] == [
        "generated", "slice(1, 3, None)", "[0, 1]", sweep.cells[-1].positions,
    ]  # fmt: skip
    assert "ByTokenId" in str(sweep.cells[-1].positions)


def test_cells_come_as_they_are_served(client: Any, model: Model) -> None:
    cells = client.sweep_iter(PROMPTS, "joy", answers=ANSWERS, **GRID)
    first = next(cells)
    assert isinstance(first, SweepCell)
    # In the order in which they are served, which is not that of the table.
    assert (first.prompt_index, first.variant) == (1, "plain")
    assert len([first, *cells]) == 14


@pytest.mark.parametrize("after", [0, 1, 5, 13])
def test_a_sweep_goes_on_where_its_connection_was_lost(
    client: Any, model: Model, after: int
) -> None:
    whole = swept(client)
    del model.requests[:]
    model.sweep = fake_sweeps.cut_after(after, 2)
    again = swept(client)
    assert [cell.answers for cell in again.cells] == [cell.answers for cell in whole.cells]
    tokens = [json.loads(each.resume_token or b"-1") for each in requests(model)]
    assert tokens[:2] == [-1, after - 1]
    assert len(tokens) == (2 if after == 13 else 3)


def test_a_connection_that_brings_nothing_is_given_up(client: Any, model: Model) -> None:
    model.sweep = fake_sweeps.cut_after(0, 99)
    with pytest.raises(StreamCutShort):
        swept(client)
    assert len(requests(model)) == 4
    # As long as it comes further it is tried again, however often.
    model.sweep = fake_sweeps.cut_after(1, 99)
    assert len(swept(client)) == 14


def test_leaving_the_loop_cancels_the_call(client: Any, model: Model) -> None:
    def run(request: Any) -> Iterator[Any]:
        yield from [*fake_sweeps.honest(request)][:4]
        assert model.cancelled.wait(10)

    model.sweep = run
    cells = client.sweep_iter(PROMPTS, "joy", answers=ANSWERS, **GRID)
    next(cells)
    cells.close()
    assert model.cancelled.wait(10)


def test_a_cell_that_fails_keeps_its_error_and_counts_in_no_mean(client: Any, model: Model) -> None:
    def run(request: Any) -> Iterator[Any]:
        for event in fake_sweeps.honest(request):
            if event.cell.HasField("coefficient_index") and event.cell.prompt_index == 1:
                event.cell.status.code, event.cell.status.message = 8, "too much"
                del event.cell.answer_logprobs[:], event.cell.interventions[:]
            yield event

    model.sweep = run
    sweep = swept(client)
    assert len(sweep.failed) == 6
    assert {type(cell.error) for cell in sweep.failed} == {ResourceExhausted}
    assert sweep.failed[0].answers == {}
    for curve in sweep.curves():
        expected = 2 if curve.variant == "plain" else 1
        assert {*curve.counts.tolist()} == {expected}
        assert np.isnan(curve.errors).all() == (expected == 1)
    assert repr(sweep) == "Sweep(14 cells, 2 prompts, 2 variants, 6 failed)"
    assert repr(client.sweep("a", answers="x")) == "Sweep(1 cell, 1 prompt, 1 variant)"
    assert "too much" in sweep.to_pandas()["error"].iloc[-1]


def test_curves_are_means_over_prompts_with_their_standard_error(client: Any) -> None:
    plain, first, last = swept(client).curves("good")
    assert (plain.label, first.label) == ("plain", "steered, resid_post.0")
    assert first.coefficients.tolist() == [-1, 0, 2]
    # The prompts have 3 words and 1.
    np.testing.assert_allclose(first.means, [-9, -8, -6])
    np.testing.assert_allclose(last.means, [-10, -8, -4])
    np.testing.assert_allclose(first.errors, 2**0.5 / 2**0.5)
    assert np.isnan(plain.coefficients).all()
    np.testing.assert_allclose(plain.means, [-8])


def test_numbers_are_named_or_computed(client: Any) -> None:
    sweep = swept(client, scores={"joy": Probe("embedding", V)}, perplexity=True)

    def apart(cell: SweepCell) -> float:
        return cell.answers["good"] - cell.answers["bad"]

    assert sweep.value()[0] == "good"
    for name in ("good", "bad", "joy", "perplexity", "repetition", "relative_change"):
        assert np.isfinite(sweep.value(name)[1]).any()
    name, numbers = sweep.value(apart)
    assert name == "apart"
    np.testing.assert_allclose(numbers, 0.5)
    name, numbers = sweep.value("good - bad")
    assert name == "good - bad"
    np.testing.assert_allclose(numbers, 0.5)
    with pytest.raises(ValueError, match="'worse' is no number of this sweep; there are good, bad"):
        sweep.curves("worse")
    with pytest.raises(ValueError, match="'perplexity' is no number"):
        swept(client).value("perplexity")


def test_a_table_is_a_data_frame_and_a_file(client: Any, tmp_path: Path) -> None:
    sweep = swept(client, max_tokens=3, scores={"joy": Probe("embedding", V)})
    frame = sweep.to_pandas()
    assert len(frame) == len(sweep)
    by: Any = frame.groupby(["site", "coefficient"])["answers.good"].mean()
    assert by["resid_post.2", 2.0] == pytest.approx(-4)
    assert np.isnan(frame["coefficient"].to_numpy()).sum() == 2
    assert frame["text"].str.startswith("text").all()
    sweep.save(tmp_path / "joy.parquet")
    table = pq.read_table(tmp_path / "joy.parquet").to_pandas()
    pd.testing.assert_frame_equal(table, frame, check_dtype=False)
    with pytest.raises(ValueError, match=r"\.parquet"):
        sweep.save(tmp_path / "joy.csv")
    told = json.loads(json.dumps(sweep.to_json()))
    assert told["cells"][-1]["answers.good"] == frame["answers.good"].iloc[-1]


def test_a_table_has_the_texts_of_prompts(client: Any) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    sweep = client.sweep(["a b", turns, [1, 2], "x" * 1500], answers="x")
    texts = sweep.to_pandas()["prompt_text"].tolist()
    assert texts == ["a b", "Hi\nHo", "", "x" * 999 + "…"]


def clamped(request: Any) -> Iterator[Any]:
    """All coefficients above 1 are scaled down to it."""
    for event in fake_sweeps.honest(request):
        cell = event.cell
        if cell.HasField("coefficient_index"):
            factor = request.variants[cell.variant_index].coefficients[cell.coefficient_index]
            for report in cell.interventions:
                if factor > 1:
                    report.dose_factor = 1 / factor
        yield event


def test_what_was_applied_is_told_beside_what_was_asked_for(
    client: Any, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the server scales down what is beyond its limit."""
    assert swept(client).limited == ()
    model.sweep = clamped
    sweep = swept(client)
    assert {cell.coefficient for cell in sweep.limited} == {2.0}
    frame = sweep.to_pandas()
    assert {*zip(frame["coefficient"], frame["dose_factor"], strict=True)} > {
        (-1.0, 1.0), (0.0, 1.0), (2.0, 0.5),
    }  # fmt: skip
    assert np.isnan(frame["dose_factor"][frame["variant"] == "plain"]).all()
    told = "4 cells ran with less than asked for, down to 0.5 of it"
    plot: Any = sweep.plot()
    heat: Any = sweep.plot_heat()
    assert told in plot.get_xlabel()
    assert told in heat.get_xlabel()
    sweep.print_plot()
    assert told in capsys.readouterr().out
    assert told in str(sweep._repr_html_())


def test_plots_are_drawn_without_any_state_of_matplotlib(client: Any, tmp_path: Path) -> None:
    matplotlib.use("agg")
    sweep = swept(client)
    axes: Any = sweep.plot("good")
    assert len(axes.get_lines()) == 3
    assert [each.get_text() for each in axes.get_legend().get_texts()] == [
        "steered, resid_post.0", "steered, resid_post.2", "plain",
    ]  # fmt: skip
    heat: Any = sweep.plot_heat("good")
    np.testing.assert_allclose(heat.images[0].get_array(), [[-9, -8, -6], [-10, -8, -4]])
    for drawn, name in ((axes, "joy.png"), (heat, "layers.svg")):
        drawn.figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    assert "<svg" in (tmp_path / "layers.svg").read_text()
    with pytest.raises(ValueError, match="this sweep has none"):
        client.sweep("a", Add("embedding", V), coefficients=[1], answers="x").plot_heat()


def test_curves_are_printed_on_a_terminal(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    swept(client).print_plot("good")
    printed = capsys.readouterr().out
    assert "resid_post.2" in printed
    assert "coefficient" in printed


def test_a_table_shows_its_means(client: Any) -> None:
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=100).print(swept(client))
    printed = file.getvalue()
    assert "steered, resid_post.2" in printed
    assert "-10" in printed


def test_a_sweep_goes_on_where_a_program_stopped(client: Any, model: Model, tmp_path: Path) -> None:
    partial = tmp_path / "joy.jsonl"
    whole = swept(client)
    cells = client.sweep_iter(PROMPTS, "joy", answers=ANSWERS, partial=partial, **GRID)
    first = [next(cells) for _ in range(5)]
    cells.close()
    with partial.open("a") as file:
        file.write('{"prompt_index": 1, "vari')  # As a program that is killed leaves it.
    sweep = swept(client, partial=partial)
    assert [cell.answers for cell in sweep.cells] == [cell.answers for cell in whole.cells]
    assert json.loads(requests(model)[-1].resume_token) == 4
    # What is there already comes first.
    again = [*client.sweep_iter(PROMPTS, "joy", answers=ANSWERS, partial=partial, **GRID)]
    assert [cell.answers for cell in again[:5]] == [cell.answers for cell in first]
    assert len(again) == 14
    # An earlier call ran it, wherever its answer was stored.
    assert [cell.stored for cell in sweep.cells].count(True) == 5
    assert json.loads(requests(model)[-1].resume_token) == 13


def test_a_partial_file_has_each_number(client: Any, model: Model, tmp_path: Path) -> None:
    third = float(np.float32(1 / 3))

    def run(request: Any) -> Iterator[Any]:
        for event in fake_sweeps.honest(request):
            if event.HasField("cell"):
                event.cell.answer_logprobs[0] = third
                event.cell.answer_logprobs[1] = -math.inf
            yield event

    model.sweep = run
    for _ in range(2):
        sweep = swept(client, partial=tmp_path / "joy.jsonl")
        assert {(cell.answers["good"], cell.answers["bad"]) for cell in sweep.cells} == {
            (third, -math.inf)
        }


def test_a_partial_file_that_the_server_no_longer_takes_is_named(
    client: Any, model: Model, tmp_path: Path
) -> None:
    """As after a stored vector was replaced by another one of that name."""
    partial = tmp_path / "joy.jsonl"
    swept(client, partial=partial)

    def refuse(request: Any, context: Any) -> None:
        if getattr(request, "resume_token", b""):
            abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "it is of another sweep",
                error_details_pb2.ErrorInfo(reason="RESUME_TOKEN_INVALID", domain="actserve.dev"),
            )

    model.before = refuse
    with pytest.raises(InvalidRequest, match=r"delete .*joy\.jsonl"):
        swept(client, partial=partial)


def test_a_sweep_that_is_refused_leaves_no_partial_file(
    client: Any, model: Model, tmp_path: Path
) -> None:
    """Which would stand in the way of the one that is put right."""

    def refuse(request: Any, context: Any) -> None:
        if isinstance(request, pb.RunSweepRequest):
            abort(context, grpc.StatusCode.INVALID_ARGUMENT)

    model.before = refuse
    with pytest.raises(InvalidRequest):
        swept(client, partial=tmp_path / "joy.jsonl")
    assert not [*tmp_path.iterdir()]


OTHERS: dict[str, tuple[bytes | None, str]] = {
    "another sweep": (None, "is of another sweep"),
    "a text": (b"my notes\n", "was written by something else"),
    "a text without an end": (b"my notes", "was written by something else"),
    "bytes": (b"\xff\xfe\n", "is no text"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_file_of_something_else_is_left_alone(
    client: Any, model: Model, tmp_path: Path, case: str
) -> None:
    content, message = OTHERS[case]
    partial = tmp_path / "joy.jsonl"
    if content is None:
        client.sweep("other", "joy", answers=ANSWERS, partial=partial, **GRID)
    else:
        partial.write_bytes(content)
    before, sent = partial.read_bytes(), len(requests(model))
    with pytest.raises(ValueError, match=message):
        swept(client, partial=partial)
    assert partial.read_bytes() == before
    assert len(requests(model)) == sent


def test_a_damaged_partial_file_says_where(client: Any, tmp_path: Path) -> None:
    partial = tmp_path / "joy.jsonl"
    swept(client, partial=partial)
    lines = partial.read_text().splitlines()
    for line in ("{", '{"prompt_index": "x"}', "[" * 100_000):
        partial.write_text("\n".join([*lines[:3], line, *lines[4:]]) + "\n")
        with pytest.raises(ValueError, match="is damaged in line 4"):
            swept(client, partial=partial)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "kept rows without a site": (
        lambda c: c.sweep("a", "keptActivations/a/0"),
        "vector without a site",
    ),
    "a vector without a site": (lambda c: c.sweep("a", [1.0, 2.0]), "vector without a site"),
    "coefficients of nothing": (
        lambda c: c.sweep("a", actserve.Zero("embedding"), coefficients=[1, 2]),
        "2 coefficients and no Add or Ablate",
    ),
    "two coefficients": (
        lambda c: c.sweep("a", Add("embedding", V, 2.0), coefficients=[1]),
        "has the coefficient 2, and the grid has others",
    ),
    "an endless coefficient": (
        lambda c: c.sweep("a", Add("embedding", V), coefficients=[math.inf]),
        "must be finite",
    ),
    "a variant that is none": (lambda c: c.sweep("a", variants=["joy"]), "give a Variant"),
    "one and several": (
        lambda c: c.sweep("a", Add("embedding", V), variants=[Variant()]),
        "give one of the two",
    ),
    "no variant": (lambda c: c.sweep("a", baseline=False), "no variant"),
    "plain twice": (lambda c: c.sweep("a", variants={"plain": Variant()}), "baseline=False"),
    "no prompt": (lambda c: c.sweep([]), "no prompt"),
    "a key that is too long": (lambda c: c.sweep({"x" * 257: "a"}), "the key of a prompt"),
    "an answer without a name": (lambda c: c.sweep("a", answers=[""]), "does not name an answer"),
    "an answer without a text": (lambda c: c.sweep("a", answers={"x": ""}), "give a text"),
    "a score that is no probe": (lambda c: c.sweep("a", scores={"x": V}), "give probes by name"),
    "a smoothing that is none": (lambda c: _any(Probe)("embedding", V, smoothing=0.5), "use Ema"),
    "a weight above one": (lambda c: Ema(1.5), "at most 1"),
    "no tokens": (lambda c: RollingMean(0), "0 is not a number of tokens"),
    "a zero probe": (lambda c: Probe("embedding", [0.0]), "has no direction"),
    "too many cells": (
        lambda c: c.sweep(
            [str(i) for i in range(700)],
            Add("embedding", V),
            coefficients=np.linspace(0, 1, 100).tolist(),
        ),
        "700 prompts times 101 points are 70700 cells, and a sweep has 65536",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_not_sent(client: Any, model: Model, case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(InvalidRequest, match=message):
        call(client)
    assert not [r for r in model.requests if not isinstance(r, model_service_pb2.ListModelsRequest)]


def changed(change: Callable[[list[Any]], object]) -> Callable[[Any], Iterator[Any]]:
    def run(request: Any) -> Iterator[Any]:
        events = [*fake_sweeps.honest(request)]
        change(events)
        return iter(events)

    return run


BROKEN: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "a cell twice": (lambda events: events.insert(2, events[1]), "twice"),
    "a cell that is missing": (lambda events: events.pop(3), "finished with 13 of 14 cells"),
    "another count": (
        lambda events: setattr(events[0].started, "cells", 15),
        "began a sweep of 15 cells",
    ),
    "cells that never came": (
        lambda events: setattr(events[0].started, "skipped_cells", 1),
        "of which 1 came before",
    ),
    "a cell of no prompt": (
        lambda events: setattr(events[1].cell, "prompt_index", 2),
        "which nobody asked for",
    ),
    "a cell of no variant": (
        lambda events: setattr(events[1].cell, "variant_index", 2),
        "which nobody asked for",
    ),
    "a cell of no site": (
        lambda events: setattr(events[-2].cell, "site_index", 2),
        "which nobody asked for",
    ),
    "a cell without its coefficient": (
        lambda events: events[-2].cell.ClearField("coefficient_index"),
        "which nobody asked for",
    ),
    "a coefficient of the model as it is": (
        lambda events: setattr(events[1].cell, "coefficient_index", 0),
        "which nobody asked for",
    ),
    "an answer that is missing": (
        lambda events: events[1].cell.answer_logprobs.pop(),
        "1 answers and 0 scores",
    ),
    "a report that is missing": (
        lambda events: events[-2].cell.interventions.pop(),
        "reported on 0 interventions",
    ),
    "no beginning": (lambda events: events.pop(0), "where it may not come"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_answer_that_breaks_the_contract_raises(client: Any, model: Model, case: str) -> None:
    change, message = BROKEN[case]
    model.sweep = changed(change)
    with pytest.raises(BadResponse, match=message):
        swept(client)


def test_an_event_of_a_newer_server_is_skipped(client: Any, model: Model) -> None:
    model.sweep = changed(lambda events: events.insert(2, pb.RunSweepResponse()))
    assert len(swept(client)) == 14
