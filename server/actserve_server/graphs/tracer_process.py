"""Tracing in a process beside the server, which is started on demand and ended when it is idle.

If it dies, the graph that it was at fails and nothing else does: the next one starts it again.
"""

import asyncio
import sys
from contextlib import suppress

import structlog

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.graphs import trace_frames as frames
from actserve_server.graphs.trace_frames import FrameKind
from actserve_server.graphs.traced_graph import Progress, TracedGraph, TraceRequest

RETRY_AFTER_S = 5.0

log = structlog.get_logger("actserve.graphs")


class TracerProcess:
    """Implements `actserve_server.graphs.traced_graph.Tracer`."""

    def __init__(
        self,
        model_path: str,
        *,
        revision: str | None,
        memory_bytes: int,
        max_seconds: float,
        idle_s: float,
    ) -> None:
        """`max_seconds` is what one graph may take, the loading of the model included."""
        self._command = [
            *(sys.executable, "-m", "actserve_server.graphs.tracer_main", model_path),
            *("--memory-bytes", str(memory_bytes)),
            *(("--revision", revision) if revision else ()),
        ]
        self._max_seconds = max_seconds
        self._idle_s = idle_s
        self._process: asyncio.subprocess.Process | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._ended: set[asyncio.Task[object]] = set()
        """Of processes whose pipes are being closed."""

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    async def trace(self, request: TraceRequest, progress: Progress) -> TracedGraph:
        if self._ending is not None:
            self._ending.cancel()
        done = False
        try:
            async with asyncio.timeout(self._max_seconds):
                graph = await self._answered(request, progress)
            done = True
            return graph
        except TimeoutError:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the graph was not done after {self._max_seconds:g} s, which is all that it may "
                "take; lower max_feature_nodes, or shorten the prompt",
                field=("settings", "max_feature_nodes"),
                metadata={"limit": self._max_seconds},
            ) from None
        except ActserveError:
            done = True
            raise
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            log.error("tracer", ok=False, reason=type(error).__name__)
            raise ActserveError(
                Reason.ENGINE_DEAD,
                "the process that traces has died, perhaps for want of memory; the next graph "
                "starts it again",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        finally:
            # One that was left in the middle would answer the next request with this graph.
            if done:
                self._ending = asyncio.get_running_loop().call_later(self._idle_s, self._end)
            else:
                self._end()

    async def close(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._end()
        await asyncio.gather(*self._ended, return_exceptions=True)

    async def _answered(self, request: TraceRequest, progress: Progress) -> TracedGraph:
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(frames.write_request(request))
        await process.stdin.drain()
        while True:
            kind, size = frames.header(await process.stdout.readexactly(frames.HEADER.size))
            body = await process.stdout.readexactly(size)
            match kind:
                case FrameKind.PROGRESS:
                    progress(*frames.read_progress(body))
                case FrameKind.GRAPH:
                    return await asyncio.to_thread(frames.read_graph, body, request)
                case FrameKind.ERROR:
                    raise frames.read_error(body)
                case FrameKind.REQUEST:
                    raise ValueError("an answer that is a request")

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Signals of the terminal are the server's to act on.
                start_new_session=True,
            )
            log.info("tracer", started=self._process.pid)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        closing = asyncio.get_running_loop().create_task(process.communicate())
        self._ended.add(closing)
        closing.add_done_callback(self._ended.discard)
