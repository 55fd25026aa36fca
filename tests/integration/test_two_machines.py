"""A model split over two machines has the same rows, and changes them in the same way, as on one.

The machines are two processes on this one: what passes between them passes by the network, but
they have the same disk and memory. `make two-machines` runs it; as a part of every run it would be
another engine to wait for.
"""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from actserve_server.domain.operations import Add
from actserve_server.domain.runs import Capture, Intervention, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.selftest import self_test
from actserve_server.engine.vllm.options import EngineOptions
from tests.integration.families import FAMILIES, make_checkpoint
from tests.integration.harness import ALL, EngineThread, every_site

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif("TWO_MACHINES" not in os.environ, reason="run by `make two-machines`"),
]

IDS = tuple(range(20, 60))
CHANGE = Intervention(
    (Site(HookPoint.Z, 1),),
    ALL,
    Add(np.random.default_rng(0).standard_normal(128).astype(np.float32)),
)


def rows_of(path: Path, machines: int, port: int) -> dict[tuple[str, Site], np.ndarray]:
    """Of every site, of a plain run and a changed one, by an engine that has tested itself."""
    engine = EngineThread(
        EngineOptions(
            model_id="tiny",
            model_path=str(path),
            dtype="float32",
            max_model_len=256,
            kv_cache_memory_bytes=16 << 20,
            enforce_eager=True,
            tensor_parallel_size=machines,
            nnodes=machines,
            master_port=port,
        )
    )
    try:
        assert not engine.call(self_test(engine.engine)).failures
        rows = Capture(every_site(engine.info), ALL)
        runs = [
            Run(id=name, token_ids=IDS, captures=(rows,), interventions=changes)
            for name, changes in (("plain", ()), ("changed", (CHANGE,)))
        ]
        return {
            (run.id, site): np.nan_to_num(found)
            for run in runs
            for site, found in engine.run(run).rows.items()
        }
    finally:
        engine.close()


def test_two_machines_compute_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    (llama,) = (family for family in FAMILIES if family.name == "llama")
    path = make_checkpoint(llama, tmp_path / "llama")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    options = {
        "model": path,
        "dtype": "float32",
        "max-model-len": 256,
        "kv-cache-memory-bytes": 16 << 20,
        "tensor-parallel-size": 2,
        "nnodes": 2,
        "node-rank": 1,
        "master-port": port,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    serve = [Path(sys.executable).with_name("actserve-server"), "serve", *flags, "--enforce-eager"]
    with subprocess.Popen(serve) as other:
        try:
            split = rows_of(path, machines=2, port=port)
            # Its worker ends with the others of its model, and it with its worker.
            assert other.wait(60) == 1
        finally:
            other.kill()
    whole = rows_of(path, machines=1, port=port)
    assert split.keys() == whole.keys()
    for key, found in split.items():
        np.testing.assert_allclose(found, whole[key], rtol=1e-4, atol=1e-4, err_msg=str(key))
