"""The metrics page of a server: numbers in Prometheus's text format, read now and then."""

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import typer

DEFAULT_PORT = 9090
"""Where a server has the page, unless its operator says otherwise."""
_TIMEOUT_S = 2.0
_MOST_BYTES = 8 << 20
_SAMPLE = re.compile(
    r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*\})? +(\S+)', re.MULTILINE
)


@dataclass(frozen=True)
class Page:
    """What it said at one time."""

    time_s: float
    """By a clock that only goes forward."""
    values: Mapping[str, float]
    """By name, summed over all labels."""

    def rate(self, name: str, before: "Page | None") -> float | None:
        """How much a counter has grown by each second; None where that is not known."""
        if before is None or name not in self.values or name not in before.values:
            return None
        grown, seconds = self.values[name] - before.values[name], self.time_s - before.time_s
        # A server that was started anew counts from zero.
        return grown / seconds if seconds > 0 and grown >= 0 else None


def checked_url(text: str) -> str:
    """An address of a page. Raises a usage error for any other."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise typer.BadParameter(f"{text!r} is no address such as http://localhost:9090/metrics")
    return text


def read_page(url: str) -> Page | str:
    """The page, or why it cannot be read."""
    try:
        # Of http or https alone, as was checked.
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    return Page(time.monotonic(), parsed(text))


def parsed(text: str) -> dict[str, float]:
    """The numbers of a page by name, summed over all labels."""
    found: dict[str, float] = {}
    for name, number in _SAMPLE.findall(text):
        try:
            found[name] = found.get(name, 0.0) + float(number)
        except ValueError:  # Another text that is no page of metrics.
            continue
    return found
