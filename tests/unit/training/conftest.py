from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.training.tiny import make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models as tiny as these spend their time on waiting for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
