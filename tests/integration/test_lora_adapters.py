"""Rows, steering and text under LoRA adapters are those of transformers and PEFT, each adapter's
its own whatever runs beside it or ran before: on a tiny Llama with two random adapters."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from actserve_server.domain.operations import Add
from actserve_server.domain.runs import Intervention, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.weights import HeadMatrix
from actserve_server.engine.selftest import self_test
from actserve_server.engine.selftest_adapters import prove_adapters
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.models.lora_folders import load_adapter
from actserve_server.models.lora_sources import LoraSource
from tests.integration.families import CONTEXT, FAMILIES, VOCABULARY, make_checkpoint
from tests.integration.harness import (
    EngineThread,
    Result,
    at,
    collect,
    every_site,
    greedy,
    make_run,
    relative_errors,
    started,
    vllm_counter,
)
from tests.integration.reference import Reference
from tests.integration.weights import head_matrix, reference_head_matrix

ADAPTERS = {
    "one": LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    ),
    # Another rank, another scale, and every matrix.
    "two": LoraConfig(
        r=6,
        lora_alpha=3,
        use_rslora=True,
        target_modules="all-linear",
        init_lora_weights=False,
    ),
}
NONE = ""
NAMES = (NONE, *ADAPTERS)

TOLERANCE = 1e-3
SMALL_KV_BYTES = 1 << 20
"""A few prompts of the longest, so that requests are preempted."""
CHUNK = 32
"""Tokens that are computed at once, so that a step has several adapters, and prompts are cut."""

_IDS = np.random.default_rng(5).integers(2, VOCABULARY, 100).tolist()
PROMPTS = (_IDS[:7], _IDS[:33], _IDS)
LOGITS = Site(HookPoint.LOGITS)
STREAM = Site(HookPoint.RESID_POST, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = next(family for family in FAMILIES if family.name == "llama")
    return make_checkpoint(llama, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def folders(model: Path) -> dict[str, Path]:
    """Adapters as PEFT saves them."""
    made = {}
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        adapted = get_peft_model(base, config)
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = 0.2 * torch.randn(parameter.shape)
        made[name] = model.parent / name
        adapted.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def engine(model: Path, folders: dict[str, Path]) -> Iterator[EngineThread]:
    sources = [LoraSource(id=name, source=str(path)) for name, path in folders.items()]
    running = EngineThread(
        EngineOptions(
            model_id="tiny",
            model_path=str(model),
            adapters=tuple(map(load_adapter, sources)),
            dtype="float32",
            max_model_len=CONTEXT,
            max_num_batched_tokens=CHUNK,
            max_num_seqs=16,
            block_size=32,
            kv_cache_memory_bytes=SMALL_KV_BYTES,
        )
    )
    yield running
    running.close()


@pytest.fixture(scope="module")
def reference(model: Path, folders: dict[str, Path]) -> "Adapted":
    return Adapted(model, folders)


class Adapted(Reference):
    """transformers, with PEFT's layers in the place of those that adapters change."""

    def __init__(self, path: Path, folders: dict[str, Path]) -> None:
        super().__init__(path, torch.float32)
        (first, folder), *others = folders.items()
        self._peft: Any = PeftModel.from_pretrained(self.model, folder, adapter_name=first)
        for name, other in others:
            self._peft.load_adapter(other, name)

    def under(self, adapter: str) -> "Adapted":
        """The same, from now on with this adapter, or without any."""
        if adapter:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(adapter)
        else:
            self._peft.base_model.disable_adapter_layers()
        return self


def under(adapter: str, run: Run) -> Run:
    return replace(run, adapter=adapter)


def check(results: Sequence[Result], wanted: Sequence[dict[Site, np.ndarray]]) -> None:
    """Every row is the wanted one."""
    for ours, theirs in zip(results, wanted, strict=True):
        for site, rows in ours.rows.items():
            assert relative_errors(rows, theirs[site]).max() <= TOLERANCE, site


def test_rows_are_those_of_peft_with_two_adapters_and_none_in_one_batch(
    engine: EngineThread, reference: Adapted
) -> None:
    sites = every_site(engine.info)
    assert set(engine.info.adapters) == set(ADAPTERS)
    asked = [(name, prompt) for prompt in PROMPTS for name in NAMES]
    engine.forget()
    results = engine.run_all(under(name, make_run(prompt, sites=sites)) for name, prompt in asked)
    wanted = [reference.under(name).rows(prompt) for name, prompt in asked]
    check(results, wanted)
    # Each adapter shows, or the comparison would prove nothing.
    plain, *adapted = wanted[: len(NAMES)]
    for each in adapted:
        assert relative_errors(each[LOGITS], plain[LOGITS]).min() > 50 * TOLERANCE


def test_a_steered_run_under_an_adapter_is_steered_as_with_peft(
    engine: EngineThread, reference: Adapted
) -> None:
    vector = np.random.default_rng(1).standard_normal(engine.info.width).astype(np.float32)
    edit = Intervention((STREAM,), at(3, 20, 32), Add(vector, 3.0))
    prompt, sites = PROMPTS[1], every_site(engine.info)
    results = engine.run_all(under(name, make_run(prompt, edit, sites=sites)) for name in NAMES)
    wanted = []
    for name in NAMES:
        theirs = reference.under(name)
        wanted.append(theirs.rows(prompt, theirs.edits([edit], prompt)))
    check(results, wanted)


def test_generated_text_is_what_it_is_alone(engine: EngineThread, reference: Adapted) -> None:
    prompt, tokens = PROMPTS[0], 12
    engine.forget()
    runs = [under(name, make_run(prompt, sampling=greedy(tokens))) for name in NAMES for _ in "ab"]
    texts = [result.token_ids for result in engine.run_all(runs)]
    for index, name in enumerate(NAMES):
        ids = [*prompt]
        for _ in range(tokens):
            ids.append(int(reference.under(name).logprobs(ids).argmax()))
        assert texts[2 * index] == texts[2 * index + 1] == ids[len(prompt) :], name


def test_what_others_steer_and_cancel_and_preemptions_change_no_row_of_an_adapter(
    engine: EngineThread, reference: Adapted
) -> None:
    sites, vector = (STREAM, LOGITS), np.ones(engine.info.width, np.float32)
    edit = Intervention((STREAM,), at(*range(len(PROMPTS[2]))), Add(vector, 9.0))
    asked = [(name, prompt) for prompt in PROMPTS for name in NAMES]
    engine.forget()
    before = vllm_counter("vllm:num_preemptions_total")

    async def beside_others() -> list[Result]:
        """Those asked for, among runs of all adapters that are steered, of which every other one
        is cancelled once it has begun."""
        others = [
            under(name, make_run(PROMPTS[2], edit, sites=sites, sampling=greedy(80)))
            for _ in range(4)
            for name in NAMES
        ]
        gone = [asyncio.create_task(started(engine.engine, other)) for other in others[::2]]
        stay = [asyncio.create_task(collect(engine.engine, other)) for other in others[1::2]]
        ours = await asyncio.gather(
            *(
                collect(engine.engine, under(name, make_run(prompt, sites=sites)))
                for name, prompt in asked
            )
        )
        await asyncio.gather(*gone, *stay)
        return ours

    results = engine.call(beside_others())
    assert vllm_counter("vllm:num_preemptions_total") > before
    check(results, [reference.under(name).rows(prompt) for name, prompt in asked])


def test_neither_the_prefix_cache_nor_captured_rows_pass_between_adapters(
    engine: EngineThread, reference: Adapted
) -> None:
    prompt, sites = PROMPTS[2], (STREAM, LOGITS)
    engine.forget()
    for name in NAMES:  # One after the other, each after those that could be taken for it.
        found = engine.rows_found
        (ours,) = [engine.run(under(name, make_run(prompt, sites=sites)))]
        check([ours], [reference.under(name).rows(prompt)])
        assert engine.rows_found == found, name
        # Its own are found again.
        again = engine.run(under(name, make_run(prompt, sites=sites)))
        assert engine.rows_found > found, name
        check([again], [ours.rows])  # pyright: ignore[reportArgumentType]


def test_the_self_test_proves_the_model_and_every_adapter(engine: EngineThread) -> None:
    found = engine.call(self_test(engine.engine))
    assert found.failures == {}
    assert engine.call(prove_adapters(engine.engine, found.info)) == (found.info, {})


def test_weights_are_those_of_the_model_without_an_adapter(
    engine: EngineThread, model: Path
) -> None:
    base = Reference(model, torch.float32)
    for matrix in HeadMatrix:
        np.testing.assert_array_equal(
            head_matrix(engine, 1, 2, matrix), reference_head_matrix(base, 1, 2, matrix)
        )
