"""Every block of code in README and docs runs as it is printed.

It runs against a made-up model, so this says that calls are made right, and nothing of what comes
of them. `ACTSERVE_DOCS_TARGET=localhost:50051 pytest tests/docs/test_code_blocks.py` runs the
same blocks against a server of yours, which is best one of `serve --nla smollm2-135m`.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

import actserve
from tests.docs.blocks import FENCE, Blocks, check_shape, why_not_run

ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        ROOT / "README.md",
        ROOT / "client" / "python" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}

NOT_RUN = {
    "README.md": 1,  # make demo
    "client/python/README.md": 1,  # pip install
    "docs/adapters.md": 1,
    "docs/graphs.md": 1,  # takes transcoders of every layer
    "docs/monitors.md": 2,  # watches without an end, and reads the reader's files
    "docs/features.md": 2,  # a folder of the reader's, and trains for an hour
    "docs/nla.md": 3,  # trains for an hour; takes a server that may load pairs
    "docs/deployment.md": 5,  # what installs, or takes an image or a cluster
    "docs/operations.md": 1,  # what Prometheus reads, and OpenTelemetry's own command
    "docs/replicas.md": 2,  # takes a database, and a model three times
    "docs/security.md": 6,  # makes a token; takes an image, an issuer, certificates; is written
    "docs/browser.md": 4,  # serves until it is stopped, and calls that server
    "docs/explorer.md": 1,  # serves until it is stopped
    "docs/openai.md": 7,  # serves until it is stopped; takes another package, vLLM's sources; JSON
    "docs/upgrades.md": 1,
    "docs/webhooks.md": 1,  # takes a Kubernetes cluster
}
"""Blocks that say of themselves that they are not run."""


@pytest.mark.usefixtures("at_target")
@pytest.mark.slow
@pytest.mark.timeout(600)
# Of perplexities: made-up scores are lower than any real ones.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if FENCE.search(text)])
def test_a_document_runs_as_it_is_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = Blocks(ROOT / name, monkeypatch)
    try:
        for block in blocks:
            block.evaluate()
    finally:
        for value in blocks.document.namespace.values():
            if isinstance(value, actserve.Client):
                value.close()


def test_few_blocks_are_not_run_and_say_why() -> None:
    found = Counter(
        name
        for name, text in DOCUMENTS.items()
        for fence in FENCE.finditer(text)
        if why_not_run(text, fence.start())
    )
    assert found == NOT_RUN
    # One that stands before no block would be read as if it did something.
    assert sum(text.count("<!-- not run") for text in DOCUMENTS.values()) == sum(found.values())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_other_block_is_run_or_plain_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = DOCUMENTS[name]
    fences = [*FENCE.finditer(text)]
    assert 2 * len(fences) == len(re.findall("(?m)^ *```", text))
    run = {example.start for example in Blocks(ROOT / name, monkeypatch)}
    left = [fence for fence in fences if fence.start() not in run]
    assert {fence[1] for fence in left if not why_not_run(text, fence.start())} <= {""}


@pytest.mark.parametrize(
    ("value", "element_type", "dimensions"),
    [([1.0], "float32", ["tokens"]), ([1.0], None, ["tokens", "width"]), ([1.0], None, ["2"])],
)
def test_a_shape_that_is_not_as_a_comment_says_is_found_out(
    value: list[float], element_type: str | None, dimensions: list[str]
) -> None:
    with pytest.raises(AssertionError):
        check_shape(value, element_type, dimensions, "line")
