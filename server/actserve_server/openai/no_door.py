"""What stands in the place of the OpenAI door where there is no model of vLLM's: it says so."""

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.http.exchanges import Receive, Scope, Send
from actserve_server.openai.observed import observed
from actserve_server.openai.openai_answer import OpenAiAnswer
from actserve_server.rpc.transport.calls import Call, enter_call


async def no_door(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application for everything below /v1."""
    del receive
    call = enter_call(Call())
    answer = OpenAiAnswer(send, call)
    with observed("other", scope, call, answer, audit=None):
        await answer.refuse(
            ActserveError(
                Reason.FEATURE_NOT_SERVED,
                "this server runs the fake engine, which has no OpenAI API; start one with a "
                "model, such as --model smollm2-135m",
            )
        )
