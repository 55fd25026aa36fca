"""What networks of probes make of captured rows, beside the model, as `domain/probe_networks.py`
defines it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from actserve_server.domain.blocks import blocks
from actserve_server.engine.forms import OutputsForm
from actserve_server.engine.vllm.bank import HeldVectors, VectorBank
from actserve_server.engine.vllm.layout import SiteKey


@dataclass(frozen=True, slots=True, eq=False)
class RunOutputs:
    """What one of a run's captures gives in place of rows, and where its vectors are."""

    form: OutputsForm
    blocks: tuple[HeldVectors, ...]
    """In the order of the form's."""


class NetworkRows:
    """Takes the rows of a step's tokens, site by site, in the order in which a pass reaches them.

    What is added up is a number for each token and each row of the groups' matrices, never a row.
    """

    def __init__(
        self, outputs: RunOutputs, bank: VectorBank, widths: Mapping[SiteKey, int]
    ) -> None:
        """`widths` are those of rows, site by site."""
        self._outputs = outputs
        self._bank = bank
        self._reads = _reads(outputs.form, widths)
        self._pieces = _pieces(outputs.form)
        self._sizes = outputs.form.rest_sizes
        self._left: set[SiteKey] = set()
        """Sites that the pass has yet to reach."""
        self._sums: list[torch.Tensor] = []
        """Of each group."""

    def take(self, rows: torch.Tensor, site: SiteKey) -> torch.Tensor | None:
        """Takes whole rows of a site. Of the last site of a pass it returns what networks make of
        all of them, float32 [rows, width of `ProbeOutputs`]."""
        # As they lie now: an upload between two steps may have moved them.
        *matrices, rest = (self._bank.rows(block) for block in self._outputs.blocks)
        parts = rest[0].split(self._sizes)
        if not self._left:
            self._left = set(self._reads)
            firsts = parts[: len(matrices)]
            self._sums = [first.expand(len(rows), -1).clone() for first in firsts]
        self._left.remove(site)
        for group, columns in self._reads[site]:
            # In blocks, since 16-bit rows become float32 ones.
            matrix = matrices[group][:, columns].T
            for block in blocks(*rows.shape):
                self._sums[group][block].addmm_(rows[block].float(), matrix)
        return None if self._left else self._outputs_of(parts[len(matrices) :])

    def _outputs_of(self, outer: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of the sums, and what reads hidden layers."""
        sums, self._sums = self._sums, []
        following = iter(outer)
        parts: list[torch.Tensor] = []
        for piece in self._pieces:
            part = sums[piece.group][:, piece.rows]
            if piece.is_hidden:
                maps, bias = next(following), next(following)
                # In place, since nothing else reads the units.
                part = torch.addmm(bias, part.clamp_(min=0), maps.view(len(bias), -1).T)
            parts.append(part)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Sums of a group that are outputs, or units of a hidden layer."""

    group: int
    rows: slice
    is_hidden: bool


def _reads(
    form: OutputsForm, widths: Mapping[SiteKey, int]
) -> Mapping[SiteKey, list[tuple[int, slice]]]:
    """By site the groups that read it, each with the columns of its matrix."""
    reads: dict[SiteKey, list[tuple[int, slice]]] = {}
    for group, sites in enumerate(form.groups):
        end = 0
        for site in map(SiteKey.of, sites):
            start, end = end, end + widths[site]
            reads.setdefault(site, []).append((group, slice(start, end)))
    return reads


def _pieces(form: OutputsForm) -> list[_Piece]:
    """In the order of the outputs; those of networks without a hidden layer that lie together are
    one."""
    pieces: list[_Piece] = []
    ends = [0] * len(form.groups)
    for each in form.networks:
        start = ends[each.group]
        ends[each.group] = end = start + each.rows
        last = pieces[-1] if pieces else None
        if last and not last.is_hidden and not each.units and last.group == each.group:
            pieces[-1] = _Piece(each.group, slice(last.rows.start, end), is_hidden=False)
        else:
            pieces.append(_Piece(each.group, slice(start, end), is_hidden=bool(each.units)))
    return pieces
