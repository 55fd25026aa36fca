"""Rows of quantized checkpoints are what vLLM computes of them, and those of the values that the
checkpoint stands for; what reads weights itself refuses them: on tiny Llamas in every format that
vLLM's build for CPUs runs."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from actserve_server.domain.operations import Add
from actserve_server.domain.runs import Intervention
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.weights import LogitTarget, TokenMatrix
from actserve_server.engine.selftest import self_test
from actserve_server.engine.vllm.options import EngineOptions
from tests.integration import quantized
from tests.integration.families import CONTEXT, FAMILIES, VOCABULARY, make_checkpoint
from tests.integration.harness import (
    ALL,
    EngineThread,
    Result,
    again,
    at,
    collect,
    every_site,
    greedy,
    make_run,
    relative_errors,
    started,
)
from tests.integration.in_process import InProcessEngine
from tests.integration.quantized import Format
from tests.integration.reference import Reference

TOLERANCE = {"awq": 0.03, "gptq": 0.03, "w4a16": 0.03, "w8a8": 0.06}
"""Of float16, which the formats of four bits compute in; and where inputs are rounded to 8 bits a
last bit of a sum may move a number to the next step."""

PROMPT = np.random.default_rng(9).integers(2, VOCABULARY, 50).tolist()
OTHERS = [PROMPT[start : start + 9] for start in range(0, 40, 5)]
LAYER = 1
STREAM = Site(HookPoint.RESID_POST, LAYER)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = next(family for family in FAMILIES if family.name == "llama")
    return make_checkpoint(llama, tmp_path_factory.mktemp("quantized"))


@pytest.fixture(scope="module", params=quantized.FORMATS, ids=lambda each: each.name)
def form(request: pytest.FixtureRequest) -> Format:
    return request.param


@pytest.fixture(scope="module")
def folders(form: Format, plain: Path) -> tuple[Path, Path]:
    return quantized.write(form, plain, plain.parent)


def _options(form: Format, path: Path) -> EngineOptions:
    return EngineOptions(
        model_id=form.name,
        model_path=str(path),
        dtype=form.dtype,
        max_model_len=CONTEXT,
        max_num_batched_tokens=64,
        max_num_seqs=16,
        kv_cache_memory_bytes=16 << 20,
        enforce_eager=True,
    )


def _runs_here(form: Format) -> bool:
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_vnni") if form.rounds_inputs else has.get("avx512_f"))


@pytest.fixture(scope="module")
def engine(form: Format, folders: tuple[Path, Path]) -> Iterator[InProcessEngine]:
    if not _runs_here(form):
        pytest.skip(f"this processor does not run {form.name}")
    engine = InProcessEngine(_options(form, folders[0]))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(form: Format, folders: tuple[Path, Path]) -> Reference:
    made = Reference(folders[1], torch.float32)
    if form.rounds_inputs:
        for name, module in made.model.named_modules():
            if name.endswith("_proj"):
                module.forward = partial(_of_rounded, module)
    return made


def _of_rounded(linear: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    scale = inputs.abs().amax(-1, keepdim=True) / 127
    return nn.functional.linear((inputs / scale).round() * scale, linear.weight, linear.bias)


def test_rows_are_vllms_own_hidden_states_bit_by_bit(engine: InProcessEngine) -> None:
    seen: dict[int, torch.Tensor] = {}

    def note(layer: int, _: Any, _args: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        seen[layer] = (output[0] + output[1]).float()

    layers: Any = engine.model.get_submodule("model.layers")
    hooks = [each.register_forward_hook(partial(note, layer)) for layer, each in enumerate(layers)]
    engine.forget()
    engine.run(make_run(PROMPT))
    for hook in hooks:
        hook.remove()
    engine.forget()
    sites = [Site(HookPoint.RESID_POST, layer) for layer in seen]
    rows = engine.run(make_run(PROMPT, sites=sites)).rows
    for site in sites:
        assert site.layer is not None
        np.testing.assert_array_equal(rows[site], seen[site.layer].numpy())


def test_rows_are_those_of_the_values_that_the_checkpoint_stands_for(
    form: Format, engine: EngineThread, reference: Reference
) -> None:
    sites, edit = every_site(engine.info), _edit(engine)
    plain, changed, *_ = engine.run_all(
        [
            make_run(PROMPT, sites=sites),
            make_run(PROMPT, edit, sites=sites),
            *(make_run(other, sites=sites) for other in OTHERS),
        ]
    )
    edits = reference.edits([edit], PROMPT)
    for ours, theirs in (
        (plain, reference.rows(PROMPT)),
        (changed, reference.rows(PROMPT, edits)),
    ):
        worst = max(float(relative_errors(ours.rows[site], theirs[site]).max()) for site in sites)
        assert worst <= TOLERANCE[form.name], (form.name, worst)


def _edit(engine: EngineThread) -> Intervention:
    vector = np.random.default_rng(3).standard_normal(engine.info.width).astype(np.float32)
    return Intervention((STREAM,), at(5, 30, 49), Add(vector, 3.0))


def test_what_others_steer_and_cancel_changes_no_row(form: Format, engine: EngineThread) -> None:
    """Inputs of 8 bits are rounded by a scale of their own token, whatever else is in the step."""
    sites, width = every_site(engine.info), engine.info.width
    mine = make_run(PROMPT, _edit(engine), sites=sites, sampling=greedy(12))
    engine.forget()
    alone = engine.run(mine)
    huge = np.random.default_rng(4).standard_normal(width).astype(np.float32) * 1e3
    steered = Intervention((Site(HookPoint.EMBEDDING),), ALL, Add(huge))
    other = replace(make_run(PROMPT, steered, sampling=greedy(40)), tenant="other")

    async def beside() -> Result:
        run = asyncio.ensure_future(collect(engine.engine, again(mine)))
        await asyncio.gather(*(started(engine.engine, again(other)) for _ in range(6)))
        return await run

    for _ in range(2):  # The second time the caches hold what each has left.
        together = engine.call(beside())
        assert together.token_ids == alone.token_ids
        for site in sites:
            errors = relative_errors(together.rows[site], alone.rows[site])
            assert errors.max() <= TOLERANCE[form.name], site


def test_the_self_test_finds_nothing(engine: EngineThread) -> None:
    assert engine.call(self_test(engine.engine)).failures == {}


def test_what_is_not_quantized_is_read_and_what_is_has_a_reason(
    engine: EngineThread, reference: Reference
) -> None:
    weights, ids = engine.info.weights, [0, 7, VOCABULARY - 1]
    rows = engine.call(engine.engine.token_rows(TokenMatrix.UNEMBEDDING, ids))
    np.testing.assert_array_equal(
        rows.astype(np.float32), reference.model.lm_head.weight[ids].detach().numpy()
    )
    assert weights.attribution_unserved == ""
    assert "is quantized by" in weights.heads_unserved
    assert "is quantized by" in weights.head_attribution_unserved
    directions = engine.call(engine.engine.logit_directions([LogitTarget(7)], []))
    assert np.isfinite(directions.stream).all()


def test_fp8_is_refused_by_name(plain: Path) -> None:
    path, _ = quantized.write(quantized.FP8, plain, plain.parent)
    with pytest.raises(ValueError, match=r"\(fp8\).*not weights in FP8.*serve it on a GPU"):
        InProcessEngine(_options(quantized.FP8, path))
