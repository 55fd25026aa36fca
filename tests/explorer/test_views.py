"""What each view of the explorer shows is what the server computes, and its program runs."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
from playwright.async_api import expect

import actserve
from actserve_server.domain.sites import HookPoint, Site
from tests.contract.dictionaries import FEATURES, uploaded
from tests.contract.harness import Served
from tests.contract.nlas import Tiny
from tests.explorer.explored import Explored

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "A cat sat. A cat"
LIKED, HATED = (
    ["good day", "nice cat", "fine hat", "kind man"],
    ["bad day", "vile cat", "torn hat", "rude man"],
)


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: Served) -> AsyncIterator[actserve.AsyncClient]:
    async with actserve.AsyncClient(f"127.0.0.1:{served.app.port}") as client:
        yield client


async def run_program(program: str) -> str:
    """Runs what a view copies in a process of its own, and returns what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complained = await process.communicate()
    assert process.returncode == 0, f"{program}\n{complained.decode()}"
    return printed.decode()


async def labels(explored: Explored, name: str = "Tokens of the prompt") -> list[str]:
    found = [await each.get_attribute("aria-label") for each in await explored.tokens(name).all()]
    return [label or "" for label in found]


def numbers(found: list[str]) -> list[float]:
    """The last number of each label; NaN where it says that there is none."""
    said = [re.search(r"(-?[\d.]+(?:e[-+]?\d+)?)\D*$", label) for label in found]
    return [
        float(each[1]) if each and "no value" not in label else np.nan
        for each, label in zip(said, found, strict=True)
    ]


async def test_tokens_are_colored_by_how_unlikely_they_were(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    await explored.open()
    await explored.prompt(TEXT)
    await explored.run()
    scored = await client.score(TEXT)
    assert await explored.tokens().count() == len(scored.tokens)
    shown = numbers(await labels(explored))
    np.testing.assert_allclose(shown[1:], -scored.logprobs[1:], rtol=0.01)
    assert np.isnan(shown[0])
    program = await explored.copied("Copy as Python")
    assert len((await run_program(program)).splitlines()) == len(scored.tokens)


async def test_tokens_are_colored_by_the_norm_of_a_site(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    await explored.open("tokens", text=TEXT, color="norm", site="mlp_out.2")
    await explored.done()
    acts = await client.fetch(TEXT, "mlp_out.2")
    norms = np.linalg.norm(acts["mlp_out.2"], axis=1)
    np.testing.assert_allclose(numbers(await labels(explored)), norms, rtol=0.01)
    await run_program(await explored.copied("Copy as Python"))


async def test_a_chosen_token_shows_what_comes_next_at_each_layer_and_its_row_in_words(
    explored: Explored, client: actserve.AsyncClient, served: Served
) -> None:
    await explored.open("tokens", text=TEXT, color="surprise")
    await explored.done()
    await explored.tokens().nth(5).click()
    lens = await client.logit_lens(TEXT)
    grid = explored.view.get_by_role("grid")
    await expect(grid).to_be_visible()
    shown = await explored.grid()
    assert len(shown) == 4
    assert [row[3].strip() for row in shown] == [
        str(token).strip() for token in lens.top_tokens[:, 5, 0]
    ]
    row = served.engine.row(Site(HookPoint.RESID_POST, 1), (await client.score(TEXT)).token_ids[:6])
    words = explored.view.locator(".words")
    await expect(words).to_have_text(re.compile(re.escape((await Tiny().said(row))[:8])))
    await expect(explored.view.locator(".flag").first).to_have_text("early position")
    await expect(explored.view.get_by_text("cosine to what the words give back")).to_be_visible()
    assert "at=5" in explored.page.url
    await run_program(await explored.copied("Copy as Python"))


async def test_a_chosen_token_shows_its_largest_features_with_their_labels(
    explored: Explored, client: actserve.AsyncClient, served: Served
) -> None:
    await uploaded(served)
    await client.dictionaries.set_labels("signs", {at: f"sign {at}" for at in range(FEATURES)})
    await explored.open("tokens", text=TEXT, color="surprise")
    await explored.done()
    await explored.tokens().nth(5).click()
    top = await client.features.top(TEXT, "signs", k=12)
    lines = explored.view.get_by_role("region", name="Features").locator("tr")
    await expect(lines).to_have_count(len(top.at(5)))
    for at, feature in enumerate(top.at(5)):
        index, _, label = await lines.nth(at).locator("th, td").all_inner_texts()
        assert (index, label) == (str(feature.index), f"sign {feature.index}")
    await client.dictionaries.delete("signs")


async def test_tokens_are_colored_by_how_well_words_explain_them(explored: Explored) -> None:
    await explored.open("tokens", text="A cat", color="explanation")
    await explored.done()
    assert not np.isnan(numbers(await labels(explored))).any()


async def test_a_conversation_is_shown_with_its_turns(explored: Explored) -> None:
    await explored.open("tokens", chat='[["user","hello"],["assistant","hi"]]', color="surprise")
    await explored.done()
    shown = "".join(await explored.tokens().all_inner_texts())
    assert "<|role|>user" in shown
    await expect(explored.page.get_by_label("What the turn says").first).to_have_value("hello")
    await run_program(await explored.copied("Copy as Python"))


async def test_a_vector_is_made_of_prompts_and_steers_beside_the_plain_text(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    await explored.open("steer")
    await explored.prompt(TEXT)
    await explored.view.get_by_text("Make a vector of contrasting prompts").click()
    await explored.view.get_by_label("Prompts that have it, one a line").fill("\n".join(LIKED))
    await explored.view.get_by_label("Prompts that lack it, one a line").fill("\n".join(HATED))
    await explored.view.get_by_label("Name", exact=True).fill("kindness")
    await explored.view.get_by_role("button", name="Make and store it").click()
    await expect(explored.view.get_by_text("is stored.")).to_be_visible()
    stored = await client.vectors.get("kindness")
    assert [str(row.site) for row in stored.rows] == ["resid_post.2"]

    await explored.view.get_by_label("Coefficient, exactly").fill("40")
    await explored.view.get_by_label("Tokens at most").fill("12")
    await explored.run()
    plain = await client.generate(TEXT, max_tokens=12, temperature=0.0)
    steered = await client.generate(
        TEXT,
        max_tokens=12,
        temperature=0.0,
        intervene=actserve.Add("resid_post.2", "kindness", 40.0),
    )
    assert plain.text != steered.text
    for name, expected in (("Plain", plain), ("Steered", steered)):
        shown = explored.view.locator(f".text[aria-label={name}]")
        assert (await shown.inner_text()).strip() == expected.text.strip()
    receipts = explored.view.get_by_role("region", name="Receipts", exact=True).last
    cells = await receipts.locator("tbody td").all_inner_texts()
    assert cells[0] == "kindness at resid_post.2"
    assert int(cells[1]) == steered.interventions[0].rows
    await run_program(await explored.copied("Copy as Python"))

    link = await explored.copied("Copy link")
    await explored.page.goto("about:blank")
    await explored.page.goto(link)
    await expect(explored.view.get_by_label("Coefficient, exactly")).to_have_value("40")
    await expect(
        explored.view.get_by_role("combobox", name="Vector", exact=True).locator("option:checked")
    ).to_have_text("kindness")


async def test_tokens_are_colored_by_their_component_along_a_stored_vector(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    direction = np.arange(1, 17, dtype=np.float32)
    await client.vectors.store("slope", actserve.SteeringVector("resid_post.1", direction))
    await explored.open("tokens", text=TEXT, color="probe", vector="slope", site="resid_post.1")
    await explored.done()
    rows = (await client.fetch(TEXT, "resid_post.1"))["resid_post.1"]
    expected = rows @ direction / np.linalg.norm(direction)
    np.testing.assert_allclose(numbers(await labels(explored)), expected, rtol=0.01, atol=0.01)
    await run_program(await explored.copied("Copy as Python"))


async def test_a_component_starts_at_the_site_of_its_vector(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    await client.vectors.store("deep", actserve.SteeringVector("resid_post.3", np.ones(16)))
    await client.vectors.store("flat", actserve.SteeringVector("resid_post.0", np.ones(16)))
    await explored.open("tokens", text=TEXT, color="probe", vector="deep")
    layer = explored.view.get_by_label("Layer")
    await expect(layer).to_have_value("3")
    await explored.choose("Vector", (await client.vectors.get("flat")).name)
    await expect(layer).to_have_value("0")
    await explored.open("tokens", text=TEXT, color="probe", vector="deep", site="resid_post.1")
    await expect(layer).to_have_value("1")


async def test_a_monitor_of_what_is_generated_is_said_to_score_no_token_of_a_prompt(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    probe = actserve.Probe("resid_post.1", np.ones(16))
    upper = actserve.Level(1e9)
    await client.monitors.create("later", probe=probe, upper=upper, positions="generated")
    await explored.open("tokens", text=TEXT, color="monitor", monitor="later")
    await explored.done()
    await expect(explored.view.get_by_text("later scores none of these tokens")).to_be_visible()
    await expect(explored.view.locator(".legend").first).to_be_hidden()
    await client.monitors.delete("later")


async def test_heads_are_shown_by_what_they_do_and_one_token_by_token(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    await explored.open("attention", text=TEXT, show="previousToken", layer=2, head=1, at=6)
    await explored.done()
    acts = await client.fetch(TEXT, readouts={"heads": actserve.AttentionSummary()})
    shown = np.array([[float(cell) for cell in row] for row in await explored.grid()])
    np.testing.assert_allclose(shown, acts.readouts["heads"].previous_token, atol=0.006)
    pattern = (await client.attention(TEXT, layers=[2], heads=[1])).weights[0, 0]
    weights = numbers(await labels(explored, "Tokens by attention"))
    np.testing.assert_allclose(weights[:7], pattern[6, :7], rtol=0.01, atol=1e-4)
    await explored.choose("Color tokens by", "to")
    weights = numbers(await labels(explored, "Tokens by attention"))
    np.testing.assert_allclose(weights[6:], pattern[6:, 6], rtol=0.01, atol=1e-4)
    await run_program(await explored.copied("Copy as Python"))


async def test_heads_are_shown_by_how_much_they_look_at_the_chosen_token(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    await explored.open("attention", text=TEXT, show="received", at=3)
    await explored.done()
    weights = (await client.attention(TEXT)).weights
    shown = np.array([[float(cell) for cell in row] for row in await explored.grid()])
    np.testing.assert_allclose(shown, weights[:, :, 4:, 3].mean(axis=2), atol=0.006)


async def test_a_monitor_scores_what_is_written_and_its_alerts_come_as_they_are_raised(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    rng = np.random.default_rng(5)
    await client.vectors.store(
        "noise", actserve.SteeringVector("resid_post.1", rng.normal(size=16))
    )
    await explored.open("monitors")
    await explored.prompt(TEXT)
    await explored.view.get_by_text("Make a monitor of a stored vector").click()
    await explored.view.get_by_label("Name", exact=True).fill("noisy")
    await explored.view.get_by_label("Direction").select_option(label="noise at resid_post.1")
    await explored.view.get_by_label("Lower threshold").fill("0.5")
    await explored.view.get_by_role("button", name="Store it").click()
    await expect(explored.view.get_by_label("watch by noisy")).to_be_checked()
    await explored.view.get_by_label("Tokens at most").fill("10")
    await explored.run()
    out = await client.generate(
        TEXT, max_tokens=10, temperature=0.0, monitors="noisy", scores="token"
    )
    score = out.monitor_scores["noisy"]
    shown = numbers(await labels(explored, "Tokens by score"))
    assert score.positions is not None
    assert score.scores is not None
    np.testing.assert_allclose(shown[: len(score.positions)], score.scores, rtol=0.01, atol=0.01)
    await expect(explored.view.locator("svg.chart polyline")).to_have_count(1)
    # Its own alert, and that of the call above, which came while it was looked at.
    rows = explored.view.get_by_role("region", name="Alerts").locator("tbody tr")
    await expect(rows).to_have_count(2)
    await expect(rows.first).to_contain_text("noisy")
    await run_program(await explored.copied("Copy as Python"))
    await expect(rows).to_have_count(3)

    await explored.open("tokens", text=TEXT, color="monitor", monitor="noisy")
    await explored.done()
    prompt = len(await labels(explored))
    assert numbers(await labels(explored)) == shown[:prompt]


async def test_which_calls_a_monitor_watches_and_what_becomes_of_an_answer_that_it_holds_is_said(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    probe = actserve.Probe("resid_post.1", np.ones(16))
    halts = actserve.Level(-1e9, actserve.Pause())
    named = actserve.Watch(named_only=True)
    some = actserve.Watch(end_users=["ann"], share=0.5)
    await client.monitors.create("halts", probe=probe, upper=halts, watch=named)
    await client.monitors.create("sees", probe=probe, upper=actserve.Level(1e9))
    await client.monitors.create("samples", probe=probe, upper=actserve.Level(1e9), watch=some)
    await explored.open("monitors", text=TEXT, watch="halts")
    for name, watched in (
        ("halts", "calls that name it"),
        ("sees", "every call"),
        ("samples", "50% of calls for 1 end user"),
    ):
        row = explored.view.locator("tr").filter(has_text=name).first
        await expect(row).to_contain_text(watched)
    await explored.view.get_by_label("Tokens at most").fill("1")
    await explored.view.locator("button.main").first.click()
    await expect(explored.view.get_by_text("held by halts until")).to_be_visible()
    await expect(explored.view.get_by_role("button", name="Stop")).to_have_count(1)
    await explored.view.get_by_role("button", name="Go on").click()
    await expect(explored.view.get_by_text("held by halts, decided: proceed")).to_be_visible()
    await explored.done()
    await expect(explored.view.get_by_text("1 token,")).to_be_visible()
    for name in ("halts", "sees", "samples"):
        await client.monitors.delete(name)


async def test_a_patching_grid_says_what_brings_the_answer_back(
    explored: Explored, client: actserve.AsyncClient
) -> None:
    prompts = {"clean": "A cat", "corrupt": "A dog"}
    await explored.open("patching", **prompts, right="x", wrong="y", rows="resid_post", step=1)
    await explored.done()
    expected = await client.patch(*prompts.values(), answers=("x", "y"))
    shown = np.array([[float(cell) for cell in row] for row in await explored.grid()])
    np.testing.assert_allclose(shown, expected.restored, atol=0.006)
    assert explored.served.app.kept.held_bytes == 0, "rows of the clean prompt are left"
    await run_program(await explored.copied("Copy as Python"))


async def test_prompts_that_cannot_be_patched_are_refused_in_words(explored: Explored) -> None:
    await explored.open("patching", clean="A cat", corrupt="A mouse", right="x", wrong="y")
    await explored.done()
    assert "equal length" in await explored.error()
    await explored.open("patching", clean="A cat", corrupt="A dog", right="Paris")
    await explored.done()
    assert "5 tokens" in await explored.error()
