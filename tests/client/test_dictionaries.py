"""Dictionaries: named anywhere a vector or directions may stand, uploaded byte for byte."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actserve import (
    Add,
    ChangeFeatures,
    Conflict,
    Dictionary,
    Feature,
    FeatureLabel,
    InvalidRequest,
    JumpReLU,
    NotFound,
    Projection,
    TopK,
    Unavailable,
)
from actserve._crc32c import crc32c
from actserve.sites import plain_sites
from actserve.v1 import dictionary_service_pb2 as pb
from actserve.v1 import generation_service_pb2

from .fake_dictionaries import NAME
from .fake_server import Model

ENCODER = np.arange(12, dtype=np.float32).reshape(3, 4)
DECODER = -ENCODER


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect(model="big")


# --- checksums ---------------------------------------------------------------


def test_the_checksum_is_that_of_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 5000, 8192, 12_345, 70_001])
def test_lanes_of_bytes_come_to_the_checksum_of_bytes_one_by_one(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c(data) == state ^ 0xFFFFFFFF


# --- what is there -----------------------------------------------------------


def test_a_dictionary_is_described_with_what_it_was_measured_to_do(client: Any) -> None:
    found = client.dictionaries.get("tiny")
    assert (found.id, found.kind, found.site) == ("tiny", "sparse_autoencoder", "resid_post.1")
    assert (found.features, found.activation, found.k) == (6, "relu", None)
    assert found.targets == ("resid_post.1",)
    assert found.check.explained == 0.75
    assert json.loads(json.dumps(found.to_json()))["check"]["active_features"] == 2.5


def test_every_page_of_dictionaries_is_listed(client: Any) -> None:
    client.dictionaries.upload("mine", autoencoder())
    assert [each.id for each in client.dictionaries.list()] == ["mine", "tiny"]


def test_one_that_is_not_there_is_not_found(client: Any) -> None:
    with pytest.raises(NotFound):
        client.dictionaries.get("other")


@pytest.mark.parametrize("name", ["", "a/b", "models/big/monitors/x", 3, None])
def test_what_names_no_dictionary_is_refused(client: Any, name: Any) -> None:
    with pytest.raises(InvalidRequest, match="dictionar"):
        client.dictionaries.get(name)


# --- labels ------------------------------------------------------------------


def test_labels_are_set_found_and_taken_away(client: Any) -> None:
    client.dictionaries.set_labels("tiny", {1: "rivers", 2: "Rivers and lakes", 4: "ends"})
    client.dictionaries.set_labels("tiny", FeatureLabel(1, "", "me"))
    every = [(each.index, each.label) for each in client.dictionaries.labels("tiny")]
    assert every == [(2, "Rivers and lakes"), (4, "ends")]
    (found,) = client.dictionaries.labels("tiny", "RIVER")
    assert found == FeatureLabel(2, "Rivers and lakes")


def test_many_labels_are_several_calls_of_which_each_knows_of_the_last(
    client: Any, model: Model
) -> None:
    client.dictionaries.set_labels("tiny", dict.fromkeys(range(2500), "x"), etag="e")
    sent = [r for r in model.requests if isinstance(r, pb.SetFeatureLabelsRequest)]
    assert [len(each.labels) for each in sent] == [1000, 1000, 500]
    with pytest.raises(Conflict):
        client.dictionaries.set_labels("tiny", {0: "y"}, etag="e")


@pytest.mark.parametrize("labels", [{}, {-1: "x"}, {1: 2}, "x", [3]])
def test_labels_that_are_none_are_refused(client: Any, labels: Any) -> None:
    with pytest.raises(InvalidRequest):
        client.dictionaries.set_labels("tiny", labels)


# --- uploads -----------------------------------------------------------------


def autoencoder(**changes: Any) -> Dictionary:
    given = {"site": "resid_post.1", "encoder": ENCODER, "decoder": DECODER}
    return Dictionary(**{**given, **changes})


UPLOADED: dict[str, tuple[Dictionary, str, list[str]]] = {
    "an autoencoder": (autoencoder(), "relu", ["ENCODER", "DECODER"]),
    "one with biases": (
        autoencoder(encoder_bias=np.ones(3), input_bias=np.ones(4), decoder_bias=np.ones(4)),
        "relu",
        ["ENCODER", "ENCODER_BIAS", "INPUT_BIAS", "DECODER", "DECODER_BIAS"],
    ),
    "one with thresholds": (
        autoencoder(activation=JumpReLU([1, 2, 3])),
        "jump_relu",
        ["ENCODER", "THRESHOLDS", "DECODER"],
    ),
    "the largest ones": (autoencoder(activation=TopK(2)), "top_k", ["ENCODER", "DECODER"]),
    "a transcoder with a skip": (
        autoencoder(
            site="mlp_in.1", written_sites="mlp_out.1", decoder=np.ones((3, 5)), skip=np.eye(5, 4)
        ),
        "relu",
        ["ENCODER", "DECODER", "SKIP"],
    ),
    "one that writes at two layers": (
        autoencoder(
            site="mlp_in.0", written_sites=["mlp_out.0", "mlp_out.1"], decoder=[DECODER, ENCODER]
        ),
        "relu",
        ["ENCODER", "DECODER", "DECODER"],
    ),
}


@pytest.mark.parametrize("case", UPLOADED)
def test_a_dictionary_is_uploaded_byte_for_byte(client: Any, model: Model, case: str) -> None:
    given, activation, roles = UPLOADED[case]
    made = client.dictionaries.upload("mine", given, progress=False)
    assert (made.id, made.features, made.activation) == ("mine", 3, activation)
    (upload,) = model.dictionaries.begun
    begun = model.dictionaries.begun[upload]
    assert [pb.MatrixRole.Name(each.role) for each in begun.matrices] == [
        f"MATRIX_ROLE_{role}" for role in roles
    ]
    for (matrix, array), received in zip(
        given.matrices(), model.dictionaries.received[upload], strict=True
    ):
        assert bytes(received) == array.tobytes()
        assert tuple(matrix.shape) == array.shape


def test_halves_travel_as_halves(client: Any, model: Model) -> None:
    client.dictionaries.upload("mine", autoencoder(encoder=ENCODER.astype(np.float16)))
    (begun,) = model.dictionaries.begun.values()
    encoder, decoder = begun.matrices
    assert (encoder.element_type, decoder.element_type) == (2, 1)
    assert model.dictionaries.received[next(iter(model.dictionaries.begun))][0] == (
        ENCODER.astype("<f2").tobytes()
    )


def test_an_upload_that_was_cut_goes_on_where_it_was(client: Any, model: Model) -> None:
    model.dictionaries.lost_after = 4
    with pytest.raises(Unavailable):
        client.dictionaries.upload("mine", autoencoder())
    model.dictionaries.lost_after = -1
    there = sum(map(len, next(iter(model.dictionaries.received.values()))))
    before = len(model.requests)
    made = client.dictionaries.upload("mine", autoencoder())
    chunks = [r for r in model.requests[before:] if isinstance(r, pb.UploadChunkRequest)]
    assert there == 28
    assert sum(len(each.content) for each in chunks) == made.size_bytes - there


def test_what_is_uploaded_decides_the_id_of_the_request(client: Any, model: Model) -> None:
    for name, given in (
        ("a", autoencoder()),
        ("a", autoencoder()),
        ("b", autoencoder()),
        ("a", autoencoder(decoder=ENCODER)),
    ):
        model.dictionaries.received.clear()
        client.dictionaries.upload(name, given)
    ids = [r.request_id for r in model.requests if isinstance(r, pb.BeginUploadRequest)]
    assert ids[0] == ids[1]
    assert len({*ids}) == 3


BAD: dict[str, Callable[[], Any]] = {
    "an encoder of one axis": lambda: autoencoder(encoder=[1, 2]),
    "a decoder of another width": lambda: autoencoder(decoder=np.ones((3, 5))),
    "a decoder of fewer features": lambda: autoencoder(decoder=np.ones((2, 4))),
    "a bias of another length": lambda: autoencoder(encoder_bias=np.ones(4)),
    "an element that is not finite": lambda: autoencoder(encoder=ENCODER * np.nan),
    "too few thresholds": lambda: autoencoder(activation=JumpReLU([1.0])),
    "an unknown activation": lambda: autoencoder(activation="gelu"),
    "one decoder for two sites": lambda: autoencoder(written_sites=["mlp_out.0", "mlp_out.1"]),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_make_no_dictionary_are_refused(case: str) -> None:
    with pytest.raises(InvalidRequest):
        BAD[case]()


@pytest.mark.parametrize("name", ["Mine", "", "models/big/dictionaries/mine", 3])
def test_what_cannot_be_a_name_is_refused(client: Any, name: Any) -> None:
    with pytest.raises(InvalidRequest, match="name of a dictionary"):
        client.dictionaries.upload(name, autoencoder())


# --- of SAELens --------------------------------------------------------------


def sae(architecture: str, **config: Any) -> Any:
    """As SAELens has it: rows times weights."""
    told = {"architecture": architecture, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}
    weights = {
        "W_enc": ENCODER.T,
        "W_dec": DECODER,
        "b_enc": np.array([0.5, -1, 2], np.float32),
        "b_dec": np.array([1, 0, -1, 0.25], np.float32),
        "threshold": np.array([1, 5, 9], np.float32),
        "W_skip": np.eye(4, dtype=np.float32),
    }
    return SimpleNamespace(cfg=SimpleNamespace(**told, **config), **weights)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
@pytest.mark.parametrize("subtracts", [True, False])
def test_an_sae_becomes_the_same_function(architecture: str, subtracts: bool) -> None:
    given = sae(architecture, k=2, apply_b_dec_to_input=subtracts)
    made = Dictionary.from_saelens(given)
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    removed = np.zeros(4) if made.input_bias is None else np.asarray(made.input_bias)
    ours = (rows - removed) @ np.asarray(made.encoder).T + np.asarray(made.encoder_bias)
    theirs = (rows - given.b_dec * subtracts) @ given.W_enc + given.b_enc
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(made.decoder)[0], DECODER)
    assert str(made.site) == "resid_post.1"


def test_a_gated_sae_becomes_thresholds() -> None:
    gate, magnitude = np.array([-1.0, 2, 0.5]), np.array([0.5, -1, 2])
    given = sae("gated")
    vars(given).update(b_gate=gate, b_mag=magnitude, r_mag=np.array([0.2, -0.3, 0.0]))
    rows = np.random.default_rng(0).normal(size=(200, 4))
    centered = rows - given.b_dec
    open_gates = centered @ given.W_enc + gate > 0
    amounts = np.maximum(centered @ (given.W_enc * np.exp(given.r_mag)) + magnitude, 0)
    for made in (Dictionary.from_saelens(given), Projection.from_saelens(given)):
        of = Projection(made.encoder) if isinstance(made, Dictionary) else made
        bias: Any = made.encoder_bias if isinstance(made, Dictionary) else made.bias
        removed: Any = made.input_bias if isinstance(made, Dictionary) else 0
        before = (rows - removed) @ np.asarray(of.directions).T + bias
        assert isinstance(made.activation, JumpReLU)
        features = np.where(before > np.asarray(made.activation.thresholds), before, 0)
        np.testing.assert_allclose(features, open_gates * amounts, atol=1e-5)


def test_a_scale_of_the_input_is_folded_in() -> None:
    given = sae("standard", normalize_activations="expected_average_only_in")
    with pytest.raises(InvalidRequest, match="input_scale"):
        Dictionary.from_saelens(given)
    made = Dictionary.from_saelens(given, input_scale=2.0)
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    features = np.maximum((2 * rows - given.b_dec) @ given.W_enc + given.b_enc, 0)
    whole = (features @ given.W_dec + given.b_dec) / 2
    encoder, bias, removed = map(np.asarray, (made.encoder, made.encoder_bias, made.input_bias))
    ours = np.maximum((rows - removed) @ encoder.T + bias, 0)
    back = ours @ np.asarray(made.decoder)[0] + np.asarray(made.decoder_bias)[0]
    np.testing.assert_allclose(ours, features, atol=1e-4)
    np.testing.assert_allclose(back, whole, atol=1e-4)


def test_a_transcoder_says_where_it_writes() -> None:
    given = sae("skip_transcoder", hook_name_out="blocks.1.hook_mlp_out")
    made = Dictionary.from_saelens(given)
    assert made.written_sites == plain_sites("mlp_out.1")
    assert made.input_bias is None
    np.testing.assert_array_equal(np.asarray(made.skip)[0], np.eye(4))
    with pytest.raises(InvalidRequest, match="written_sites"):
        Dictionary.from_saelens(sae("transcoder"))


def test_a_folder_of_saelens_is_uploaded(client: Any, model: Model, tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    given = sae("jumprelu")
    weights = {
        name: np.ascontiguousarray(each) for name, each in vars(given).items() if name[0] != "c"
    }
    numpy.save_file(weights, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 4, "d_sae": 3, **vars(given.cfg)}))
    made = client.dictionaries.upload("mine", tmp_path)
    assert (made.site, made.activation, made.features) == ("resid_post.1", "jump_relu", 3)


# --- used --------------------------------------------------------------------


def sent(model: Model) -> Any:
    return next(
        each
        for each in reversed(model.requests)
        if isinstance(each, generation_service_pb2.FetchActivationsRequest)
    )


def test_a_feature_stands_where_a_vector_does(client: Any, model: Model) -> None:
    client.fetch("a b", "resid_post.1", intervene=Add("resid_post.1", Feature("tiny", 5), 3.0))
    (intervention,) = sent(model).interventions
    assert intervention.add.vector.feature.dictionary == NAME
    assert (intervention.add.vector.feature.index, intervention.add.coefficient) == (5, 3.0)


def test_features_are_set_added_to_and_scaled(client: Any, model: Model) -> None:
    change = ChangeFeatures(
        "resid_post.1", "tiny", values={1: 2.0}, additions={2: -1.0}, factors={3: 0.0}
    )
    client.fetch("a b", "resid_post.1", intervene=change)
    (intervention,) = sent(model).interventions
    changes = intervention.features.changes
    assert intervention.features.dictionary == NAME
    assert [(each.index, each.WhichOneof("change")) for each in changes] == [
        (1, "value"),
        (2, "addition"),
        (3, "factor"),
    ]


def test_a_dictionary_changes_its_features_where_it_writes(client: Any, model: Model) -> None:
    tiny = client.dictionaries.get("tiny")
    made = [tiny.set({1: 2.0}), tiny.add({1: 2.0}), tiny.scale({1: 2.0}), tiny.ablate([1, 2])]
    client.fetch("a b c d e", "resid_post.1", intervene=tuple(made))
    found = sent(model).interventions
    assert [each.features.changes[0].WhichOneof("change") for each in found] == [
        "value",
        "addition",
        "factor",
        "factor",
    ]
    assert [each.factor for each in found[-1].features.changes] == [0.0, 0.0]
    assert all(each.sites[0].layer == 1 for each in found)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"values": {1: 1.0}, "factors": {1: 0.0}},
        {"values": {-1: 1.0}},
        {"values": {1: float("nan")}},
        {"values": [1]},
    ],
)
def test_changes_that_say_nothing_or_too_much_are_refused(changes: Any) -> None:
    with pytest.raises(InvalidRequest):
        ChangeFeatures("resid_post.1", "tiny", **changes)


def test_a_dictionary_stands_where_directions_do(client: Any, model: Model) -> None:
    acts = client.fetch("a b", "resid_post.1", projection=Projection(dictionary="tiny"))
    assert sent(model).readouts[0].rows.projection.dictionary == NAME
    assert acts["resid_post.1"].shape == (2, 6)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"dictionary": "tiny", "directions": [1.0]},
        {"dictionary": "tiny", "bias": [1.0]},
        {"dictionary": "tiny", "activation": "relu"},
        {"dictionary": "a/b"},
        {"dictionary": "tiny", "send_top": 0},
    ],
)
def test_a_projection_has_directions_or_a_dictionary(given: Any) -> None:
    with pytest.raises(InvalidRequest):
        Projection(**given)


def test_a_name_without_its_model_is_not_sent() -> None:
    with pytest.raises(InvalidRequest, match=r"models/\{model\}/dictionaries/tiny"):
        Projection(dictionary="tiny").to_proto()


def test_features_in_float32_are_asked_for() -> None:
    name = "models/m/dictionaries/tiny"
    assert Projection(dictionary=name, float32=True).to_proto().float32
    assert not Projection(dictionary=name).to_proto().float32
