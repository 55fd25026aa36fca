import pytest

from actserve_server.engine.vllm.bank import VectorBank
from tests.unit.vllm.batches import BANK_BYTES, CPU


@pytest.fixture
def bank() -> VectorBank:
    return VectorBank(CPU, BANK_BYTES)
