"""A server that takes no rows for a while: calls whose rows find no room end in a stated way, and
all others go on."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actserve
from actserve_server import app
from actserve_server.config import Settings
from actserve_server.engine.vllm import engine as engine_module
from actserve_server.engine.vllm import ring
from actserve_server.engine.vllm.options import EngineOptions
from tests.integration.families import CONTEXT, FAMILIES, VOCABULARY, make_checkpoint
from tests.integration.in_process import InProcessEngine

RING_BYTES = 16 << 10
GIVES_UP_AFTER_S = 0.2
PROMPT = np.random.default_rng(3).integers(2, VOCABULARY, 60).tolist()
SITES = ["resid_post.0", "resid_post.1", "mlp_out.0", "mlp_out.1"]
"""Whose rows of the prompt are more than the ring holds."""


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[InProcessEngine]:
    (family,) = [each for each in FAMILIES if each.name == "granite"]
    options = EngineOptions(
        model_id=family.name,
        model_path=str(make_checkpoint(family, request.config.cache.mkdir("families"))),
        dtype="float32",
        max_model_len=CONTEXT,
        max_num_batched_tokens=64,
        max_num_seqs=16,
        kv_cache_memory_bytes=16 << 20,
        enforce_eager=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "RingReader", partial(ring.RingReader, RING_BYTES))
        engine = InProcessEngine(options)
        patch.setattr(ring, "WRITE_TIMEOUT_S", GIVES_UP_AFTER_S)
        yield engine
    engine.close()


@pytest.fixture
def client(engine: InProcessEngine, tmp_path: Path) -> Iterator[actserve.Client]:
    async def start() -> app.App:
        options: dict[str, Any] = {"port": 0, "drain_grace_s": 1.0, "data_dir": tmp_path}
        built = app.build(engine.engine, Settings(**options))
        await built.start()
        return built

    running = engine.call(start())
    with actserve.Client(f"127.0.0.1:{running.port}") as client:
        yield client
    engine.call(running.drain())
    engine.call(running.leave())


class Stuck:
    """The end of the ring that the server reads, which takes nothing until `go_on`."""

    def __init__(self, engine: InProcessEngine, patch: pytest.MonkeyPatch) -> None:
        self._collector = engine.engine._collector
        self._take = self._collector._take
        self._goes_on = threading.Event()
        self.given_up = threading.Event()
        """A step has found no room."""
        patch.setattr(self._collector, "_take", self._take_once_it_goes_on)
        wait_for = ring.RingWriter._wait_for

        def told(writer: ring.RingWriter, length: int) -> None:
            try:
                wait_for(writer, length)
            except ring.RingFull:
                self.given_up.set()
                raise

        patch.setattr(ring.RingWriter, "_wait_for", told)

    def _take_once_it_goes_on(self, wake: Any) -> None:
        if self._goes_on.is_set():
            self._take(wake)

    def go_on(self, engine: InProcessEngine) -> None:
        """As a step's tokens would have it look."""

        async def look() -> None:
            self._collector.collect()

        self._goes_on.set()
        engine.call(look())


def test_a_full_ring_ends_the_calls_that_it_has_no_room_for_and_no_others(
    engine: InProcessEngine, client: actserve.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = client.fetch(PROMPT, SITES)
    plain = client.generate(PROMPT, max_tokens=12, temperature=0.0)
    stuck = Stuck(engine, monkeypatch)
    with ThreadPoolExecutor() as threads:
        fetched = threads.submit(client.fetch, PROMPT[::-1], SITES)
        assert stuck.given_up.wait(30)
        # While nothing is taken from the ring, those who want nothing of it are served.
        meanwhile = client.generate(PROMPT, max_tokens=12, temperature=0.0)
        assert not fetched.done()
        stuck.go_on(engine)
        with pytest.raises(actserve.ActserveError) as failed:
            fetched.result(30)
    assert failed.value.reason == "CAPTURE_INCOMPLETE"
    assert meanwhile.token_ids == plain.token_ids
    # And once the server takes rows again, so is everybody.
    after = client.fetch(PROMPT, SITES)
    for site in SITES:
        assert np.allclose(before[site], after[site], atol=1e-5)
