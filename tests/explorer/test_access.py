"""Who may look, what never leaves the page, and what text can do to it: nothing."""

import ast
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme
from playwright.async_api import Browser, expect

from actserve_server.domain.principals import Role
from tests.contract.harness import Served, serving, write_tokens
from tests.explorer.explored import TOKEN, Explored

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = {
    "markup": "<img src=x onerror=alert(1)><script>alert(2)</script>&lt;b&gt;",
    "bidi": "abc \u202egnp.exe\u202c \u2066x\u2069 \u05d0\u05d1 def",
    "controls": "a\x00b\x07c\x1b[31md\x7fe\x85f\ufeffg\u200bh\u00adi\u2028j",
    "looks like a mark": "U+202E ⏎ ␀",
    "python": '"""\nimport os\n\\N{BULLET} {x!r} \u202e',
}


ODD_LINKS = (
    *("#nothing", "#tokens?color=none&site=../..&at=-1&vector=%00", "#tokens?at=1e9&text=a"),
    *("#steer?steer=[[1,2,null],3]", "#steer?steer={", "#attention?layer=99&head=x"),
    *("#patching?step=0", "#monitors?watch=..,%3Cb%3E&tokens=-1", "#tokens?text=%E0%A4%A"),
    *("#tokens?chat=[[%22user%22]]", "#tokens?chat=7", "#" + "x" * 20_000),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A server with tokens: a reader's and an experimenter's."""
    path: Path = tmp_path_factory.mktemp("tokens") / "tokens.yaml"
    tokens = write_tokens(
        path, (TOKEN, "team", Role.READER), ("another-token", "others", Role.EXPERIMENTER)
    )
    async with serving(token_file=tokens, http_port=0) as served:
        yield served


async def test_a_page_without_a_token_shows_nothing_and_asks_for_one(
    guarded: Served, chromium: Browser
) -> None:
    async with Explored.opened(chromium, guarded) as explored:
        explored.allowed = ("401",)
        await explored.open(text="hello", color="surprise")
        dialog = explored.page.get_by_role("dialog", name="Access token")
        await expect(dialog).to_be_visible()
        await expect(explored.page.get_by_role("listbox")).to_have_count(0)
        await dialog.get_by_label("Token", exact=True).fill("unknown")
        await dialog.get_by_role("button", name="Use it").click()
        await expect(dialog).to_contain_text("does not know the token")

        await dialog.get_by_label("Token", exact=True).fill(TOKEN)
        await dialog.get_by_role("button", name="Use it").click()
        await explored.done()
        await expect(explored.tokens().last).to_have_text("o")
        sent = [await each.all_headers() for each in explored.requests if each.method == "POST"]
        assert {each.get("authorization", "") for each in sent} == {
            *("", "Bearer unknown", f"Bearer {TOKEN}")
        }
        assert not any("cookie" in each for each in sent)
        assert TOKEN not in await explored.copied("Copy link")
        assert TOKEN not in await explored.copied("Copy as Python")
        assert "ACTSERVE_TOKEN" in await explored.copied("Copy as Python")
        kept = await explored.page.evaluate(
            "[JSON.stringify(localStorage), document.cookie, document.documentElement.outerHTML]"
        )
        assert not any(TOKEN in each for each in kept)

        await explored.page.get_by_role("button", name="Access token").click()
        await dialog.get_by_role("button", name="Forget it").click()
        await expect(dialog).to_contain_text("wants a token with every call")
        assert await explored.page.evaluate("sessionStorage.length") == 0


async def test_what_a_role_does_not_allow_is_said(guarded: Served, chromium: Browser) -> None:
    async with Explored.opened(chromium, guarded) as explored:
        explored.allowed = ("401", "403")
        await explored.open("steer")
        dialog = explored.page.get_by_role("dialog", name="Access token")
        await dialog.get_by_label("Token", exact=True).fill(TOKEN)
        await dialog.get_by_role("button", name="Use it").click()
        await explored.view.get_by_text("Make a vector of contrasting prompts").click()
        await explored.view.get_by_role("button", name="Make and store it").click()
        await expect(explored.view.locator("details .error")).to_contain_text("PERMISSION_DENIED")


async def test_over_tls_all_is_the_same_and_programs_ask_for_it(
    chromium: Browser, tmp_path: Path
) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    files: dict[str, Any] = {"tls_cert": tmp_path / "both.pem", "tls_key": tmp_path / "both.pem"}
    async with (
        serving(http_port=0, **files) as served,
        Explored.opened(chromium, served, scheme="https", ignore_https_errors=True) as explored,
    ):
        await explored.open("tokens", text="hello", color="surprise")
        await explored.done()
        await expect(explored.tokens()).to_have_count(6)
        program = await explored.copied("Copy as Python")
        assert f'actserve.Client("127.0.0.1:{served.app.port}", tls=True)' in program


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_text_is_shown_as_text(explored: Explored, name: str) -> None:
    text = HOSTILE[name]
    before = await explored.page.evaluate("document.scripts.length") if explored.requests else 1
    await explored.open("tokens", text=text, color="surprise")
    await explored.done()
    assert await explored.page.evaluate("document.scripts.length") == before
    assert await explored.page.locator("main img, main script, main iframe").count() == 0
    shown = "".join(await explored.tokens().all_text_contents())
    assert not set(shown) & {*"\u202e\u2066\u200b\u2028\x00\x07\x1b\x7f\x85\ufeff\u00ad"}
    await explored.tokens().nth(3).click()
    await expect(explored.view.locator("h2 bdi.token")).to_be_visible()
    program = await explored.copied("Copy as Python")
    assert not set(program) & {*"\u202e\u2066\u200b\u2028\x00\x07\x1b\x7f\x85\ufeff\u00ad"}
    (line,) = (line for line in program.splitlines() if line.startswith("prompt = "))
    assert ast.literal_eval(line.removeprefix("prompt = ")) == text


async def test_an_unseen_character_is_marked_and_no_text_looks_like_a_mark(
    explored: Explored,
) -> None:
    await explored.open("tokens", text="\x07 U+0007", color="surprise")
    await explored.done()
    marks = explored.view.locator(".strip .mark")
    assert await marks.all_text_contents() == ["U+0007"]


async def test_a_very_long_line_is_refused_in_words_and_the_page_goes_on(
    explored: Explored,
) -> None:
    explored.allowed = ("400", "413")
    await explored.open()
    await explored.prompt("x" * 1_000_000)
    await explored.run()
    assert "token" in await explored.error()
    await explored.view.get_by_role("button", name="Copy link").click()
    await expect(explored.page.locator("#said")).to_have_text(
        "What is shown is too long for a link"
    )
    await explored.prompt("short")
    await explored.run()
    await expect(explored.tokens()).to_have_count(6)


async def test_a_link_with_anything_in_it_does_no_harm(explored: Explored) -> None:
    explored.allowed = ("400", "404")
    for link in ODD_LINKS:
        await explored.page.goto("about:blank")
        await explored.page.goto(explored.address + link)
        await expect(explored.view, link).to_be_visible()
        await explored.page.get_by_role("link", name="Tokens").click()
        await expect(explored.view.get_by_role("heading", name="Tokens"), link).to_be_visible()


async def test_a_script_that_gets_into_the_page_does_not_run(explored: Explored) -> None:
    explored.allowed = ("Content Security Policy", "TrustedHTML", "TrustedScript", "violates")
    await explored.open()
    ran = await explored.page.evaluate(
        """async () => {
            const tries = [
                () => { const script = document.createElement("script");
                        script.append("window.ran = 1"); document.body.append(script); },
                () => document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='ran=1'>"),
                () => { document.body.setAttribute("onclick", "window.ran = 1");
                        document.body.click(); },
            ];
            for (const each of tries) { try { each(); } catch {} }
            await new Promise((resolve) => setTimeout(resolve, 100));
            return window.ran ?? 0;
        }"""
    )
    assert ran == 0


async def test_the_page_can_reach_no_other_server(explored: Explored) -> None:
    explored.allowed = ("Content Security Policy", "violates", "connect")
    await explored.open()
    reached = await explored.page.evaluate(
        "fetch('http://localhost:1/').then(() => true, () => false)"
    )
    assert not reached
    assert not [each for each in explored.requests if "localhost:1/" in each.url]


async def test_the_page_is_not_there_when_it_is_turned_off(chromium: Browser) -> None:
    async with serving(http_port=0, explorer=False) as served:
        assert served.app.http is not None
        tab = await chromium.new_page()
        answer = await tab.goto(f"http://127.0.0.1:{served.app.http.port}/")
        assert answer is not None
        assert answer.status == 404
        await tab.close()
