"""Write the colors of the explorer's scales, scales.css: even steps in OKLCH, with an ink that
is read on each.

python scripts/explorer_scales.py            # `--check` says whether it would differ
"""

import sys
from math import cos, radians, sin
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / ("server/actserve_server/explorer/page/scales.css")

STEPS, SIDE = 12, 6
"""As scales.js has them."""

Color = tuple[float, float, float]
"""Lightness from 0 to 1, chroma, and hue in degrees."""

LIGHT: tuple[Color, Color] = ((0.975, 0.012, 235), (0.38, 0.13, 262))
DARK: tuple[Color, Color] = ((0.27, 0.018, 255), (0.87, 0.11, 205))
LIGHT_SIDES: tuple[Color, Color, Color] = ((0.5, 0.16, 35), (0.975, 0.005, 250), (0.42, 0.13, 255))
DARK_SIDES: tuple[Color, Color, Color] = ((0.76, 0.14, 50), (0.28, 0.008, 255), (0.82, 0.11, 215))


def main() -> None:
    made = style()
    if sys.argv[1:] != ["--check"]:
        FILE.write_text(made, encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != made:
        sys.exit(f"{FILE} is stale: run python scripts/explorer_scales.py")


def style() -> str:
    light, dark = rules(LIGHT, LIGHT_SIDES), rules(DARK, DARK_SIDES)
    return (
        "/* Written by scripts/explorer_scales.py. */\n"
        f":root {{\n{declared(light, dark)}}}\n"
        + "".join(
            f".{name} {{ background: var(--{name}); color: var(--{name}-ink); }}\n"
            for name in light
        )
    )


def rules(ends: tuple[Color, Color], sides: tuple[Color, Color, Color]) -> dict[str, str]:
    """The colors by class, as #rrggbb."""
    low, middle, high = sides
    return {
        **{f"s{n}": rgb(mixed(*ends, n / (STEPS - 1))) for n in range(STEPS)},
        **{f"d{n}": rgb(mixed(low, middle, n / SIDE)) for n in range(SIDE)},
        **{f"d{SIDE + n}": rgb(mixed(middle, high, n / SIDE)) for n in range(SIDE + 1)},
    }


def declared(light: dict[str, str], dark: dict[str, str]) -> str:
    return "".join(
        f"  --{name}: {either(light[name], dark[name])};\n"
        f"  --{name}-ink: {either(ink(light[name]), ink(dark[name]))};\n"
        for name in light
    )


def either(light: str, dark: str) -> str:
    return light if light == dark else f"light-dark({light}, {dark})"


def mixed(one: Color, other: Color, part: float) -> Color:
    lightness, chroma, _ = (a + (b - a) * part for a, b in zip(one, other, strict=True))
    # The hue of what is nearly gray is that of the other end.
    gray = 0.01
    hues = [color[2] for color in (one, other) if color[1] >= gray]
    hue = hues[0] if len(hues) == 1 else one[2] + (other[2] - one[2]) * part
    return lightness, chroma, hue


def rgb(color: Color) -> str:
    """OKLCH in sRGB (Ottosson, "A perceptual color space for image processing", 2020)."""
    lightness, chroma, hue = color
    a, b = chroma * cos(radians(hue)), chroma * sin(radians(hue))
    long, medium, short = (
        (lightness + x * a + y * b) ** 3
        for x, y in (
            (0.3963377774, 0.2158037573),
            (-0.1055613458, -0.0638541728),
            (-0.0894841775, -1.2914855480),
        )
    )
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * encoded(part)):02x}" for part in linear)


def encoded(part: float) -> float:
    part = min(max(part, 0.0), 1.0)
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055


def ink(color: str) -> str:
    """Black or white, whichever stands out more (WCAG 2.2); the lesser contrast of both is 4.5."""
    parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#fff"


if __name__ == "__main__":
    main()
