"""Activation patching: rows of one run in place of another's, against transformers with the same
patch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from actserve_server.domain.operations import Replace
from actserve_server.domain.runs import Capture, Intervention
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import (
    ALL,
    EngineThread,
    Result,
    SiteRows,
    at,
    make_run,
    relative_errors,
)
from tests.integration.reference import Reference

CLEAN = "The capital of France is the city of"
CORRUPT = "The capital of Italy is the city of"
SUBJECT, LAST = 3, 7
"""Positions of the country and of the last token."""
ANSWER, OTHER = " Paris", " Rome"

LAYERS = 30
SITES = tuple(Site(HookPoint.RESID_POST, layer) for layer in range(LAYERS))
LOGITS = Site(HookPoint.LOGITS)
AT_LAST = Capture((LOGITS,), at(LAST))


@dataclass(frozen=True)
class Prompts:
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answer: int
    other: int

    def preference(self, logits: np.ndarray) -> float:
        """How much more the answer is expected than the other."""
        return float(logits[self.answer] - logits[self.other])


@pytest.fixture(scope="module")
def prompts(smollm2: EngineThread) -> Prompts:
    clean, corrupt = (smollm2.tokenize(text).ids for text in (CLEAN, CORRUPT))
    (answer,), (other,) = (smollm2.tokenize(text).ids for text in (ANSWER, OTHER))
    different = [index for index in range(LAST + 1) if clean[index] != corrupt[index]]
    assert len(clean) == len(corrupt) == LAST + 1
    assert different == [SUBJECT]
    return Prompts(clean, corrupt, answer, other)


@pytest.fixture(scope="module")
def donor(smollm2: EngineThread, prompts: Prompts) -> SiteRows:
    return smollm2.run(make_run(prompts.clean, sites=(*SITES, LOGITS))).rows


@pytest.fixture(scope="module")
def reference(model_path: Callable[[str], Path]) -> Reference:
    return Reference(model_path("smollm2-135m"), torch.float32)


def _patched(engine: EngineThread, prompts: Prompts, changes: list[Intervention]) -> list[Result]:
    runs = [make_run(prompts.corrupt, change, captures=[AT_LAST]) for change in changes]
    return engine.run_all(runs)


def test_the_last_row_of_the_donor_brings_the_donors_logits(
    smollm2: EngineThread, prompts: Prompts, donor: SiteRows
) -> None:
    site = SITES[-1]
    (patched,) = _patched(smollm2, prompts, [_patch(site, donor[site], LAST)])
    assert relative_errors(patched.rows[LOGITS], donor[LOGITS][[LAST]]).max() <= 1e-5


def test_every_row_of_the_donor_brings_every_row_of_the_donor(
    smollm2: EngineThread, prompts: Prompts, donor: SiteRows
) -> None:
    change = Intervention((SITES[9],), ALL, Replace(donor[SITES[9]]))
    patched = smollm2.run(make_run(prompts.corrupt, change, sites=(*SITES[9:], LOGITS)))
    for site, rows in patched.rows.items():
        assert relative_errors(rows, donor[site]).max() <= 1e-5, site


def _patch(site: Site, rows: np.ndarray, position: int) -> Intervention:
    return Intervention((site,), at(position), Replace(rows[[position]]))


@pytest.mark.parametrize("position", [SUBJECT, LAST], ids=["subject", "last"])
def test_the_answer_recovers_layer_by_layer_as_in_transformers(
    position: int,
    smollm2: EngineThread,
    reference: Reference,
    prompts: Prompts,
    donor: SiteRows,
) -> None:
    theirs_donor = reference.rows(prompts.clean)
    ours, theirs = [], []
    results = _patched(smollm2, prompts, [_patch(site, donor[site], position) for site in SITES])
    for site, result in zip(SITES, results, strict=True):
        ours.append(prompts.preference(result.rows[LOGITS][0]))
        patch = _patch(site, theirs_donor[site], position)
        edits = reference.edits([patch], prompts.corrupt)
        logits = reference.rows(prompts.corrupt, edits, sites=[LOGITS])[LOGITS]
        theirs.append(prompts.preference(logits[LAST]))

    clean = prompts.preference(theirs_donor[LOGITS][LAST])
    corrupt = prompts.preference(reference.rows(prompts.corrupt)[LOGITS][LAST])
    assert clean > 1 > -1 > corrupt
    curve, expected = ((np.array(each) - corrupt) / (clean - corrupt) for each in (ours, theirs))
    print(f"recovery at position {position}: {curve.round(2).tolist()}")
    print(f"largest difference from transformers {np.abs(curve - expected).max():.1e}")
    assert np.abs(curve - expected).max() <= 2e-2
    # What the subject carried at first the last token carries in the end.
    first, last = np.abs(curve[:5]), np.abs(curve[-1])
    if position == SUBJECT:
        assert first.min() > 0.9
        assert last < 0.01
    else:
        assert first.max() < 0.01
        assert last > 0.99
