"""What bfloat16 may do to a row: bounds in units that are computed for each row, so that they hold
on every processor.

Correct implementations round different things: AMX and AVX-512 multiply in bfloat16, AVX2 in
float32; one norms the rounded sum of a stream, another the exact one. Comparing the worst rows of
two of them compares the extremes of two samples of noise. What rounding does to one row depends on
that row, and can be measured without any bfloat16:

    The unit of a row is how far it moves, in float32, when every element of the input of every
    layer moves by one unit in the last place of bfloat16 (an ulp), up or down at random; and, since
    the row itself is rounded as well, when its own elements do.

An attention sink, whose stream grows to 22,000 and shrinks again, or a token whose attention is
nearly tied between two others, has a large unit, and any implementation that keeps a stream in
bfloat16 errs there. Rounding to nearest moves an element by 0.29 ulp (root mean square), and a
layer rounds about ten more tensors than its input, most of them with less effect; so a correct row
is about half a unit off.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import nn

from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import SiteRows
from tests.integration.reference import Reference

DRAWS = 4
"""Random moves that a unit is the root mean square of."""


def ulp(rows: np.ndarray) -> np.ndarray:
    """One unit in the last place of bfloat16, of every element."""
    _, exponents = np.frexp(rows)
    return np.ldexp(np.float32(1), exponents - 8)  # 8 significant bits.


@contextmanager
def inputs_moved(layers: Iterable[nn.Module], draw: int) -> Iterator[None]:
    """Inside, a float32 model of transformers moves the input of every layer by one ulp."""
    generator = torch.Generator().manual_seed(draw)

    def move(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        signs = torch.randint(0, 2, hidden.shape, generator=generator) * 2 - 1
        # In place, so that the residual has it too.
        hidden.add_(signs * torch.from_numpy(ulp(hidden.numpy())))

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(move, with_kwargs=True))
        yield


def units(reference: Reference, token_ids: Sequence[int], exact: SiteRows) -> SiteRows:
    """The unit of every row of `exact`, which the float32 `reference` computed, float64 [rows]."""
    squares: dict[Site, np.ndarray] = {
        site: np.square(ulp(rows)).sum(1, dtype=np.float64) for site, rows in exact.items()
    }
    logits = len(exact.get(Site(HookPoint.LOGITS), ()))
    for draw in range(DRAWS):
        with inputs_moved(reference.layers, draw):
            moved = reference.rows(token_ids, sites=exact, logits=logits)
        for site, rows in moved.items():
            squares[site] += np.square(rows - exact[site]).sum(1, dtype=np.float64) / DRAWS
    return {site: np.sqrt(total) for site, total in squares.items()}


@dataclass(frozen=True, slots=True)
class Deviations:
    """How the rows of one site differ from those of float32; one number for each row."""

    units: np.ndarray
    """The distance, in units of the row."""
    gain: np.ndarray
    """How much longer the row is along the exact one, as a share of it."""


def deviations(rows: np.ndarray, exact: np.ndarray, unit: np.ndarray) -> Deviations:
    error = rows.astype(np.float64) - exact
    gain = np.einsum("ij,ij->i", error, exact) / np.square(exact).sum(1, dtype=np.float64)
    return Deviations(np.linalg.norm(error, axis=1) / unit, gain)


MEDIAN = 1.5
"""Units that half of the rows of a site are off by at most. Correct: 0.3 to 0.8, by site; a kernel
that cuts bits off instead of rounding them makes twice the error in what it stores. Of rows that
are another token's or layer's, half are off by tens."""
NEARLY_ALL, QUANTILE = 4.0, 0.999
"""Units that this share of the rows of a hook point is off by at most (of fewer than 1,000, all but
one). In their own units the rows of a hook point are alike, and this quantile of tens of thousands
of them is stable: 1.1 to 2.8 for each hook point, in two models and two implementations of each."""
ANY = 12.0
"""Units that any row is off by. A unit is measured by a few draws and so may be too small by half;
and where attention is nearly tied, a small move may flip it. 5.0 was seen in a million."""
GAIN = 2.0**-8
"""The median gain of a hook point at most: that of a factor which is off by half an ulp, as is
Gemma's scale of embeddings, which is rounded. Other rounding goes either way and has no median over
all layers; at one layer it has, of up to half a percent. So a factor at one layer alone, or in one
prompt, is left to the tests in float32."""


def faults(found: Mapping[Site, Deviations]) -> list[str]:
    """In what way these rows are not those of a correct implementation in bfloat16."""
    said = []
    for site, each in found.items():
        if not (middle := np.median(each.units)) <= MEDIAN:
            said.append(f"{site}: the median row is {middle:.2f} units off; the limit is {MEDIAN}")
    for hook in dict.fromkeys(site.hook_point for site in found):
        of_hook = [each for site, each in found.items() if site.hook_point is hook]
        off = np.concatenate([each.units for each in of_hook])
        nearly_all = np.sort(off)[-1 - ceil((1 - QUANTILE) * len(off))]
        if not nearly_all <= NEARLY_ALL:
            said.append(
                f"{hook}: {QUANTILE:.1%} of rows are up to {nearly_all:.2f} units off; "
                f"the limit is {NEARLY_ALL}"
            )
        if not off.max() <= ANY:
            said.append(f"{hook}: one row is {off.max():.2f} units off; the limit is {ANY}")
        gain = np.median(np.concatenate([each.gain for each in of_hook]))
        if not abs(gain) <= GAIN:
            said.append(f"{hook}: the median row is {gain:+.2%} longer; the limit is {GAIN:.2%}")
    return said


def wrong_sums(rows: SiteRows, layer_count: int) -> list[str]:
    """Where the stream is not the sum of what came before, rounded to bfloat16 once.

    Every add makes one number of two bfloat16 numbers, so it is half an ulp off at most: no
    tolerance is needed. The terms are numbers of bfloat16 because a tap is opaque to the compiler,
    which might else add what it has not rounded yet.
    """
    said = []
    stream = Site(HookPoint.EMBEDDING)
    for layer in range(layer_count):
        pre, attn, mid, mlp, post = (Site(hook, layer) for hook in ADDS)
        for terms, total in (((stream,), pre), ((pre, attn), mid), ((mid, mlp), post)):
            exact = np.sum([rows[term] for term in terms], axis=0, dtype=np.float64)
            off = np.abs(exact - rows[total]) / ulp(rows[total])
            if not off.max() <= 0.5:
                named = " + ".join(map(str, terms))
                said.append(f"{total} is {off.max():.2f} ulp off from {named}; rounding allows 0.5")
        stream = post
    return said


ADDS = (
    HookPoint.RESID_PRE,
    HookPoint.ATTN_OUT,
    HookPoint.RESID_MID,
    HookPoint.MLP_OUT,
    HookPoint.RESID_POST,
)
"""A layer's stream and what is added to it, in order."""
