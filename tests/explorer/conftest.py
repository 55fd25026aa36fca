"""The explorer in Debian's Chromium, on a server with the fake engine."""

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright, expect

from tests.contract.harness import Served, serving
from tests.contract.nlas import Tiny
from tests.explorer.explored import Explored

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 20_000
"""For what is to be seen; a machine that does much else takes its time."""
ARGUMENTS = (
    # Whatever it asks for elsewhere is not there, so a test that needs it fails.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--no-sandbox",  # Which root has not, and tests in containers run as root.
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Served]:
    """A server that has all that the explorer shows."""
    uploads = {"max_dictionary_bytes": 1 << 20}
    async with serving(None, Tiny().loaded(), http_port=0, measured=True, **uploads) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """A browser for all tests of a module."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; `make services` installs it")
    async with async_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def explored(served: Served, chromium: Browser) -> AsyncIterator[Explored]:
    """A tab of its own with the explorer in it, which has left no request to another server, no
    error on the console and no token in an address when the test is over."""
    async with Explored.opened(chromium, served) as explored:
        yield explored
