"""The reference of the command lines: `actserve` and `actserve-server`, from what parses them."""

import argparse
import re
from collections.abc import Iterator
from typing import Any

import typer
from rich.text import Text

from actserve.cli.app import app
from actserve_server.cli import make_parser
from scripts.docs.markdown import escaped, table

_EXAMPLE = re.compile(r"\[cyan\](.+)\[/cyan\]", re.DOTALL)

SAME_FLAGS = ("serve", "doctor")
"""Commands that take every option of the server."""

_INTRODUCTION = """\
# Command line

## actserve

Comes with `pip install 'actserve[cli]'`.
"""
_INTRODUCTION_OF_SERVER = """\
## actserve-server

Comes with the server.
"""


def page() -> str:
    """The page: every command of both programs, with its arguments and options."""
    client: Any = typer.main.get_command(app)
    parts = [_INTRODUCTION, f"{_help(client.help)}\n"]
    for name, command in client.commands.items():
        if hasattr(command, "commands"):  # Commands about one thing.
            for each, of_it in command.commands.items():
                parts += _command(f"{name} {each}", of_it)
        else:
            parts += _command(name, command)
    return "\n".join([*parts, _INTRODUCTION_OF_SERVER, *_server(make_parser())])


def _command(name: str, command: Any) -> Iterator[str]:
    """A click command, as typer makes it, with its help and a table of what it takes."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    takes = "".join(f" {_usage(each)}" for each in arguments)
    yield f"### actserve {name}\n"
    yield f"```text\nactserve {name}{takes} [OPTIONS]\n```\n"
    yield f"{_help(command.help)}\n"
    if arguments:
        rows = [(f"`{each.name.upper()}`", _meaning(each)) for each in arguments]
        yield table("argument", "meaning", rows=rows)
    rows = [(_spelling(each), _default(each), _meaning(each)) for each in options]
    yield table("option", "default", "meaning", rows=rows)


def _usage(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _spelling(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return f"{names} `{option.metavar}`" if option.metavar else names


def _default(option: Any) -> str:
    if option.required:
        return "must be given"
    default = option.default
    if option.is_flag or default is None or default == () or callable(default):
        return "-"
    return f"`{default}`"


def _meaning(parameter: Any) -> str:
    meaning = escaped(Text.from_markup(parameter.help or "").plain)
    variable = getattr(parameter, "envvar", None)
    return f"{meaning} Or the variable `{variable}`." if variable else meaning


def _help(text: str | None) -> str:
    """A docstring with rich's markup as Markdown: examples are code, and the rest is text."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n", (text or "").strip()):
        if example := _EXAMPLE.fullmatch(paragraph.strip()):
            parts.append(f"```sh\n{Text.from_markup(example[1]).plain}\n```")
        else:
            parts.append(escaped(Text.from_markup(paragraph).plain))
    # Examples that follow each other are one block.
    return "\n\n".join(parts).replace("\n```\n\n```sh\n", "\n")


def _server(parser: argparse.ArgumentParser) -> Iterator[str]:
    commands: Any = next(each for each in parser._actions if each.dest == "command")
    about = {each.dest: each.help or "" for each in commands._get_subactions()}
    for name, command in dict(commands.choices or {}).items():
        yield f"### actserve-server {name}\n"
        yield f"{_sentence(about[name])}\n"
        if name in SAME_FLAGS:
            yield "Its options are those of the [configuration](configuration.md).\n"
            continue
        rows = [
            (f"`{each.option_strings[0] if each.option_strings else each.dest}`", _told(each))
            for each in command._actions
            if each.dest != "help"
        ]
        yield table("argument", "meaning", rows=rows)


def _told(action: argparse.Action) -> str:
    optional = "" if action.required else " (may be left out)"
    return f"{_sentence(action.help or '')}{optional}"


def _sentence(text: str) -> str:
    return escaped(text[:1].upper() + text[1:])
