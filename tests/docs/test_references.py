"""The references of the documentation, which are made from the code, leave nothing out."""

import importlib
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from typer.testing import CliRunner

import actserve
from actserve import v1
from actserve.cli.app import app
from actserve_server import cli, config
from actserve_server.domain.errors import RULES, Reason
from actserve_server.rpc.transport.statuses import CODES
from scripts.docs import api, commands, contract, reasons, settings

ANY_KEYS = "the values by name"
WITHOUT_COLORS = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}


def test_every_public_name_of_the_client_is_on_one_page() -> None:
    text = "\n".join(api.pages().values())
    assert Counter(re.findall(r"(?m)^::: actserve\.(\w+)$", text)) == Counter(actserve.__all__)


def test_a_public_name_is_on_the_page_of_its_module() -> None:
    pages = {
        page.name: [name.name for name in names] for page, names in api.names_by_page().items()
    }
    assert {*pages["clients"]} == {
        *("Client", "AsyncClient", "Stream", "AsyncStream", "Vectors", "AsyncVectors"),
        *("Dictionaries", "AsyncDictionaries", "Features", "AsyncFeatures"),
        *("Monitors", "AsyncMonitors", "MonitorFit", "AsyncMonitorFit", "Alerts", "AsyncAlerts"),
        *("Graphs", "AsyncGraphs", "GraphTrace", "AsyncGraphTrace"),
        *("NlaPairs", "AsyncNlaPairs"),
    }
    assert {"Add", "ExplanationEdit"} <= {*pages["interventions"]}
    assert {"HeadMatrices", "ElementType"} <= {*pages["more"]}


def test_a_class_shows_what_it_has_from_a_class_that_no_page_shows() -> None:
    pages = api.pages()
    (client,) = re.findall(r"::: actserve\.Client\n(.*?)(?=:::|$)", pages["clients"], re.DOTALL)
    assert client.index("'fetch'") < client.index("'explain'")
    assert "inherited_members" not in pages["errors"]


def test_every_setting_has_its_flag_and_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config.load(["--help"])
    flags = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    documented = re.findall(r"\*\*`(--\S+)`\*\* · `(ACTSERVE_\w+)`", settings.page())
    assert [variable for _, variable in documented] == [
        f"ACTSERVE_{name.upper()}" for name in config.Settings.model_fields
    ]
    assert {flag for flag, _ in documented} <= flags


def test_a_setting_has_its_default_and_its_choices() -> None:
    page = settings.page()
    assert "**`--port`** · `ACTSERVE_PORT` · `50051`\n" in page
    assert (
        "**`--max-request-bytes`** · `ACTSERVE_MAX_REQUEST_BYTES` · `33554432` (32 MiB)\n" in page
    )
    assert "`ACTSERVE_ENABLE_PREFIX_CACHING` · on, unless `--no-enable-prefix-caching`\n" in page
    assert "log level: `debug`, `info`, `warning`, `error`\n" in page


def test_every_reason_has_its_code_and_its_metadata() -> None:
    documented = {each.name: each for each in reasons.reasons()}
    assert list(documented) == list(Reason)
    for reason, rule in RULES.items():
        said = documented[reason]
        assert said.code == CODES[rule.kind].name
        if said.metadata != ANY_KEYS:
            assert {*filter(None, said.metadata.split(", "))} == rule.metadata
    assert re.findall(r"(?m)^## (\w+) \{ #\1 \}$", reasons.page()) == list(Reason)


def files() -> dict[str, FileDescriptor]:
    """What the stubs were made from, by the name of the file."""
    names = [path.stem for path in Path(v1.__path__[0]).glob("*_pb2.py")]
    stubs = {name: importlib.import_module(f"actserve.v1.{name}") for name in names}
    return {name.removesuffix("_pb2"): stub.DESCRIPTOR for name, stub in stubs.items()}


@cache
def contract_pages() -> dict[str, str]:
    return contract.pages()


@pytest.mark.parametrize("name", files())
def test_every_declaration_of_the_contract_is_on_the_page_of_its_file(name: str) -> None:
    page, file = contract_pages()[name], files()[name]
    messages, enums = file.message_types_by_name.values(), file.enum_types_by_name.values()
    services = file.services_by_name.values()
    methods = [method.name for service in services for method in service.methods]
    declared = [each.name for each in (*services, *messages, *enums)]
    members = [field.name for message in messages for field in message.fields]
    members += [value.name for enum in enums for value in enum.values]
    assert Counter(re.findall(r"(?m)^## (\w+) \{ #\1 \}$", page)) == Counter(declared)
    assert Counter(re.findall(r"(?m)^### (\w+) \{ #\1 \}$", page)) == Counter(methods)
    assert Counter(re.findall(r"(?m)^\*\*`(\w+)`\*\*", page)) == Counter(members)
    assert not re.search(r"(?m)^:   $", page), "something has no comment"


def test_every_method_is_in_the_index_of_the_contract() -> None:
    index = contract_pages()["index"]
    for name, file in files().items():
        for service in file.services_by_name.values():
            for method in service.methods:
                assert f"[{method.name}]({name}.md#{method.name})" in index


def sections() -> dict[str, str]:
    """The text of each command's section, by its name as it is typed."""
    _, *parts = re.split(r"(?m)^### (.+)\n", commands.page())
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_command_and_option_of_the_client_is_documented() -> None:
    runner = CliRunner(env=WITHOUT_COLORS)

    def commands_of(*name: str) -> list[str]:
        shown = runner.invoke(app, [*name, "--help"]).output
        found = re.findall(r"(?m)^│ (\w[\w-]*) ", shown.partition("Commands")[2])
        return [" ".join((*name, each)) for each in found]

    listed = [each for name in commands_of() for each in commands_of(name) or [name]]
    assert {"fetch", "vectors list"} <= {*listed}
    assert [f"actserve {name}" for name in listed] == [
        name for name in sections() if not name.startswith("actserve-server")
    ]
    for name in listed:
        told = runner.invoke(app, [*name.split(), "--help"]).output
        options = set(re.findall(r"(?m)^│ [* ]*(--[\w-]+)", told))
        assert "--server" in options
        documented = set(re.findall(r"`(--[\w-]+)`", sections()[f"actserve {name}"]))
        assert options - {"--help"} <= documented


def test_every_command_and_option_of_the_server_is_documented(
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = cli.make_parser().format_usage()
    names = re.findall(r"[\w-]+", re.findall(r"\{(.+)\}", usage)[0])
    assert names == [
        name.removeprefix("actserve-server ")
        for name in sections()
        if name.startswith("actserve-server")
    ]
    for name in {*names} - {*commands.SAME_FLAGS}:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        told = capsys.readouterr().out
        assert f"actserve-server {name}" in told
        for option in {*re.findall(r"--[\w-]+", told)} - {"--help"}:
            assert f"`{option}`" in sections()[f"actserve-server {name}"]
