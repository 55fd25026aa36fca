"""Each example finds in SmolLM2 what its page says; its own check would say if it did not.

With a folder in `ACTSERVE_PICTURES` the pictures of the pages are drawn there.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from examples import (
    attribution_of_facts,
    counting_characters,
    features_of_a_text,
    injected_thoughts,
    planning_ahead,
    what_a_row_knows,
)
from tests.integration.conftest import Served


@pytest.mark.parametrize(
    ("example", "picture"),
    [
        (counting_characters, "counting-characters.svg"),
        (features_of_a_text, "features-of-a-text.svg"),
        (injected_thoughts, "injected-thoughts.svg"),
        (planning_ahead, "planning-ahead.svg"),
        (what_a_row_knows, "what-a-row-knows.svg"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_an_example_finds_what_it_says(served: Served, example: Any, picture: str) -> None:
    found = example.measure(served.client)
    print(found)
    if folder := os.environ.get("ACTSERVE_PICTURES"):
        example.draw(found, Path(folder) / picture)
    found.check()


def test_what_a_graph_names_costs_an_answer_most(served: Served) -> None:
    """Two facts and small graphs, of which the page has ten and larger ones."""
    found = attribution_of_facts.measure(served.client, attribution_of_facts.FACTS[:2], nodes=80)
    print(found)
    found.check()
