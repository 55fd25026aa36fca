"""Sources: a name stands where a tensor does, and comes to the same."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import site_pb2
from actserve_server.domain.model import Limits
from actserve_server.engine.fake import FakeEngine
from tests.contract import vectors
from tests.contract.harness import (
    Served,
    collect,
    failure,
    fetch,
    inline,
    intervention,
    matrices,
    report,
    serving,
    site,
)
from tests.contract.nlas import Tiny
from tests.contract.readouts import kept
from tests.contract.refusals import ONES

Q = site(1, site_pb2.HOOK_POINT_Q)
EVERY = {"sites": [site(layer) for layer in range(4)]}
BOATS, TRAINS = "It is about boats.", "It is about trains."


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


async def fetched(served: Served, text: str = "world", **changes: Any) -> list[Any]:
    return await collect(served.generation.FetchActivations(fetch(text, **changes)))


async def keep(served: Served, *sites: dict[str, Any]) -> tuple[str, list[np.ndarray]]:
    """The name of what was kept of a prompt, and its rows site by site."""
    events = await fetched(served, "hello", capture={"sites": sites, "keep": {}})
    rows = matrices(events)
    return kept(events)[0], [rows[0, index][1] for index in range(len(sites))]


# By name: an operation whose vector, or matrix, is the source.
VECTORS = {
    "add": lambda source: {"add": {"vector": source, "coefficient": 0.5}},
    "add relative": lambda source: {"add": {"vector": source, "relative": True}},
    "ablate": lambda source: {"ablate": {"direction": source}},
    "clamp": lambda source: {"clamp": {"direction": source, "maximum": 0.1}},
    "swap first": lambda source: {"swap": {"first": source, "second": inline(ONES)}},
    "swap second": lambda source: {"swap": {"first": inline(ONES), "second": source}},
    "mean": lambda source: {"mean": {"mean": source}},
}
MATRICES = {
    "project": lambda source: {"project": {"directions": source}},
    "replace": lambda source: {"replace": {"rows": source}, "positions": {"span": {"end": 3}}},
}


async def check_same(
    served: Served, where: dict[str, Any], named: dict[str, Any], sent: dict[str, Any]
) -> None:
    """Both interventions change the same rows alike, and change some."""
    plain = matrices(await fetched(served, capture=EVERY))
    by_name, by_value = [
        await fetched(served, capture=EVERY, interventions=[intervention(where, **fields)])
        for fields in (named, sent)
    ]
    for key, (_, expected) in matrices(by_value).items():
        np.testing.assert_array_equal(matrices(by_name)[key][1], expected)
    assert (matrices(by_name)[0, 1][1] != plain[0, 1][1]).any()
    assert report(by_name) == report(by_value)


@pytest.mark.parametrize("operation", VECTORS)
async def test_a_kept_row_is_the_vector_of_every_operation(served: Served, operation: str) -> None:
    name, (rows,) = await keep(served, site(1))
    source = {"kept": {"name": name, "positions": [4]}}
    make = VECTORS[operation]
    await check_same(served, site(1), make(source), make(inline(rows[4])))


@pytest.mark.parametrize("operation", MATRICES)
async def test_kept_rows_are_the_matrix_of_every_operation(served: Served, operation: str) -> None:
    name, (rows,) = await keep(served, site(1))
    source = {"kept": {"name": name, "positions": [1, 2, 4]}}
    make = MATRICES[operation]
    await check_same(served, site(1), make(source), make(inline(rows[[1, 2, 4]])))


@pytest.mark.parametrize("operation", VECTORS)
async def test_an_edit_is_the_vector_of_every_operation(operation: str) -> None:
    tiny, make = Tiny(), VECTORS[operation]
    vector = tiny.reconstructed(TRAINS) - tiny.reconstructed(BOATS)
    source = {"edit": {"original": BOATS, "edited": TRAINS}}
    async with serving(None, tiny.loaded()) as served:
        by_name, by_value = [
            matrices(
                await fetched(served, capture=EVERY, interventions=[intervention(**make(each))])
            )
            for each in (source, inline(vector))
        ]
    for key, (_, expected) in by_value.items():
        np.testing.assert_allclose(by_name[key][1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operation", VECTORS)
async def test_a_stored_vector_is_the_vector_of_every_operation(
    served: Served, operation: str
) -> None:
    values = vectors.rows()
    await served.vectors.CreateSteeringVector(vectors.create("joy", values))
    make = VECTORS[operation]
    await check_same(served, site(1), make(vectors.stored("joy")), make(inline(values[0])))


async def test_each_site_takes_its_own_kept_row(served: Served) -> None:
    where = [site(0), site(2)]
    name, rows = await keep(served, *where)
    source = {"kept": {"name": name, "positions": [4]}}
    events = await fetched(
        served,
        capture={"sites": where},
        interventions=[intervention(*where, mean={"mean": source})],
    )
    for index, own in enumerate(rows):
        np.testing.assert_array_equal(matrices(events)[0, index][1], np.tile(own[4], (6, 1)))
    assert report(events).rows == 12


async def test_each_head_takes_its_own_part_of_a_kept_row(served: Served) -> None:
    name, (rows,) = await keep(served, Q)
    source = {"kept": {"name": name, "positions": [4]}}
    edit = intervention(Q, heads=[3, 0], mean={"mean": source})
    plain, changed = [
        matrices(await fetched(served, capture={"sites": [Q]}, interventions=edits))[0, 0][1]
        for edits in ([], [edit])
    ]
    expected = plain.copy()
    for columns in (slice(0, 4), slice(12, 16)):
        expected[:, columns] = rows[4][columns]
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("named", [True, False], ids=["of a named site", "of the site read"])
async def test_kept_rows_are_the_directions_of_a_projection(served: Served, named: bool) -> None:
    name, rows = await keep(served, site(1), site(2))
    source: dict[str, Any] = {"kept": {"name": name, "positions": [0, 3]}}
    source["kept"] |= {"site": site(2)} if named else {}
    by_name, by_value = [
        matrices(
            await fetched(
                served, capture={"sites": [site(1)], "projection": {"directions": directions}}
            )
        )
        for directions in (source, inline(rows[int(named)][[0, 3]]))
    ]
    np.testing.assert_array_equal(by_name[0, 0][1], by_value[0, 0][1])


OF_DICTIONARIES = {
    "feature": {"dictionary": "models/fake/dictionaries/d", "index": 3},
}


@pytest.mark.parametrize("operation", VECTORS)
@pytest.mark.parametrize("kind", OF_DICTIONARIES)
async def test_a_vector_of_a_dictionary_that_is_not_there_says_so(
    operation: str, kind: str
) -> None:
    fields = VECTORS[operation]({kind: OF_DICTIONARIES[kind]})
    field = await missing({"interventions": [intervention(zero={}), intervention(**fields)]})
    (of,) = [
        f"{name}.{each}"
        for name, parts in fields.items()
        for each, part in parts.items()
        if isinstance(part, dict) and kind in part
    ]
    assert field == f"interventions[1].{of}.{kind}.dictionary"


DICTIONARY = {
    "dictionary": {"dictionary": "models/fake/dictionaries/d", "side": "DICTIONARY_SIDE_DECODER"}
}
READ = {"sites": [site()]}


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        (
            {"interventions": [intervention(project={"directions": DICTIONARY})]},
            "interventions[0].project.directions.dictionary.dictionary",
        ),
        (
            {"interventions": [intervention(replace={"rows": DICTIONARY})]},
            "interventions[0].replace.rows.dictionary.dictionary",
        ),
        (
            {"capture": {**READ, "projection": {"directions": DICTIONARY}}},
            "readouts[0].rows.projection.directions.dictionary.dictionary",
        ),
        (
            {"capture": {**READ, "projection": {"dictionary": "models/fake/dictionaries/d"}}},
            "readouts[0].rows.projection.dictionary",
        ),
        (
            {
                "capture": {
                    **READ,
                    "projection": {
                        "directions": inline([ONES]),
                        "jump_relu": {"thresholds": {"feature": {"dictionary": "d", "index": 0}}},
                    },
                }
            },
            "readouts[0].rows.projection.jump_relu.thresholds.feature.dictionary",
        ),
    ],
    ids=["project", "replace", "directions", "whole", "thresholds"],
)
async def test_a_source_of_a_dictionary_that_is_not_there_says_so(
    request_fields: dict[str, Any], field: str
) -> None:
    assert await missing(request_fields) == field


async def missing(fields: dict[str, Any]) -> str:
    """The field that a fetch with these fields is refused for, before anything was done."""
    edit = {"edit": {"original": BOATS, "edited": TRAINS}}
    edits = [*fields.pop("interventions", ()), intervention(add={"vector": edit})]
    tiny = Tiny()
    assert tiny.ar
    async with serving(None, tiny.loaded()) as served:
        request = fetch(interventions=edits, **fields)
        refused = await failure(served.generation.FetchActivations(request))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "RESOURCE_NOT_FOUND",
    )
    assert served.engine.counters.started == tiny.ar.counters.started == 0
    assert refused.field in refused.message
    return refused.field


REFUSED = [
    (
        {"interventions": [intervention(mean={"mean": {}})]},
        "FIELD_REQUIRED",
        "interventions[0].mean.mean",
        "tensor, steering_vector, kept, edit",
    ),
    (
        {"interventions": [intervention(project={"directions": {}})]},
        "FIELD_REQUIRED",
        "interventions[0].project.directions",
        "tensor, dictionary, kept",
    ),
    (
        {"interventions": [intervention(mean={"mean": {"kept": {"name": "NAME"}}})]},
        "TENSOR_SIZE_MISMATCH",
        "interventions[0].mean.mean.kept.positions",
        "6 were kept",
    ),
    (
        {
            "capture": {
                "sites": [site(1), site(2)],
                "projection": {"directions": {"kept": {"name": "NAME"}}},
            }
        },
        "FIELD_REQUIRED",
        "readouts[0].rows.projection.directions.kept.site",
        "2 sites",
    ),
    (
        {
            "capture": {
                **READ,
                "projection": {"directions": inline([ONES]), "bias": {"kept": {"name": "NAME"}}},
            }
        },
        "FIELD_INVALID",
        "readouts[0].rows.projection.bias.kept",
        "send a tensor",
    ),
]


@pytest.mark.parametrize(("fields", "reason", "field", "says"), REFUSED, ids=lambda each: str(each))
async def test_a_source_that_does_not_fit_is_refused(
    served: Served, fields: dict[str, Any], reason: str, field: str, says: str
) -> None:
    name, _ = await keep(served, site(1))
    request = fetch(**_with_name(fields, name))
    refused = await failure(served.generation.FetchActivations(request))
    assert (refused.reason, refused.field) == (reason, field)
    assert says in refused.message


def _with_name(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_name(each, name) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_name(each, name) for each in value]
    return name if value == "NAME" else value


async def test_the_kept_rows_of_a_call_are_bounded_however_often_they_are_named() -> None:
    # Six rows 16 wide at two sites, and room for three such sites.
    limits = Limits(max_sequence_tokens=64, max_capture_bytes=3 * 6 * 16 * 4)
    async with serving(FakeEngine(limits=limits)) as served:
        name, _ = await keep(served, site(1), site(2))

        def patches(*positions: list[int]) -> list[Any]:
            return [
                intervention(
                    site(1),
                    site(2),
                    replace={"rows": {"kept": {"name": name, "positions": each}}},
                    positions={"list": {"positions": each}},
                )
                for each in positions
            ]

        every = [*range(6)]
        await fetched(served, interventions=patches(every, every, every))
        edits = patches(every, [1, 2, 3, 4])
        refused = await failure(
            served.generation.FetchActivations(fetch("world", interventions=edits))
        )
    assert (refused.reason, refused.field) == (
        "TOO_MANY_ROWS",
        "interventions[1].replace.rows.kept",
    )
