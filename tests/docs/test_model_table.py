"""The table of families is that of the server, and what it says is tested is."""

from actserve_server.engine.vllm.families import FAMILIES
from scripts import model_table
from tests.integration import families, quantized


def test_the_page_has_the_table_of_now() -> None:
    text = model_table.PAGE.read_text(encoding="utf-8")
    assert model_table.page(text) == text, "run python scripts/model_table.py"


def test_every_architecture_of_the_table_is_tested_at_the_hook_points_that_it_says() -> None:
    tested = {family.architecture: family.unserved for family in families.FAMILIES}
    told = {name: {*family.unserved} for name, family in FAMILIES.items()}
    assert tested == told


def test_every_form_of_weights_that_is_tested_is_in_the_table() -> None:
    text = model_table.PAGE.read_text(encoding="utf-8")
    rows = [line.lower() for line in text.splitlines() if line.startswith("|") and "✓" in line]
    for form in quantized.FORMATS:
        assert any(form.name in row for row in rows), form.name
