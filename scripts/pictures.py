"""Make the pictures of the documentation from studies of a real model.

    make serve                                      # in another terminal
    python scripts/pictures.py localhost:50051      # writes docs/pictures

Each study becomes a fragment of HTML, as a notebook shows it, and, where Chromium is installed, a
PNG of that. `look-inside.svg`, the picture of the README, is a logit lens beside a patch grid. The
same numbers give the same HTML and SVG.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageChops

import actserve
from actserve import LogitLens, PatchGrid
from actserve._show.cards import Cell, HeatMap, Panels
from actserve._show.every_card import card_of
from actserve._show.scales import Scale, ink
from actserve._show.shown import Shown

FOLDER = Path(__file__).resolve().parent.parent / "docs/pictures"

LIKED = ("I loved this film, it was wonderful.", "Brilliant acting and a delightful script.")
HATED = ("I hated this film, it was terrible.", "Awful acting and a dreadful script.")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH_PX, HEIGHT_PX = 1100, 2400
"""Of the window of the browser; blank margins are cut off."""
MARGIN_PX = 12
BROWSER_SECONDS = 120


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", help="the address of a server, such as localhost:50051")
    parser.add_argument("--model", help="the model, where the server has several")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    given = parser.parse_args(arguments)
    with actserve.Client(given.target, model=given.model) as client:
        models = {model.id: model for model in client.models()}
        model = models[given.model] if given.model else next(iter(models.values()))
        for path in written(studies(client, model), given.folder):
            print(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")


def studies(client: actserve.Client, model: actserve.Model) -> dict[str, Shown]:
    """What is shown of a model, by the name of its files."""
    middle = f"resid_post.{model.layer_count // 2}"
    capital = "The capital of {} is"
    labels = ["liked"] * len(LIKED) + ["hated"] * len(HATED)
    # Without the first token, whose row is far longer than the others and says nothing of the text.
    means = client.fetch_means(
        [*LIKED, *HATED], labels, middle, positions=slice(1, None), progress=False
    )
    joy = means["liked"] - means["hated"]
    found: dict[str, Shown] = {
        "logit-lens": client.logit_lens(capital.format("France")),
        "patch": client.patch(
            capital.format("France"), capital.format("Italy"), answers=(" Paris", " Rome")
        ),
        "attention": client.attention(
            "The cat sat on the mat. The cat", layers=[model.layer_count // 6]
        ),
        "score": client.score("The cat sat on the mat, and the dog sat on the prime minister."),
        "compare": client.compare("I think the movie was", 3 * joy, max_tokens=20),
    }
    if model.nlas:
        text = "In 1804, in Paris, Napoleon crowned himself emperor of the French."
        found["explain"] = client.explain_text(text, nla=model.nlas[0].id, seed=0, score=True)
    return found


def written(found: Mapping[str, Shown], folder: Path) -> Iterator[Path]:
    """Writes the pictures, and tells which."""
    folder.mkdir(parents=True, exist_ok=True)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    for name, study in found.items():
        path = folder / f"{name}.html"
        path.write_text(study._repr_html_() + "\n", encoding="utf-8")
        yield path
        if browser:
            picture = path.with_suffix(".png")
            photograph(browser, path, picture)
            yield picture
    lens, patch = found.get("logit-lens"), found.get("patch")
    if isinstance(lens, LogitLens) and isinstance(patch, PatchGrid):
        path = folder / "look-inside.svg"
        path.write_text(look_inside(lens, patch), encoding="utf-8")
        yield path


def photograph(browser: str, fragment: Path, picture: Path) -> None:
    """A PNG of a fragment of HTML on a white page, at twice the resolution, margins cut off."""
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>actserve</title>"
        f'<body style="margin:{MARGIN_PX}px;background:#fff;color:#1f2328">'
        f"{fragment.read_text(encoding='utf-8')}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        source, shot = Path(temporary, "page.html"), Path(temporary, "page.png")
        source.write_text(page, encoding="utf-8")
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--force-device-scale-factor=2", f"--window-size={WIDTH_PX},{HEIGHT_PX}"),
                *(f"--user-data-dir={temporary}/profile", f"--screenshot={shot}"),
                source.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=BROWSER_SECONDS,
        )
        with Image.open(shot) as image:
            whole = image.convert("RGB")
    left, top, right, bottom = ImageChops.invert(whole).getbbox() or (0, 0, *whole.size)
    margin = 2 * MARGIN_PX
    whole.crop(
        (
            max(left - margin, 0),
            max(top - margin, 0),
            min(right + margin, whole.width),
            min(bottom + margin, whole.height),
        )
    ).quantize(256).save(picture, optimize=True)


ROW, COLUMN, LABEL, HEAD, BETWEEN = 16, 68, 100, 46, 36
"""Pixels of a row, a column, the labels beside rows, what is above rows, and between the halves."""
STYLE = (
    "text{font:11px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}"
    ".h{font:600 13px system-ui,sans-serif}"
    ".h,.p{fill:#1f2328}.m{text-anchor:middle}.e{text-anchor:end}"
    "@media(prefers-color-scheme:dark){.h,.p{fill:#e6edf3}}"
)


def look_inside(lens: LogitLens, patch: PatchGrid) -> str:
    """A logit lens beside a patch grid, as SVG that is read on light and dark pages."""
    left, right = (_heat_map(each) for each in (lens, patch))
    offset = LABEL + COLUMN * len(left.columns) + BETWEEN
    width = offset + LABEL + COLUMN * len(right.columns)
    height = HEAD + ROW * max(len(left.rows), len(right.rows)) + 24
    title = "A logit lens and activation patching, by layer and token"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n"
        f"{_half(left, 0, 'What it would say next, by depth')}"
        f"{_half(right, offset, 'Which rows carry the answer')}</svg>\n"
    )


def _heat_map(study: Shown) -> HeatMap:
    part = card_of(study).parts[0]
    heat = part.maps[0] if isinstance(part, Panels) else part
    assert isinstance(heat, HeatMap)
    return heat


def _half(heat: HeatMap, x: int, title: str) -> str:
    lines = [_text(x, 14, title, "h")]
    start = x + LABEL
    for at, label in enumerate(heat.columns):
        # The token of the clean prompt, in brackets, stands above.
        for line, text in enumerate(label.text.split(" ", 1)):
            middle = start + at * COLUMN + COLUMN // 2
            lines.append(_text(middle, HEAD - 6 - 13 * line, text, "p m"))
    for row, (label, cells) in enumerate(zip(heat.rows, heat.cells, strict=True)):
        y = HEAD + row * ROW
        lines.append(_text(start - 6, y + 12, label.text, "p e"))
        for at, cell in enumerate(cells):
            lines.append(_cell(cell, start + at * COLUMN, y))
    lines.append(_legend(heat.scale, start, HEAD + len(heat.rows) * ROW + 10))
    return "".join(f"{line}\n" for line in lines)


def _cell(cell: Cell, x: int, y: int) -> str:
    color = cell.color or "#808080"
    return (
        f'<rect x="{x}" y="{y}" width="{COLUMN - 1}" height="{ROW - 1}" fill="{color}"/>'
        f'<text x="{x + COLUMN // 2}" y="{y + 12}" class="m" fill="{ink(color)}">'
        f"{escape(cell.text)}</text>"
    )


def _legend(scale: Scale, x: int, y: int) -> str:
    steps = 12
    bar = "".join(
        f'<rect x="{x + 8 * step}" y="{y}" width="8" height="8" '
        f'fill="{scale.color(scale.low + (scale.high - scale.low) * step / (steps - 1))}"/>'
        for step in range(steps)
    )
    said = f"{scale.label}, {scale.low:g} to {scale.high:g}"
    return bar + _text(x + 8 * steps + 6, y + 8, said, "p")


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
