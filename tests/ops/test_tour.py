"""The tour of the code names files that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOMES = [ROOT / "server/actserve_server", ROOT / "client/python/actserve"]


def test_every_file_of_the_tour_is_there() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", (ROOT / "docs/design/tour.md").read_text()))
    files = [path for home in HOMES for path in home.rglob("*.py")]
    paths = [
        f"/{path.relative_to(home)}" for home in HOMES for path in files if home in path.parents
    ]
    missing = {name for name in named if not any(path.endswith(f"/{name}") for path in paths)}
    assert len(named) > 40
    assert missing == set()


def test_no_two_modules_of_the_server_share_a_name() -> None:
    """A file is found by its name, which means one thing."""
    server = HOMES[0]
    names = [path.name for path in server.rglob("*.py") if not path.name.startswith("__")]
    assert {name for name in names if names.count(name) > 1} == set()
