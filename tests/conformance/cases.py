"""The cases, read from `cases/*.yaml`.

    name: what must be so, in words
    ask: {operation, client, ...}     what the driver is asked; `client.targets` are numbers of
                                      servers, `dead` (nobody listens), or whole addresses with
                                      {port} in them; server 0 alone when unset
    server: [...]                     the answers of server 0 (scripted_server.py)
    servers: [[...], [...]]           those of several
    tls: {client_certificate: true}   the servers speak TLS, and ask for a certificate
    without: {python: why}            languages whose clients cannot be asked this
    more: {python: {before: [...], after: [...]}}   answers of server 0 around the others, to what
                                      the client of a language asks besides
    expect:
      result / error / warnings       of the driver's answer; of an error the keys that are named
      attempts: [...]                 what server 0 saw of each: headers, request,
                                      same_request: true (as that of the one before),
                                      left_s: [from, to], lasting (none, or of a day),
                                      after_s: [from, to] since the one before,
                                      cancelled
      attempts_by_server: [[3, 7]]    how many each server saw, from and to

Texts that begin with `~` are regular expressions. Without `attempts` server 0 must have seen one
call for each of its answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actserve_server.domain.errors import RULES
from actserve_server.rpc.transport.statuses import CODES
from tests.conformance.values import load

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    group: str
    name: str
    ask: dict[str, Any]
    expect: dict[str, Any]
    servers: list[list[dict[str, Any]]] = field(default_factory=list)
    tls: dict[str, Any] | None = None
    without: dict[str, str] = field(default_factory=dict)
    more: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"

    def of(self, language: str) -> Case:
        """The case with what the client of a language asks besides."""
        if language not in self.more:
            return self
        more = self.more[language]
        first, *others = self.servers
        whole = [*more.get("before", ()), *first, *more.get("after", ())]
        return replace(self, servers=[whole, *others])


def read_cases() -> list[Case]:
    """All of them, by file."""
    found = [case for path in sorted((FOLDER / "cases").glob("*.yaml")) for case in _read(path)]
    twice = {case.id for case in found if sum(case.id == other.id for other in found) > 1}
    assert not twice, f"two cases are called {twice}"
    return [*found, *_reasons()]


def read_known_failing() -> dict[str, list[str]]:
    """By language, the ids of cases that it is known to fail."""
    return load(FOLDER / "known_failing.yaml") or {}


def _read(path: Path) -> Iterator[Case]:
    held = load(path)
    if "cases" not in held:
        yield from _names(held)
        return
    for given in held["cases"]:
        servers = given.pop("servers", None)
        if "server" in given:
            servers = [given.pop("server")]
        yield Case(
            group=path.stem,
            name=given.pop("name"),
            ask=given.pop("ask"),
            expect=_flattened(given.pop("expect")),
            servers=servers or [],
            tls=given.pop("tls", None),
            without=given.pop("without", {}),
            more=given.pop("more", {}),
        )
        assert not given, f"{path.name} has keys that nobody reads: {sorted(given)}"


def _names(tables: dict[str, Any]) -> Iterator[Case]:
    """One case for each line of the tables of sites and positions."""
    for operation, good, bad, reason in (
        ("parse_site", "sites", "no_sites", "SITE_INVALID"),
        ("parse_positions", "positions", "no_positions", "POSITION_OUT_OF_RANGE"),
    ):
        refused = {"error": {"code": "INVALID_ARGUMENT", "reason": reason}}
        for text, result in tables[good].items():
            ask = {"operation": operation, "text": text}
            yield Case("names", f"{good} {text!r}", ask, {"result": result})
        for text in tables[bad]:
            ask = {"operation": operation, "text": text}
            yield Case("names", f"{good} {text!r} are refused", ask, refused)


def _flattened(value: Any) -> Any:
    """The array of a key `values` beside its neighbours, as drivers answer it."""
    if isinstance(value, list):
        return [_flattened(each) for each in value]
    if not isinstance(value, dict):
        return value
    flat = {key: _flattened(each) for key, each in value.items()}
    # The field of a message that has this name holds something else.
    is_array = flat.get("values", {}).keys() == {"shape", "data"}
    return flat | flat.pop("values") if is_array else flat


def _reasons() -> Iterator[Case]:
    """One case for each reason of the contract: it arrives whole, whatever its code."""
    for reason, rule in RULES.items():
        code = CODES[rule.kind].name
        keys = sorted(rule.metadata) if rule.metadata is not None else ["limit"]
        metadata = {key: f"of {key}" for key in keys}
        status = {
            "code": code,
            "message": f"items[0].prompt: said of {reason}",
            "details": [
                {
                    "error_info": {
                        "reason": str(reason),
                        "domain": "actserve.dev",
                        "metadata": metadata,
                    }
                },
                {
                    "bad_request": {
                        "fieldViolations": [
                            {"field": "items[0].prompt", "description": f"said of {reason}"}
                        ]
                    }
                },
                {"request_info": {"requestId": "r7"}},
                # Longer than a client waits, so that it is told at once.
                {"retry_info": {"retryDelay": "90s"}},
            ],
        }
        yield Case(
            group="reasons",
            name=f"{reason} arrives whole",
            ask={"operation": "unary", "method": "GetModel", "request": {"name": "models/m"}},
            servers=[[{"status": status}]],
            expect={
                "error": {
                    "code": code,
                    "reason": str(reason),
                    "message": f"said of {reason}",
                    "field": "items[0].prompt",
                    "metadata": metadata,
                    "retry_after_s": 90,
                    "request_id": "r7",
                }
            },
        )
