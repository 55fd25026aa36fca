"""Make the pictures of the explorer from a real model.

    make serve ARGS="--http-port 8080 --nla smollm2-135m"              # in another terminal
    python scripts/explorer_pictures.py localhost:50051 http://localhost:8080

It stores a vector and a monitor, `liking`, if they are not there, and writes
docs/pictures/explorer-*.png.
"""

import argparse
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

import actserve

FOLDER = Path(__file__).resolve().parent.parent / "docs/pictures"
LIKED = (
    "I loved this film, it was wonderful.",
    "What a beautiful and moving story, a joy to watch.",
    "Brilliant acting and a delightful script; I was thrilled.",
    "The best movie I have seen in years, simply superb.",
)
HATED = (
    "I hated this film, it was terrible.",
    "What an ugly and boring story, a pain to watch.",
    "Awful acting and a dreadful script; I was disgusted.",
    "The worst movie I have seen in years, simply horrible.",
)
SITE = "resid_post.15"
NAPOLEON = "In 1804, in Paris, Napoleon crowned himself emperor of the French."
FILM = "I watched the film last night and I thought it was"
CAT = "The cat sat on the mat. The dog ran to the door. The cat sat on the"
VIEWS: Mapping[str, Mapping[str, object]] = {
    "tokens": {"text": NAPOLEON, "color": "surprise", "at": 13},
    "steer": {"text": FILM, "steer": json.dumps([["liking", SITE, -3]]), "tokens": 40},
    "attention": {"text": CAT, "show": "induction"},
    "monitors": {"text": FILM, "watch": "liking", "tokens": 60},
    "patching": {
        "clean": "The capital of France is",
        "corrupt": "The capital of Italy is",
        "right": " Paris",
        "wrong": " Rome",
        "rows": "resid_post",
        "step": 2,
    },
}
"""What the link of each has."""
WIDTH_PX, SCALE = 1100, 1.5
COLORS = 200
PATIENCE_MS = 120_000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", help="the address of a server, such as localhost:50051")
    parser.add_argument("page", help="that of its HTTP port, such as http://localhost:8080")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    given = parser.parse_args(arguments)
    with actserve.Client(given.target) as client:
        prepare(client)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, values in VIEWS.items():
            tab = browser.new_page(
                viewport={"width": WIDTH_PX, "height": 800}, device_scale_factor=SCALE
            )
            tab.set_default_timeout(PATIENCE_MS)
            tab.goto(f"{given.page}/#{name}?{urlencode(values, quote_via=quote)}")
            show(tab, name)
            path = given.folder / f"explorer-{name}.png"
            image = Image.open(io.BytesIO(tab.screenshot(full_page=True)))
            image.convert("RGB").quantize(COLORS).save(path, optimize=True)
            print(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")
            tab.close()


def prepare(client: actserve.Client) -> None:
    """Stores what the pictures steer and watch by, if it is not there."""
    if "liking" not in {vector.id for vector in client.vectors.list()}:
        client.vectors.create("liking", LIKED, HATED, SITE, positions=slice(1, None))
    if "liking" not in {monitor.id for monitor in client.monitors.list()}:
        client.monitors.create(
            "liking",
            probe=actserve.Probe(SITE, "liking"),
            aggregator="rolling_mean(8)",
            positions=slice(1, None),
            lower=actserve.Level(250.0, flag=True),
            watch=actserve.Watch(named_only=True),
        )


def show(tab: Page, name: str) -> None:
    """Waits until all of a view is there; generations wait to be begun."""
    view = tab.locator("main > section[aria-labelledby]:visible")
    if name in ("steer", "monitors"):
        expect(view.locator("select option, tbody tr").first).to_be_attached()
        tab.wait_for_timeout(1000)
        view.locator("button.main").first.click()
    expect(view).to_have_attribute("aria-busy", "false", timeout=PATIENCE_MS)
    if name == "tokens":
        expect(view.locator(".facts td").first).to_be_visible(timeout=PATIENCE_MS)
        expect(view.locator(".bars progress").first).to_be_visible(timeout=PATIENCE_MS)
    expect(tab.locator("#said")).to_be_empty(timeout=PATIENCE_MS)


if __name__ == "__main__":
    main()
