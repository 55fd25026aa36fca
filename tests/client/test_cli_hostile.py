"""What a server says never commands the terminal that it is printed on."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from actserve import Client, HookPointSupport, Tokenized, TokenSource
from actserve._show.token_text import harmless
from actserve.cli import output

from . import fake_explanations
from . import made_results as made
from .breaking import first
from .conftest import Run
from .fake_server import Model

WIDE = {"COLUMNS": "400"}
HOSTILE = {
    "a clipboard": "\x1b]52;c;cm0=\x07",
    "a cleared screen": "\x1b[2J",
    "a C1 introducer": "\x9b31m",
    "a turned direction": "\u202e",
    "what a terminal drops": "\b\r\v\f",
    "a link": "[link=https://example.org]x[/link]",
    "a closing tag": "[/bold]",
}
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def assert_harmless(printed: str, text: str, times: int) -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed)
    assert printed.count(harmless(text)) >= times


@hostile
def test_models_are_printed_as_they_are_spelled(
    run: Run, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    point = HookPointSupport(8, 0, f"r{text}", "")
    listed = replace(
        made.model(),
        id=f"m{text}",
        architecture=f"a{text}",
        element_type=f"e{text}",
        hook_points={"embedding": point},
    )
    monkeypatch.setattr(Client, "models", lambda self: [listed])
    result = run("models", env=WIDE)
    assert result.exit_code == 0, result.output
    assert_harmless(result.stdout, text, 5)


@hostile
def test_roles_are_printed_as_they_are_spelled(
    run: Run, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    tokenized = Tokenized((1,), (text,), (TokenSource(0, 3, 0, f"role {text}"),))
    monkeypatch.setattr(Client, "tokenize", lambda self, prompt: tokenized)
    result = run("tokenize", "one", env=WIDE)
    assert result.exit_code == 0, result.output
    assert_harmless(result.stdout, text, 1)


@hostile
def test_explanations_are_printed_as_they_are_spelled(run: Run, model: Model, text: str) -> None:
    def edit(event: Any) -> None:
        event.text = f"said {text}"

    edited = first("explanation", edit)
    model.explain = lambda request: iter(edited(fake_explanations.explain(request)))
    result = run("explain", "one", env=WIDE)
    assert result.exit_code == 0, result.output
    assert_harmless(result.stdout, text, 1)


@hostile
def test_errors_are_printed_as_they_are_spelled(run: Run, model: Model, text: str) -> None:
    def fetch(request: Any) -> Iterator[Any]:
        for event in model.honest_fetch(request):
            if event.HasField("item_finished"):
                event.item_finished.status.code = 3
                event.item_finished.status.message = f"because {text}"
            yield event

    model.fetch = fetch
    result = run("fetch", "one", "-s", "embedding", env=WIDE)
    assert result.exit_code == 1
    assert_harmless(result.stderr, text, 1)
    assert "because" in result.stderr


@hostile
def test_a_generated_text_is_harmless_on_a_terminal_and_itself_in_a_pipe(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output.write(f"one\ttwo\n{text}")
    assert capsys.readouterr().out == f"one\ttwo\n{text}"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output.write(f"one\ttwo\n{text}")
    assert capsys.readouterr().out == f"one\ttwo\n{harmless(text)}"


def test_json_holds_no_control_character_and_is_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {"text": "é\x1b[2J\x7f\x9b31m\u2028\ud800"}
    output.print_json(said)
    printed = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\ud800]", printed)
    assert "é" in printed
    assert json.loads(printed) == said
