"""Cells of a sweep as messages."""

from google.rpc import status_pb2

from actserve.v1 import sweep_service_pb2 as pb
from actserve_server.rpc.responses import reports
from actserve_server.rpc.responses.endings import FINISH_REASONS
from actserve_server.steering.sweep_cells import CellResult
from actserve_server.steering.sweep_grid import Cell


def served(wire: pb.RunSweepRequest, cell: Cell, result: CellResult) -> pb.SweepCell:
    """A cell with what came of it."""
    message = _of(wire, cell)
    message.text = result.text
    if result.reason is not None:
        message.finish_reason = FINISH_REASONS[result.reason]
    message.answer_logprobs.extend(result.answer_logprobs)
    message.score_values.extend(result.score_values)
    if result.perplexity is not None:
        message.perplexity = result.perplexity
    if result.repetition is not None:
        message.repetition = result.repetition
    message.interventions.extend(map(reports.report, result.interventions))
    return message


def failed(wire: pb.RunSweepRequest, cell: Cell, status: status_pb2.Status) -> pb.SweepCell:
    """A cell that says why nothing came of it."""
    message = _of(wire, cell)
    message.status.CopyFrom(status)
    return message


def _of(wire: pb.RunSweepRequest, cell: Cell) -> pb.SweepCell:
    return pb.SweepCell(
        prompt_index=cell.prompt,
        prompt_key=wire.prompts[cell.prompt].key,
        variant_index=cell.variant,
        variant_key=wire.variants[cell.variant].key,
        coefficient_index=cell.coefficient,
        site_index=cell.site,
        position_index=cell.position,
    )
