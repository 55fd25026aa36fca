"""What a call changed in what the model computes, for the audit log."""

from dataclasses import dataclass, field

MAX_CHANGES = 256
"""Of a call that are told one by one. A call of many items may have thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An intervention. Equal ones of a call are one."""

    sites: tuple[str, ...]
    operation: str
    vectors: tuple[tuple[str, str], ...]
    """What it takes them for, and the SHA-256 of the elements as float32, little-endian."""
    numbers: tuple[tuple[str, float], ...]
    """Such as its coefficient, or its bounds."""
    heads: tuple[int, ...] = ()
    conditional: bool = False


@dataclass(slots=True, kw_only=True)
class Receipt:
    """What the reports of an intervention came to, over all runs that finished."""

    runs: int = 0
    rows: int = 0
    changed_rows: int = 0
    reused_rows: int = 0
    mean_relative_change: float | None = None
    """Over all rows."""

    def add(
        self, rows: int, changed_rows: int, reused_rows: int, mean_relative_change: float | None
    ) -> None:
        if mean_relative_change is not None and rows:
            before = (self.mean_relative_change or 0.0) * self.rows
            mean = (before + mean_relative_change * rows) / (self.rows + rows)
            self.mean_relative_change = mean
        self.runs += 1
        self.rows += rows
        self.changed_rows += changed_rows
        self.reused_rows += reused_rows


@dataclass(slots=True)
class CallChanges:
    """Those of one call."""

    made: dict[Change, Receipt] = field(default_factory=dict)
    left_out: int = 0
    """Reports of those beyond `MAX_CHANGES`."""

    def receipt(self, change: Change) -> Receipt:
        """Where what the reports of a change say is added."""
        if change not in self.made and len(self.made) >= MAX_CHANGES:
            self.left_out += 1
            return Receipt()
        return self.made.setdefault(change, Receipt())
