"""The bar of calls with many prompts: where it is drawn."""

from importlib.machinery import ModuleSpec
from typing import Any, cast

import pytest

from actserve import _progress
from actserve._jobs import Job

JOB = cast(Job[Any], type("Job", (), {"items": 2, "name": "fetching"}))


@pytest.mark.parametrize(
    ("widgets", "hidden"), [(None, True), (ModuleSpec("ipywidgets", None), False)]
)
def test_a_notebook_has_a_bar_only_where_it_can_be_drawn(
    widgets: ModuleSpec | None, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    class Progress:
        def __init__(self, *_: object, disable: bool, **__: object) -> None:
            made.append(disable)

        def __enter__(self) -> "Progress":
            return self

        def __exit__(self, *_: object) -> None: ...

        def add_task(self, *_: object, **__: object) -> int:
            return 0

        def update(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(_progress, "find_spec", lambda name: widgets)
    monkeypatch.setattr("rich.progress.Progress", Progress)
    with _progress.bar(JOB, None) as advance:
        advance(1)
    assert made == [hidden]
