"""Tokens as people see them: blanks and invisible characters are made visible, lengths bounded."""

import unicodedata

_MARKS = {" ": "·", "\n": "⏎", "\t": "⇥"}
_INVISIBLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}
"""Categories of Unicode: controls, marks of direction and width, unassigned, private, half a
surrogate pair, and separators. Shown as they are they would hide, or move, what is around them."""

_COMMANDS = {"Cc", "Cs", "Zl", "Zp"}
"""Categories that command a terminal, or that it cannot print."""
_TURNS = {*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}
"""Marks that turn the direction of what follows."""

TOKEN_CHARACTERS = 24
"""Of a token, as shown; a token of a usual vocabulary is shorter."""
PROSE_CHARACTERS = 4000
"""Of a text, as shown: about two pages."""


def visible(token: str, limit: int = TOKEN_CHARACTERS) -> str:
    """A token in which a space is ·, a line break ⏎ and a tab ⇥, and what else is invisible is an
    escape as Python writes it, such as \\u200b; cut to `limit` characters."""
    # One more than fits, so that what is cut ends in a mark.
    shown = "".join(_MARKS.get(each) or _escaped(each) for each in token[: limit + 1])
    # A combining mark would sit on whatever comes before.
    if shown and unicodedata.category(shown[0]).startswith("M"):
        shown = f"◌{shown}"
    return cut(shown, limit)


def prose(text: str, limit: int = PROSE_CHARACTERS) -> str:
    """A text to read: spaces stay, line breaks are marked with ⏎ and stay, and what else is
    invisible is escaped. Of a longer one, as much as `limit` says, and how much is left out."""
    shown = "".join(
        "⏎\n" if each == "\n" else each if each == " " else _MARKS.get(each) or _escaped(each)
        for each in text[:limit]
    )
    beyond = len(text) - limit
    return shown + (f" … ({beyond} more characters)" if beyond > 0 else "")


def caption(text: str, limit: int = 60) -> str:
    """A name to read, on one line, and of at most so many characters."""
    return cut(prose(text, limit + 1).replace("\n", ""), limit)


def harmless(text: str) -> str:
    """A text as it is, with its line breaks and tabs, but in which no character commands a
    terminal or turns what follows: those are escapes, such as \\x1b. Of whatever length."""
    return "".join(
        _escape(each)
        if each in _TURNS or (each not in "\n\t" and unicodedata.category(each) in _COMMANDS)
        else each
        for each in text
    )


def cut(text: str, limit: int) -> str:
    """A text of at most so many characters, which ends in … where it was longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    return _escape(character)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
