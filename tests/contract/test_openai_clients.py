"""What people call the OpenAI door with gets what the `openai` package of Python gets."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool
from agents.tracing import set_tracing_disabled
from openai.types.responses import ResponseTextDeltaEvent

from tests.contract.openai_door import MODEL, Door, door

pytestmark = pytest.mark.filterwarnings("default")  # vLLM warns of its own affairs.

NODE_FOLDER = Path(__file__).resolve().parents[2] / "client/typescript"
ZERO = {"sites": [{"hook_point": "HOOK_POINT_RESID_POST", "layer": 3}], "zero": {}}
IN_NODE = """
import OpenAI from "openai";

const [baseURL, asked] = process.argv.slice(1);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const fields = JSON.parse(asked);
const whole = await client.chat.completions.create(fields);
const parts = [];
for await (const part of await client.chat.completions.create({ ...fields, stream: true }))
  parts.push(part);
const { model } = fields;
const text = await client.completions.create({ model, prompt: "hello", max_tokens: 5 });
const rows = await client.embeddings.create({ model, input: "hello" });
const models = [];
for await (const each of client.models.list()) models.push(each.id);
const refused = await client.chat.completions
  .create({ ...fields, monitors: ["nobody"] })
  .catch((error) => ({ kind: error.constructor.name, code: error.code, param: error.param }));
console.log(JSON.stringify({ whole, parts, text, rows, models, refused }));
"""


async def test_the_package_of_node_gets_the_same(steered: dict[str, Any]) -> None:
    node = shutil.which("node")
    if node is None or not (NODE_FOLDER / "node_modules/openai").is_dir():
        pytest.skip("Node.js or its package openai is not here; `make lint` brings the package")
    async with door() as opened:
        wanted = await opened.chat(temperature=0, extra=steered)
        told = await _in_node(node, opened, steered)
        (choice,) = told["whole"]["choices"]
        assert choice["message"]["content"] == wanted.choices[0].message.content
        assert told["whole"]["actserve"]["choices"] == wanted.actserve["choices"]
        said = [part["choices"][0]["delta"].get("content") or "" for part in told["parts"]]
        assert "".join(said) == choice["message"]["content"]
        assert told["parts"][-1]["actserve"]["choices"] == wanted.actserve["choices"]
        assert told["models"] == [MODEL]
        assert told["text"]["usage"]["completion_tokens"] == 5
        plain = await opened.client.embeddings.create(model=MODEL, input="hello")
        assert told["rows"]["data"][0]["embedding"] == pytest.approx(plain.data[0].embedding)
        assert told["refused"] == {
            "kind": "NotFoundError",
            "code": "RESOURCE_NOT_FOUND",
            "param": "monitors[0]",
        }


async def _in_node(node: str, opened: Door, steered: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    asked = {"model": MODEL, "messages": messages, "max_tokens": 5, "temperature": 0, **steered}
    program = ["--input-type=module", "--eval", IN_NODE, "--", opened.url, json.dumps(asked)]
    process = await asyncio.create_subprocess_exec(
        node,
        *program,
        cwd=NODE_FOLDER,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()
    return json.loads(printed)


async def test_an_agent_is_steered_and_told_of_its_tools(steered: dict[str, Any]) -> None:
    """By OpenAI's Agents SDK, whole and as a stream."""
    set_tracing_disabled(True)

    @function_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return city

    async with door(tool_call_parser="hermes") as opened:
        model = OpenAIChatCompletionsModel(model=MODEL, openai_client=opened.client)
        texts: list[str] = []
        for extra in ({}, steered):
            settings = ModelSettings(temperature=0, max_tokens=5, extra_body=extra)
            agent = Agent(
                name="agent",
                instructions="You are kind.",
                model=model,
                model_settings=settings,
                tools=[weather],
            )
            whole = await Runner.run(agent, "hello")
            streamed = Runner.run_streamed(agent, "hello")
            deltas = [
                event.data.delta
                async for event in streamed.stream_events()
                if event.type == "raw_response_event"
                and isinstance(event.data, ResponseTextDeltaEvent)
            ]
            assert whole.final_output == streamed.final_output == "".join(deltas)
            assert whole.raw_responses[0].usage.output_tokens == 5
            texts.append(whole.final_output)
        assert texts[0] != texts[1]


@pytest.fixture
def steered() -> dict[str, Any]:
    """The fields of a request that is steered."""
    return {"steering": [ZERO]}
