"""Colour scales, the same in HTML, on a terminal and in plots, and the ink that is read on them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_BLUES = ("#f3f6fc", "#b9cdec", "#6f97d2", "#2f5aa8", "#152a5e")
_REDS = ("#f3f6fc", "#f9d9b8", "#ee9a62", "#c4421f", "#6d1209")
_BROWN_TO_BLUE = ("#8a3b0a", "#e9a56b", "#f5f5f5", "#7fa9de", "#1c4a96")


@dataclass(frozen=True)
class Scale:
    """Colours of numbers from `low` to `high`; numbers beyond have the colour of the end."""

    label: str
    """What the numbers are, with their unit."""
    low: float
    high: float
    stops: tuple[str, ...]
    """Colours at equal distances, as #rrggbb."""

    def color(self, value: float) -> str | None:
        """The colour of a number, as #rrggbb; None of NaN."""
        if np.isnan(value):
            return None
        width = self.high - self.low
        share = min(max((value - self.low) / width, 0.0), 1.0) if width else 0.0
        # In steps of 1/64, which no eye tells apart.
        return _between(self.stops, round(share * 64) / 64)


def probability() -> Scale:
    """From white to dark blue."""
    return Scale("probability", 0.0, 1.0, _BLUES)


def surprise() -> Scale:
    """Log probabilities: what is likely is light, what is unlikely dark red."""
    return Scale("log probability", 0.0, -12.0, _REDS)


def change(label: str, largest: float) -> Scale:
    """Zero is light, more is blue and less brown, up to `largest` either way."""
    return Scale(label, -largest, largest, _BROWN_TO_BLUE)


def magnitude(label: str, low: float, high: float) -> Scale:
    """From white to dark blue, between two numbers."""
    return Scale(label, low, high, _BLUES)


@lru_cache(4096)
def ink(color: str) -> str:
    """Black or white, whichever is read better on a colour (WCAG 2.2, relative luminance)."""
    return "#000000" if (luminance(color) + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def luminance(color: str) -> float:
    """The relative luminance of #rrggbb, 0 to 1, as WCAG 2.2 defines it."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (each / 255 for each in bytes.fromhex(color[1:]))
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@lru_cache(4096)
def _between(stops: tuple[str, ...], share: float) -> str:
    colors = np.array([[*bytes.fromhex(stop[1:])] for stop in stops], float)
    at = np.linspace(0, 1, len(stops))
    mixed = [round(float(np.interp(share, at, colors[:, part]))) for part in range(3)]
    return "#" + bytes(mixed).hex()
