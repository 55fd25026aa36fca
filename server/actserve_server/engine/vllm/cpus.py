"""How an engine uses CPUs, where it has no GPU: in which process, on which cores, which OpenMP.

Cores and OpenMP are told to vLLM by environment variables, which the processes that it starts read
while they load.
"""

import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np
from vllm.config import VllmConfig
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor

_BINDING = "VLLM_CPU_OMP_THREADS_BIND"
_RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"

FRONT_END_PAYS_FROM = 8
"""Cores from which on one is left to the front end. Threads of a step wait for the slowest, so in
the worst case a step takes as long as its thread on the core where the front end is busy for a
share f of the time: 1 / (1 - f) of what it would take. Without that core it takes n / (n - 1). f
was less than a tenth (docs/design/engine.md), so all of fewer than eight cores are faster."""


@contextmanager
def given_to(config: VllmConfig) -> Iterator[None]:
    """For an engine that is started inside."""
    ranks = config.parallel_config.tensor_parallel_size
    if ranks > 1:
        with _divided(ranks):
            yield
        return
    # As vLLM has it on a GPU. On CPUs it would start a process for the worker, beside that of the
    # engine core, only to give it its environment. Here the engine core has that environment and
    # computes itself: there is one process less to start, and none that waits by spinning.
    config.parallel_config.distributed_executor_backend = UniProcExecutor
    with _bound.to(config):
        yield


class _Bound:
    """The environment variables that bind a single rank's threads. Engines may start at the same
    time, all with the same ones, and the last to have started takes them away."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starting = 0
        self._variables = ExitStack()

    @contextmanager
    def to(self, config: VllmConfig) -> Iterator[None]:
        with self._lock:
            if not self._starting:
                self._variables.enter_context(_binding(config))
            self._starting += 1
        try:
            yield
        finally:
            with self._lock:
                self._starting -= 1
                if not self._starting:
                    self._variables.close()


_bound = _Bound()


def _binding(config: VllmConfig) -> AbstractContextManager[None]:
    """The environment of a rank that has the cores of its NUMA node, unless the operator chose."""
    manager = OMPProcessManager(config)
    if manager.auto_setup and _RESERVED not in os.environ:
        # vLLM reserves a core for the engine core's scheduler, which here is the same process.
        allowed = sorted(os.sched_getaffinity(0))
        # None where the process may compute on no core of the first NUMA node.
        cores = [*manager.cpu_lists[0], *manager.reserved_cpu_list] or allowed
        left = left_to_front_end(len(cores), others=len(allowed) - len(cores))
        manager.cpu_lists[0] = cores[: len(cores) - left]
    return manager.configure_omp_envs(rank=0, local_rank=0)


def left_to_front_end(cores: int, others: int) -> int:
    """How many of so many cores an engine does not compute on, so that gRPC, tokenizing and sending
    rows have them. `others` are CPUs that it cannot use anyway: those of another NUMA node, and
    second threads of its own cores."""
    return int(cores >= FRONT_END_PAYS_FROM and others <= 0)


@contextmanager
def _divided(ranks: int) -> Iterator[None]:
    """Gives each tensor-parallel rank its part of the CPUs. vLLM would give each a NUMA node, and
    refuses to start where there are fewer nodes than ranks."""
    cpus = sorted(os.sched_getaffinity(0))
    nodes = list(Path("/sys/devices/system/node").glob("node[0-9]*"))
    if _BINDING in os.environ or not len(nodes) < ranks <= len(cpus):
        yield
        return
    parts = (",".join(map(str, part)) for part in np.array_split(cpus, ranks))
    os.environ[_BINDING] = "|".join(parts)
    try:
        yield
    finally:
        del os.environ[_BINDING]


def preload_openmp() -> None:
    """Has vLLM's processes load Intel's OpenMP and tcmalloc first, where they are installed: its
    CPU kernels are written for them."""
    found = []
    if spec := importlib.util.find_spec("torch"):
        # The intel-openmp wheel puts the library into the environment's lib folder.
        environment = Path(spec.origin or "").parents[4]
        found += environment.glob("lib/libiomp5.so")
    found += Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")
    present = os.environ.get("LD_PRELOAD", "").split(":")
    os.environ["LD_PRELOAD"] = ":".join(dict.fromkeys(filter(None, [*present, *map(str, found)])))
