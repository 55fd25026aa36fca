"""What becomes of a block of code in a document, by its language.

- `python` runs, in one namespace for each document. Where a statement ends in a comment such as
  `# float32 [tokens, width]`, it must be an array of as many dimensions; numbers hold too.
- `sh` runs line by line: commands of `actserve` as they are; of a command that starts a server the
  options are read.
- `yaml` begins with a comment that names a file, by which the server's own code reads it.

A comment before a block, `<!-- not run: why -->`, says that it does nothing of this.
"""

import ast
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sybil import Document, Example
from sybil.evaluators.python import pad
from sybil.parsers.markdown import CodeBlockParser
from typer.testing import CliRunner

from actserve.cli.app import app
from actserve.cli.sweep_spec import read_spec
from actserve_server import config
from actserve_server.monitors import webhook_addresses
from actserve_server.nla.pair_families import FAMILIES
from actserve_server.nla.schema import profile
from actserve_server.nla.sidecar import Half, merge, read
from actserve_server.rpc.transport.access_tokens import TokenFile
from actserve_server.rpc.transport.client_certificates import CertificateFile
from actserve_server.rpc.transport.tenant_file import TenantFile

FENCE = re.compile(r"^```(.*)\n(?:.*\n)*?```$", re.MULTILINE)
SHOWN = "_shown"
"""The name of what the last statement evaluated to."""
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*\Z")
_SHAPE = re.compile(r"  # (?:(float32|int64) )?\[([\w, ]+)\](?:$|[:;])")


def why_not_run(text: str, start: int) -> str | None:
    """The reason why the block of a document that starts there is not run."""
    found = _NOT_RUN.search(text[:start])
    return found and found[1]


class Blocks:
    """The blocks of a document; those that are not run are left out."""

    def __init__(self, path: Path, environment: pytest.MonkeyPatch) -> None:
        self._environment = environment
        languages = {"python": self._python, "sh": self._shell, "yaml": self._yaml}
        self.document = Document.parse(
            str(path), *(CodeBlockParser(name, run) for name, run in languages.items())
        )

    def __iter__(self) -> Iterator[Example]:
        for example in self.document:
            if not why_not_run(self.document.text, example.start):
                yield example

    def _python(self, example: Example) -> None:
        # So that a traceback names the line of the document.
        source = pad(example.parsed, example.line + example.parsed.line_offset)
        lines = source.splitlines()
        for statement in ast.parse(source, example.path).body:
            shape = _SHAPE.search(lines[(statement.end_lineno or 0) - 1])
            run(statement, example)
            if shape:
                value = example.namespace[SHOWN]
                check_shape(value, shape[1], shape[2].split(", "), lines[statement.lineno - 1])

    def _shell(self, example: Example) -> None:
        for line in example.parsed.replace("\\\n", " ").splitlines():
            match shlex.split(line, comments=True):
                case []:
                    pass
                case ["export", setting]:
                    name, _, value = setting.partition("=")
                    self._environment.setenv(name, os.path.expandvars(value))
                case ["actserve", *arguments]:
                    result = CliRunner().invoke(app, arguments)
                    assert result.exit_code == 0, f"{line}\n{result.output}"
                case ["actserve-server", "serve" | "doctor", *options]:
                    config.load(options)
                case ["make", "serve", *variables]:
                    values = dict(each.split("=", 1) for each in variables)
                    config.load(shlex.split(values.get("ARGS", "")))
                case _:
                    pytest.fail(f"{line!r} cannot be run here; say `not run` and why")

    def _yaml(self, example: Example) -> None:
        name = example.parsed.split()[1].rstrip(",")
        path = Path(name)
        path.write_text(example.parsed)
        CHECKS[name](path, example.namespace)


def run(statement: ast.stmt, example: Example) -> None:
    """Runs a statement of a block; what it evaluates to is in the namespace, as `SHOWN`."""
    if isinstance(statement, ast.Expr | ast.Assign):
        shown = ast.Name(SHOWN, ast.Store())
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        assign = ast.Assign([shown, *targets], statement.value)
        statement = ast.fix_missing_locations(ast.copy_location(assign, statement))
    module = ast.Module([statement], type_ignores=[])
    exec(compile(module, example.path, "exec"), example.namespace)  # noqa: S102


def check_shape(value: Any, element_type: str | None, dimensions: Sequence[str], line: str) -> None:
    """Whether an array, or each of a tuple, is what the comment of a line says."""
    for array in value if isinstance(value, tuple) else (value,):
        shape = np.shape(array)
        assert element_type in (None, str(np.asarray(array).dtype)), line
        assert len(shape) == len(dimensions), f"{line!r} has shape {shape}"
        for size, said in zip(shape, dimensions, strict=True):
            assert not said.isdigit() or size == int(said), f"{line!r} has shape {shape}"


def _check_settings(path: Path, _: Mapping[str, Any]) -> None:
    config.load(["--config", str(path)])


def _check_tokens(path: Path, _: Mapping[str, Any]) -> None:
    TokenFile(path)


def _check_certificates(path: Path, _: Mapping[str, Any]) -> None:
    CertificateFile(path)


def _check_tenants(path: Path, _: Mapping[str, Any]) -> None:
    TenantFile(path)


def _check_webhooks(path: Path, _: Mapping[str, Any]) -> None:
    webhook_addresses.read(path)


def _check_sidecar(path: Path, namespace: dict[str, Any]) -> None:
    """A later block of a document adds to the one before."""
    said = namespace["sidecar"] = merge(namespace.get("sidecar", {}), read(path))
    family = said.get("family", "kitft")
    save_file({"mean": np.zeros(said["d_model"], np.float32)}, "baseline.safetensors")
    profile(merge(FAMILIES[family], {"family": family}, said), Half.AV, path.name)


def _check_sweep(path: Path, _: Mapping[str, Any]) -> None:
    read_spec(path)


CHECKS: Mapping[str, Callable[[Path, dict[str, Any]], None]] = {
    "liking.yaml": _check_sweep,
    "server.yaml": _check_settings,
    "tokens.yaml": _check_tokens,
    "certificates.yaml": _check_certificates,
    "tenants.yaml": _check_tenants,
    "nla_meta.yaml": _check_sidecar,
    "webhooks.yaml": _check_webhooks,
}
