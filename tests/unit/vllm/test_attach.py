"""Every site of every kind of family is the textbook's tensor: it is read, and it is changed."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from actserve_server.domain.operations import Mean
from actserve_server.domain.runs import Intervention, Run
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from actserve_server.engine.vllm import taps
from actserve_server.engine.vllm.attach import attach_taps
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.families import FAMILIES
from actserve_server.engine.vllm.layout import Layout
from actserve_server.engine.vllm.step_batch import Model as RoutingModel
from actserve_server.engine.vllm.step_plan import route
from tests.unit.vllm.steps import at, make_run, read, rows, site, start
from tests.unit.vllm.toys import FINAL_NORM, LAYERS, WIDTH, Model, textbook

ROWS = 5
ARCHITECTURES = [
    ("LlamaForCausalLM", False),
    ("LlamaForCausalLM", True),
    ("Gemma3ForCausalLM", False),
    ("MixtralForCausalLM", False),
    ("GPT2LMHeadModel", False),
    ("GraniteForCausalLM", False),
    ("Olmo2ForCausalLM", False),
]
"""With whether a layer is called by names."""

Forward = Callable[[torch.Tensor], torch.Tensor]

families = pytest.mark.parametrize(("architecture", "by_name"), ARCHITECTURES)


def _tapped(architecture: str, by_name: bool = False) -> tuple[Model, Layout]:
    model = Model(architecture, by_name=by_name)
    return model, attach_taps(model, FAMILIES[architecture], frozenset(HookPoint))


def embeddings() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def carry_out(model: Forward, layout: Layout, run: Run) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One pass over all rows of a run: the model's output, and the rows of every captured site."""
    bank = VectorBank(torch.device("cpu"), 1 << 20)
    batch = [rows(start(bank, 1, run), row=0, position=0, tokens=ROWS)]
    routed = route(batch, bank, RoutingModel(layout))
    assert routed is not None
    with taps.step(routed.plan):
        output = model(embeddings())
    routed.plan.check()
    columns = [column.work.rows for block in routed.blocks for column in block.columns]
    assert all(each is not None for each in columns)
    return output, [each for each in columns if each is not None]


@families
def test_taps_without_work_change_nothing(architecture: str, by_name: bool) -> None:
    plain = Model(architecture, by_name=by_name)(embeddings())
    model, _ = _tapped(architecture, by_name)
    assert torch.equal(model(embeddings()), plain)


@families
def test_sites_are_reached_in_the_order_by_which_conditions_are_judged(
    architecture: str, by_name: bool
) -> None:
    _, layout = _tapped(architecture, by_name)
    depths = [key.site.depth for key, _ in layout.in_order(layout.sites)]
    assert depths == sorted(depths)
    assert len({*depths}) == len(depths)


@families
def test_every_site_reads_the_textbooks_tensor(architecture: str, by_name: bool) -> None:
    model, layout = _tapped(architecture, by_name)
    expected = textbook(model, embeddings())
    names = [str(key.site) for key in layout.sites]
    _, captured = carry_out(model, layout, make_run(read(*names)))
    for name, got in zip(names, captured, strict=True):
        torch.testing.assert_close(got, expected[site(name)], msg=lambda m, n=name: f"{n}: {m}")


@families
def test_sites_are_reached_in_the_textbooks_order(architecture: str, by_name: bool) -> None:
    model, layout = _tapped(architecture, by_name)
    expected = list(textbook(model, embeddings()))
    unserved = FAMILIES[architecture].unserved
    expected = [each for each in expected if each.hook_point not in unserved]
    assert [key.site for key, _ in layout.in_order(layout.sites)] == expected


@pytest.mark.parametrize("hook_point", [each for each in HookPoint if each is not HookPoint.LOGITS])
@families
def test_what_is_changed_at_a_site_is_what_the_model_goes_on_with(
    architecture: str, by_name: bool, hook_point: HookPoint
) -> None:
    model, layout = _tapped(architecture, by_name)
    changed = [key.site for key in layout.sites if key.site.hook_point is hook_point]
    if hook_point in FAMILIES[architecture].unserved:
        assert not changed
        return
    assert len(changed) == (1 if hook_point in LAYERLESS else LAYERS)
    for where in changed:
        _check_changed(model, model, layout, where)


@pytest.mark.parametrize(
    "architecture",
    ["LlamaForCausalLM", "GPT2LMHeadModel", "GraniteForCausalLM", "Olmo2ForCausalLM"],
)
def test_a_compiled_model_is_changed_alike(architecture: str) -> None:
    model, layout = _tapped(architecture)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for key in layout.sites:
        _check_changed(model, compiled, layout, key.site)
    torch.compiler.reset()


def _check_changed(model: Model, called: Forward, layout: Layout, where: Site) -> None:
    plain = textbook(model, embeddings())
    row = np.linspace(-2, 3, plain[where].shape[1], dtype=np.float32)

    def replace_two_rows(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[1:3] = torch.from_numpy(row)
        return x

    expected = textbook(model, embeddings(), {where: replace_two_rows})[FINAL_NORM]
    assert not torch.allclose(expected[1:3], plain[FINAL_NORM][1:3])
    intervention = Intervention((where,), at((1, 3)), Mean(row))
    output, _ = carry_out(called, layout, make_run(intervention))
    torch.testing.assert_close(output, expected, msg=lambda m: f"{where}: {m}")


def test_only_heads_and_mlp_columns_are_split_over_ranks() -> None:
    _, layout = _tapped("LlamaForCausalLM")
    split = {"q", "k", "v", "z", "mlp_act"}
    for key, found in layout.sites.items():
        assert found.sharded == (key.site.hook_point in split), key.site


def test_only_what_is_wanted_is_tapped() -> None:
    model = Model()
    wanted = {HookPoint.RESID_POST, HookPoint.Q}
    layout = attach_taps(model, FAMILIES["LlamaForCausalLM"], wanted)
    assert layout.hook_points == wanted
    assert layout.place_count == 2 * LAYERS
    _, (post, _) = carry_out(model, layout, make_run(read("resid_post.1", "q.0")))
    torch.testing.assert_close(post, textbook(model, embeddings())[site("resid_post.1")])


def test_wanting_logits_taps_the_final_norm_which_they_are_made_of() -> None:
    layout = attach_taps(Model(), FAMILIES["LlamaForCausalLM"], {HookPoint.LOGITS})
    assert layout.hook_points == {HookPoint.FINAL_NORM}


@pytest.mark.parametrize(
    "path",
    [
        "layers",
        "final_norm",
        "attention_core",
        "attention_output",
        "mid",
        "mlp",
        "mlp_output",
    ],
)
def test_a_model_without_a_promised_module_is_refused_by_its_path(path: str) -> None:
    family = replace(FAMILIES["GPT2LMHeadModel"], **{path: "model.nowhere"})
    with pytest.raises(ValueError, match=r"has no module model\.nowhere"):
        attach_taps(Model("GPT2LMHeadModel"), family, {HookPoint.RESID_POST})


def test_a_model_without_layers_is_refused() -> None:
    model = Model()
    model.model.layers = nn.ModuleList()
    with pytest.raises(ValueError, match=r"Model has no decoder layers at model\.layers"):
        attach_taps(model, FAMILIES["LlamaForCausalLM"], frozenset(HookPoint))
