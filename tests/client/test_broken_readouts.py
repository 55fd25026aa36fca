"""A readout is complete or it is an error, whatever the server does."""

from typing import Any

import numpy as np
import pytest

import actserve

from .breaking import (
    CLOSING,
    OPENING,
    Break,
    doubled,
    each,
    extra,
    first,
    shaped,
    without,
    without_first,
)
from .fake_readouts import MEANS
from .fake_server import Model

PROMPT = "one two three"
BY_HEAD = MEANS[:6]


def widen(widths: Any) -> None:
    widths[0] = 4


def opened(layers: list[int]) -> Break:
    """Other layers of the summary."""

    def do(event: Any) -> None:
        if hasattr(event, "readouts"):
            event.readouts[-1].layers[:] = layers

    return each(*OPENING, do=do)


def counted(count: str, change: int) -> Break:
    """Another number of queries."""
    return first(
        "attention_summary",
        lambda chunk: setattr(chunk, count, getattr(chunk, count) + change),
    )


PREDICT: dict[str, Any] = {
    "predictions": actserve.Predict(
        ["resid_post.1", "final_norm"], top_k=2, token_ids=[7], next_token=True
    )
}
BY_TEXT: dict[str, Any] = {
    "predictions": actserve.Predict(
        ["resid_post.1", "final_norm"], positions=actserve.ByText("two"), top_k=1
    )
}
ATTENTION: dict[str, Any] = {"attention": actserve.Attention(0, [1, 2])}
SPARSE_ATTENTION: dict[str, Any] = {"attention": actserve.Attention(0, 1, top_k=2)}
SUMMARY: dict[str, Any] = {
    "readouts": {"heads": actserve.AttentionSummary([1, -1], offsets=[1, 2], top_keys=2)}
}
DIRECT: dict[str, Any] = {
    "readouts": {"direct": actserve.LogitAttribution(["embedding", "z.1"], [5, (7, 3)])}
}
EVERY_LAYER: dict[str, Any] = {"readouts": {"heads": actserve.AttentionSummary()}}
SPARSE: dict[str, Any] = {"projection": actserve.Projection(np.eye(4)[:3], send_top=2)}
TELLING = ("item_started", "sample_finished")
KEPT: dict[str, Any] = {"keep": actserve.Keep()}

# By name: what is asked for besides the rows of `embedding`, what goes wrong, and what is said.
BROKEN: dict[str, tuple[dict[str, Any], Break, str]] = {
    "no predictions": (PREDICT, without("predictions"), "predictions of resid_post.1 are missing"),
    "some predictions": (PREDICT, without_first("predictions"), "missing at 2 of . positions"),
    "predictions of one site by text": (
        BY_TEXT,
        without_first("predictions"),
        "predictions of resid_post.1 are missing at 1 of 1",
    ),
    "predictions twice": (PREDICT, doubled("predictions"), "predictions of .* came twice"),
    "predictions unasked": (ATTENTION, extra("predictions"), "predictions of readout 0 unasked"),
    "predictions of no site": (
        PREDICT,
        first("predictions", lambda chunk: setattr(chunk, "site_index", 2)),
        "predictions of site 2 of 2",
    ),
    "too few likeliest tokens": (
        PREDICT,
        first("predictions", lambda chunk: chunk.top_ids.pop()),
        r"top_ids in shape \[3\], but \[2, 2\]",
    ),
    "likeliest tokens without texts": (
        PREDICT,
        first("predictions", lambda chunk: chunk.ClearField("top_texts")),
        r"top_texts in shape \[0\], but \[2, 2\]",
    ),
    "likeliest tokens without log probabilities": (
        PREDICT,
        first("predictions", lambda chunk: chunk.ClearField("top_logprobs")),
        r"top_logprobs in shape \[0\], but \[2, 2\]",
    ),
    "log probabilities of another token": (
        PREDICT,
        first("predictions", shaped("token_logprobs", 2, 2)),
        r"token_logprobs in shape \[2, 2\], but \[2, 1\]",
    ),
    "log probabilities transposed": (
        PREDICT,
        first("predictions", shaped("token_logprobs", 1, 2)),
        r"token_logprobs in shape \[1, 2\], but \[2, 1\]",
    ),
    "no score": (
        PREDICT,
        first("predictions", lambda chunk: chunk.ClearField("next_token_logprobs")),
        r"next_token_logprobs in shape \[0\], but \[2\]",
    ),
    "no attention": (ATTENTION, without("attention"), "queries of layer 0 head 1 are missing at"),
    "some attention": (ATTENTION, without_first("attention"), "missing at 2 of . positions"),
    "attention twice": (ATTENTION, doubled("attention"), "head 1 came twice"),
    "attention unasked": (PREDICT, extra("attention"), "attention of readout 0 unasked"),
    "attention of another head": (
        ATTENTION,
        first("attention", lambda chunk: setattr(chunk, "head", 5)),
        "head 5 unasked",
    ),
    "attention to too few keys": (
        ATTENTION,
        first("attention", shaped("weights", 2, 1)),
        r"layer 0 head 1 in shape \[2, 1\] for 2 queries up to position 1",
    ),
    "attention to too many keys": (
        ATTENTION,
        first("attention", shaped("weights", 2, 99)),
        "layer 0 to 99 keys, but . tokens were run",
    ),
    "attention of fewer queries": (
        ATTENTION,
        first("attention", shaped("weights", 1, 2)),
        r"in shape \[1, 2\] for 2 queries",
    ),
    "attention flattened": (
        ATTENTION,
        first("attention", shaped("weights", 4)),
        r"in shape \[4\] for 2 queries",
    ),
    "fewer of the largest weights": (
        SPARSE_ATTENTION,
        first("attention", shaped("weights", 2, 1)),
        r"in shape \[2, 1\] for 2 queries",
    ),
    "more of the largest weights": (
        SPARSE_ATTENTION,
        first("attention", shaped("weights", 2, 3)),
        r"in shape \[2, 3\] for 2 queries",
    ),
    "weights without keys": (
        SPARSE_ATTENTION,
        first("attention", lambda chunk: chunk.ClearField("keys")),
        "0 keys for 4 weights",
    ),
    "a key after its query": (
        SPARSE_ATTENTION,
        first("attention", lambda chunk: chunk.keys.__setitem__(0, 1)),
        "keys of layer 0 head 1 that its queries do not see",
    ),
    "a key before the first": (
        SPARSE_ATTENTION,
        first("attention", lambda chunk: chunk.keys.__setitem__(0, -2)),
        "keys of layer 0 head 1 that its queries do not see",
    ),
    "rows that are not projected": (
        SPARSE,
        each(
            *OPENING,
            do=lambda event: hasattr(event, "readouts") and widen(event.readouts[0].widths),
        ),
        "rows of width 4, but the projection has 2 components to send",
    ),
    "heads of sites that were not asked for": (
        {},
        each(
            *OPENING,
            do=lambda event: hasattr(event, "readouts") and event.readouts[0].heads.append(2),
        ),
        r"told \[0, 2\] heads for rows of 1 sites",
    ),
    "heads that do not make up a row": (
        {},
        each(
            *OPENING,
            do=lambda event: (
                hasattr(event, "readouts") and event.readouts[0].heads.__setitem__(0, 3)
            ),
        ),
        r"told \[3\] heads for rows of 1 sites, \[4\] wide",
    ),
    "components without directions": (
        SPARSE,
        first("activations", lambda chunk: chunk.ClearField("indices")),
        "0 indices up to 0 for 4 components of embedding along 3",
    ),
    "a direction that is not there": (
        SPARSE,
        first("activations", lambda chunk: chunk.indices.__setitem__(1, 3)),
        "4 indices up to 3 for 4 components of embedding along 3",
    ),
    "rows that are not reduced": (
        {"reduce": "mean"},
        first("activations", lambda chunk: chunk.positions.insert(0, 0)),
        "for 2 positions",
    ),
    "a reduced row of another position": (
        {"reduce": "mean"},
        first("activations", lambda chunk: chunk.positions.__setitem__(0, 0)),
        "rows of embedding are missing at 1 of 1",
    ),
    "no attributions": (DIRECT, without("logit_attribution"), "attributions of embedding are miss"),
    "some attributions": (
        DIRECT,
        without_first("logit_attribution"),
        "attributions of .* are missing at 2 of",
    ),
    "attributions twice": (DIRECT, doubled("logit_attribution"), "came twice"),
    "attributions unasked": (SUMMARY, extra("logit_attribution"), "attributions of readout 0 una"),
    "attributions of another site": (
        DIRECT,
        first("logit_attribution", lambda chunk: setattr(chunk, "site_index", 2)),
        "attributions of site 2 of 2",
    ),
    "attributions to fewer targets": (
        DIRECT,
        first("logit_attribution", shaped("contributions", 2, 1)),
        r"attributions of embedding in shape \[2, 1\], but \[2, 2\]",
    ),
    "attributions of no heads": (
        DIRECT,
        each("logit_attribution", do=lambda chunk: shaped("contributions", 2, 0, 2)(chunk)),
        r"attributions of .* in shape \[2, 0, 2\]",
    ),
    "an attribution opened to fewer targets": (
        DIRECT,
        each(
            *OPENING,
            do=lambda event: (
                hasattr(event, "readouts") and event.readouts[-1].target_constants.pop()
            ),
        ),
        "to 1 targets, but 2 were",
    ),
    "no summary": (SUMMARY, without("attention_summary"), "summary of layer 1 is missing"),
    "a summary of some layers": (
        SUMMARY,
        without_first("attention_summary"),
        "summary of layer . is missing",
    ),
    "a summary twice": (SUMMARY, doubled("attention_summary"), "summary of layer . twice"),
    "a summary unasked": (ATTENTION, extra("attention_summary"), "a summary of readout 0 unasked"),
    "a summary of another layer": (
        SUMMARY,
        first("attention_summary", lambda chunk: setattr(chunk, "layer", 0)),
        "summary of layer 0 twice or unasked",
    ),
    "a summary opened of fewer layers": (
        SUMMARY,
        opened([1]),
        r"of layers \[1\], but \[1, -1\] were asked for",
    ),
    "a summary opened of other layers": (SUMMARY, opened([0, 2]), r"of layers \[0, 2\]"),
    "a summary opened of a layer twice": (SUMMARY, opened([1, 1]), r"of layers \[1, 1\]"),
    "a summary opened of no layer": (EVERY_LAYER, opened([]), r"of layers \[\], but all were"),
    "a summary of no heads": (
        SUMMARY,
        first("attention_summary", lambda chunk: chunk.ClearField("entropy")),
        "a summary of no heads",
    ),
    "a summary of different heads": (
        EVERY_LAYER,
        first("attention_summary", lambda chunk: [shaped(name, 1)(chunk) for name in BY_HEAD]),
        r"at_offsets of layer . in shape \[2, 0\], but \[1, 0\]",
    ),
    **{
        f"a summary without {name}": (
            SUMMARY,
            first("attention_summary", lambda chunk, name=name: chunk.ClearField(name)),
            rf"{name} of layer . in shape \[0\], but",
        )
        for name in MEANS
        if name != "entropy"
    },
    "a summary transposed": (
        SUMMARY,
        first("attention_summary", shaped("top_key_means", 1, 4)),
        r"top_key_means of layer . in shape \[1, 4\], but \[2, 2\]",
    ),
    "a summary with fewer keys": (
        SUMMARY,
        first("attention_summary", lambda chunk: chunk.top_keys.pop()),
        r"3 top_keys of layer . from -1, but \[2, 2\]",
    ),
    "a summary with a key before all": (
        SUMMARY,
        first("attention_summary", lambda chunk: chunk.top_keys.__setitem__(0, -2)),
        "4 top_keys of layer . from -2",
    ),
    **{
        f"a summary over another number of {name}": (
            SUMMARY,
            counted(name, 1),
            r"a summary of layer . over \(.*\) queries, not over",
        )
        for name in ("queries", "previous_token_queries", "induction_queries")
    },
    "a summary over another number of queries at an offset": (
        SUMMARY,
        first("attention_summary", lambda chunk: chunk.offset_queries.pop()),
        r"a summary of layer . over \(.*\) queries, not over",
    ),
    "rows not kept": (
        KEPT,
        each(*CLOSING, do=lambda event: event.ClearField("kept")),
        "did not keep the rows",
    ),
    "rows kept unasked": (
        {},
        each(*CLOSING, do=lambda event: event.kept.add(readout_index=1, name="keptActivations/0")),
        "kept rows unasked",
    ),
    "readouts not opened": (
        {},
        each(
            *OPENING, do=lambda event: hasattr(event, "readouts") and event.ClearField("readouts")
        ),
        "opened 0 readouts",
    ),
    "positions not told": (
        {},
        each(*TELLING, do=lambda event: event.ClearField("positions")),
        "did not tell where readout 0 has read",
    ),
    "positions of no readout": (
        {},
        each(*TELLING, do=lambda event: event.positions[0].readout_indices.append(1)),
        "positions of readout 1 unasked",
    ),
    "fewer positions": (
        {},
        each(*TELLING, do=lambda event: event.positions[0].positions.pop()),
        "read at . positions, not at the . that were asked for",
    ),
    "rows sent unasked": (
        {"keep": actserve.Keep(send=False)},
        extra("activations"),
        "rows of readout 0 unasked",
    ),
}


@pytest.mark.parametrize("method", ["fetch", "generate", "stream"])
@pytest.mark.parametrize("case", BROKEN)
def test_an_incomplete_readout_raises(client: Any, model: Model, method: str, case: str) -> None:
    asked, broken, message = BROKEN[case]
    model.fetch = lambda request: iter(broken(model.honest_fetch(request)))
    model.generate = lambda request: iter(broken(model.honest_generate(request)))
    call = {
        "fetch": lambda: client.fetch(PROMPT, sites="embedding", **asked),
        "generate": lambda: client.generate(PROMPT, sites="embedding", **asked),
        "stream": lambda: list(client.stream(PROMPT, sites="embedding", **asked)),
    }[method]
    with pytest.raises(actserve.BadResponse, match=message):
        call()


BROKEN_MEANS: dict[str, tuple[Break, type[actserve.ActserveError], str]] = {
    "cut short": (without("finished"), actserve.StreamCutShort, "ended before"),
    "a prompt never finished": (
        without_first("item_finished"),
        actserve.BadResponse,
        "without prompt 0",
    ),
    "no mean": (
        without_first("statistics"),
        actserve.BadResponse,
        "without the mean of 'y' at embedding",
    ),
    "a mean twice": (doubled("statistics"), actserve.BadResponse, "mean of 'y' at embedding twice"),
    "a mean of no label": (
        first("statistics", lambda mean: setattr(mean, "label", "z")),
        actserve.BadResponse,
        "mean of 'z' at site 0 of 1 unasked",
    ),
    "a mean of no site": (
        first("statistics", lambda mean: setattr(mean, "site_index", 1)),
        actserve.BadResponse,
        "mean of 'y' at site 1 of 1",
    ),
    "a mean of fewer prompts": (
        each("statistics", do=lambda mean: setattr(mean, "rows", 1)),
        actserve.BadResponse,
        "mean of 1 prompts of 'x', not of 2",
    ),
    "a mean of another width": (
        first("statistics", shaped("mean", 3)),
        actserve.BadResponse,
        r"in shape \[3\], not \[4\]",
    ),
    "no opening": (without("started"), actserve.BadResponse, "where it may not come"),
    "rows as well": (extra("activations"), actserve.BadResponse, "only their means"),
    "second moments without a mean": (
        first("statistics", lambda mean: mean.ClearField("mean")),
        actserve.BadResponse,
        "of 'y' at embedding without their mean",
    ),
    "second moments of another width": (
        first("statistics", shaped("second_moments", 3)),
        actserve.BadResponse,
        r"variance of 'y' at embedding in shape \[3\] from row 0 on, where \[4\]",
    ),
    "no report of an intervention": (
        each(*CLOSING, do=lambda event: event.ClearField("interventions")),
        actserve.BadResponse,
        "reported on 0 interventions, not the 1 asked",
    ),
}


@pytest.mark.parametrize("case", BROKEN_MEANS)
def test_incomplete_means_raise(client: Any, model: Model, case: str) -> None:
    broken, error, message = BROKEN_MEANS[case]
    model.fetch = lambda request: iter(broken(model.honest_fetch(request)))
    with pytest.raises(error, match=message):
        client.fetch_means(
            ["a", "b c", "d"],
            ["x", "x", "y"],
            "embedding",
            intervene=actserve.Zero("embedding"),
            second_moments="variance",
        )
