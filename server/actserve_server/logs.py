"""Logs on stderr: JSON lines for machines, or columns for a person at a terminal."""

import logging
import sys
import traceback
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor

from actserve_server import traces


def configure(level: str, stream: TextIO | None = None) -> None:
    """Sends structlog's and the standard library's records to `stream` (stderr) from `level` up."""
    out = stream or sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor
    if out.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    else:
        renderer = structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    # It tells at length how it sets itself up; what it has migrated is told by who calls it.
    logging.getLogger("alembic").setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=False,
    )


def _add_trace(_logger: object, _method: str, line: EventDict) -> EventDict:
    """Names the trace of the call that is being served, on whatever is said meanwhile."""
    if (trace_id := traces.trace_id()) is not None:
        line.setdefault("trace_id", trace_id)
    return line


def described(error: BaseException) -> dict[str, object]:
    """What a log line may hold of an exception that nobody foresaw: its type and where it came
    from. Its message may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": f"{type(error).__module__}.{type(error).__qualname__}",
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
