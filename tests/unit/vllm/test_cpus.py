"""An engine without a GPU gets its cores by the environment of the process that it starts in."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.utils import cpu_resource_utils
from vllm.utils.cpu_resource_utils import LogicalCPUInfo
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from actserve_server.engine.vllm import cpus

BINDING = "VLLM_CPU_OMP_THREADS_BIND"
RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"
THREADS = "OMP_NUM_THREADS"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (BINDING, RESERVED, THREADS):
        monkeypatch.delenv(name, raising=False)


def _config(ranks: int = 1) -> Any:
    parallel = SimpleNamespace(
        tensor_parallel_size=ranks,
        local_world_size=ranks,
        data_parallel_rank_local=0,
        _api_process_count=1,
        distributed_executor_backend="mp",
    )
    return SimpleNamespace(parallel_config=parallel, kv_transfer_config=None)


def test_a_single_rank_computes_in_the_process_of_the_engine_core() -> None:
    config = _config()
    with cpus.given_to(config):
        assert config.parallel_config.distributed_executor_backend is UniProcExecutor


def test_a_single_rank_has_as_many_threads_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BINDING, "0-1,4")
    before = dict(os.environ)
    with cpus.given_to(_config()):
        assert os.environ[THREADS] == "3"
    assert dict(os.environ) == before


@pytest.mark.parametrize(("cores", "computing"), [(1, 1), (2, 2), (4, 4), (7, 7), (8, 7), (64, 63)])
def test_a_single_rank_computes_on_what_the_front_end_does_not_need(
    monkeypatch: pytest.MonkeyPatch, cores: int, computing: int
) -> None:
    machine = [LogicalCPUInfo(id=core, physical_core=core, numa_node=0) for core in range(cores)]
    monkeypatch.setattr(cpu_resource_utils, "get_allowed_cpu_list", lambda: machine)
    monkeypatch.setattr(cpu_resource_utils, "get_visible_memory_node", lambda: [0])
    with cpus.given_to(_config()):
        assert os.environ[THREADS] == str(computing)


def test_the_operator_may_reserve_more(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = [LogicalCPUInfo(id=core, physical_core=core, numa_node=0) for core in range(4)]
    monkeypatch.setattr(cpu_resource_utils, "get_allowed_cpu_list", lambda: machine)
    monkeypatch.setattr(cpu_resource_utils, "get_visible_memory_node", lambda: [0])
    monkeypatch.setenv(RESERVED, "2")
    with cpus.given_to(_config()):
        assert os.environ[THREADS] == "2"


def test_engines_that_start_at_the_same_time_take_nothing_from_each_other() -> None:
    before = dict(os.environ)
    first, second = cpus.given_to(_config()), cpus.given_to(_config())
    first.__enter__()
    alone = dict(os.environ)
    assert alone != before
    second.__enter__()
    first.__exit__(None, None, None)
    assert dict(os.environ) == alone
    second.__exit__(None, None, None)
    assert dict(os.environ) == before


def test_an_engine_that_fails_to_start_leaves_nothing_set() -> None:
    before = dict(os.environ)
    with pytest.raises(ValueError, match="no such model"), cpus.given_to(_config()):
        raise ValueError("no such model")
    assert dict(os.environ) == before


def test_ranks_share_the_cores_where_there_are_fewer_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    config = _config(ranks=64)
    with cpus.given_to(config):
        assert os.environ[BINDING].split("|") == [str(cpu) for cpu in range(64)]
        assert config.parallel_config.distributed_executor_backend == "mp"
    assert BINDING not in os.environ
