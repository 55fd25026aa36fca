"""What `make bench` measures, and what its command line chooses."""

import sys
from pathlib import Path

import pytest
from rich.table import Table

from bench import __main__ as command
from bench.__main__ import PARTS, Asked, Part
from bench.growth import Slope


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Asked]]:
    """Parts that take no time, and which of them were asked for."""
    found: list[tuple[str, Asked]] = []

    def part(name: str, fault: str = "") -> Part:
        def measure(asked: Asked, _: object) -> dict[str, int]:
            found.append((name, asked))
            return {"figure": 1}

        return Part(measure, lambda _: [Table(name)], lambda _: [fault] if fault else [])

    parts = {name: part(name) for name in ("taps", "host")}
    monkeypatch.setattr(command, "PARTS", {**parts, "growth": part("growth", "too steep")})
    return found


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    command.main()


def test_one_part_is_measured_where_one_is_named(
    monkeypatch: pytest.MonkeyPatch, measured: list[tuple[str, Asked]]
) -> None:
    run(monkeypatch, "--only", "host", "--runs", "1,16", "--dtype", "float32")
    ((name, asked),) = measured
    assert (name, asked.runs, asked.dtype) == ("host", (1, 16), "float32")


def test_all_parts_are_measured_otherwise_and_a_fault_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
    measured: list[tuple[str, Asked]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--json", str(tmp_path / "figures.json"))
    assert [name for name, _ in measured] == ["taps", "host", "growth"]
    assert ended.value.code == "too steep"
    # The figures are not lost.
    text = (tmp_path / "figures.json").read_text()
    assert '"figure": 1' in text
    assert text == capsys.readouterr().out


def test_a_slope_that_is_too_steep_is_a_fault_of_the_part_growth() -> None:
    steep = Slope("planning", "runs", (1, 2), (1.0, 4.0), exponent=2.0)
    assert PARTS["growth"].faults([steep])


def test_every_part_is_described_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "performance.md").read_text()
    assert [name for name in PARTS if f"--only {name}" not in page] == []
