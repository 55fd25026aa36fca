"""What explaining gives; every test with a client runs sync and with asyncio."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import actserve
from actserve.v1 import explanation_service_pb2 as pb

from . import fake_explanations
from .breaking import first
from .fake_explanations import NLA, SITE, cosine, reconstructed, rows, said, scored
from .fake_readouts import value
from .fake_server import WIDTH, Model

LONG = " ".join("abcdefghijkl")


def texts(explanations: Any) -> Any:
    """The texts of explanations, in their lists."""
    if isinstance(explanations, list):
        return [texts(each) for each in explanations]
    return explanations.text


def test_the_shape_of_the_answer_follows_the_shape_of_the_question(client: Any) -> None:
    one, two = rows(2)
    for method in (
        client.explain,
        lambda rows, *at, **asked: client.explain_difference(2 * rows, rows, *at, **asked),
    ):
        assert texts(method(one, SITE)) == said(one)
        assert texts(method(one, SITE, samples=2)) == [said(one), said(one, 1)]
        assert texts(method(one, SITE, samples=1)) == [said(one)]
        assert texts(method(rows(2), SITE)) == [said(one), said(two, 1)]
        assert texts(method(rows(2), SITE, samples=2)) == [
            [said(one), said(one, 1)],
            [said(two, 2), said(two, 3)],
        ]
        assert texts(method(rows(1), SITE)) == [said(one)]
        # The longest texts are the best.
        assert texts(method(rows(2), SITE, samples=11, best=True)) == [said(one, 10), said(two, 11)]
        assert method(np.empty((0, WIDTH)), SITE) == []


def test_an_explanation_holds_everything_about_itself(client: Any) -> None:
    row = [3.0, 0.0, 4.0, 0.0]
    explanation = client.explain(
        row, SITE, positions=4, score=True, leave_one_out=True, neighbor_distance=2
    )
    text = said(row)
    claim = {"mse_increase": 0.25, "variance_explained_drop": 0.5, "recurrence": 0.75}
    first, second = (0, text.index(". ") + 1), (text.index("Seed"), len(text))
    assert explanation == actserve.Explanation(
        text=text,
        row=0,
        sample=0,
        position=4,
        norm=5.0,
        finish_reason="stop",
        output_tokens=5,
        injections=1,
        flags=("early_position",),
        score=explanation.score,
        claims=(
            actserve.Claim(text[slice(*first)], *first, **claim),
            actserve.Claim(text[slice(*second)], *second, **claim),
        ),
    )
    assert explanation.score.cosine == pytest.approx(cosine(text))
    assert explanation.score.normalized_mse == pytest.approx(2 * (1 - cosine(text)))
    assert explanation.score.variance_explained == pytest.approx(1 - 4 * (1 - cosine(text)))
    assert explanation.score.centered_cosine == 0.5


def test_what_was_not_asked_for_is_absent_not_an_empty_guess(client: Any) -> None:
    explanation = client.explain(rows(1)[0], SITE)
    assert (explanation.position, explanation.score) == (None, None)
    assert (explanation.flags, explanation.claims) == ((), ())
    claim, _ = client.explain(rows(1)[0], SITE, leave_one_out=True).claims
    assert (claim.mse_increase, claim.recurrence) == (0.25, None)


def test_a_text_that_cannot_be_read_back_comes_without_a_score(client: Any, model: Model) -> None:
    unread = first("explanation", lambda event: event.ClearField("score"))
    model.explain = lambda request: iter(unread(fake_explanations.explain(request)))
    # The fake explains the last row first.
    scores = [each.score for each in client.explain(rows(2), SITE, score=True)]
    assert [score is None for score in scores] == [False, True]
    explained = client.explain_text("a b", best=True, samples=2)
    assert [each.score is None for _, each in explained] == [False, True]
    events = list(client.explain_text_stream("a b", score=True))
    found = [event.score for event in events if isinstance(event, actserve.Explanation)]
    assert [score is None for score in found] == [True, False]


@pytest.mark.parametrize("concurrency", [1, 3, 32])
def test_many_rows_keep_their_order_and_seeds_however_they_are_split(
    connect: Callable[..., Any], model: Model, concurrency: int
) -> None:
    client = connect(concurrency=concurrency)
    # Later calls overtake earlier ones.
    delay = random.Random(0)
    model.before = lambda request, context: time.sleep(delay.random() / 50)
    given = rows(37)
    explanations = client.explain(given, SITE, samples=2, seed=100, positions=range(37))
    for index, samples in enumerate(explanations):
        assert texts(samples) == [said(given[index], 100 + 2 * index + s) for s in range(2)]
        assert {(each.row, each.position) for each in samples} == {(index, index)}
    sizes = [len(request.positions) for request in model.requests]
    assert len(sizes) == -(-37 // min(16, concurrency))
    assert max(sizes) - min(sizes) <= 1  # None is left with few rows to compare norms with.
    words = ["x" * (1 + index) for index in range(37)]
    np.testing.assert_array_equal(
        client.reconstruct(words, SITE), np.stack([reconstructed(word) for word in words])
    )
    assert [each.cosine for each in client.score_explanations(given, words, SITE)] == pytest.approx(
        [cosine(word) for word in words]
    )


def test_rows_whose_neighbours_matter_go_in_one_call(client: Any, model: Model) -> None:
    client.explain(rows(40), SITE, positions=range(40), neighbor_distance=1)
    assert [len(request.positions) for request in model.requests] == [40]


def test_an_explained_text_pairs_tokens_with_explanations(client: Any) -> None:
    explained = client.explain_text(
        "one two three",
        positions=[0, -1],
        samples=2,
        intervene=actserve.Zero(SITE),
        score=True,
    )
    assert isinstance(explained, actserve.ExplainedText)
    assert explained.tokens == ("one", "two", "three")
    assert len(explained.token_ids) == len(explained.sources) == 3
    assert explained.positions == (0, 2)
    assert [(token, each.position, each.sample) for token, each in explained] == [
        ("one", 0, 0),
        ("one", 0, 1),
        ("three", 2, 0),
        ("three", 2, 1),
    ]
    assert [each.text for each in explained.explanations] == [
        said(value(3, 0, at), seed) for at, seed in ((0, 0), (0, 1), (2, 2), (2, 3))
    ]
    assert len(explained) == 4
    assert explained.interventions == (actserve.InterventionReport(3, 0, 0, None),)
    assert (explained.nla, explained.site, explained.request_id) == ("tiny", SITE, "r3")
    assert (explained.usage.prompt_tokens, explained.usage.output_tokens) == (11, 5)


def test_many_prompts_are_explained_in_order(client: Any) -> None:
    explained = client.explain_text(["a", "b c", [7, 8, 9]], positions="last", best=True, samples=3)
    assert [each.tokens for each in explained] == [("a",), ("b", "c"), ("<7>", "<8>", "<9>")]
    assert [len(each) for each in explained] == [1, 1, 1]
    assert client.explain_text([]) == []


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        ("all", range(12)),
        ("prompt", range(12)),
        ("last", [11]),
        (slice(2, 5), [2, 3, 4]),
        ([5, 0, -1], [0, 5, 11]),
        (actserve.ByText("b"), [1]),
    ],
)
def test_positions_choose_the_tokens(client: Any, positions: Any, chosen: Any) -> None:
    assert client.explain_text(LONG, positions=positions).positions == tuple(chosen)


@pytest.mark.parametrize("kind", ["rows", "text"])
def test_a_stream_yields_texts_while_they_are_written(client: Any, kind: str) -> None:
    if kind == "rows":
        events = list(client.explain_stream(rows(2), SITE, positions=[3, 5], samples=2))
        wanted = dict(enumerate(rows(2)))
    else:
        events = list(client.explain_text_stream("a b", samples=2, intervene=actserve.Zero(SITE)))
        wanted = {0: value(2, 0, 0), 1: value(2, 0, 1)}
    started, *between, finished = events
    assert (started.nla, started.site, started.rows) == ("tiny", SITE, 2)
    assert (started.prompt is None) == (kind == "rows")
    assert isinstance(finished, actserve.ExplainFinished)
    assert len(finished.interventions) == (kind == "text")
    for row, sample in ((row, sample) for row in range(2) for sample in range(2)):
        own = [each for each in between if (each.row, each.sample) == (row, sample)]
        *partial, whole = own
        assert all(isinstance(each, actserve.PartialExplanation) for each in partial)
        text = said(wanted[row], 2 * row + sample)
        assert "".join(each.text for each in partial) == f"<explanation>{text}"
        assert whole.text == text


def test_a_reconstruction_has_the_shape_of_the_texts(client: Any) -> None:
    one = client.reconstruct("abc", SITE)
    assert (one.dtype, one.shape) == (np.float32, (WIDTH,))
    np.testing.assert_array_equal(one, reconstructed("abc"))
    assert client.reconstruct(["abc"], SITE).shape == (1, WIDTH)
    edit = client.edit_vector("abc", "abcdef", SITE)
    np.testing.assert_array_equal(edit, reconstructed("abcdef") - reconstructed("abc"))


def test_a_score_is_one_for_one_text_and_a_list_for_a_list(client: Any) -> None:
    one = client.score_explanations(rows(1)[0], "abc", SITE)
    assert one.cosine == pytest.approx(cosine("abc"))
    assert client.score_explanations(rows(1), ["abc"], SITE) == [one]
    wiki = client.score_explanations(rows(1)[0], "abc", SITE, nla="tiny", baseline="wiki")
    wanted = scored("abc", "models/big/nlas/tiny/baselines/wiki")
    assert wiki.variance_explained == pytest.approx(wanted.variance_explained)
    assert wiki.centered_cosine is None


def test_a_short_name_is_of_the_only_nla_there_is(client: Any, model: Model) -> None:
    for call in (
        lambda: client.score_explanations(rows(1)[0], "abc", SITE, baseline="wiki"),
        lambda: client.explain(rows(1)[0], SITE, score=True, baseline="wiki"),
        lambda: client.explain_text("a b", score=True, baseline="wiki"),
    ):
        call()
        request = model.requests[-1]
        named = getattr(request, "baseline", "") or request.spec.baseline
        assert named == "models/-/nlas/tiny/baselines/wiki"
    model.nlas = [*model.nlas, pb.Nla(name="models/big/nlas/other", site=model.nlas[0].site)]
    with pytest.raises(actserve.InvalidRequest, match="tiny, other; name one"):
        client.score_explanations(rows(1)[0], "abc", SITE, baseline="wiki")


def test_a_model_says_what_its_nlas_can(client: Any) -> None:
    (nla,) = client.model("big").nlas
    assert (nla.id, nla.family, nla.site, nla.width) == ("tiny", "kitft", SITE, WIDTH)
    assert (nla.verbalizes, nla.reconstructs, nla.answers_questions) == (True, True, False)
    assert (nla.max_rows, nla.max_samples, nla.max_tokens) == (4096, 64, 200)
    assert (nla.default_temperature, nla.default_top_p) == (0.5, None)
    assert nla.baselines == {
        "default": actserve.Baseline(
            "models/big/nlas/tiny/baselines/default", 0.5, None, None, True
        ),
        "wiki": actserve.Baseline("models/big/nlas/tiny/baselines/wiki", 0.25, 20.5, 600, False),
    }
    assert client.model("big").nlas_at("blocks.-2.hook_resid_post") == (nla,)
    assert client.model("big").nlas_at("resid_post.2") == ()
    assert client.model("small").nlas == ()


@pytest.mark.parametrize("shared", [False, True])
def test_a_baseline_is_for_all_tenants_only_when_that_is_asked(
    shared: bool, client: Any, model: Model
) -> None:
    asked: list[bool] = []

    def store(request: Any) -> Any:
        asked.append(request.shared)
        return fake_explanations.set_baseline(request)

    model.set_baseline = store
    client.set_baseline(rows(2), SITE, nla="tiny", **({"shared": True} if shared else {}))
    assert asked == [shared]


@pytest.mark.parametrize(
    ("name", "nla"), [("mine", "tiny"), ("models/-/nlas/tiny/baselines/mine", None)]
)
@pytest.mark.parametrize("shared", [False, True])
def test_a_baseline_is_deleted_by_either_of_its_names(
    name: str, nla: str | None, shared: bool, client: Any, model: Model
) -> None:
    client.delete_baseline(name, nla=nla, shared=shared)
    request = model.requests[-1]
    assert (request.name, request.shared) == ("models/-/nlas/tiny/baselines/mine", shared)


def test_a_baseline_is_stored_under_the_only_nla_of_the_site(client: Any, model: Model) -> None:
    baseline = client.set_baseline([[3, 0, 4, 0], [0, 1, 0, 0]], SITE, name="mine")
    assert baseline == actserve.Baseline("models/big/nlas/tiny/baselines/mine", 0.125, 3.0, 2, True)
    assert (
        client.set_baseline(rows(2), SITE, nla="other").name
        == "models/big/nlas/other/baselines/default"
    )
    with pytest.raises(actserve.NotServed, match=r"no NLA explains resid_post\.2"):
        client.set_baseline(rows(2), "resid_post.2")
    model.nlas = [NLA, NLA]
    with pytest.raises(actserve.InvalidRequest, match="several NLAs explain") as raised:
        client.set_baseline(rows(2), SITE)
    assert (raised.value.reason, raised.value.path) == ("FIELD_REQUIRED", ("nla",))
