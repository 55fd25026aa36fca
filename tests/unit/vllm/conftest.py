import pytest

from actserve_server.engine.vllm.bank import Banks
from tests.unit.vllm.batches import CPU


@pytest.fixture
def banks() -> Banks:
    return Banks(CPU)
