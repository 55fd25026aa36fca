"""The residual stream of a model of no known family is found by structure, or said not to be."""

from typing import Any

import pytest
import torch
from torch import nn

from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm.attach import attach_taps
from actserve_server.engine.vllm.families import NOT_LOOKED_FOR
from actserve_server.engine.vllm.found_family import find_family
from tests.unit.vllm.steps import make_run, read
from tests.unit.vllm.test_attach import carry_out, embeddings
from tests.unit.vllm.toys import Model, textbook

STREAM = {HookPoint.EMBEDDING, HookPoint.RESID_PRE, HookPoint.RESID_POST, HookPoint.FINAL_NORM}
BRANCHES = {HookPoint.ATTN_OUT, HookPoint.RESID_MID, HookPoint.MLP_OUT}


@pytest.mark.parametrize(
    ("architecture", "points"),
    [
        ("LlamaForCausalLM", STREAM | BRANCHES),
        ("MixtralForCausalLM", STREAM | BRANCHES),
        ("GPT2LMHeadModel", STREAM | BRANCHES),
        # Of four norms it is not known what they are for.
        ("Gemma3ForCausalLM", STREAM),
    ],
)
def test_what_is_found_reads_the_textbooks_tensor(
    architecture: str, points: set[HookPoint]
) -> None:
    model = Model(architecture)
    family = find_family(model)
    assert family.found
    layout = attach_taps(model, family, frozenset(HookPoint))
    assert layout.hook_points == points
    expected = textbook(model, embeddings())
    sites = [key.site for key in layout.sites]
    _, captured = carry_out(model, layout, make_run(read(*map(str, sites))))
    for site, got in zip(sites, captured, strict=True):
        torch.testing.assert_close(got, expected[site], msg=lambda m, s=site: f"{s}: {m}")


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_what_is_not_found_has_a_reason(architecture: str) -> None:
    family = find_family(Model(architecture))
    not_found = {*HookPoint} - STREAM - {HookPoint.LOGITS}
    if architecture == "LlamaForCausalLM":
        not_found -= BRANCHES
    assert family.unserved.keys() == not_found
    assert all(family.unserved[point] == why for point, why in NOT_LOOKED_FOR.items())
    assert all("not built like most" in family.unserved[point] for point in not_found & BRANCHES)


def test_layers_that_differ_have_no_known_branches() -> None:
    model = Model()
    layers: Any = model.model.layers
    layers[1].add_module("gate", nn.Linear(2, 2))
    assert find_family(model).unserved.keys() >= BRANCHES


def _two_stacks(model: Model) -> None:
    model.model.encoder = nn.ModuleList([*Model().layers])


def _no_stack(model: Model) -> None:
    model.model.layers = nn.ModuleList()


def _no_norm(model: Model) -> None:
    del model.model.norm


def _two_norms(model: Model) -> None:
    model.model.another = type(model.norm)()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_two_stacks, r"no single list of decoder layers \(found: model.layers, model.encoder\)"),
        (_no_stack, r"no single list of decoder layers \(found: none\)"),
        (_no_norm, "0 norms after its layers"),
        (_two_norms, "2 norms after its layers"),
    ],
)
def test_a_model_without_a_single_stream_is_refused(change, why: str) -> None:  # type: ignore[no-untyped-def]
    model = Model()
    change(model)
    with pytest.raises(ValueError, match=why):
        find_family(model)
