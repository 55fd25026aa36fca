"""Write the table of families and hook points, in docs/models.md, from the server's own table.

python scripts/model_table.py            # `--check` says whether it would differ
"""

import string
import sys
from collections.abc import Iterator
from pathlib import Path

from actserve_server.domain.sites import LAYER_ORDER, HookPoint
from actserve_server.engine.vllm.families import FAMILIES, NOT_LOOKED_FOR

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- made by scripts/model_table.py -->", "<!-- until here -->"

POINTS = (HookPoint.EMBEDDING, *LAYER_ORDER, HookPoint.FINAL_NORM, HookPoint.LOGITS)
TESTED, FOUND = "✓", "found"


def table() -> str:
    """Markdown: a row for each architecture, a letter for each reason, and what letters say."""
    letters: dict[str, str] = {}

    def letter(reason: str) -> str:
        return letters.setdefault(reason, string.ascii_lowercase[len(letters)])

    rows = [("architecture", *(f"`{point}`" for point in POINTS)), ("---",) * (len(POINTS) + 1)]
    for architecture in sorted(FAMILIES, key=str.lower):
        family = FAMILIES[architecture]
        cells = (
            letter(family.unserved[point]) if point in family.unserved else TESTED
            for point in POINTS
        )
        rows.append((f"`{architecture}`", *cells))
    others = (
        letter(NOT_LOOKED_FOR[point]) if point in NOT_LOOKED_FOR else FOUND for point in POINTS
    )
    rows.append(("any other", *others))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *_said(letters)])


def _said(letters: dict[str, str]) -> Iterator[str]:
    for reason, name in letters.items():
        yield f"- {name}: {reason}"


def page(old: str) -> str:
    """The page with the table of now."""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    old = PAGE.read_text(encoding="utf-8")
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page(old), encoding="utf-8")
    elif page(old) != old:
        sys.exit(f"{PAGE} is stale: run python scripts/model_table.py")


if __name__ == "__main__":
    main()
