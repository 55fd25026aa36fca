"""How readouts are asked for: what travels, and what is refused where it is written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import (
    Attention,
    AttentionSummary,
    InvalidRequest,
    JumpReLU,
    Keep,
    KeptRows,
    LogitAttribution,
    Predict,
    Projection,
    TopK,
)
from actserve.v1 import readout_pb2 as pb
from actserve.v1 import site_pb2

from .fake_readouts import matrix, vector
from .fake_server import Model

D = [[1.0, 0.0, -2.0], [0.0, 3.0, 0.5]]
V = [0.5, -1.0]
SITE = site_pb2.Site(hook_point="HOOK_POINT_RESID_POST", layer=1)
FINAL_NORM = site_pb2.Site(hook_point="HOOK_POINT_FINAL_NORM")

# What a person writes, and the message that travels, its positions aside.
ASKED: list[tuple[Any, Any]] = [
    (Projection(D), pb.Projection(directions=matrix(D))),
    (Projection(D[0]), pb.Projection(directions=matrix(D[:1]))),
    (
        Projection(np.array(D, np.float16), V, "relu"),
        pb.Projection(directions=matrix(D), bias=vector(V), relu=pb.ReluActivation()),
    ),
    (
        Projection(D, activation=JumpReLU(V), send_top=9),
        pb.Projection(
            directions=matrix(D),
            jump_relu=pb.JumpReluActivation(thresholds=vector(V)),
            send_top=9,
        ),
    ),
    (
        Projection(D, activation=TopK(1)),
        pb.Projection(directions=matrix(D), top_k=pb.TopKActivation(k=1)),
    ),
    (Predict(top_k=5), pb.PredictionReadout(sites=[FINAL_NORM], top_k=5)),
    (
        Predict(["final_norm", "resid_post.1"], token_ids=np.array([3, 0]), next_token=True),
        pb.PredictionReadout(sites=[FINAL_NORM, SITE], token_ids=[3, 0], next_token=True),
    ),
    (Predict(token_ids=7), pb.PredictionReadout(sites=[FINAL_NORM], token_ids=[7])),
    (Attention(3, 2), pb.AttentionReadout(layer=3, heads=[2])),
    (Attention(-1, range(3), top_k=4), pb.AttentionReadout(layer=-1, heads=[0, 1, 2], top_k=4)),
    (AttentionSummary(), pb.AttentionSummaryReadout()),
    (
        AttentionSummary(np.array([3, -1]), offsets=range(2, 5), top_keys=64),
        pb.AttentionSummaryReadout(layers=[3, -1], offsets=[2, 3, 4], top_keys=64),
    ),
    (AttentionSummary(3, offsets=7), pb.AttentionSummaryReadout(layers=[3], offsets=[7])),
    (
        LogitAttribution("resid_post.1", [5, (7, 3)]),
        pb.LogitAttributionReadout(
            sites=[SITE],
            targets=[pb.LogitTarget(token_id=5), pb.LogitTarget(token_id=7, minus_token_id=3)],
        ),
    ),
    (
        LogitAttribution(["resid_post.1", "final_norm"], np.array([2, 4])),
        pb.LogitAttributionReadout(
            sites=[SITE, FINAL_NORM],
            targets=[pb.LogitTarget(token_id=2), pb.LogitTarget(token_id=4)],
        ),
    ),
]


@pytest.mark.parametrize(("asked", "message"), ASKED)
def test_each_request_is_its_message(asked: Any, message: Any) -> None:
    proto = asked.to_proto()
    for field in ("positions", "queries"):
        if field in proto.DESCRIPTOR.fields_by_name:
            assert getattr(proto, field).HasField("all")
            proto.ClearField(field)
    assert proto == message


def test_every_activation_of_the_contract_can_be_asked_for() -> None:
    contract = pb.Projection.DESCRIPTOR.oneofs_by_name["activation"].fields
    asked = [message.WhichOneof("activation") for _, message in ASKED if hasattr(message, "bias")]
    assert {field.name for field in contract} == {*asked} - {None}


def test_all_that_is_asked_for_travels_in_one_call(client: Any, model: Model) -> None:
    projection = Projection(np.eye(4)[:2])
    for reduce, number in (("last", 1), ("mean", 2), ("max", 3)):
        client.fetch(
            "a b",
            "resid_post.1",
            positions="prompt",
            element_type="f16",
            projection=projection,
            reduce=reduce,
            predictions=Predict(top_k=1, positions="last"),
            attention=[Attention(0, 1), Attention(1, 1, "last")],
            keep=Keep(1.5),
            readouts={"probe": actserve.Read("resid_post.0"), "lens": Predict(top_k=2)},
        )
        readouts = model.requests[-1].readouts
        assert [(each.WhichOneof("kind"), each.name) for each in readouts] == [
            ("rows", ""),
            ("keep", ""),
            ("predictions", ""),
            ("attention", ""),
            ("attention", ""),
            ("rows", "probe"),
            ("predictions", "lens"),
        ]
        rows, kept, predictions, *attention, _, _ = readouts
        # Statistics are what fetch_means asks for, in place of rows.
        assert {field.name for field, _ in rows.rows.ListFields()} == {
            field.name for field in pb.RowReadout.DESCRIPTOR.fields
        } - {"statistics"}
        assert rows.rows.reduction == number
        assert rows.rows.positions.HasField("prompt")
        assert kept.keep.positions.HasField("prompt")
        assert list(kept.keep.sites) == list(rows.rows.sites) == [SITE]
        assert (kept.keep.ttl.seconds, kept.keep.ttl.nanos) == (1, 500_000_000)
        assert predictions.predictions.positions.HasField("last")
        asked = [each.attention.queries.WhichOneof("selection") for each in attention]
        assert asked == ["all", "last"]


def test_every_prompt_of_a_list_has_what_an_iterator_yields(client: Any, model: Model) -> None:
    client.generate(
        ["a", "b"],
        intervene=(actserve.Zero(f"resid_post.{layer}") for layer in range(2)),
        sites=(f"resid_post.{layer}" for layer in range(3)),
        attention=(Attention(layer, 0) for layer in range(2)),
    )
    for request in model.requests:
        rows, *attention = request.readouts
        assert (len(request.interventions), len(rows.rows.sites), len(attention)) == (2, 3, 2)
    assert len(model.requests) == 2


def test_a_capture_without_sites_says_nothing_of_rows(client: Any, model: Model) -> None:
    client.fetch("a b", predictions=Predict(top_k=1))
    assert [each.WhichOneof("kind") for each in model.requests[0].readouts] == ["predictions"]


def test_what_is_given_is_copied() -> None:
    directions = np.ones((1, 2), np.float32)
    projection = Projection(directions)
    directions[:] = 7
    assert projection.to_proto().directions == matrix([[1, 1]])


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "directions of no width": (lambda: Projection(1.0), r"\[directions, width\] or \[width\]"),
    "directions that are not finite": (lambda: Projection([np.nan]), "must be finite"),
    "a bias of another length": (lambda: Projection(D, [1.0]), "bias has 1 elements for 2 dir"),
    "thresholds of another length": (
        lambda: Projection(D, activation=JumpReLU([1.0])),
        "thresholds has 1 elements for 2 directions",
    ),
    "no such activation": (lambda: Projection(D, activation=_any("gelu")), "'gelu'; use 'relu'"),
    "nothing to send": (lambda: Projection(D, send_top=0), "0 is not a number of components"),
    "a top 0": (lambda: TopK(0), "0 is not a number of components; use .* from 1"),
    "no prediction": (lambda: Predict(), "set top_k, token_ids or next_token"),
    "predictions nowhere": (lambda: Predict([], top_k=1), "sites is empty"),
    "predictions at no site": (lambda: Predict("final", top_k=1), "not a site"),
    "too many likeliest tokens": (lambda: Predict(top_k=1001), "from 0 to 1000"),
    "a negative token": (lambda: Predict(token_ids=[-1]), "-1 is not a token id"),
    "a token twice": (lambda: Predict(token_ids=[0, 3, 0]), "token id is named twice: 0"),
    "predictions at no position": (lambda: Predict(top_k=1, positions=[]), "positions is empty"),
    "attention of no head": (lambda: Attention(0, []), "heads is empty"),
    "attention of a head twice": (lambda: Attention(0, [2, 2]), "a head is named twice: 2"),
    "attention of a part of a head": (lambda: Attention(0, _any(0.5)), "0.5 is not a head"),
    "attention of no layer": (lambda: Attention(_any("3"), 0), "'3' is not a layer"),
    "attention of no query": (lambda: Attention(0, 0, _any("none")), "'none' do not exist"),
    "attention to no key": (lambda: Attention(0, 0, top_k=0), "0 is not a number of weights"),
    "an attribution of no site": (lambda: LogitAttribution([], [1]), "sites is empty"),
    "an attribution to nothing": (lambda: LogitAttribution("z.1", []), "0 targets"),
    "an attribution to a number": (lambda: LogitAttribution("z.1", _any(5)), "targets is 5; give"),
    "an attribution to too many": (lambda: LogitAttribution("z.1", range(65)), "65 targets"),
    "an attribution to no token": (lambda: LogitAttribution("z.1", [-1]), "-1 is not a token id"),
    "an attribution to three": (
        lambda: LogitAttribution("z.1", [_any((1, 2, 3))]),
        "is not a target",
    ),
    "an attribution to a token less itself": (
        lambda: LogitAttribution("z.1", [(5, 5)]),
        "token 5 less itself is zero",
    ),
    "a summary of a layer twice": (lambda: AttentionSummary([2, 2]), "layer is named twice: 2"),
    "a summary of no layer": (lambda: AttentionSummary(_any("3")), "'3' is not a layer"),
    "a summary of no query": (lambda: AttentionSummary(queries=[]), "positions is empty"),
    "a summary at an offset ahead": (lambda: AttentionSummary(offsets=-1), "-1 is not an offset"),
    "a summary at an offset twice": (
        lambda: AttentionSummary(offsets=[1, 0, 1]),
        "an offset is named twice: 1",
    ),
    "a summary at too many offsets": (
        lambda: AttentionSummary(offsets=range(65)),
        "65 offsets; give at most 64",
    ),
    "a summary of too many keys": (
        lambda: AttentionSummary(top_keys=65),
        "65 is not a number of keys; .* from 0 to 64",
    ),
    "kept for no time": (lambda: Keep(0), "ttl is 0; it must be a number of seconds above 0"),
    "kept for ever": (lambda: Keep(np.inf), "ttl is inf"),
    "kept until": (lambda: Keep(_any("noon")), "ttl is 'noon'"),
    "no name of kept rows": (lambda: KeptRows("x"), "'x' does not name kept activations"),
    "rows that are a word": (lambda: actserve.Replace("z.0", "x"), "rows is the stored vector 'x'"),
    "rows that were not kept": (lambda: actserve.Replace("z.0", _any(None)), "rows must hold"),
    "kept positions out of order": (
        lambda: KeptRows("keptActivations/x", positions=[2, 1]),
        "not ascending",
    ),
    "kept positions from the end": (
        lambda: KeptRows("keptActivations/x", positions=-1),
        "-1 is not a kept position",
    ),
}


def _any(value: Any) -> Any:
    return value


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_for_is_refused_where_it_is_written(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(InvalidRequest, match=message):
        make()


PREDICT = Predict(top_k=1)

REFUSED_CALLS: dict[str, tuple[Callable[[actserve.Client], object], str]] = {
    "a fetch of nothing": (lambda c: c.fetch("a"), "sites is empty.*or ask for predictions"),
    "a projection of no rows": (
        lambda c: c.fetch("a", predictions=PREDICT, projection=Projection(D)),
        "projection is about the rows of sites, but none is named",
    ),
    "a reduction of no rows": (lambda c: c.generate("a", reduce="mean"), "reduce is about"),
    "keeping no rows": (lambda c: c.generate("a", keep=Keep()), "keep is about"),
    "positions of no rows": (
        lambda c: c.fetch("a", predictions=PREDICT, positions="last"),
        r"positions is about .* \(predictions and attention have positions of their own\)",
    ),
    "no such reduction": (
        lambda c: c.fetch("a", "embedding", reduce=_any("median")),
        "'median' does not exist; use one of last, mean, max",
    ),
    "predictions by name": (
        lambda c: c.fetch("a", predictions=_any("final_norm")),
        "predictions is 'final_norm'; give Predict",
    ),
    "attention by layer": (
        lambda c: c.fetch("a", attention=_any([3])),
        "an item of attention is 3; give Attention",
    ),
    "attention that is missing": (
        lambda c: c.fetch("a", attention=_any([None])),
        "an item of attention is None; give Attention",
    ),
    "a summary without a name": (
        lambda c: c.fetch("a", attention=_any(AttentionSummary())),
        "attention is an AttentionSummary; give it a name",
    ),
    "a head twice": (
        lambda c: c.fetch("a", attention=[Attention(0, [1, 2]), Attention(0, 2, "last")]),
        "layer 0 head 2 is asked for twice",
    ),
    "means of one prompt": (lambda c: c.fetch_means(_any("a"), ["x"], "embedding"), "into a list"),
    "means of what is no prompt": (
        lambda c: c.fetch_means(_any(["a", None]), ["x", "x"], "embedding"),
        "NoneType is not a prompt",
    ),
    "means without a label each": (
        lambda c: c.fetch_means(["a", "b"], ["x"], "embedding"),
        "1 labels for 2 prompts",
    ),
    "one label for all": (
        lambda c: c.fetch_means(["a", "b"], "xy", "embedding"),
        "1 labels for 2 prompts",
    ),
    "labels that are numbers": (
        lambda c: c.fetch_means(["a", "b"], _any([0, 1]), "embedding"),
        "0 is not a label",
    ),
    "labels without a name": (
        lambda c: c.fetch_means(["a", "b"], ["x", ""], "embedding"),
        "'' is not a label; labels are strings that are not empty",
    ),
    "readouts that are no dict": (
        lambda c: c.fetch("a", readouts=_any([Predict(top_k=1)])),
        "readouts is of type list; give a dict",
    ),
    "a readout without a name": (
        lambda c: c.fetch("a", readouts={"": Predict(top_k=1)}),
        "'' is not the name of a readout",
    ),
    "a readout with a long name": (
        lambda c: c.fetch("a", readouts={"a" * 65: Predict(top_k=1)}),
        "use a text of 1 to 64 bytes",
    ),
    "a readout that is none": (
        lambda c: c.fetch("a", readouts=_any({"probe": "resid_post.1"})),
        "readout 'probe' is of type str; give a Read",
    ),
    "a readout of no site": (lambda c: c.fetch("a", readouts={"a": actserve.Read([])}), "is empty"),
    "nothing computed of what is not sent": (
        lambda c: c.fetch("a", "embedding", keep=Keep(send=False), reduce="last"),
        "nothing would come of reduce",
    ),
    "means of no site": (lambda c: c.fetch_means(["a"], ["x"], []), "but none is named"),
    "means of reduced rows by position": (
        lambda c: c.fetch_means(["a"], [{"x": 0}], "embedding"),
        "reduce is 'mean', but labels name positions",
    ),
    "means of the largest components": (
        lambda c: c.fetch_means(["a"], ["x"], "embedding", projection=Projection(D, send_top=1)),
        "send_top is set",
    ),
    "what is kept under no name": (lambda c: c.kept("x"), "does not name kept"),
    "deleting what has no name": (lambda c: c.delete_kept(_any(None)), "does not name kept"),
}


@pytest.mark.parametrize("case", REFUSED_CALLS)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    target: str, model: Model, case: str
) -> None:
    call, message = REFUSED_CALLS[case]
    with actserve.Client(target) as client, pytest.raises(InvalidRequest, match=message):
        call(client)
    assert not model.requests


@pytest.mark.parametrize("method", ["fetch", "generate", "stream"])
def test_an_unknown_option_is_refused_by_name(target: str, method: str) -> None:
    with actserve.Client(target) as client, pytest.raises(TypeError, match="projections"):
        getattr(client, method)("a", projections=None)
