"""Every method of the contract by every role, and with no, a wrong, an expired and another tenant's
credential. A method without a rule here fails: who adds one says who may call it, and how another
tenant's things stay hidden from it."""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory

from actserve.v1 import alert_pb2 as alert_pb2
from actserve.v1 import generation_service_pb2 as generation_pb
from actserve_server.domain.crc32c import crc32c
from actserve_server.domain.principals import Role
from actserve_server.rpc.server import DESCRIPTORS
from tests.contract import alerts, monitors, vectors
from tests.contract.dictionaries import Sent, uploaded
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    failure,
    fetch,
    intervention,
    serving,
    site,
    write_tokens,
)
from tests.contract.nlas import Tiny, set_baseline
from tests.contract.readouts import kept
from tests.contract.test_attribution_graphs import create as create_graph
from tests.contract.test_tenants import MANY, told

METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in DESCRIPTORS
    for method in service.methods
}
VISION, LANGUAGE = bearing("of-vision"), bearing("of-language")
BASELINE = "models/fake/nlas/tiny/baselines"
MODEL = "models/fake"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Of one method."""

    role: Role = Role.READER
    """The least that may call it at all."""
    of: str = ""
    """What of a tenant's own it names, by a kind of `things`; empty if nothing, or what all see."""
    asks: Callable[[str], Mapping[str, Any]] = lambda name: {"name": name}
    """The fields by which it names one."""


EXPERIMENTER = Rule(role=Role.EXPERIMENTER)
OPERATOR_ONLY = Rule(role=Role.OPERATOR)
RULES: Mapping[str, Rule] = {
    "ModelService/ListModels": Rule(),
    "ModelService/GetModel": Rule(),
    "ModelService/Tokenize": Rule(),
    "GenerationService/FetchActivations": Rule(
        of="kept",
        asks=lambda name: {
            "items": [{"prompt": {"text": "a"}}],
            "readouts": [
                {
                    "rows": {
                        "sites": [site()],
                        "projection": {"directions": {"kept": {"name": name, "positions": [0]}}},
                    }
                }
            ],
        },
    ),
    "GenerationService/Generate": Rule(
        of="monitor",
        asks=lambda name: {
            "prompt": {"text": "a"},
            "sampling": {"max_tokens": 2},
            "monitors": [name],
        },
    ),
    "KeptActivationsService/GetKeptActivations": Rule(of="kept"),
    "KeptActivationsService/ListKeptActivations": Rule(),
    "KeptActivationsService/DeleteKeptActivations": Rule(role=Role.EXPERIMENTER, of="kept"),
    "ExplanationService/ListNlas": Rule(),
    "ExplanationService/GetNla": Rule(),
    "ExplanationService/ExplainActivations": Rule(),
    "ExplanationService/ExplainText": Rule(),
    "ExplanationService/CompareActivations": Rule(),
    "ExplanationService/ReconstructActivations": Rule(),
    "ExplanationService/ScoreExplanations": Rule(),
    "ExplanationService/SetExplanationBaseline": EXPERIMENTER,
    "ExplanationService/DeleteExplanationBaseline": Rule(role=Role.EXPERIMENTER, of="baseline"),
    "ExplanationService/ListNlaPairs": OPERATOR_ONLY,
    "ExplanationService/GetNlaPair": OPERATOR_ONLY,
    "ExplanationService/LoadNlaPair": OPERATOR_ONLY,
    "ExplanationService/UnloadNlaPair": OPERATOR_ONLY,
    "WeightService/ReadTokenRows": Rule(),
    "WeightService/ReadHeadMatrices": Rule(),
    "HeadService/MeasureHeads": Rule(),
    "SteeringVectorService/CreateSteeringVector": EXPERIMENTER,
    "SteeringVectorService/GetSteeringVector": Rule(of="vector"),
    "SteeringVectorService/ListSteeringVectors": Rule(),
    "SteeringVectorService/UpdateSteeringVector": Rule(role=Role.EXPERIMENTER, of="vector"),
    "SteeringVectorService/DeleteSteeringVector": Rule(role=Role.EXPERIMENTER, of="vector"),
    "SteeringVectorService/MakeSteeringVector": EXPERIMENTER,
    "SteeringVectorService/CombineSteeringVectors": EXPERIMENTER,
    "SweepService/RunSweep": Rule(),
    "MonitorService/CreateMonitor": EXPERIMENTER,
    "MonitorService/GetMonitor": Rule(of="monitor"),
    "MonitorService/ListMonitors": Rule(),
    "MonitorService/UpdateMonitor": Rule(
        role=Role.EXPERIMENTER,
        of="monitor",
        asks=lambda name: {
            "monitor": {"name": name, "upper": {"threshold": 2.0}},
            "update_mask": {"paths": ["upper"]},
        },
    ),
    "MonitorService/DeleteMonitor": Rule(role=Role.EXPERIMENTER, of="monitor"),
    "MonitorService/FitMonitor": EXPERIMENTER,
    "MonitorService/ReplayMonitors": Rule(
        of="monitor",
        asks=lambda name: {"monitors": [name], "items": [{"prompt": {"text": "a"}}]},
    ),
    "MonitorService/GetMonitorScores": Rule(of="monitor"),
    "MonitorService/WatchAlerts": Rule(),
    "MonitorService/GetAlert": Rule(of="alert"),
    "MonitorService/ListAlerts": Rule(),
    "MonitorService/DecideAlert": Rule(
        role=Role.EXPERIMENTER,
        of="alert",
        asks=lambda name: {"name": name, "decision": alert_pb2.ALERT_DECISION_STOP},
    ),
    "MonitorService/DeleteAlerts": EXPERIMENTER,
    "DictionaryService/GetDictionary": Rule(of="dictionary"),
    "DictionaryService/ListDictionaries": Rule(),
    "DictionaryService/DeleteDictionary": Rule(role=Role.EXPERIMENTER, of="dictionary"),
    "DictionaryService/BeginUpload": EXPERIMENTER,
    "DictionaryService/UploadChunk": Rule(
        role=Role.EXPERIMENTER,
        of="upload",
        asks=lambda name: {
            "upload": name,
            "matrix_index": 0,
            "offset": 0,
            "content": b"abcd",
            "crc32c": crc32c(b"abcd"),
        },
    ),
    "DictionaryService/FinishUpload": Rule(
        role=Role.EXPERIMENTER, of="upload", asks=lambda name: {"upload": name}
    ),
    "DictionaryService/SetFeatureLabels": Rule(
        role=Role.EXPERIMENTER,
        of="dictionary",
        asks=lambda name: {"dictionary": name, "labels": [{"index": 1}]},
    ),
    "DictionaryService/ListFeatureLabels": Rule(
        of="dictionary", asks=lambda name: {"dictionary": name}
    ),
    "AttributionGraphService/CreateAttributionGraph": EXPERIMENTER,
    "AttributionGraphService/GetAttributionGraph": Rule(of="graph"),
    "AttributionGraphService/ListAttributionGraphs": Rule(),
    "AttributionGraphService/DeleteAttributionGraph": Rule(role=Role.EXPERIMENTER, of="graph"),
    "AttributionGraphService/WatchAttributionGraph": Rule(of="graph"),
}
PAIRS = {
    f"ExplanationService/{method}" for method in ("GetNlaPair", "LoadNlaPair", "UnloadNlaPair")
}
SHARED_NAMES = {"ModelService/GetModel", "ExplanationService/GetNla", *PAIRS}
"""Of methods that name what is everybody's."""

READ_BY_OPERATORS = {"ExplanationService/ListNlaPairs", "ExplanationService/GetNlaPair"}
"""What changes nothing, and tells of the server's own files."""

ENDLESS: Mapping[str, Any] = {"MonitorService/WatchAlerts": {"resume_token": b"none"}}
"""Fields by which what would not end by itself is refused for another reason than who asks."""


def short(path: str) -> str:
    return path.removeprefix("/actserve.v1.")


def test_every_method_has_a_rule() -> None:
    assert {short(path) for path in METHODS} == set(RULES)


def test_every_method_that_names_something_says_whose_it_is() -> None:
    naming = {
        short(path)
        for path, method in METHODS.items()
        if {"name", "upload", "dictionary"} & {field.name for field in method.input_type.fields}
    }
    owned = {name for name, rule in RULES.items() if rule.of}
    assert (
        naming
        - owned
        - SHARED_NAMES
        - {
            # They make or replace what they name.
            "ExplanationService/SetExplanationBaseline",
            # It names what it makes of.
            "DictionaryService/BeginUpload",
        }
        == set()
    )


def test_what_changes_something_takes_more_than_a_reader() -> None:
    from actserve_server.rpc.transport.audit_log import acts

    for path in METHODS:
        if short(path) not in READ_BY_OPERATORS:
            assert (RULES[short(path)].role is Role.READER) == (not acts(path)), path


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = write_tokens(
        tmp_path / "tokens.yaml",
        ("of-vision", "vision", Role.OPERATOR),
        ("of-language", "language", Role.OPERATOR),
        *((f"a-{role}", "others", role) for role in Role),
    )
    digest = hashlib.sha256(b"expired").hexdigest()
    expired = f"sha256: {digest}, tenant: vision, role: operator, expires: 2020-01-01T00:00:00Z"
    path.write_text(f"{path.read_text()}- {{{expired}}}\n")
    return path


@pytest.fixture
async def served(token_file: Path) -> AsyncIterator[Served]:
    room = {"max_dictionary_bytes": 1 << 20, "max_dictionaries": 8}
    async with serving(None, Tiny().loaded(), token_file=token_file, **room) as running:
        yield running


def call(served: Served, path: str, metadata: Any, **fields: Any) -> Any:
    method = METHODS[path]
    request = message_factory.GetMessageClass(method.input_type)(**fields)
    kind = message_factory.GetMessageClass(method.output_type)
    shape = "unary_stream" if method.server_streaming else "unary_unary"
    stub = getattr(served.channel, shape)(path, type(request).SerializeToString, kind.FromString)
    return stub(request, metadata=metadata)


async def outcome(served: Served, path: str, metadata: Any, **fields: Any) -> Any:
    """How a call fails; None if it does not."""
    try:
        return await failure(call(served, path, metadata, **fields))
    except AssertionError:
        return None


CREDENTIALS = {
    "none": (),
    "wrong": bearing("wrong"),
    "expired": bearing("expired"),
    "a hash": bearing(hashlib.sha256(b"of-vision").hexdigest()),
}


@pytest.mark.parametrize("metadata", CREDENTIALS.values(), ids=CREDENTIALS)
async def test_without_a_good_credential_nothing_is_answered(served: Served, metadata: Any) -> None:
    for path in METHODS:
        refused = await outcome(served, path, metadata)
        assert refused is not None, path
        assert refused.code is grpc.StatusCode.UNAUTHENTICATED, path
        assert refused.reason == "UNAUTHENTICATED", path
    assert served.engine.counters.started == 0


@pytest.mark.parametrize("role", Role)
async def test_a_role_may_call_what_the_rule_says_and_no_more(served: Served, role: Role) -> None:
    for path in METHODS:
        name, rule = short(path), RULES[short(path)]
        refused = await outcome(served, path, bearing(f"a-{role}"), **ENDLESS.get(name, {}))
        reason = "" if refused is None else refused.reason
        assert reason != "UNAUTHENTICATED", path
        assert (reason == "PERMISSION_DENIED") == (role.rank < rule.role.rank), (path, reason)


async def things(served: Served) -> dict[str, str]:
    """A thing of vision of each kind, by name."""
    stream = served.generation.FetchActivations(
        fetch("hello", capture={"sites": [site()], "keep": {}}), metadata=VISION
    )
    (name,) = kept(await collect(stream))
    await served.vectors.CreateSteeringVector(vectors.create("mine"), metadata=VISION)
    await served.monitors.CreateMonitor(monitors.create("mine"), metadata=VISION)
    await served.explanations.SetExplanationBaseline(
        set_baseline(f"{BASELINE}/mine", MANY), metadata=VISION
    )
    (alert,) = await alerts.raise_(served, 2.0, tenant="vision", monitor="mine")
    upload = await served.dictionaries.BeginUpload(Sent(name="begun").request, metadata=VISION)
    await uploaded(served, Sent(name="mine"), metadata=VISION)
    await served.graphs.CreateAttributionGraph(create_graph("mine"), metadata=VISION)
    return {
        "kept": name,
        "vector": vectors.full("mine"),
        "monitor": monitors.full("mine"),
        "baseline": f"{BASELINE}/mine",
        "alert": f"{MODEL}/alerts/{alert}",
        "upload": upload.upload,
        "dictionary": f"{MODEL}/dictionaries/mine",
        "graph": f"{MODEL}/attributionGraphs/mine",
    }


def never(name: str) -> str:
    """A name of the same form that never was."""
    *parents, last = name.split("/")
    return "/".join([*parents, last[:-4] + ("zzzz" if last[-4:] != "zzzz" else "yyyy")])


async def test_what_is_another_tenants_is_as_if_it_had_never_been(served: Served) -> None:
    """Word for word, by every method that could name it; and its owner finds it afterwards."""
    there = await things(served)
    assert {rule.of for rule in RULES.values() if rule.of} == set(there)
    for path in METHODS:
        rule = RULES[short(path)]
        if not rule.of:
            continue
        name = there[rule.of]
        none = never(name)
        theirs = await outcome(served, path, LANGUAGE, **rule.asks(name))
        nobodys = await outcome(served, path, LANGUAGE, **rule.asks(none))
        assert theirs is not None, path
        assert nobodys is not None, path
        assert theirs.code is grpc.StatusCode.NOT_FOUND, (path, theirs)
        # The ending of a name may stand alone, as in "there is no monitor 'mine'".
        ends = name.rpartition("/")[2], none.rpartition("/")[2]
        assert told(theirs, name) == told(nobodys, none) or (
            str(told(theirs, ends[0])) == str(told(nobodys, ends[1]))
        ), path
    deleting = {path for path in METHODS if "/Delete" in path or "Decide" in path}
    for path in METHODS:
        rule = RULES[short(path)]
        if rule.of and path not in deleting:
            found = await outcome(served, path, VISION, **rule.asks(there[rule.of]))
            assert found is None or found.code is not grpc.StatusCode.NOT_FOUND, (path, found)


CONDITIONAL = {
    "keeps": {
        "items": [{"prompt": {"text": "a"}}],
        "readouts": [{"keep": {"sites": [site()]}}],
    },
    "changes": {
        "items": [{"prompt": {"text": "a"}}],
        "interventions": [intervention(site(), zero={})],
        "readouts": [{"rows": {"sites": [site()]}}],
    },
}


@pytest.mark.parametrize("fields", CONDITIONAL.values(), ids=CONDITIONAL)
async def test_a_reader_may_not_keep_or_change_by_what_it_may_read_with(
    served: Served, fields: Any
) -> None:
    request = generation_pb.FetchActivationsRequest(**fields)
    refused = await failure(
        served.generation.FetchActivations(request, metadata=bearing("a-reader"))
    )
    assert refused.reason == "PERMISSION_DENIED"
