"""What is dear in the forms that an output may be held to: regular expressions, and grammars.

vLLM makes an automaton of each expression, in time that grows with the third power of its size once
its repetitions are written out: `a{1,3000}` takes minutes, and deep nesting ends the process. So
they are measured before vLLM sees them. Of a grammar no size is a bound: some of 200 short rules
take minutes at each token, in which the engine serves nobody.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_PATTERN_SIZE = 512
"""Of one: its characters, each as often as it is repeated. Takes some 50 milliseconds."""
MAX_PATTERNS_SIZE = 4096
"""Of all of a request together."""

_REPEATED = re.compile(r"\{\s*0*(\d*)\s*(?:,\s*0*(\d*)\s*)?\}")
_ENOUGH = 1 << 20
"""No size is told beyond it."""


def patterns(form: Any) -> Iterator[str]:
    """The regular expressions in a form, also where a part of it is JSON in a text."""
    for item in _objects(form):
        for name in ("pattern", "regex"):
            if isinstance(pattern := item.get(name), str):
                yield pattern
        if isinstance(named := item.get("patternProperties"), dict):
            yield from named


def has_grammar(form: Any) -> bool:
    """Whether there is a grammar in it."""
    return any(isinstance(item.get("grammar"), str) for item in _objects(form))


def _objects(form: Any) -> Iterator[dict[str, Any]]:
    left = [form]
    while left:
        item = left.pop()
        if isinstance(item, str) and item.lstrip().startswith(("{", "[")):
            try:
                left.append(json.loads(item))
            except (ValueError, RecursionError):
                continue  # A text, or what vLLM will refuse.
        elif isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            left += item.values()
            yield item


def size(pattern: str) -> int:
    """Its characters, each counted as often as it is repeated, groups as a whole."""
    sums, last, at = [0], 0, 0
    while at < len(pattern):
        character = pattern[at]
        if repeated := _REPEATED.match(pattern, at):
            times = max(_number(each or "1") for each in repeated.groups())
            last, before = min(last * times, _ENOUGH), last
            sums[-1] += max(0, last - before)
            at = repeated.end()
            continue
        if character == "(":
            sums.append(1)
        elif character == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        else:
            last, sums[-1] = 1, sums[-1] + 1
        at = _after(pattern, at)
    return sum(sums)


def _number(digits: str) -> int:
    return int(digits) if len(digits) < len(str(_ENOUGH)) else _ENOUGH


def _after(pattern: str, at: int) -> int:
    """Where the character ends, the escape or the set of characters that begins there."""
    if pattern[at] == "\\":
        return at + 2
    if pattern[at] != "[":
        return at + 1
    at += 1
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1
