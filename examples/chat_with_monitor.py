r"""A chat server whose answers a monitor watches, which says politely where one was stopped.

    python examples/chat_with_monitor.py --monitor rude
    curl -N localhost:8080/chat -d \
      '{"user": "user-7", "messages": [{"role": "user", "content": "Hello"}]}'

It answers in lines of JSON as they are written, `{"text": ...}` and last `{"done": ...}`, where
`done` is "stop", "length" or "withheld". The monitor is one that you have fitted, as
docs/monitors.md says; its upper level has `Stop()`. Needs nothing but the client.
"""

import argparse
import json
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import actserve

SORRY = "I am sorry, I would rather not go on with this. Is there something else I can help with?"
BUSY = "I am sorry, I cannot answer right now. Please try again in a moment."
MAX_BODY_BYTES = 1 << 18
MAX_TOKENS = 400

log = logging.getLogger("chat")


def answer(
    client: actserve.Client, monitor: str, messages: Sequence[Mapping[str, Any]], user: str
) -> Generator[dict[str, Any], None, None]:
    """What is said to the user, piece by piece, and last why it ended."""
    stream = client.stream(
        actserve.Conversation(messages), max_tokens=MAX_TOKENS, monitors=monitor, end_user=user
    )
    with closing(stream):  # Who leaves early stops the model, too.
        for event in stream:
            match event:
                case actserve.Tokens(text=text) if text:
                    # The monitor has a level that stops, so a token comes once it was scored.
                    yield {"text": text}
                case actserve.Alert():
                    log.warning("%s above %s level: %.3g", event.monitor, event.level, event.score)
                case actserve.SampleFinished(finish_reason="monitor"):
                    # What was said stays said; nothing after it has left the server.
                    yield {"text": f"\n\n{SORRY}"}
                    yield {"done": "withheld"}
                case actserve.SampleFinished(finish_reason=reason):
                    yield {"done": reason}
                case _:
                    pass


def checked(body: bytes) -> tuple[list[dict[str, Any]], str]:
    """The messages of a request and who asks. Raises `ValueError`."""
    asked = json.loads(body)
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise ValueError('send {"user": ..., "messages": [{"role": ..., "content": ...}]}')
    user = asked.get("user", "")
    if not isinstance(user, str) or not 0 < len(user.encode()) <= 256:
        raise ValueError("user is an id of 1 to 256 bytes")
    return asked["messages"], user


def handler(client: actserve.Client, monitor: str) -> type[BaseHTTPRequestHandler]:
    """What handles the requests of one server."""

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            if self.path != "/chat" or not length.isdigit() or int(length) > MAX_BODY_BYTES:
                self._begin(404 if self.path != "/chat" else 413)
                return
            try:
                messages, user = checked(self.rfile.read(int(length)))
                pieces = answer(client, monitor, messages, user)
                first = next(pieces)
            except (ValueError, actserve.InvalidRequest) as error:
                self._begin(400)
                self._send({"error": str(error)})
                return
            except actserve.ActserveError as error:
                # Without the monitor there is no answer: never one that was not watched.
                log.error("no answer: %s", error)
                self._begin(503)
                self._send({"text": BUSY})
                return
            self._begin(200)
            try:
                self._send(first)
                for piece in pieces:
                    self._send(piece)
            except actserve.ActserveError as error:
                log.error("the answer broke off: %s", error)
                self._send({"text": f"\n\n{BUSY}"})
                self._send({"done": "error"})
            except ConnectionError:  # The user has left.
                pass
            finally:
                pieces.close()

        def _begin(self, status: int) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/x-ndjson")
            self.end_headers()

        def _send(self, piece: Mapping[str, Any]) -> None:
            self.wfile.write(json.dumps(piece).encode() + b"\n")
            self.wfile.flush()

    return Chat


def server(client: actserve.Client, monitor: str, port: int) -> ThreadingHTTPServer:
    """A chat server on this machine; its monitor is there and can stop, or `ValueError`."""
    upper = client.monitors.get(monitor).upper
    if upper is None or upper.action != "stop":
        threshold = upper.threshold if upper else 2.5
        raise ValueError(
            f"{monitor} stops nothing; "
            f"actserve monitors update {monitor} --upper {threshold:.6g},stop,flag"
        )
    return ThreadingHTTPServer(("127.0.0.1", port), handler(client, monitor))


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat server whose answers a monitor watches.")
    parser.add_argument("--server", default="localhost:50051", help="address of actserve")
    parser.add_argument("--monitor", required=True, help="the monitor that stops")
    parser.add_argument("--port", type=int, default=8080, help="where to listen")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    with actserve.Client(options.server) as client:
        try:
            chat = server(client, options.monitor, options.port)
        except (ValueError, OSError, actserve.ActserveError) as error:
            parser.error(str(error))
        with chat:
            log.info("http://127.0.0.1:%d/chat", chat.server_port)
            chat.serve_forever()


if __name__ == "__main__":
    main()
