"""The pictures of the documentation: the same numbers give the same small, self-contained files."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts import pictures
from tests.client import made_results as made
from tests.client.fake_server import Model, serving

LAYERS = 30
MOST_BYTES = 150_000


@pytest.fixture
def without_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "BROWSERS", ())


def write(folder: Path) -> dict[str, bytes]:
    found = {"logit-lens": made.lens(sites=LAYERS), "patch": made.patch(sites=LAYERS)}
    return {path.name: path.read_bytes() for path in pictures.written(found, folder)}


@pytest.mark.usefixtures("without_browser")
def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    files = write(tmp_path / "one")
    assert [*files] == ["logit-lens.html", "patch.html", "look-inside.svg"]
    assert write(tmp_path / "two") == files


def test_the_picture_of_the_readme_is_small_and_takes_nothing_from_elsewhere() -> None:
    lens = made.lens(("The", " <b>", " &", " '", "\n"), (" <script>",), sites=LAYERS)
    svg = pictures.look_inside(lens, made.patch(sites=LAYERS))
    assert len(svg.encode()) < MOST_BYTES
    root = ElementTree.fromstring(svg)
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
        *("svg", "title", "style", "rect", "text")
    }
    shown = [element.text for element in root.iter()]
    assert {"·<script>", "·<b>", "resid_post.29", "(Paris)", "0.71"} <= {*shown}
    elsewhere = svg.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"http|url\(|href|@import|/tmp|/home|20\d\d", elsewhere)


def test_a_photograph_is_of_the_fragment_without_blank_margins(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    browser = next(filter(None, map(pictures.shutil.which, pictures.BROWSERS)), None)
    if browser is None:
        pytest.skip("Chromium is not installed")
    fragment = tmp_path / "black.html"
    fragment.write_text('<div style="width:100px;height:50px;background:#000"></div>')
    pictures.photograph(browser, fragment, tmp_path / "black.png")
    with image.open(tmp_path / "black.png") as shot:
        assert shot.size == (2 * (100 + 2 * pictures.MARGIN_PX), 2 * (50 + 2 * pictures.MARGIN_PX))


@pytest.mark.usefixtures("without_browser")
def test_every_study_of_a_server_is_written(tmp_path: Path) -> None:
    with serving(Model()) as target:
        pictures.main([target, "--model", "big", "--folder", str(tmp_path)])
    names = ("logit-lens", "patch", "attention", "score", "compare", "explain")
    assert {path.name for path in tmp_path.iterdir()} == {
        "look-inside.svg",
        *(f"{name}.html" for name in names),
    }
