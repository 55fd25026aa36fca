"""Changes of features: what they do to a row, and where they are refused."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import dictionary_service_pb2 as pb
from actserve.v1 import sweep_service_pb2 as sweep_pb
from actserve_server.domain.model import Limits
from actserve_server.engine.fake import FakeEngine
from tests.contract.dictionaries import FEATURES, Sent, full, matrices, numbers, uploaded
from tests.contract.harness import Served, collect, failure, fetch, intervention, serving, site
from tests.contract.harness import matrices as read_matrices
from tests.contract.monitors import create
from tests.contract.refusals import INVALID, WIDTH

SETTINGS = {"max_dictionary_bytes": 1 << 20}
CHANGES = [
    {"index": 3, "value": 2.5},
    {"index": 7, "addition": -1.5},
    {"index": 0, "factor": 0.0},
    {"index": 11, "factor": -3.0},
]


def without_thresholds() -> dict[str, np.ndarray]:
    parts = matrices()
    del parts["thresholds"]
    return parts


def features(rows: np.ndarray, activation: str) -> np.ndarray:
    parts = matrices()
    z = (rows - parts["input_bias"]) @ parts["encoder"].T + parts["encoder_bias"]
    match activation:
        case "relu":
            return np.maximum(z, 0)
        case "jump_relu":
            return np.where(z > parts["thresholds"], z, 0)
        case "top_k":
            return np.where(z >= np.sort(z, axis=1)[:, -12][:, None], np.maximum(z, 0), 0)
        case _:
            return z


DICTIONARIES = {
    "identity": Sent(without_thresholds(), about={}),
    "relu": Sent(without_thresholds(), about={"relu": {}}),
    "jump_relu": Sent(),
    "top_k": Sent(without_thresholds(), about={"top_k": {"k": 12}}),
}


async def read(served: Served, *interventions: dict[str, Any], layer: int = 1) -> np.ndarray:
    request = fetch("hello world", capture={"sites": [site(layer)]}, interventions=interventions)
    ((_, values),) = read_matrices(
        await collect(served.generation.FetchActivations(request))
    ).values()
    return values


def changing(*changes: dict[str, Any], layer: int = 1, **more: Any) -> dict[str, Any]:
    operation = {"dictionary": full("signs"), "changes": changes}
    return intervention(site(layer), features=operation, **more)


@pytest.mark.parametrize("activation", DICTIONARIES)
async def test_features_change_and_what_they_leave_stays(activation: str) -> None:
    async with serving(FakeEngine(), **SETTINGS) as served:
        await uploaded(served, DICTIONARIES[activation])
        rows = await read(served)
        changed = await read(served, changing(*CHANGES))
    f = features(rows.astype(np.float64), activation)
    assert (f[:, 11] != 0).any()
    wanted = rows.copy()
    for index, new in ((3, 2.5), (7, f[:, 7] - 1.5), (0, 0.0), (11, -3 * f[:, 11])):
        wanted += np.outer(new - f[:, index], matrices()["decoder"][index])
    np.testing.assert_allclose(changed, wanted, rtol=1e-4, atol=1e-4)


async def test_a_feature_set_to_what_it_is_changes_nothing() -> None:
    async with serving(FakeEngine(), **SETTINGS) as served:
        await uploaded(served)
        rows = await read(served)
        index, value = 3, float(Sent().encoded(rows)[5, 3])
        here: dict[str, Any] = {"positions": {"list": {"positions": [5]}}}
        same = await read(served, changing({"index": index, "value": value}, **here))
        np.testing.assert_allclose(same, rows, atol=1e-5)
        same = await read(served, changing(*({"index": i, "factor": 1.0} for i in range(FEATURES))))
        np.testing.assert_array_equal(same, rows)


async def test_features_are_those_of_the_row_as_operations_before_left_it() -> None:
    async with serving(FakeEngine(), **SETTINGS) as served:
        await uploaded(served)
        zero = await read(served, intervention(site(1), zero={}))
        ablated = await read(
            served, intervention(site(1), zero={}), changing({"index": 3, "factor": 0.0})
        )
    f = Sent().encoded(zero)[:, 3]
    np.testing.assert_allclose(ablated, -np.outer(f, matrices()["decoder"][3]), atol=1e-5)


async def test_it_may_be_used_at_another_site_of_its_width() -> None:
    async with serving(FakeEngine(), **SETTINGS) as served:
        await uploaded(served)
        rows = await read(served, layer=2)
        changed = await read(served, changing({"index": 3, "addition": 1.0}, layer=2), layer=2)
    np.testing.assert_allclose(changed - rows, [matrices()["decoder"][3]] * len(rows), atol=1e-5)


TRANSCODER = Sent(
    {**matrices(), "decoder": numbers(FEATURES, WIDTH, seed=8)},
    about={
        "kind": pb.DICTIONARY_KIND_TRANSCODER,
        "written_sites": [site(2)],
        "jump_relu": {},
    },
)


async def test_features_of_a_transcoder_are_added_where_they_are_written() -> None:
    async with serving(FakeEngine(), **SETTINGS) as served:
        await uploaded(served, TRANSCODER)
        rows = await read(served, layer=2)
        added = await read(served, changing({"index": 3, "addition": 2.0}, layer=2), layer=2)
    decoder = TRANSCODER.parts["decoder"]
    np.testing.assert_allclose(added - rows, [2 * decoder[3]] * len(rows), atol=1e-5)


REFUSED: list[tuple[str, Any, str, str]] = [
    ("no changes", changing(), "FIELD_REQUIRED", "changes"),
    ("no change", changing({"index": 1}), "FIELD_REQUIRED", "changes[0]"),
    ("no index", changing({"value": 1.0}), "FIELD_REQUIRED", "changes[0].index"),
    ("beyond", changing({"index": FEATURES, "value": 1.0}), "FIELD_INVALID", "changes[0].index"),
    (
        "twice",
        changing({"index": 1, "value": 1.0}, {"index": 1, "factor": 1.0}),
        "FIELD_INVALID",
        "changes[1].index",
    ),
    (
        "not finite",
        changing({"index": 1, "value": float("inf")}),
        "FIELD_INVALID",
        "changes[0].value",
    ),
    (
        "another",
        intervention(site(1), features={"dictionary": full("other"), "changes": CHANGES}),
        "RESOURCE_NOT_FOUND",
        "dictionary",
    ),
]


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
async def test_a_wrong_change_is_refused(change: dict[str, Any], reason: str, field: str) -> None:
    async with serving(FakeEngine(), **SETTINGS) as served:
        await uploaded(served)
        request = fetch(capture={"sites": [site(1)]}, interventions=[change])
        refused = await failure(served.generation.FetchActivations(request))
    assert (refused.reason, refused.field) == (reason, f"interventions[0].features.{field}")


@pytest.mark.parametrize(
    ("change", "layer"), [({"index": 1, "value": 1.0}, 2), ({"index": 1, "addition": 1.0}, 1)]
)
async def test_a_transcoder_is_changed_by_additions_where_it_writes_alone(
    change: dict[str, Any], layer: int
) -> None:
    async with serving(FakeEngine(), **SETTINGS) as served:
        await uploaded(served, TRANSCODER)
        request = fetch(capture={"sites": [site(1)]}, interventions=[changing(change, layer=layer)])
        refused = await failure(served.generation.FetchActivations(request))
    assert (refused.code, refused.reason) == (INVALID, "SITE_INVALID")


async def test_the_dose_of_a_change_is_limited() -> None:
    limited = FakeEngine(limits=Limits(max_sequence_tokens=512, max_relative_dose=0.5))
    async with serving(limited, **SETTINGS, measured=True) as served:
        await uploaded(served)
        for change in ({"index": 1, "value": 100.0}, {"index": 1, "factor": 2.0}):
            request = fetch(capture={"sites": [site(1)]}, interventions=[changing(change)])
            refused = await failure(served.generation.FetchActivations(request))
            assert refused.reason == "DOSE_TOO_LARGE"
        await read(served, changing({"index": 1, "factor": 0.0}))


async def test_a_monitor_takes_what_a_feature_writes_and_no_change_of_features() -> None:
    def monitor(change: dict[str, Any]) -> Any:
        level = {"threshold": 1.0, "intervene": {"interventions": [change]}}
        return create(upper=level)

    feature = {"feature": {"dictionary": full("signs"), "index": 3}}
    async with serving(FakeEngine(), **SETTINGS) as served:
        await uploaded(served)
        request = monitor(changing({"index": 1, "value": 1.0}))
        refused = await failure(served.monitors.CreateMonitor(request))
        assert refused.reason == "FIELD_INVALID"
        assert refused.field.endswith("interventions[0].features")
        made = monitor(intervention(site(1), add={"vector": feature}))
        assert (await served.monitors.CreateMonitor(made)).monitor.name


async def test_a_sweep_is_another_where_its_dictionary_has_become_another() -> None:
    """Cells are stored by what they depend on, and a name may come to mean something else."""
    change = changing({"index": 3, "addition": 4.0})
    request = sweep_pb.RunSweepRequest(
        prompts=[{"prompt": {"text": "hello"}}],
        variants=[{"interventions": [change]}],
        answers=[{"name": "a", "text": "a"}],
    )

    async def cell(served: Served) -> Any:
        events = await collect(served.sweeps.RunSweep(request))
        (found,) = [event.cell for event in events if event.WhichOneof("event") == "cell"]
        return found

    other = Sent(matrices(decoder=-matrices()["decoder"]))
    async with serving(FakeEngine(), **SETTINGS) as served:
        await uploaded(served)
        first = await cell(served)
        assert (await cell(served)).answer_logprobs == first.answer_logprobs
        await served.dictionaries.DeleteDictionary(pb.DeleteDictionaryRequest(name=full("signs")))
        await uploaded(served, other)
        assert (await cell(served)).answer_logprobs != first.answer_logprobs
