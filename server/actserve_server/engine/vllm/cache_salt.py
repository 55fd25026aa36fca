"""Which cached keys and values a run may share: the `cache_salt` of its vLLM request.

What a run changes at a position moves no key or value before it. So the blocks of its prompt before
the first position that it changes are those of a plain run, and only those from there on are its
own. The salt says all three: what plain runs are salted with, the first changed position, and a
digest of the changes. `scheduler.py` reads it where vLLM names blocks. To a vLLM that knows nothing
of it, it is one text that no other run has, mixed into the first block: then a run shares nothing.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from actserve_server.engine.forms import ConditionForm, Form, Kernel
from actserve_server.engine.vllm.layout import SiteKey
from actserve_server.engine.vllm.wire import Edit, RunTaps

_MARK = "actserve-edits"


@dataclass(frozen=True, slots=True)
class EditedSalt:
    """The salt of a run that changes something."""

    plain: str | None
    """Of blocks before the first changed position: what plain runs are salted with."""
    first: int
    """The first changed position."""
    edits: str
    """A digest of everything that changes keys and values, and of the tenant."""

    @property
    def text(self) -> str:
        return f"{_MARK} {self.first} {self.edits} {self.plain or ''}"

    @staticmethod
    def read(text: str | None) -> "EditedSalt | None":
        """None if this is the salt of a plain run."""
        match (text or "").split(" "):
            case [mark, first, edits, plain] if mark == _MARK:
                return EditedSalt(plain or None, int(first), edits)
        return None


def cache_salt(
    taps: RunTaps | None,
    tenant: str = "",
    *,
    share_plain_prefixes: bool = False,
    failures: int = 0,
) -> str | None:
    """The salt of a run, or None if it shares with every plain run.

    Equal edits share with each other; a run that only captures shares with plain ones, as every run
    does before its first edit. Runs of different tenants share nothing, else one would learn from a
    quick answer, or from how many rows were reused, what another has run; what is plain of all
    tenants may be let share. Edited runs share nothing across `failures`: a step that failed has
    left keys and values that are not edited as its runs' salts say.
    """
    plain = _digest((), (), tenant) if tenant and not share_plain_prefixes else None
    edits = [edit for edit in taps.edits if edit.selection.spans.ranges] if taps else []
    if not edits:
        return plain
    # The spans of a selection by token id hold, of the prompt, the positions of those tokens alone.
    first = min(edit.selection.spans.ranges[0][0] for edit in edits)
    conditions = taps.conditions if taps else ()
    return EditedSalt(plain, first, _digest(edits, conditions, tenant, failures)).text


def _digest(
    edits: Iterable[Edit], conditions: Sequence[ConditionForm], tenant: str, failures: int = 0
) -> str:
    """Of everything that changes keys and values: sites, heads, positions, formula, condition and
    the exact numbers in them."""
    digest = hashlib.sha256(b"actserve-edits-3")
    if tenant:
        digest.update(f"tenant {len(tenant)} {tenant}".encode())
    if failures:
        digest.update(f"failures {failures}".encode())
    for edit in edits:
        ids, vectors = edit.selection.token_ids, edit.form.vectors
        for part in (
            np.array(edit.sites, np.int64),
            np.array(edit.selection.spans.ranges, np.int64),
            np.array([-1] if ids is None else sorted(ids), np.int64),
            np.array(edit.heads, np.int64),
            np.array([edit.form.kernel], np.int64),
            np.array(edit.form.scalars, np.float64),
            np.frombuffer(vectors.digest, np.uint8),
            *_read_parts(edit.form),
            *(() if edit.condition is None else _parts(edit.condition, conditions)),
        ):
            # The shape first, so that no two different sequences of parts hash the same bytes.
            digest.update(repr(part.shape).encode())
            digest.update(part.tobytes())
    return digest.hexdigest()


def _read_parts(form: Form) -> tuple[np.ndarray, ...]:
    """Of features that are read: by what, and which of them."""
    if form.kernel is not Kernel.FEATURES:
        return ()
    reads = None if form.reads is None else form.reads.key
    return np.frombuffer(repr(reads).encode(), np.uint8), np.array(form.columns, np.int64)


def _parts(number: int, conditions: Sequence[ConditionForm]) -> tuple[np.ndarray, ...]:
    form = conditions[number]
    return (
        # Which one it is tells those that are decided together from equal ones.
        np.array([number], np.int64),
        np.array(SiteKey.of(form.site), np.int64),
        np.frombuffer(form.direction.digest, np.uint8),
        np.array([form.bias, form.low, form.high], np.float64),
        np.frombuffer(repr(form.aggregator).encode(), np.uint8),
    )
