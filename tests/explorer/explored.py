"""A tab with the explorer in it, and what a reader does there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from playwright.async_api import Browser, Locator, Page, Request, expect

from tests.contract.harness import Served

TOKEN = "a-secret-token"
WIDTH_PX, HEIGHT_PX = 1100, 900


@dataclass(kw_only=True)
class Explored:
    """The page, and what it has asked for and complained of."""

    page: Page
    served: Served
    address: str
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()
    """What complaints may have in them."""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, browser: Browser, served: Served, *, scheme: str = "http", **context: Any
    ) -> AsyncIterator["Explored"]:
        """An empty tab; everything that it asks for stays with this server, or this raises."""
        assert served.app.http is not None
        options = {"viewport": {"width": WIDTH_PX, "height": HEIGHT_PX}, **context}
        tab = await browser.new_context(**options)
        try:
            await tab.grant_permissions(["clipboard-read", "clipboard-write"])
            explored = cls(
                page=await tab.new_page(),
                served=served,
                address=f"{scheme}://127.0.0.1:{served.app.http.port}/",
            )
            explored._listen()
            yield explored
            explored.check()
        finally:
            await tab.close()

    def _listen(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.on(
            "console",
            lambda line: self.complaints.append(line.text) if line.type == "error" else None,
        )

    def check(self) -> None:
        """Raises where it went elsewhere, complained, or put the token into an address."""
        elsewhere = [each.url for each in self.requests if not each.url.startswith(self.address)]
        assert not elsewhere, f"it went to {elsewhere}"
        left = [line for line in self.complaints if not any(part in line for part in self.allowed)]
        assert not left, f"it complained: {left}"
        assert not [each.url for each in self.requests if TOKEN in each.url]
        assert TOKEN not in self.page.url

    @property
    def view(self) -> Locator:
        """The view that is seen."""
        return self.page.locator("main > section[aria-labelledby]:visible")

    async def open(self, view: str = "tokens", **values: Any) -> None:
        """Follows a link to a view."""
        query = f"?{urlencode(values, quote_via=quote)}" if values else ""
        await self.page.goto("about:blank")
        await self.page.goto(f"{self.address}#{view}{query}")
        await expect(self.page.locator("#model")).not_to_have_text("connecting ...")

    async def prompt(self, text: str) -> None:
        await self.page.get_by_role("textbox", name="Prompt", exact=True).fill(text)

    async def run(self) -> None:
        """Presses the button of the view and waits until all is there."""
        await self.view.locator("button.main").first.click()
        await self.done()

    async def done(self) -> None:
        await expect(self.view).to_have_attribute("aria-busy", "false")

    async def error(self) -> str:
        """What the view says went wrong."""
        line = self.view.locator(".error").first
        await expect(line).to_be_visible()
        return await line.inner_text()

    async def choose(self, label: str, value: str) -> None:
        field = self.view.get_by_role("combobox", name=label, exact=True)
        await field.first.select_option(value)

    async def copied(self, button: str) -> str:
        """What a button puts on the clipboard."""
        await self.view.get_by_role("button", name=button).click()
        await expect(self.page.locator("#said")).to_contain_text("copied")
        return await self.page.evaluate("navigator.clipboard.readText()")

    def tokens(self, name: str = "Tokens of the prompt") -> Locator:
        return self.view.get_by_role("listbox", name=name).get_by_role("option")

    async def grid(self) -> list[list[str]]:
        """The texts of the cells of the grid that is seen."""
        rows = self.view.get_by_role("grid").locator("tbody tr")
        return [await row.locator("td").all_inner_texts() for row in await rows.all()]
