"""Refusals of edited explanations as steering vectors."""

import numpy as np
import pytest

from actserve_server.domain.model import Limits
from actserve_server.engine.fake import FakeEngine
from actserve_server.nla.autoencoder import Autoencoder
from tests.contract.harness import failure, generate, intervention, serving, site
from tests.contract.nla_refusals import EDIT, case, check, edited, refused, tiny
from tests.contract.nlas import WIDTH
from tests.contract.refusals import Case

CASES = [
    case("an empty original", edited(original=" "), "FIELD_REQUIRED", f"{EDIT}.original"),
    case("an empty edit", edited(edited=""), "FIELD_REQUIRED", f"{EDIT}.edited"),
    case(
        "an edit at another site",
        edited([site(2)]),
        "SITE_NOT_SERVED",
        "interventions[1].sites[0]",
        "resid_post.2",
    ),
    case(
        "an edit at two sites",
        edited([site(1), site(2)]),
        "SITE_INVALID",
        "interventions[1].sites[1]",
        "resid_post.2",
    ),
    case(
        "a vector without a source",
        generate(interventions=[intervention(site(1), add={"vector": {}})]),
        "FIELD_REQUIRED",
        "interventions[0].add.vector",
        "[16]",
        "edit",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_refusal_names_reason_field_and_fix(case: Case) -> None:
    await check(case, tiny())


async def test_a_site_at_which_edits_cannot_apply_is_named_as_it_was_sent() -> None:
    found = await refused(edited([site(3)]), tiny())
    assert found.details["PreconditionFailure"].violations[0].subject == "interventions[1].sites[0]"


async def test_texts_that_are_the_same_to_the_reconstructor_are_no_edit() -> None:
    nla = tiny()
    async with serving(None, nla.loaded()) as served:
        found = await failure(served.generation.Generate(edited(edited=" a\n")))
    assert (found.reason, found.field) == ("TENSOR_DEGENERATE", f"{EDIT}.edited")
    assert served.engine.counters.started == 0
    assert nla.ar
    assert nla.ar.counters.started == 0


async def test_an_edit_of_which_rounding_is_left_is_no_edit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def rounding(*_: object) -> np.ndarray:
        return np.full(WIDTH, 1e-6, np.float32)

    monkeypatch.setattr(Autoencoder, "edit", rounding)
    async with serving(None, tiny().loaded()) as served:
        found = await failure(served.generation.Generate(edited(edited="b")))
    assert (found.reason, found.field) == ("TENSOR_DEGENERATE", f"{EDIT}.edited")
    assert served.engine.counters.started == 0


async def test_edits_are_counted_before_any_is_computed() -> None:
    fake = FakeEngine(limits=Limits(max_sequence_tokens=64, max_interventions=1))
    found = await refused(edited(), tiny(), fake=fake)
    assert found.reason == "TOO_MANY_INTERVENTIONS"
