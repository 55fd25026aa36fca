"""The engines of an autoencoder are started again as the model's is."""

from types import SimpleNamespace
from typing import Any

import pytest

from actserve_server.domain.errors import ActserveError
from actserve_server.domain.model import ModelInfo
from actserve_server.engine.api import Engine
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.restarting import Restarts
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.nla import loading
from tests.contract.harness import eventually

OPTIONS = EngineOptions(model_id="tiny-av", model_path="tiny")


class Started(FakeEngine):
    """Stands for an engine on vLLM."""

    vllm = SimpleNamespace(
        vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4))
    )


async def test_a_dead_engine_is_started_with_the_same_options_and_proven_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[EngineOptions, Started]] = []
    proven: list[Engine] = []
    told: list[str] = []

    async def start(options: EngineOptions) -> Started:
        started.append((options, Started(model_id=options.model_id)))
        return started[-1][1]

    async def prove(engine: Engine) -> ModelInfo:
        proven.append(engine)
        return engine.info

    monkeypatch.setattr(loading, "VllmEngine", SimpleNamespace(start=start))
    engine: Any = await loading._started(OPTIONS, prove, Restarts(restarted=told.append))
    started[0][1].faults.dead = True
    with pytest.raises(ActserveError):
        await engine.check_health()
    await eventually(lambda: told == ["tiny-av"], within_s=10)
    await engine.check_health()
    assert [options for options, _ in started] == [OPTIONS, OPTIONS]
    assert proven == [each for _, each in started]
    await engine.close()
    assert [each.closed for _, each in started] == [True, True]


async def test_an_engine_that_proves_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    only = Started()

    async def start(options: EngineOptions) -> Started:
        return only

    async def prove(engine: Engine) -> ModelInfo:
        raise ValueError("wrong rows")

    monkeypatch.setattr(loading, "VllmEngine", SimpleNamespace(start=start))
    with pytest.raises(ValueError, match="wrong rows"):
        await loading._started(OPTIONS, prove, Restarts())
    assert only.closed
