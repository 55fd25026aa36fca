"""Ends a process of vLLM's with the server that started it.

By itself vLLM's engine does not notice when its server was killed: it waits on, with the model in
memory, and the next server finds no room (vllm-project/vllm#55510).
"""

import logging
import os
import select
import signal
import threading
import time

GRACE_S = 10.0
"""How long the process may take to end in order."""


def end_with(server: int, grace_s: float = GRACE_S) -> None:
    """Ends this process when the process `server` is gone."""
    try:
        watched = os.pidfd_open(server)
    except ProcessLookupError:
        _end(grace_s)
        return
    except OSError as error:  # A sandbox may forbid it.
        logging.getLogger(__name__).warning(
            "cannot watch the server, process %d: %s", server, error
        )
        return

    def wait() -> None:
        end = select.poll()
        end.register(watched, select.POLLIN)
        end.poll()
        _end(grace_s)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def _end(grace_s: float) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)
