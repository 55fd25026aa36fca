"""What the server does again and again goes on after an error, and ends when it is told to."""

import asyncio

import pytest

from actserve_server.background import going_on
from actserve_server.domain.errors import ActserveError, Reason


@pytest.mark.parametrize(
    "error", [ActserveError(Reason.STORE_UNREACHABLE, "gone"), ValueError("unforeseen")]
)
def test_an_error_is_not_the_end(error: Exception) -> None:
    with going_on():
        raise error


def test_cancelling_is() -> None:
    with pytest.raises(asyncio.CancelledError), going_on():
        raise asyncio.CancelledError
