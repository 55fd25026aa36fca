"""Shown: what every result has that can be looked at."""

from typing import Any

from actserve._extras import needed


class Shown:
    """A result with a face: HTML in a notebook, a table on a terminal."""

    __slots__ = ()

    def show(self) -> None:
        """Prints it as a table or heat map, in colour where the terminal has some. Needs the extra
        `cli`.

            client.logit_lens("The capital of France is").show()
        """
        needed("rich.console", "tables on a terminal").Console().print(self)

    def __rich__(self) -> Any:
        from actserve._show.every_card import card_of  # Which knows all results.
        from actserve._show.terminal import Printed  # Which needs rich.

        return Printed(card_of(self))

    def _repr_html_(self) -> str:
        from actserve._show.every_card import card_of
        from actserve._show.html import page_part

        return page_part(card_of(self))
