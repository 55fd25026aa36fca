"""vLLM's serving classes and their routes, in front of our engine."""

import logging
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from fastapi import FastAPI, Request
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion import api_router as chat_router
from vllm.entrypoints.openai.chat_completion import serving as chat_serving
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion import api_router as completion_router
from vllm.entrypoints.openai.completion import serving as completion_serving
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models import api_router as models_router
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.lora.request import LoRARequest
from vllm.renderers.online_renderer import OnlineRenderer

from actserve_server.domain.errors import ActserveError


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmServing:
    """What vLLM's server is told by its options of these names."""

    tool_call_parser: str | None = None
    """Whose calls of tools are understood; with one, `tool_choice` may be `auto`."""
    reasoning_parser: str = ""


def vllm_app(
    client: EngineClient, model_id: str, serving: VllmServing, adapters: Iterable[str] = ()
) -> FastAPI:
    """As `vllm serve` makes it, with the routes that the door serves. Adapters are models by their
    ids, as they are there."""
    # The id in the place of the path, which would tell where files are.
    models = OpenAIServingModels(client, [BaseModelPath(name=model_id, model_path=model_id)])
    for number, each in enumerate(adapters, 1):
        models.lora_requests[each] = LoRARequest(each, number, each)
    rendering: dict[str, Any] = {
        "request_logger": None,
        "chat_template": None,
        "chat_template_content_format": "auto",
        "enable_auto_tools": serving.tool_call_parser is not None,
        "tool_parser": serving.tool_call_parser,
        "reasoning_parser": serving.reasoning_parser,
    }
    renderer = OnlineRenderer(client.model_config, client.renderer, **rendering)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.args = Namespace(log_error_stack=False)
    app.state.openai_serving_models = models
    app.state.openai_serving_chat = OpenAIServingChat(
        client, models, "assistant", online_renderer=renderer, **rendering
    )
    app.state.openai_serving_completion = OpenAIServingCompletion(
        client, models, online_renderer=renderer, request_logger=None
    )
    for routes in (chat_router, completion_router, models_router):
        routes.attach_router(app)
    for serving_module in (chat_serving, completion_serving):
        logging.getLogger(serving_module.__name__).addFilter(_is_news)
    init_exception_handler(app)
    app.exception_handler(Exception)(_raised)
    return app


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line is not of a refusal of ours, which has its own. vLLM would log each that comes
    in a stream with all that it came through, which fills logs."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, ActserveError)


async def _raised(_: Request, error: Exception) -> NoReturn:
    """Of what vLLM does not foresee, which it would quote. The door tells what may be told."""
    raise error
