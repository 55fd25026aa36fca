"""Run vLLM's own tests of its OpenAI server against the OpenAI door.

python scripts/vllm_openai_tests.py CHECKOUT URL MODEL FOLDER [arguments of pytest]

CHECKOUT has vLLM's sources, of the release that is installed; URL is that of a server that runs,
such as http://127.0.0.1:8000, MODEL the id that it serves, and FOLDER where the model is, which
`actserve-server prepare-model` prints. The tests are taken as they are, but for the name of their
model and for the server that they would start. What they ask of another model, and what the door
refuses, fails; docs/openai.md says what that is.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

FILES = (
    "chat_completion/test_chat.py",
    "chat_completion/test_chat_logit_bias_validation.py",
    "chat_completion/test_logprob_token_ids.py",
    "completion/test_completion.py",
    "models/test_models.py",
    "test_return_token_ids.py",
    "test_return_tokens_as_ids.py",
)
FOLDER = "tests/entrypoints/openai"
"""Of those."""

STAND_IN = '''
import json, os
import httpx, openai

URL, MODEL = os.environ["ACTSERVE_URL"], os.environ["ACTSERVE_MODEL"]


class AsServed(httpx.AsyncHTTPTransport):
    """Asks for the model that is served, whatever it is called."""

    async def handle_async_request(self, request):
        body = json.loads(request.content) if request.content else {}
        if "model" in body:
            content = json.dumps({**body, "model": MODEL}).encode()
            headers = [(k, v) for k, v in request.headers.items() if k != "content-length"]
            request = httpx.Request(request.method, request.url, headers=headers, content=content)
        return await super().handle_async_request(request)


class RemoteOpenAIServer:
    DUMMY_API_KEY = "token"

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def url_for(self, *parts):
        return "/".join([URL, *parts])

    @property
    def url_root(self):
        return URL

    def get_async_client(self, **options):
        client = httpx.AsyncClient(transport=AsServed(), timeout=600)
        return openai.AsyncOpenAI(
            base_url=f"{URL}/v1", api_key="none", max_retries=0, http_client=client, **options
        )
'''
CONFTEST = """
from types import SimpleNamespace

from vllm.transformers_utils import repo_utils

# Of adapters, which the door does not serve: the model answers by their names.
repo_utils.hf_api = lambda: SimpleNamespace(snapshot_download=lambda *_, **__: "")
"""


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    for name in ("checkout", "url", "model", "folder"):
        parser.add_argument(name)
    asked, more = parser.parse_known_args()
    os.environ["ACTSERVE_URL"], os.environ["ACTSERVE_MODEL"] = asked.url, asked.model
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "tests"
        for file in FILES:
            source = Path(asked.checkout, FOLDER, file).read_text(encoding="utf-8")
            named = re.sub(
                r'^MODEL_NAME = ".*"$', f"MODEL_NAME = {asked.folder!r}", source, flags=re.MULTILINE
            )
            copy = Path(made, FOLDER, file)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(named, encoding="utf-8")
        for folder in (root, *(each for each in root.rglob("*") if each.is_dir())):
            (folder / "__init__.py").touch()
        (root / "utils.py").write_text(STAND_IN)
        fixtures = Path(asked.checkout, FOLDER).parent / "conftest.py"
        (root / "conftest.py").write_text(fixtures.read_text(encoding="utf-8") + CONFTEST)
        sys.path.insert(0, made)
        options = ["-p", "no:cacheprovider", "-o", "asyncio_mode=strict", f"--rootdir={made}"]
        sys.exit(pytest.main([*options, "-c", os.devnull, str(root), *more]))


if __name__ == "__main__":
    main()
