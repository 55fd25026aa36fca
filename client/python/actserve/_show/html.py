"""Cards as HTML: a fragment for a notebook or a page, which brings all that it needs.

It has inline styles alone, no script, and takes nothing from elsewhere. Cells have backgrounds of
their own with an ink that is read on them; all else takes the colours of the page, light or dark.
"""

from html import escape

from actserve._show.cards import Card, Cell, HeatMap, Line, Panels, Part, Table
from actserve._show.scales import Scale, ink

_FAINT = "#80808028"
_RULE = "1px solid rgba(128,128,128,.35)"
_MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
_MAP = f"border-collapse:separate;border-spacing:1px;margin:0;font:12px/1.35 {_MONO}"
_TABLE = "border-collapse:collapse;margin:0;font-size:13px"
_LABEL = "font-weight:normal;text-align:right;white-space:nowrap;padding:1px 6px;border:0"
_WORD = "border:0;text-align:center;padding:1px 5px;white-space:nowrap"
_SQUARE = "border:0;padding:0;min-width:14px"
_UPRIGHT = "writing-mode:vertical-rl;transform:rotate(180deg);margin:0 auto"

_LONGEST_WORD = 30
"""Characters of a word that is not broken."""


def page_part(card: Card) -> str:
    """A `div` with all of a card."""
    notes = "".join(f"<div>{escape(note)}</div>" for note in card.notes)
    below = f'<div style="opacity:.75;margin-top:4px">{notes}</div>' if notes else ""
    return (
        '<div class="actserve" dir="ltr" style="font-family:system-ui,sans-serif;font-size:13px;'
        'line-height:1.45;text-align:left">'
        f'<div style="font-weight:600;margin-bottom:4px">{escape(card.title)}</div>'
        f"{''.join(map(_part, card.parts))}{below}</div>"
    )


def _part(part: Part) -> str:
    if isinstance(part, Line):
        return _line(part)
    if isinstance(part, HeatMap):
        return _scrolled(_map(part) + _legend(part.scale))
    if isinstance(part, Panels):
        each = "".join(
            f'<div style="max-width:100%;overflow-x:auto">{_map(one, words=part.words)}</div>'
            for one in part.maps
        )
        legend = _legend(part.maps[0].scale) if part.maps else ""
        more = f"<div>{escape(left)}</div>" if (left := part.left_out(len(part.maps))) else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:14px">{each}</div>{legend}{more}'
    return _scrolled(_table(part))


def _scrolled(content: str) -> str:
    return f'<div style="overflow-x:auto;margin:2px 0 6px">{content}</div>'


def _line(line: Line) -> str:
    label = f'<span style="opacity:.75">{escape(line.label)}</span> ' if line.label else ""
    return (
        f'<div style="margin:2px 0 6px;font:13px/1.7 {_MONO};white-space:pre-wrap;'
        f'overflow-wrap:anywhere">{label}{"".join(map(_token, line.cells))}</div>'
        f"{_legend(line.scale) if line.scale else ''}"
    )


def _token(cell: Cell) -> str:
    # Isolated, so that tokens written from right to left stay in their place.
    style = f"unicode-bidi:isolate;{_colors(cell)}"
    style += ";padding:1px 0;border-radius:2px" if cell.color else ""
    break_after = "<br>" if cell.text.endswith("⏎") else ""
    return (
        f'<span style="{style.rstrip(";")}"{_title(cell)}>{escape(cell.text)}</span>{break_after}'
    )


def _map(heat: HeatMap, *, words: bool = True) -> str:
    """A table with its label, with words in its cells or in their titles alone."""
    head = "".join(
        f'<th scope="col" style="{_LABEL};padding:1px 0;vertical-align:bottom"{_title(each)}>'
        f'<div style="{_UPRIGHT}">{escape(each.text)}</div></th>'
        if not words
        else f'<th scope="col" style="{_LABEL};text-align:center"{_title(each)}>'
        f"{_isolated(each.text)}</th>"
        for each in heat.columns
    )
    rows = "".join(
        f'<tr style="background:none"><th scope="row" style="{_LABEL}"{_title(label)}>'
        f"{_isolated(label.text)}</th>{''.join(_cell(cell, words) for cell in cells)}</tr>"
        for label, cells in zip(heat.rows, heat.cells, strict=True)
    )
    caption = (
        f'<caption style="caption-side:top;text-align:left;padding:0 0 2px;color:inherit;'
        f'opacity:.75">{escape(heat.label)}</caption>'
        if heat.label
        else ""
    )
    return (
        f'<table class="actserve" style="{_MAP}">{caption}<thead><tr style="background:none">'
        f'<td style="border:0"></td>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _cell(cell: Cell, words: bool) -> str:
    if not words:
        color = cell.color or _FAINT
        return f'<td style="background:{color};{_SQUARE}"{_title(cell)}></td>'
    colors = _colors(cell) or f"background:{_FAINT}"
    return f'<td style="{colors};{_WORD}"{_title(cell)}>{_isolated(cell.text)}</td>'


def _table(table: Table) -> str:
    side = (
        f"text-align:left;vertical-align:top;padding:3px 10px 3px 0;border:0;border-bottom:{_RULE}"
    )
    names = "".join(
        f'<th scope="col" style="{side};font-weight:600">{escape(name)}</th>'
        for name in table.columns
    )
    head = f'<thead><tr style="background:none">{names}</tr></thead>' if any(table.columns) else ""
    rows = "".join(
        '<tr style="background:none">' + "".join(_entry(cell, side) for cell in cells) + "</tr>"
        for cells in table.rows
    )
    return f'<table class="actserve" style="{_TABLE}">{head}<tbody>{rows}</tbody></table>'


def _entry(cell: Cell, side: str) -> str:
    text = _isolated(cell.text)
    if cell.color and cell.bar is None:
        text = f'<span style="{_colors(cell)};padding:1px 5px;border-radius:3px">{text}</span>'
    if cell.bar is not None:
        width = round(110 * min(max(cell.bar, 0.0), 1.0))
        text = (
            f'<span style="display:inline-block;width:{max(width, 1)}px;height:9px;'
            f'background:{cell.color or "#6f97d2"};margin-right:6px"></span>{text}'
        )
    # Only a text without blanks is broken anywhere: else the narrowest column would be.
    longest = max(map(len, cell.text.split()), default=0)
    wrap = "anywhere" if longest > _LONGEST_WORD else "normal"
    style = f"{side};white-space:pre-wrap;overflow-wrap:{wrap};max-width:46em"
    return f'<td style="{style}"{_title(cell)}>{text}</td>'


def _legend(scale: Scale) -> str:
    """The colours, with what they mean."""
    stops = ",".join(scale.stops)
    bar = (
        "display:inline-block;width:110px;height:9px;margin:0 6px;"
        f"background:linear-gradient(to right,{stops})"
    )
    return (
        f'<div style="font-size:12px;opacity:.9;margin:2px 0 6px">{escape(scale.label)}: '
        f'{scale.low:g}<span style="{bar}"></span>{scale.high:g}</div>'
    )


def _colors(cell: Cell) -> str:
    return f"background:{cell.color};color:{ink(cell.color)}" if cell.color else ""


def _title(cell: Cell) -> str:
    return f' title="{escape(cell.title)}"' if cell.title else ""


def _isolated(text: str) -> str:
    """A text that is written in its own direction and moves nothing around it."""
    return f"<bdi>{escape(text)}</bdi>" if not text.isascii() else escape(text)
