"""Everybody can use it: with a keyboard, a screen reader, on a telephone, in light and dark."""

import numpy as np
import pytest
import pytest_asyncio
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.async_api import Browser, expect

import actserve
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import Served, eventually, serving
from tests.explorer.explored import Explored

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "A cat sat. A cat"
VIEWS = {
    "tokens": {"text": TEXT, "color": "surprise", "at": 5},
    "steer": {"text": TEXT},
    "attention": {"text": TEXT, "show": "induction", "at": 6},
    "monitors": {"text": TEXT},
    "patching": {"clean": "A cat", "corrupt": "A dog", "right": "x", "wrong": "y"},
}
PHONE = {"width": 360, "height": 740}


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def stored(served: Served) -> None:
    """What is steered and watched by."""
    async with actserve.AsyncClient(f"127.0.0.1:{served.app.port}") as client:
        vector = actserve.SteeringVector("resid_post.1", np.arange(1, 17, dtype=np.float32))
        await client.vectors.store("slope", vector)
        await client.monitors.create(
            "slope", probe=actserve.Probe("resid_post.1", "slope"), lower=actserve.Level(0.0)
        )


async def shown(explored: Explored, view: str) -> None:
    """A view with something in it."""
    await explored.open(view, **VIEWS[view])
    if view in ("steer", "monitors"):
        await explored.view.locator("details summary").click()
        await explored.view.get_by_label("Tokens at most").fill("8")
        await expect(explored.view.get_by_text("is stored yet")).to_be_hidden()
        await explored.run()
    else:
        await explored.done()
    if view == "tokens":
        await expect(explored.view.get_by_role("grid")).to_be_visible()


@pytest.mark.parametrize("view", VIEWS)
async def test_axe_finds_no_serious_fault(served: Served, chromium: Browser, view: str) -> None:
    async with Explored.opened(chromium, served) as explored:
        await shown(explored, view)
        await check_by_axe(explored)


@pytest.mark.parametrize("view", VIEWS)
async def test_a_telephone_has_room_for_all_of_it_in_the_dark_as_well(
    served: Served, chromium: Browser, view: str
) -> None:
    async with Explored.opened(chromium, served, viewport=PHONE, color_scheme="dark") as explored:
        await shown(explored, view)
        await check_by_axe(explored)
        width = await explored.page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= PHONE["width"]


async def check_by_axe(explored: Explored) -> None:
    """Raises where axe finds a serious or a critical fault."""
    await explored.page.evaluate(AXE_FILE_PATH.read_text())
    found = await explored.page.evaluate("axe.run()")
    faults = [
        (each["id"], node["html"], node["failureSummary"])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"][:3]
    ]
    assert not faults, faults
    assert len(found["passes"]) > 20


async def test_a_theme_is_chosen_and_kept(explored: Explored) -> None:
    await explored.open()
    color = "getComputedStyle(document.body).backgroundColor"
    light = await explored.page.evaluate(color)
    await explored.page.get_by_label("Theme").select_option("dark")
    dark = await explored.page.evaluate(color)
    assert dark != light
    await explored.page.reload()
    assert await explored.page.evaluate(color) == dark


async def test_all_of_it_is_done_by_keyboard(explored: Explored) -> None:
    keyboard = explored.page.keyboard
    await explored.open()
    await keyboard.press("Tab")
    await expect(explored.page.get_by_role("link", name="Skip to the view")).to_be_focused()
    await explored.page.get_by_role("textbox", name="Prompt", exact=True).focus()
    await keyboard.press("Control+A")
    await keyboard.type(TEXT)
    await keyboard.press("Control+Enter")
    await explored.done()
    strip = explored.view.get_by_role("listbox")
    await strip.focus()
    for key, chosen in (("Home", 0), ("ArrowRight", 1), ("End", len(TEXT)), ("ArrowLeft", -2)):
        await keyboard.press(key)
        await expect(explored.tokens().nth(chosen)).to_have_attribute("aria-selected", "true")
    await expect(strip.get_by_role("option", selected=True)).to_have_count(1)
    grid = explored.view.get_by_role("grid")
    await expect(grid).to_be_visible()
    cells = grid.get_by_role("gridcell")
    await expect(grid.locator("[tabindex='0']")).to_have_count(1)
    await grid.locator("[tabindex='0']").focus()
    await keyboard.press("Control+Home")
    await expect(cells.first).to_be_focused()
    await keyboard.press("ArrowRight")
    await expect(cells.nth(1)).to_be_focused()
    await expect(explored.view.locator(".bars strong")).to_have_text("layer 0")


async def test_the_choice_is_told_to_a_screen_reader(explored: Explored) -> None:
    await explored.open("tokens", text=TEXT, color="surprise")
    await explored.done()
    await explored.tokens().nth(3).click()
    strip = explored.view.get_by_role("listbox")
    active = await strip.get_attribute("aria-activedescendant")
    assert active == await explored.tokens().nth(3).get_attribute("id")
    label = await explored.tokens().nth(3).get_attribute("aria-label")
    assert label is not None
    assert label.startswith("“c”, surprise ")


async def test_a_run_can_be_stopped(chromium: Browser) -> None:
    async with (
        serving(FakeEngine(token_delay_s=0.02), http_port=0) as served,
        Explored.opened(chromium, served) as explored,
    ):
        await explored.open("monitors", text=TEXT)
        await explored.view.get_by_label("Tokens at most").fill("500")
        await explored.view.locator("button.main").first.click()
        await expect(explored.view.get_by_role("region", name="What is written")).not_to_be_empty()
        await explored.view.get_by_role("button", name="Stop").click()
        await explored.done()
        await expect(explored.view.locator(".error").first).to_be_hidden()
        await eventually(lambda: not served.engine.counters.running, within_s=5.0)
