"""Refusals of how to explain and of texts to explain."""

from typing import Any

import pytest

from actserve_server.domain.model import Limits
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import failure, fetch, intervention, serving, site
from tests.contract.nla_refusals import EDIT, MINE, UNMET, case, check, edited, refused, tiny
from tests.contract.nlas import (
    MAX_TOKENS,
    ROWS,
    Tiny,
    call,
    compare,
    events_of,
    explain,
    explain_text,
    explanations,
    reconstruct,
    score,
    set_baseline,
)
from tests.contract.refusals import Case


def asked(name: str, reason: str, field: str, *says: str, **spec: Any) -> list[Case]:
    """What is refused of a spec, whatever is explained."""
    requests = {
        "rows": explain(spec=spec),
        "a text": explain_text(spec=spec),
        "a difference": compare(ROWS, 2 * ROWS, spec=spec),
    }
    return [
        case(f"{name} of {what}", request, reason, f"spec.{field}", *says)
        for what, request in requests.items()
    ]


CASES = [
    # How to explain
    *asked("no samples", "SAMPLING_INVALID", "samples", "1 or above", samples=0),
    *asked("too many samples", "TOO_MANY_SAMPLES", "samples", "4", "at most 3", samples=4),
    *asked("temperature 3", "SAMPLING_INVALID", "temperature", "0.01 to 2", temperature=3),
    *asked("no temperature", "SAMPLING_INVALID", "temperature", "nan", temperature=float("nan")),
    *asked("top_p 0", "SAMPLING_INVALID", "top_p", "above 0", top_p=0),
    *asked("no tokens", "SAMPLING_INVALID", "max_tokens", "from 1 to 24", max_tokens=0),
    *asked("too many tokens", "SAMPLING_INVALID", "max_tokens", "25", max_tokens=MAX_TOKENS + 1),
    *asked("a seed below zero", "SAMPLING_INVALID", "seed", "0 or above", seed=-1),
    *asked("a seed with no room", "SAMPLING_INVALID", "seed", "leave room", seed=(1 << 63) - 2),
    *asked("an unanswered question", "QUESTION_INVALID", "question", "unset", question="Why?"),
    *asked("an unknown baseline", "BASELINE_NOT_FOUND", "baseline", "mine", baseline=MINE),
    *asked("a baseline without a name", "BASELINE_NOT_FOUND", "baseline", baseline="default"),
    *asked(
        "a baseline of another",
        "BASELINE_NOT_FOUND",
        "baseline",
        "models/fake/nlas/tiny/baselines/",
        baseline="models/fake/nlas/other/baselines/mine",
    ),
    *(
        case(
            f"neighbours of {what}", request, "FIELD_INVALID", "spec.neighbor_distance", "positions"
        )
        for what, request in [
            ("rows of nowhere", explain(spec={"neighbor_distance": 1})),
            ("differences", compare(ROWS, ROWS * 2, spec={"neighbor_distance": 1})),
        ]
    ),
    # Texts to explain
    case(
        "another model",
        explain_text(model="models/other"),
        "MODEL_NOT_FOUND",
        "model",
        "models/fake",
    ),
    case("no prompt", explain_text(prompt=None), "FIELD_REQUIRED", "prompt"),
    case("an empty prompt", explain_text(prompt={"token_ids": {}}), "PROMPT_EMPTY", "prompt"),
    case("a long prompt", explain_text("x" * 64), "PROMPT_TOO_LONG", "prompt", "65", "63"),
    case("too many positions", explain_text("x" * 6), "TOO_MANY_ROWS", "positions", "7", "6"),
    case(
        "a position beyond the prompt",
        explain_text("hi", positions={"list": {"positions": [3]}}),
        "POSITION_OUT_OF_RANGE",
        "positions",
        "0 to 2",
    ),
    case(
        "generated positions",
        explain_text("hi", positions={"generated": {}}),
        "POSITION_OUT_OF_RANGE",
        "positions",
    ),
    case(
        "tokens the prompt does not hold",
        explain_text("hi", positions={"token_ids": {"ids": [0]}}),
        "POSITION_OUT_OF_RANGE",
        "positions",
    ),
    case(
        "an intervention at no site",
        explain_text("hi", interventions=[{"zero": {}}]),
        "FIELD_REQUIRED",
        "interventions[0].sites",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_refusal_names_reason_field_and_fix(case: Case) -> None:
    await check(case, tiny())


@pytest.mark.parametrize(
    "request_",
    [
        explain(),
        explain_text(),
        compare(ROWS, ROWS * 2),
        reconstruct("a"),
        score(ROWS[:1], "a"),
        set_baseline(MINE),
        edited(),
        fetch(
            interventions=[
                intervention(site(1), add={"vector": {"edit": {"original": "a", "edited": "b"}}})
            ]
        ),
    ],
    ids=lambda request: type(request).__name__,
)
async def test_a_server_without_any_says_that_none_is_loaded(request_: Any) -> None:
    found = await refused(request_)
    assert (found.code, found.reason) == (UNMET, "FEATURE_DISABLED")
    assert "no natural language autoencoder is loaded" in found.message


@pytest.mark.parametrize(
    ("request_", "subject"),
    [
        (reconstruct("a"), "nla"),
        (score(ROWS[:1], "a"), "nla"),
        (explain(spec={"score": True}), "spec.score"),
        (explain_text(spec={"best": True}), "spec.best"),
        (compare(ROWS, ROWS * 2, spec={"leave_one_out": True}), "spec.leave_one_out"),
        (edited(), f"{EDIT}.nla"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
async def test_what_takes_a_reconstructor_is_refused_without_one(
    request_: Any, subject: str
) -> None:
    found = await refused(request_, tiny(ar=None))
    assert (found.code, found.reason) == (UNMET, "FEATURE_DISABLED")
    assert found.details["PreconditionFailure"].violations[0].subject == subject
    assert "reconstructor" in found.message


@pytest.mark.parametrize("request_", [explain(), explain_text(), compare(ROWS, ROWS * 2)])
async def test_explaining_is_refused_without_a_verbalizer(request_: Any) -> None:
    found = await refused(request_, tiny(av=None))
    assert (found.code, found.reason) == (UNMET, "FEATURE_DISABLED")
    assert "verbalizer" in found.message


@pytest.mark.parametrize("question", ["", "  "])
async def test_one_that_answers_questions_needs_one(question: str) -> None:
    for request in (
        explain(spec={"question": question}),
        explain_text(spec={"question": question}),
    ):
        found = await refused(request, tiny(asks=True))
        assert (found.reason, found.field) == ("QUESTION_INVALID", "spec.question")


async def test_a_site_that_the_model_does_not_serve_is_refused_for_texts_alone() -> None:
    fake = FakeEngine(unserved={HookPoint.RESID_POST: "not enabled"})
    found = await refused(explain_text(), tiny(), fake=fake)
    assert (found.code, found.reason) == (UNMET, "SITE_NOT_SERVED")
    assert "not enabled" in found.message
    async with serving(fake, Tiny().loaded()) as served:
        response = await served.explanations.ScoreExplanations(score(ROWS[:1], "a"))
    assert len(response.scores) == 1


async def test_a_text_too_long_for_the_reconstructor_is_refused() -> None:
    short = FakeEngine(limits=Limits(max_sequence_tokens=32))
    async with serving(None, tiny(ar=short).loaded()) as served:
        for request in (reconstruct("a", "x" * 40), score(ROWS[:2], "a", "x" * 40)):
            found = await failure(call(served.explanations, request))
            assert (found.reason, found.field) == ("PROMPT_TOO_LONG", "texts[1]")
        found = await failure(served.generation.Generate(edited(edited="x" * 40)))
        assert (found.reason, found.field) == ("PROMPT_TOO_LONG", f"{EDIT}.edited")
    assert short.counters.started == 0


async def test_a_question_that_leaves_no_room_for_its_answer_is_refused() -> None:
    short = FakeEngine(limits=Limits(max_sequence_tokens=48))
    asking = tiny(av=short, asks=True)
    for question, max_tokens in (("x" * 40, 10), ("x" * 30, 20)):
        spec = {"question": question, "max_tokens": max_tokens}
        found = await refused(explain(spec=spec), asking)
        assert (found.reason, found.field) == ("QUESTION_INVALID", "spec.question")
        assert "may have 48" in found.message
    spec = {"question": "x" * 30, "max_tokens": 10}
    assert len(explanations(await events_of(explain(spec=spec), asking))) == len(ROWS)


async def test_a_field_of_a_newer_contract_is_refused_not_ignored() -> None:
    # Field 99, a varint, in the spec.
    newer = type(explain()).FromString(explain().SerializeToString() + b"\x2a\x03\x98\x06\x01")
    found = await refused(newer, tiny())
    assert (found.reason, found.field) == ("FIELD_UNKNOWN", "spec")
