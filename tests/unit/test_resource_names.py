"""Names of NLAs, baselines and stored vectors, as callers may write them."""

import pytest

from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc import resource_names

INFO = FakeEngine(model_id="org/name").info


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        ("models/org/name/nlas/a", "a"),
        ("models/-/nlas/a", "a"),
        ("models/-/nlas/-", "-"),
        ("models/other/nlas/a", None),
        ("models/org/name/nlas/", None),
        ("models/org/name/nlas/a/b", None),
        ("models/org/name/nlas/a\n", "a\n"),
        ("nlas/a", None),
        ("", None),
        # Matching it would take time that grows with it.
        ("models/-/nlas/" + "a" * 3000, None),
    ],
)
def test_the_id_of_an_nla_is_told_from_its_name(name: str, id_: str | None) -> None:
    assert resource_names.nla_id(name, INFO) == id_


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("models/a/nlas/x", "models/a/nlas/x", True),
        ("models/-/nlas/x", "models/a/nlas/x", True),
        ("models/a/nlas/x", "models/b/nlas/x", False),
        ("models/-/nlas/x", "models/a/nlas/y", False),
        ("x", "models/a/nlas/x", False),
    ],
)
def test_a_name_with_the_wildcard_is_that_of_the_model(one: str, other: str, same: bool) -> None:
    assert resource_names.same_nla(one, other) is same
    assert resource_names.same_nla(other, one) is same


def test_a_long_name_is_no_name() -> None:
    assert resource_names.split_baseline("models/-/nlas/a/baselines/" + "b" * (1 << 20)) is None
    assert len(resource_names.model_part("models/" + "m" * (1 << 20))) < 1 << 12


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        ("models/org/name/steeringVectors/joy", "joy"),
        ("models/-/steeringVectors/joy", "joy"),
        ("models/other/steeringVectors/joy", None),
        ("models/org/name/steeringVectors/", None),
        ("models/org/name/steeringVectors/../joy", None),
        ("models/org/name/steeringVectors/j\0y", None),
        ("models/org/name/steeringVectors/" + "a" * 64, None),
        ("models/org/name/nlas/joy", None),
    ],
)
def test_the_id_of_a_stored_vector_is_told_from_its_name(name: str, id_: str | None) -> None:
    assert resource_names.steering_vector_id(name, INFO) == id_


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("models/org/name/dictionaries/d/uploads/u", ("d", "u")),
        ("models/-/dictionaries/d/uploads/u", ("d", "u")),
        ("models/other/dictionaries/d/uploads/u", None),
        ("models/-/dictionaries/d", None),
        ("models/-/dictionaries/d/uploads/", None),
        ("models/-/dictionaries/d/uploads/u/v", None),
    ],
)
def test_the_ids_of_an_upload_are_told_from_its_name(
    name: str, ids: tuple[str, str] | None
) -> None:
    assert resource_names.upload_ids(name, INFO) == ids


@pytest.mark.parametrize(
    "of",
    [
        "nlas/a",
        "nlas/a/baselines/b",
        "steeringVectors/joy",
        "dictionaries/d",
        "dictionaries/d/uploads/u",
    ],
)
def test_a_name_tells_of_which_model_it_is(of: str) -> None:
    assert resource_names.model_part(f"models/org/name/{of}") == "models/org/name"
    assert resource_names.model_part(f"models/-/{of}") == ""
