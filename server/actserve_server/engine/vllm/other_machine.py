"""A machine that computes for the server of another one, for a model that is split over both.

It has the workers of its own ranks and nothing else: no scheduler, no port, no rows. vLLM's worker
of rank 0 is beside the server, and that one alone sends rows.
"""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Never

import structlog
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.engine.vllm.startup import configured, divided, reading_variables

log = structlog.get_logger("actserve.engine")


def compute(options: EngineOptions) -> None:
    """Blocks until a worker ends, or this process is told to stop (SIGTERM, SIGINT), which raises
    SystemExit.

    Raises ValueError if the model cannot be served exactly.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    with reading_variables():
        config = configured(options, ring_folder=Path())
        log.info(
            "waiting for the server",
            address=f"{options.master_addr}:{options.master_port}",
            node_rank=options.node_rank,
        )
        with divided(config):
            executor = MultiprocExecutor(config, monitor_workers=False)
    log.info("computing", node_rank=options.node_rank)
    try:
        executor.start_worker_monitor(inline=True)
    finally:
        executor.shutdown()


def _stop(number: int, frame: FrameType | None) -> Never:
    sys.exit(0)
