"""What is counted of a run before it begins."""

import sys
from collections import Counter
from dataclasses import replace

import pytest

from actserve_server.domain.attention_rows import LargestWeights, ReceivedWeights
from actserve_server.domain.operations import Zero
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import (
    Capture,
    Intervention,
    Run,
    Sampling,
    TokenLogprob,
    TokenLogprobs,
    Tokens,
    Unembed,
)
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.footprint import (
    CAPTURE_TABLE_BYTES,
    LOGPROB_BYTES,
    TOKEN_BYTES,
    Need,
    captured_bytes,
    most_bytes,
    report_bytes_of,
    step_need,
)

INFO = FakeEngine().info
ROW = INFO.width * 4
QUERY = INFO.at(Site(HookPoint.Q, 1)).width * 4
STREAM = Site(HookPoint.RESID_POST, 1)
ALL = Selection(Spans(((0, NO_END),)))
LAST = Selection(Spans(((9, 10),)))
RUN = Run(id="0", token_ids=tuple(range(10)))


def test_tokens_of_which_more_is_read_cost_more_and_there_are_as_many_as_are_selected() -> None:
    every = tuple(Site(HookPoint.RESID_POST, layer) for layer in range(INFO.layer_count))
    run = replace(RUN, captures=(Capture((STREAM,), ALL), Capture(every, LAST)))
    one, all_sites = ROW + CAPTURE_TABLE_BYTES, len(every) * ROW + CAPTURE_TABLE_BYTES
    assert step_need(run, INFO) == ((1, one + all_sites), (9, one))


def test_what_is_made_of_rows_later_keeps_them_until_then() -> None:
    lens = Unembed(top_k=3)
    predicted = captured_bytes(Capture((STREAM,), ALL, lens), INFO)
    assert predicted == CAPTURE_TABLE_BYTES + ROW + 4 * lens.width
    logits = captured_bytes(Capture((Site(HookPoint.LOGITS),), ALL), INFO)
    assert logits == CAPTURE_TABLE_BYTES + ROW + 4 * INFO.vocabulary_size


def test_what_keys_have_received_comes_all_at_once_with_the_last_query() -> None:
    received = ReceivedWeights(heads=4, queries=Spans(((9, 10),)))
    run = replace(RUN, captures=(Capture((Site(HookPoint.Q, 1),), ALL, received),))
    assert step_need(run, INFO) == (
        (1, 10 * 4 * 4 + CAPTURE_TABLE_BYTES + QUERY),
        (9, CAPTURE_TABLE_BYTES),
    )


def test_queries_are_kept_of_one_layer_at_a_time_until_its_keys_are_there() -> None:
    largest = LargestWeights(heads=(0, 1), count=3)
    layers = tuple(Site(HookPoint.Q, layer) for layer in range(INFO.layer_count))
    run = replace(RUN, captures=(Capture(layers, ALL, largest),))
    rows = INFO.layer_count * largest.width * 4
    assert step_need(run, INFO) == ((10, CAPTURE_TABLE_BYTES + rows + QUERY),)


@pytest.mark.parametrize(
    ("needs", "tokens", "most"),
    [
        ({}, 100, 0),
        ({((10, 5),): 1}, 100, 50),
        ({((10, 5),): 1}, 4, 20),
        ({((10, 5),): 3}, 100, 150),
        ({((1, 90), (9, 5)): 1}, 100, 135),
        # The costliest first, of whichever run.
        ({((1, 90), (9, 5)): 2, ((100, 7),): 1}, 10, 2 * 90 + 8 * 7),
    ],
)
def test_a_step_is_filled_with_the_costliest_tokens(
    needs: dict[Need, int], tokens: int, most: int
) -> None:
    assert most_bytes([needs], tokens) == most
    # The same of several callers.
    apart = [Counter([need]) for need, runs in needs.items() for _ in range(runs)]
    assert most_bytes(apart, tokens) == most


def test_positions_and_receipts_of_edits_count_until_they_are_read() -> None:
    scattered = Selection(Spans(tuple((first, first + 1) for first in range(0, 1000, 2))))
    plain = report_bytes_of(RUN)
    edits = tuple(Intervention((STREAM,), where, Zero()) for where in (ALL, scattered))
    edited = replace(RUN, token_ids=(1,) * 1000, interventions=edits)
    assert report_bytes_of(edited) - plain > 1500 * 40 + 500 * 100


def test_what_is_counted_for_a_token_is_what_it_takes() -> None:
    top = tuple(
        TokenLogprob(number + 1000, f"token {number}", -0.1 * number) for number in range(20)
    )
    plain = Tokens(position=5000, ids=(4999,), texts=(" token ",), text=" token")
    asked = replace(plain, logprobs=(TokenLogprobs(-0.12345, top),))
    assert _size(plain) <= TOKEN_BYTES
    assert _size(asked) <= TOKEN_BYTES + 20 * LOGPROB_BYTES
    run = replace(RUN, sampling=Sampling(max_tokens=7, logprobs=20))
    assert report_bytes_of(run) == 7 * (TOKEN_BYTES + 20 * LOGPROB_BYTES)


def _size(value: object) -> int:
    """Of a value and all that it holds."""
    size = sys.getsizeof(value)
    if isinstance(value, tuple):
        return size + sum(map(_size, value))
    names = getattr(value, "__slots__", ())
    return size + sum(_size(getattr(value, name)) for name in names)
