"""The NLA that comes with the server says something true, of text that nobody trained it on.

What it reaches on held-out documents is in its model card; these bounds are far below, and far
above what chance or a broken prompt would reach.
"""

from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.vllm import processor
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.explanations import Asking, Consumed, Explanation, Flag
from actserve_server.nla.loading import load
from actserve_server.nla.pair_sources import SHIPPED, NlaSource
from tests.integration.harness import LoopThread
from tests.integration.reference import Reference

LAYERS = 30
SITE = Site(HookPoint.RESID_POST, 20)
EARLIEST = 10
"""Rows of fewer tokens hold little."""
MAX_BYTES = 15_000_000
"""Of the pair in the package."""

TEXTS = """\
The children sat around the kitchen table and waited until their grandmother cut the fresh bread.
Scientists found that the water near the coast had become two degrees warmer in thirty years.
The striker kicked the ball over the goalkeeper into the net, and the stadium shouted his name.
After the election the new president promised to lower taxes and to bring the soldiers home.
She tuned the old violin, closed her eyes, and played the slow melody her father had taught her.
The doctor looked at the X-ray of the broken arm and told the boy not to play football for weeks.
In the morning the farmer fed the horses, milked the cows, and drove his tractor into the field.
The judge listened to the witness, read the letter again, and sent the thief to prison for a year.
""".splitlines()


@dataclass(frozen=True)
class Explained:
    """Every late enough row of every text, its explanation, and what that was read as."""

    words: list[str]
    """The token of each row, decoded alone."""
    rows: np.ndarray
    explanations: list[Explanation]
    others: list[float]
    """The fraction of variance explained when each row gets the explanation of another."""


@pytest.fixture(scope="module")
def explained(
    model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Explained]:
    path = model_path("smollm2-135m")
    # Without instructions for bfloat16, the pair's own type, it would take minutes more.
    dtype = "float32" if processor.slow_in(torch.bfloat16) else "bfloat16"
    options = EngineOptions(
        model_id="smollm2-135m",
        model_path=str(path),
        dtype=dtype,
        kv_cache_memory_bytes=256 << 20,
    )
    words, rows = _rows(path)
    thread = LoopThread()
    source = NlaSource.model_validate("smollm2-135m")
    model = FakeEngine(width=rows.shape[1], layer_count=LAYERS).info
    nlas = thread.call(load((source,), model, options, tmp_path_factory.mktemp("cache")))
    (nla,) = nlas
    yield thread.call(_explained(nla, words, rows))
    thread.call(nlas.close())
    thread.close()


def _rows(path: Path) -> tuple[list[str], np.ndarray]:
    """As transformers has them."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), Reference(path, torch.float32)
    words: list[str] = []
    rows = []
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        words += [tokenizer.decode(token) for token in ids[EARLIEST:]]
        rows.append(model.rows(ids, sites=[SITE])[SITE][EARLIEST:])
    return words, np.concatenate(rows)


async def _explained(nla: Autoencoder, words: list[str], rows: np.ndarray) -> Explained:
    asking = Asking(temperature=0.0, score=True, baseline=nla.info.profile.baseline)
    async with aclosing(nla.explain("test", rows, asking, Consumed())) as events:
        found = [event async for event in events if isinstance(event, Explanation)]
    found.sort(key=lambda each: each.row)
    texts = [each.text for each in found]
    # Not the neighbour's, which tells of the same sentence.
    shuffled = np.roll(np.arange(len(texts)), len(texts) // 2)
    other = [texts[index] for index in shuffled]
    scores = await nla.score("others", rows, other, nla.info.profile.baseline, Consumed())
    return Explained(words, rows, found, [score.variance_explained or 0.0 for score in scores])


def test_explanations_have_their_form(explained: Explained) -> None:
    parsed = [Flag.UNPARSED not in each.flags for each in explained.explanations]
    assert np.mean(parsed) > 0.9


def test_explanations_account_for_their_own_rows_and_not_for_others(explained: Explained) -> None:
    own = [each.score.variance_explained or 0.0 for each in explained.explanations if each.score]
    print(f"variance explained: {np.mean(own):.3f}, of others {np.mean(explained.others):.3f}")
    assert len(own) == len(explained.rows)
    assert np.mean(own) > 0.3
    assert np.mean(explained.others) < -0.2


def test_most_explanations_name_the_latest_word(explained: Explained) -> None:
    told = [
        word.strip().lower() in each.text.lower()
        for word, each in zip(explained.words, explained.explanations, strict=True)
        if len(word.strip()) > 3
    ]
    print(f"latest word named: {np.mean(told):.2f} of {len(told)}")
    assert np.mean(told) > 0.8


def test_the_package_stays_small() -> None:
    files = [path for path in (SHIPPED / "smollm2-135m").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < MAX_BYTES
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".yaml", ".md"}
