"""What the documentation's site does to text, and what it may load."""

import html
from pathlib import Path

import markdown
import pytest

from scripts.docs.docstrings import fenced, linked
from scripts.docs.markdown import escaped, table
from scripts.docs.outside import loads, loads_of_site


@pytest.mark.parametrize(
    "text",
    [
        "x * y * z",
        "resid_post_ and _x_",
        "[tokens, width](x)",
        "a < b > c",
        "<id>",
        r"\d",
        "&lt; a & b",
    ],
)
def test_plain_text_reads_the_same_as_markdown(text: str) -> None:
    shown = markdown.markdown(escaped(text)).removeprefix("<p>").removesuffix("</p>")
    assert html.unescape(shown) == text


def test_what_is_in_backticks_is_code() -> None:
    assert escaped("`a_b*c` is not a_b*c") == r"`a_b*c` is not a\_b\*c"


def test_a_bar_in_a_table_ends_no_cell() -> None:
    shown = markdown.markdown(table("a", "b", rows=[("`x | y`", "y | z")]), extensions=["tables"])
    assert "<td><code>x | y</code></td>\n<td>y &#124; z</td>" in shown


EXAMPLE = """One line.

- `sites`: names, over
  two lines.

    first = call()

    if first:
        second()

The end."""


def test_an_example_in_a_docstring_is_code_even_after_a_list() -> None:
    shown = markdown.markdown(fenced(EXAMPLE), extensions=["fenced_code"])
    code = "first = call()\n\nif first:\n    second()\n"
    assert f'<pre><code class="language-python">{code}</code></pre>' in shown
    assert shown.endswith("<p>The end.</p>")
    assert "two lines.</li>" in shown


@pytest.mark.parametrize("text", ["No example.", "- a list\n  goes on\n\nThe end.", ""])
def test_a_docstring_without_an_example_stays_as_it_is(text: str) -> None:
    assert fenced(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see `Add`", "see [`Add`][actserve.Add]"),
        ("see `Add.sites`", "see [`Add.sites`][actserve.Add]"),
        ("see `Other` and Add", "see `Other` and Add"),
        ("```\n`Add`\n```", "```\n`Add`\n```"),
    ],
)
def test_a_public_name_in_a_docstring_leads_to_its_entry(text: str, shown: str) -> None:
    assert linked(text, {"Add"}) == shown


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<link href="https://fonts.example" rel="preconnect" crossorigin>',
        '<img src="HTTP://images.example/a.png">',
        '<img srcset="https://images.example/a.png 2x">',
        '<svg><use href="https://images.example/a.svg#b"/></svg>',
        "<style>@import 'https://fonts.example/css';</style>",
        '<p style="background: url(https://images.example/a.png)">',
    ],
)
def test_a_page_that_loads_from_another_host_is_found_out(page: str) -> None:
    assert loads(page)


@pytest.mark.parametrize(
    "page",
    [
        '<a href="https://arxiv.org/abs/2308.10248">a paper</a>',
        '<link rel="canonical" href="https://docs.example/page.html">',
        '<script src="../assets/a.js"></script>',
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>',
        "<style>a { background: url(data:image/svg+xml,x) }</style>",
        "<p>See https://example.org, or url of it</p>",
    ],
)
def test_a_page_may_link_to_other_hosts(page: str) -> None:
    assert loads(page) == []


def test_style_sheets_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("a { background: url('https://images.example/a.png') }")
    (tmp_path / "b.html").write_text("<p>")
    assert [*loads_of_site(tmp_path)] == ["a.css: https://images.example/a.png"]
