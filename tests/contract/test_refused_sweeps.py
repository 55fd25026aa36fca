"""What is wrong with all cells of a sweep is refused before any runs, and where it is is told."""

import math
from typing import Any

import grpc
import pytest

from actserve.v1 import site_pb2
from actserve_server.domain.principals import Role
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    bearing,
    failure,
    inline,
    intervention,
    serving,
    site,
    write_tokens,
)
from tests.contract.refusals import INVALID, LIMITS, ONES
from tests.contract.sweeps import JOY, probe, steered, sweep

ADD = {"vector": inline(JOY)}
BARE = {"add": ADD}
"""An intervention without sites."""
MISSING = "keptActivations/" + "A" * 22
PROMPT = {"prompt": {"text": "hello"}}


def varied(**fields: Any) -> dict[str, Any]:
    """A sweep's second variant, which adds a vector."""
    return {"variants": [{}, {**steered(), **fields}]}


def scored(**fields: Any) -> dict[str, Any]:
    return {"scores": [{"name": "s", "probe": probe(), **fields}]}


Case = tuple[dict[str, Any], str, str, str]
"""Changes, reason, field, and what the message says."""

CASES: dict[str, Case] = {
    "another model": ({"model": "models/x"}, "MODEL_NOT_FOUND", "model", "models/fake"),
    "nothing asked": ({"sampling": None}, "FIELD_REQUIRED", "sampling", "answers or scores"),
    # Prompts
    "no prompts": ({"prompts": []}, "FIELD_REQUIRED", "prompts", "send one"),
    "many prompts": ({"prompts": [PROMPT] * 4}, "TOO_MANY_ITEMS", "prompts", "at most 3"),
    "unset prompt": ({"prompts": [PROMPT, {}]}, "FIELD_REQUIRED", "prompts[1].prompt", "send"),
    "long key": (
        {"prompts": [PROMPT, {**PROMPT, "key": "é" * 129}]},
        "FIELD_INVALID",
        "prompts[1].key",
        "258 bytes",
    ),
    # Variants
    "no variants": ({"variants": []}, "FIELD_REQUIRED", "variants", "from 1 to 256"),
    "many variants": ({"variants": [{}] * 257}, "FIELD_INVALID", "variants", "from 1 to 256"),
    "long variant key": (varied(key="x" * 257), "FIELD_INVALID", "variants[1].key", "257"),
    "many interventions": (
        varied(interventions=[intervention(add=ADD)] * 3),
        "TOO_MANY_INTERVENTIONS",
        "variants[1].interventions",
        "at most 2",
    ),
    "an adapter": (
        varied(adapter="models/fake/adapters/x"),
        "RESOURCE_NOT_FOUND",
        "variants[1].adapter",
        "this server has none",
    ),
    "many cells": (
        varied(coefficients=[1] * 300, positions=[{"all": {}}] * 300),
        "TOO_MANY_CELLS",
        "variants",
        "2 prompts x [(1) + (300 coefficients x 300 positions)] of the variants are 180002 cells",
    ),
    # The grid gives what is set
    "coefficient set": (
        varied(interventions=[intervention(add=ADD | {"coefficient": 0})], coefficients=[1, 2]),
        "FIELD_INVALID",
        "variants[1].interventions[0].add.coefficient",
        "leave one of them unset",
    ),
    "coefficient of an ablation set": (
        varied(
            interventions=[intervention(ablate={"direction": inline(JOY), "coefficient": 1})],
            coefficients=[1],
        ),
        "FIELD_INVALID",
        "variants[1].interventions[0].ablate.coefficient",
        "coefficients would give it",
    ),
    "sites set": (
        varied(sites=[site(2)]),
        "FIELD_INVALID",
        "variants[1].interventions[0].sites",
        "leave one",
    ),
    "positions set": (
        varied(
            interventions=[intervention(add=ADD, positions={"last": {}})],
            positions=[{"all": {}}],
        ),
        "FIELD_INVALID",
        "variants[1].interventions[0].positions",
        "leave one",
    ),
    # The grid itself
    "no coefficient to give": (
        varied(interventions=[intervention(zero={})], coefficients=[1]),
        "FIELD_INVALID",
        "variants[1].coefficients",
        "add and ablate",
    ),
    "coefficients of nothing": (
        {"variants": [{"coefficients": [1]}]},
        "FIELD_INVALID",
        "variants[0].coefficients",
        "no interventions",
    ),
    "sites of nothing": (
        {"variants": [{"sites": [site()]}]},
        "FIELD_INVALID",
        "variants[0].sites",
        "no interventions",
    ),
    "positions of nothing": (
        {"variants": [{"positions": [{"all": {}}]}]},
        "FIELD_INVALID",
        "variants[0].positions",
        "no interventions",
    ),
    "a coefficient that is none": (
        varied(coefficients=[1, math.nan]),
        "FIELD_INVALID",
        "variants[1].coefficients[1]",
        "finite",
    ),
    "a coefficient that overflows": (
        varied(
            coefficients=[1, -3e38, 2],
            interventions=[intervention(add={"vector": inline(9 * ONES)})],
        ),
        "TENSOR_NOT_FINITE",
        "variants[1].coefficients[1]",
        "overflows",
    ),
    "a site beyond the last": (
        varied(interventions=[BARE], sites=[site(0), site(9)]),
        "LAYER_OUT_OF_RANGE",
        "variants[1].sites[1]",
        "0 to 3",
    ),
    "a site twice": (
        varied(interventions=[BARE], sites=[site(0), site(3), site(-1)]),
        "SITE_INVALID",
        "variants[1].sites[2]",
        "once",
    ),
    "a site of another width": (
        varied(interventions=[BARE], sites=[site(0), site(1, site_pb2.HOOK_POINT_K)]),
        "TENSOR_WIDTH_MISMATCH",
        "variants[1].interventions[0].add.vector.tensor.shape",
        "k.1 is 8 wide",
    ),
    "a site that cannot be changed": (
        varied(interventions=[BARE], sites=[site(None, site_pb2.HOOK_POINT_LOGITS)]),
        "SITE_NOT_SERVED",
        "variants[1].sites[0]",
        "cannot be changed",
    ),
    "no site anywhere": (
        varied(interventions=[BARE]),
        "FIELD_REQUIRED",
        "variants[1].interventions[0].sites",
        "at least one",
    ),
    "positions of no kind": (
        varied(positions=[{"all": {}}, {}]),
        "FIELD_REQUIRED",
        "variants[1].positions[1]",
        "no selection",
    ),
    "a vector that is not there": (
        varied(interventions=[intervention(add={"vector": {"kept": {"name": MISSING}}})]),
        "KEPT_NOT_FOUND",
        "",
        MISSING,
    ),
    "rows of an item": (
        varied(interventions=[intervention(add={"vector": {"kept": {"item": {}}}})]),
        "FIELD_INVALID",
        "variants[1].interventions[0].add.vector.kept.item",
        "send a name",
    ),
    # Sampling
    "several samples": (
        {"sampling": {"samples": 2}},
        "SAMPLING_INVALID",
        "sampling.samples",
        "a cell has one",
    ),
    "log probabilities": (
        {"sampling": {"logprobs": 0}},
        "SAMPLING_INVALID",
        "sampling.logprobs",
        "name answers",
    ),
    "more tokens than there is room for": (
        {"sampling": {"max_tokens": 64}},
        "SAMPLING_INVALID",
        "sampling.max_tokens",
        "at most 63",
    ),
    "a temperature out of range": (
        {"sampling": {"temperature": 3}},
        "SAMPLING_INVALID",
        "sampling.temperature",
        "to 2",
    ),
    "perplexity of nothing": (
        {"perplexity": True, "sampling": None, "answers": [{"name": "n", "text": "n"}]},
        "FIELD_INVALID",
        "perplexity",
        "set sampling",
    ),
    # Answers
    "many answers": (
        {"answers": [{"name": str(n), "text": "n"} for n in range(65)]},
        "FIELD_INVALID",
        "answers",
        "at most 64",
    ),
    "an answer without a name": (
        {"answers": [{"text": "n"}]},
        "FIELD_REQUIRED",
        "answers[0].name",
        "choose one",
    ),
    "a long name": (
        {"answers": [{"name": "n" * 65, "text": "n"}]},
        "FIELD_INVALID",
        "answers[0].name",
        "at most 64",
    ),
    "a name twice": (
        {"answers": [{"name": "n", "text": "n"}, {"name": "n", "text": "y"}]},
        "FIELD_INVALID",
        "answers[1].name",
        "same name",
    ),
    "an answer without text": (
        {"answers": [{"name": "n"}]},
        "FIELD_REQUIRED",
        "answers[0].text",
        "empty",
    ),
    "an answer that never fits": (
        {"answers": [{"name": "n", "text": "n" * 64}]},
        "PROMPT_TOO_LONG",
        "answers[0].text",
        "64 of what may come next",
    ),
    "an answer that is not even tokenized": (
        {"answers": [{"name": "n", "text": "n" * 10_000}]},
        "PROMPT_TOO_LONG",
        "answers[0].text",
        "send fewer",
    ),
    # Scores
    "many scores": (
        {"scores": [{"name": str(n), "probe": probe()} for n in range(65)]},
        "FIELD_INVALID",
        "scores",
        "at most 64",
    ),
    "a score twice": (
        {"scores": [{"name": "s", "probe": probe()}] * 2},
        "FIELD_INVALID",
        "scores[1].name",
        "same name",
    ),
    "no probe": ({"scores": [{"name": "s"}]}, "FIELD_REQUIRED", "scores[0].probe", "send one"),
    "a probe of no site": (
        scored(probe={"direction": inline(JOY)}),
        "SITE_INVALID",
        "scores[0].probe.site.hook_point",
        "not set",
    ),
    "a probe at an unserved site": (
        scored(probe=probe() | {"site": site(1, site_pb2.HOOK_POINT_ATTN_OUT)}),
        "SITE_NOT_SERVED",
        "scores[0].probe.site",
        "not verified",
    ),
    "no direction": (
        scored(probe={"site": site()}),
        "FIELD_REQUIRED",
        "scores[0].probe.direction",
        "[16]",
    ),
    "a zero direction": (
        scored(probe=probe(direction=0 * ONES)),
        "TENSOR_DEGENERATE",
        "scores[0].probe.direction",
        "zero",
    ),
    "a narrow direction": (
        scored(probe=probe(direction=ONES[:8])),
        "TENSOR_WIDTH_MISMATCH",
        "scores[0].probe.direction.tensor.shape",
        "16 wide",
    ),
    "a direction that is an edit": (
        scored(probe=probe() | {"direction": {"edit": {"original": "a", "edited": "b"}}}),
        "FIELD_INVALID",
        "scores[0].probe.direction.edit",
        "send a tensor",
    ),
    "a bias that is none": (
        scored(probe=probe(bias=math.inf)),
        "FIELD_INVALID",
        "scores[0].probe.bias",
        "finite",
    ),
    **{
        f"a weight of {weight}": (
            scored(aggregator={"ema": {"weight": weight}}),
            "FIELD_INVALID",
            "scores[0].aggregator.ema.weight",
            "above 0 and at most 1",
        )
        for weight in (0, 1.5, -1, math.nan)
    },
    **{
        f"a window of {tokens}": (
            scored(aggregator={"rolling_mean": {"tokens": tokens}}),
            "FIELD_INVALID",
            "scores[0].aggregator.rolling_mean.tokens",
            "1 to 1024",
        )
        for tokens in (0, 1025)
    },
    "an unknown reduction": (
        scored(aggregator={"reduction": 77}),
        "FIELD_INVALID",
        "scores[0].aggregator.reduction",
        "REDUCTION_MAX",
    ),
    "a token of nothing": (
        {"resume_token": b"nonsense"},
        "RESUME_TOKEN_INVALID",
        "resume_token",
        "this request",
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_sweep_that_is_wrong_runs_nothing(name: str) -> None:
    changes, reason, field, says = CASES[name]
    fake = FakeEngine(limits=LIMITS, unserved={HookPoint.ATTN_OUT: "not verified"})
    async with serving(fake) as served:
        refused = await failure(served.sweeps.RunSweep(sweep(**changes)))
    assert (refused.reason, refused.field) == (reason, field), refused
    assert says in refused.message
    assert fake.counters.started == 0


@pytest.mark.parametrize(
    "asked", [{"answers": [{"name": "n", "text": "n"}]}, {"perplexity": True}], ids=str
)
async def test_without_the_final_norm_nothing_is_predicted(asked: dict[str, Any]) -> None:
    fake = FakeEngine(unserved={HookPoint.FINAL_NORM: "not verified"})
    async with serving(fake) as served:
        refused = await failure(served.sweeps.RunSweep(sweep(**asked)))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.field == next(iter(asked))


async def test_a_reader_sweeps_the_model_as_it_is(tmp_path: Any) -> None:
    tokens = write_tokens(tmp_path / "tokens.yaml", ("reads", "vision", Role.READER))
    async with serving(token_file=tokens) as served:
        refused = await failure(served.sweeps.RunSweep(sweep(), metadata=bearing("reads")))
        assert refused.reason == "PERMISSION_DENIED"
        plain = served.sweeps.RunSweep(sweep(variants=[{}]), metadata=bearing("reads"))
        assert [event async for event in plain][-1].HasField("finished")
    assert INVALID is grpc.StatusCode.INVALID_ARGUMENT
