"""Steering vectors are values: what arithmetic keeps, where they stand, and how they are stored."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import Add, InvalidRequest, LabelMeans, SteeringVector
from actserve._archives import write_archive
from actserve.interventions import interventions_to_proto
from actserve.sites import Site

from .fake_server import Model, expected

SITE = "resid_post.3"
A = SteeringVector(SITE, [3, 4, 0], "mean of 'liked'")
B = SteeringVector("blocks.3.hook_resid_post", [1, 0, 0], "mean of 'hated'")
UNKNOWN = SteeringVector(SITE, [1, 1, 1])

ARITHMETIC: dict[str, tuple[Callable[[], Any], list[float], str]] = {
    "a difference": (lambda: A - B, [2, 4, 0], "mean of 'liked' less mean of 'hated'"),
    "a sum": (lambda: A + B, [4, 4, 0], "mean of 'liked' plus mean of 'hated'"),
    "a multiple": (lambda: A * 2, [6, 8, 0], "2 times mean of 'liked'"),
    "a multiple, the number first": (lambda: 0.5 * A, [1.5, 2, 0], "0.5 times mean of 'liked'"),
    "a multiple by numpy": (lambda: np.float64(2) * A, [6, 8, 0], "2 times mean of 'liked'"),
    "a multiple by an array without axes": (
        lambda: np.array(2) * A,
        [6, 8, 0],
        "2 times mean of 'liked'",
    ),
    "a part": (lambda: A / 2, [1.5, 2, 0], "mean of 'liked' divided by 2"),
    "the opposite": (lambda: -A, [-3, -4, 0], "minus mean of 'liked'"),
    "of norm one": (lambda: A.normalized(), [0.6, 0.8, 0], "mean of 'liked', normalized"),
    "a difference of differences": (
        lambda: B - (A - B),
        [-1, -4, 0],
        "mean of 'hated' less (mean of 'liked' less mean of 'hated')",
    ),
    "a multiple of a difference": (
        lambda: 3 * (A - B),
        [6, 12, 0],
        "3 times (mean of 'liked' less mean of 'hated')",
    ),
    "less an unknown one": (lambda: A - UNKNOWN, [2, 3, -1], "mean of 'liked' less a vector"),
    "of unknown ones": (lambda: -(UNKNOWN + UNKNOWN) / 2, [-1, -1, -1], ""),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_keeps_the_site_and_says_what_was_done(name: str) -> None:
    make, values, provenance = ARITHMETIC[name]
    vector = make()
    assert isinstance(vector, SteeringVector)
    np.testing.assert_array_equal(vector.values, np.array(values, np.float32))
    assert vector.values.dtype == np.float32
    assert (str(vector.site), vector.provenance) == (SITE, provenance)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two sites": (
        lambda: A + SteeringVector("resid_post.4", [1, 1, 1]),
        "resid_post.3 and one of resid_post.4 do not add up",
    ),
    "two widths": (lambda: A - SteeringVector(SITE, [1, 1]), "3 and 2 wide do not add up"),
    "division by zero": (lambda: A / 0, "cannot be divided by zero"),
    "a factor that is not finite": (lambda: A * np.inf, "factor is inf"),
    "an overflow": (lambda: A * 1e38 * 1e38, "must be finite"),
    "the direction of zero": (lambda: (A - A).normalized(), "the steering vector is zero"),
    "an angle to zero": (lambda: A.cosine([0, 0, 0]), "the other vector is zero"),
    "an angle to another width": (lambda: A.cosine([1, 0]), "3 wide has no angle to one 2 wide"),
    "no vector": (lambda: SteeringVector(SITE, [[1, 2]]), r"values must hold .* shape \[1, 2\]"),
    "no site": (lambda: SteeringVector("resid_post", [1]), "is not a site"),
    "no provenance": (
        lambda: SteeringVector(SITE, [1], 3),  # pyright: ignore[reportArgumentType]
        "the provenance is 3; give a text",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_steering_vector_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(InvalidRequest, match=message):
        make()


@pytest.mark.parametrize("other", [3, "a", None])
def test_only_steering_vectors_of_a_site_add_up_to_one(other: Any) -> None:
    with pytest.raises(TypeError):
        _ = A + other
    with pytest.raises(TypeError):
        _ = A * "a"  # pyright: ignore[reportOperatorIssue]


def test_a_steering_vector_is_an_array_to_numpy() -> None:
    rows = np.ones((2, 3), np.float32)
    assert (rows @ A).tolist() == [7, 7]
    assert (rows + A).tolist() == [[4, 5, 1]] * 2
    assert np.asarray(A).tolist() == [3, 4, 0]
    assert np.asarray(A, np.float64).dtype == np.float64
    assert np.linalg.norm(A) == A.norm == 5
    assert (len(A), A.shape) == (3, (3,))


def test_a_steering_vector_does_not_change() -> None:
    source = np.ones(3, np.float32)
    vector = SteeringVector(SITE, source)
    source[:] = 7
    assert vector.values.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        vector.values[0] = 2
    with pytest.raises(AttributeError):
        vector.site = Site.parse("embedding")  # pyright: ignore[reportAttributeAccessIssue]
    assert repr(copy.deepcopy(A)) == repr(A)


def test_the_cosine_is_that_of_vectors_of_any_site() -> None:
    assert A.cosine(B) == pytest.approx(0.6)
    assert A.cosine(SteeringVector("z.0", [-3, -4, 0])) == pytest.approx(-1)
    assert A.cosine(np.array([0, 1, 0])) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("intervene", "interventions"),
    [
        (A, [Add(SITE, [3, 4, 0])]),
        (4 * A, [Add(SITE, [12, 16, 0])]),
        ([A, actserve.Zero("z.0"), -A], [Add(SITE, A), actserve.Zero("z.0"), Add(SITE, -A)]),
        (
            A.add(0.5, positions="generated", relative=True),
            [Add(SITE, [3, 4, 0], 0.5, positions="generated", relative=True)],
        ),
        (None, []),
        ([], []),
    ],
)
def test_a_steering_vector_is_added_at_its_site(
    intervene: Any, interventions: list[actserve.Intervention]
) -> None:
    assert interventions_to_proto(intervene) == [each.to_proto() for each in interventions]


def test_calls_take_steering_vectors(client: Any, model: Model) -> None:
    vector = SteeringVector(SITE, [1, 2, 3, 4])
    client.generate("a", intervene=2 * vector, max_tokens=1)
    client.fetch("a", "embedding", intervene=[vector])
    for request, factor in zip(model.requests, (2, 1), strict=True):
        (sent,) = request.interventions
        assert sent == Add(SITE, factor * np.arange(1, 5)).to_proto()


@pytest.mark.parametrize(
    ("intervene", "message"),
    [
        ("resid_post.3", "^intervene is 'resid_post.3'; give an intervention, such as Add"),
        ([("resid_post.3", 2.0)], r"^item 0 of intervene is \('resid_post.3', 2.0\); give"),
        ([A, [A]], "^item 1 of intervene is list of 1; give"),
        ([None], "^item 0 of intervene is None; give"),
        (3, "^intervene is 3; give"),
        ({"site": A}, "^intervene is dict of 1; give"),
        (np.zeros(576), r"^intervene is ndarray of shape \[576\]; give"),
        ([np.zeros(576)], r"^item 0 of intervene is ndarray of shape \[576\]; give"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_intervention_is_refused_by_name(intervene: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        interventions_to_proto(intervene)
    assert str(caught.value.field).startswith("intervene")


def means(label: str, **values: list[float]) -> LabelMeans:
    by_site = {Site.parse(f"{name}.1"): np.array(each, np.float32) for name, each in values.items()}
    return LabelMeans(by_site, rows=2, label=label)


def test_the_difference_of_means_is_a_steering_vector(client: Any) -> None:
    found = client.fetch_means(["a b", "a", "b"], ["liked", "hated", "hated"], "resid_post.1")
    vector = found["liked"] - found["hated"]
    np.testing.assert_array_equal(vector.values, expected(2, 0, range(2)).mean(0) - [1, 0, 0, 0.5])
    assert vector.provenance == "mean of 'liked' less mean of 'hated'"
    assert str(vector.site) == "resid_post.1"
    assert found["liked"].label == "liked"


def test_means_of_several_sites_are_subtracted_at_one() -> None:
    liked, hated = means("liked", q=[1], z=[2]), means("hated", q=[5], z=[7])
    with pytest.raises(InvalidRequest, match=r"means of 2 sites: q\.1, z\.1; name one"):
        _ = liked - hated
    vector = liked.vector("blocks.1.attn.hook_z") - hated.vector("z.1")
    assert (vector.values.tolist(), str(vector.site)) == ([-5], "z.1")
    with pytest.raises(KeyError, match=r"no means of v\.1"):
        liked.vector("v.1")


def test_a_captured_row_is_a_steering_vector(client: Any) -> None:
    acts = client.fetch("one two three", "resid_post.1", positions=[0, 2])
    for position in (2, -1):
        vector = acts.vector("blocks.1.hook_resid_post", position)
        assert vector.values.tolist() == [3, 0, 2, 0.5]
        assert vector.provenance == "row of 'three' at position 2"
    assert acts.vector("resid_post.1").values.tolist() == [3, 0, 1, 0.5]
    assert acts.vector("resid_post.1").provenance == "mean of 2 rows"
    for position in (1, 3, -3):
        with pytest.raises(KeyError, match=f"position {position} was not captured; captured: 0"):
            acts.vector("resid_post.1", position)


@pytest.mark.parametrize(
    ("reduce", "provenance"),
    [
        ("mean", "mean over positions up to 2"),
        ("max", "max over positions up to 2"),
        ("last", "row of 'c' at position 2"),
        (None, "row of 'c' at position 2"),
    ],
)
def test_a_reduced_row_says_that_it_is_of_several_positions(
    client: Any, reduce: Any, provenance: str
) -> None:
    acts = client.fetch("a b c", SITE, reduce=reduce)
    assert acts.vector(SITE, -1).provenance == provenance
    assert acts.vector(SITE, 2).provenance == provenance
    if reduce:
        assert acts.vector(SITE).provenance == provenance
    named = client.fetch("a b c", readouts={"more": actserve.Read(SITE, reduce=reduce)})
    assert named.readouts["more"].reduction == reduce


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_saved_steering_vector_is_the_same_when_loaded(tmp_path: Path, suffix: str) -> None:
    vector = SteeringVector("z.-1", [0.1, -3e38, 0], "mean of 'λ' less a\0b")
    path = tmp_path / f"joy{suffix}"
    vector.save(path)
    loaded = SteeringVector.load(str(path))
    np.testing.assert_array_equal(loaded.values, vector.values)
    assert (loaded.site, loaded.provenance) == (vector.site, vector.provenance)
    assert not loaded.values.flags.writeable


def test_a_saved_steering_vector_is_plain_to_numpy(tmp_path: Path) -> None:
    A.save(tmp_path / "joy.npz")
    with np.load(tmp_path / "joy.npz", allow_pickle=False) as archive:
        assert archive["values"].tolist() == [3, 4, 0]
        metadata = json.loads(archive["metadata"].tobytes())
    assert metadata["site"] == SITE
    assert metadata["provenance"] == "mean of 'liked'"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_that_is_no_steering_vector_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"joy{suffix}"
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="was not written as steering vector by actserve"):
        SteeringVector.load(path)
    with pytest.raises(FileNotFoundError):
        SteeringVector.load(tmp_path / f"nothing{suffix}")


@pytest.mark.parametrize(
    ("told", "values"),
    [
        ({}, [1.0]),
        ({"site": 3}, [1.0]),
        ({"site": ["z.0"]}, [1.0]),
        ({"site": "x"}, [1.0]),
        ({"site": "z.0", "provenance": 3}, [1.0]),
        ({"site": "z.0"}, [[1.0]]),
        ({"site": "z.0"}, ["a"]),
        ({"site": "z.0"}, [float("nan")]),
        ({"site": "z.0"}, None),
    ],
)
def test_a_damaged_steering_vector_is_refused(
    tmp_path: Path, told: dict[str, Any], values: Any
) -> None:
    path = tmp_path / "joy.npz"
    arrays = {} if values is None else {"values": np.array(values)}
    write_archive(path, "steering vector", arrays, told)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        SteeringVector.load(path)


def test_a_path_that_names_no_format_is_refused(tmp_path: Path) -> None:
    for act in (A.save, SteeringVector.load):
        with pytest.raises(ValueError, match=r"names no format; let it end in \.npz or"):
            act(tmp_path / "joy.pt")
