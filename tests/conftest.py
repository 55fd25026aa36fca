"""What every run of the tests says first, and refuses."""

import os

import pytest
import torch

from actserve_server.engine.vllm import processor
from tests.isa.sitecustomize import ISAS


def pytest_report_header() -> str:
    cores = len(os.sched_getaffinity(0))
    limited = " (limited by ISA)" if os.environ.get("TEST_ISA") else ""
    return f"processor: {processor.name()}, {cores} cores, {processor.instructions()}{limited}"


def pytest_configure() -> None:
    if (name := os.environ.get("TEST_ISA")) and not torch.cpu.get_capabilities()[ISAS[name].needs]:
        pytest.exit(f"ISA={name}: this processor has no more than {processor.instructions()}", 2)
