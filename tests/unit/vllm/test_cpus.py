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


def _machine(monkeypatch: pytest.MonkeyPatch, cores: int, nodes: int = 1, threads: int = 1) -> None:
    """What this machine looks like: so many cores in all, and threads of each."""
    logical = [
        LogicalCPUInfo(
            id=index, physical_core=index % cores, numa_node=index % cores * nodes // cores
        )
        for index in range(cores * threads)
    ]
    monkeypatch.setattr(cpu_resource_utils, "get_allowed_cpu_list", lambda: logical)
    monkeypatch.setattr(cpu_resource_utils, "get_visible_memory_node", lambda: [*range(nodes)])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {each.id for each in logical})


@pytest.mark.parametrize(
    ("machine", "computing"),
    [
        ({"cores": 1}, 1),
        ({"cores": 2}, 2),
        ({"cores": 4}, 4),
        ({"cores": 7}, 7),
        ({"cores": 8}, 7),
        ({"cores": 64}, 63),
        pytest.param({"cores": 16, "nodes": 2}, 8, id="the front end has the other node"),
        pytest.param({"cores": 8, "threads": 2}, 8, id="the front end has second threads"),
    ],
)
def test_a_single_rank_computes_on_what_the_front_end_does_not_need(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, int], computing: int
) -> None:
    _machine(monkeypatch, **machine)
    with cpus.given_to(_config()):
        assert os.environ[THREADS] == str(computing)


def test_a_process_that_may_not_use_the_first_node_computes_where_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = [LogicalCPUInfo(id=core, physical_core=core, numa_node=1) for core in (4, 5)]
    monkeypatch.setattr(cpu_resource_utils, "get_allowed_cpu_list", lambda: elsewhere)
    monkeypatch.setattr(cpu_resource_utils, "get_visible_memory_node", lambda: [0, 1])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    with cpus.given_to(_config()):
        assert os.environ[THREADS] == "2"


def test_the_operator_may_reserve_more(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, 4)
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
