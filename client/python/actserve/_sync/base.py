"""What every part of the client stands on: the connection, the models, and what they know."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from typing_extensions import Self

from actserve._channel import (
    DEFAULT_CONCURRENCY,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Connection,
    check_method,
    model_name,
)
from actserve._generate_jobs import GenerateJobs
from actserve._resolving import Known, needs_model, resolved, single_token, texts_of_tokens
from actserve._sync.streams import Stream
from actserve._sync.transport import Transport
from actserve.errors import NotFound
from actserve.models import Model, model_from_proto, only_model, query_heads
from actserve.v1 import explanation_service_pb2, model_service_pb2


class Base:
    """A connection to a server."""

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        model: str | None = None,
        tls: bool | grpc.ChannelCredentials | None = None,
        token: str | None = None,
        plaintext_token: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        metadata: Mapping[str, str] | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        traces: bool = False,
        replica_target: str | None = None,
    ) -> None:
        self._connection = Connection.of(
            target,
            model=model,
            tls=tls,
            token=token,
            plaintext_token=plaintext_token,
            timeout=timeout,
            metadata=metadata,
            concurrency=concurrency,
            traces=traces,
            replica_target=replica_target,
        )
        self._transport = Transport(self._connection)
        self._known: model_service_pb2.Model | None = None
        self._token_ids: dict[str, int] = {}

    def __repr__(self) -> str:
        model = f", model={self._connection.model!r}" if self._connection.model else ""
        return f"{type(self).__name__}({self._connection.target!r}{model})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what still runs and closes the connection."""
        self._transport.close()

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """The served models, by name."""
        request = model_service_pb2.ListModelsRequest()
        pages = self._transport.pages("ListModels", request, timeout)
        models = [model for page in pages for model in page.models]
        nlas = self._nlas("models/-", timeout)
        return [model_from_proto(model, nlas) for model in models]

    def model(self, model_id: str, *, timeout: float | None = None) -> Model:
        """One model. Raises `NotFound`."""
        request = model_service_pb2.GetModelRequest(name=model_name(model_id))
        found = (self._transport.response("GetModel", request, timeout)).model
        return model_from_proto(found, self._nlas(found.name, timeout))

    def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        """Makes a call of the contract by the name of its method, such as `GetModel`, with the
        messages of `actserve.v1`, and returns the response: for what has no method of its own here.
        Headers, deadline, retries and errors are those of every other method."""
        check_method(method, request, "message")
        return self._transport.response(method, request, timeout)

    def call_stream(
        self, method: str, request: Message, *, timeout: float | None = None
    ) -> Generator[Any, None]:
        """The same for a method that answers with a stream, such as `Generate`: its messages one by
        one, as they come. Closing it cancels the call. Raises `StreamCutShort` at its end if the
        last one is missing; nothing else of the stream is checked."""
        check_method(method, request, "stream")
        return self._transport.whole(method, request, timeout)

    def call_pages(
        self, method: str, request: Message, *, timeout: float | None = None
    ) -> Generator[Any, None]:
        """The same for a method that answers with pages, such as `ListModels`: its responses one by
        one, each of which is asked for when it is needed."""
        check_method(method, request, "pages")
        return self._transport.pages(method, request, timeout)

    def _nlas(self, parent: str, timeout: float | None) -> list[explanation_service_pb2.Nla]:
        request = explanation_service_pb2.ListNlasRequest(parent=parent)
        pages = self._transport.pages("ListNlas", request, timeout)
        return [nla for page in pages for nla in page.nlas]

    def _served(self, timeout: float | None) -> model_service_pb2.Model:
        """The model that calls are for, as it was a minute ago at most."""
        models = self._transport.models(timeout)
        found = only_model(models, self._connection.model)
        if found is None:
            wanted = self._connection.model or "one, since none was named"
            raise NotFound(
                f"the server serves {', '.join(each.name for each in models) or 'no model'}, not "
                f"{wanted}; name one of them, as in Client(model=...)",
                reason="MODEL_NOT_FOUND",
            )
        return found

    def _resolved(self, asked: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        """What is asked for, with all in its place that only the model knows."""
        texts = texts_of_tokens(asked)
        if not texts and not needs_model(asked):
            return asked
        served = self._served(timeout)
        if served != self._known:  # The server may have been started anew with another model.
            self._known, self._token_ids = served, {}
        ids = self._token_ids  # Another thread may begin anew meanwhile.
        for text in sorted(texts - ids.keys()):
            jobs: GenerateJobs = self._connection.generate_jobs
            tokenized = self._transport.run(jobs.tokenize(text), timeout)
            ids[text] = single_token(text, tokenized)
        known = Known(served.layer_count, query_heads(served), ids, served.name)
        return resolved(asked, known)

    def _stream(self, make: Any, asked: dict[str, Any], timeout: float | None) -> Stream[Any, Any]:
        """The stream of a call that is made of what is asked for: now, so that a mistake is told
        here, unless the model has to be asked first."""
        if not texts_of_tokens(asked) and not needs_model(asked):
            made = make(**asked)

            def opened() -> Any:
                return made

        else:

            def opened() -> Any:
                return make(**self._resolved(asked, timeout))

        return Stream(self._transport, opened, timeout)
