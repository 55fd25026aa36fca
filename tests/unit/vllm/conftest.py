import pytest

from actserve_server.engine.vllm.bank import VectorBank
from tests.unit.vllm.batches import CPU

BANK_BYTES = 1 << 20


@pytest.fixture
def bank() -> VectorBank:
    return VectorBank(CPU, BANK_BYTES)
