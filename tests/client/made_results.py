"""Results made by hand, as a small model with the tokens of SmolLM2 might give them."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone

import numpy as np

from actserve import (
    Activations,
    Aggregator,
    AttentionMap,
    Comparison,
    ExplainedText,
    Explanation,
    FitReport,
    FittedSites,
    Generation,
    HookPointSupport,
    InvalidRequest,
    LabelMeans,
    Limits,
    LogitLens,
    Model,
    Monitor,
    MonitorScore,
    PatchGrid,
    Quality,
    Replay,
    ReplayedItem,
    Sampling,
    Score,
    ScoreHistory,
    ScoreHour,
    Site,
    SitePredictions,
    SteeringVector,
    StoredLevel,
    StoredRow,
    StoredVector,
    Sweep,
    SweepCell,
    TextScore,
    Tokenized,
    TokenLogprobs,
    TopLogprob,
    Usage,
    Watch,
    Work,
)
from actserve._show.shown import Shown

TOKENS = ("The", " capital", " of", " France", " is")
USAGE = Usage(5, 0, 0)
WIDTH = 8


def numbers(*shape: int) -> np.ndarray:
    """Numbers between 0 and 1 that differ."""
    return np.linspace(0.0, 1.0, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def lens(
    tokens: Sequence[str] = TOKENS, likely: Sequence[str] = (" Paris", "\n"), sites: int = 3
) -> LogitLens:
    shape = (sites, len(tokens), len(likely))
    return LogitLens(
        tokens=tuple(tokens),
        token_ids=tuple(range(len(tokens))),
        request_id="r",
        usage=USAGE,
        sites=tuple(f"resid_post.{layer}" for layer in range(sites)),
        positions=np.arange(len(tokens)),
        top_ids=np.broadcast_to(np.arange(len(likely)), shape),
        top_tokens=np.broadcast_to(np.array(likely, dtype=np.object_), shape),
        top_logprobs=np.log(np.clip(1 - numbers(*shape), 1e-3, 1)),
        asked=(" Rome",),
        logprobs=np.log(np.clip(numbers(*shape[:2], 1), 1e-3, 1)),
    )


def attention(tokens: Sequence[str] = TOKENS, layers: int = 1, heads: int = 2) -> AttentionMap:
    count = len(tokens)
    weights = np.tril(np.ones((layers, heads, count, count), np.float32))
    weights /= weights.sum(-1, keepdims=True).clip(1)
    return AttentionMap(
        tokens=tuple(tokens),
        token_ids=tuple(range(count)),
        request_id="r",
        usage=USAGE,
        layers=tuple(range(5, 5 + layers)),
        heads=tuple(range(heads)),
        queries=np.arange(count),
        weights=weights,
    )


def patch(tokens: Sequence[str] = TOKENS, sites: int = 3, clean: float = 3.0) -> PatchGrid:
    return PatchGrid(
        tokens=tuple(tokens),
        token_ids=tuple(range(len(tokens))),
        request_id="r",
        usage=USAGE,
        sites=tuple(f"resid_post.{layer}" for layer in range(sites)),
        positions=np.arange(len(tokens)),
        answers=(" Paris", " Rome"),
        values=numbers(sites, len(tokens)) * 4 - 1,
        clean=clean,
        corrupt=-1.0,
        clean_tokens=tuple("Paris" if at == 3 else token for at, token in enumerate(tokens)),
    )


def score(tokens: Sequence[str] = TOKENS) -> TextScore:
    logprobs = -numbers(len(tokens)) * 8
    logprobs[:1] = np.nan
    return TextScore(
        tokens=tuple(tokens),
        token_ids=tuple(range(len(tokens))),
        request_id="r",
        usage=USAGE,
        logprobs=logprobs,
    )


def activations(tokens: Sequence[str] = TOKENS, sites: int = 2) -> Activations:
    return Activations(
        {
            Site.parse(f"resid_post.{layer}"): numbers(len(tokens), WIDTH) + 1
            for layer in range(sites)
        },
        positions=np.arange(len(tokens)),
        token_ids=range(len(tokens)),
        tokens=tokens,
        predictions={Site.parse("final_norm"): predictions(tokens)},
    )


def generation(tokens: Sequence[str] = TOKENS, likely: bool = True) -> Generation:
    return Generation(
        text="".join(tokens),
        token_ids=tuple(range(len(tokens))),
        tokens=tuple(tokens),
        finish_reason="stop",
        stopped_by="<end>",
        prompt_token_ids=tuple(range(len(tokens))),
        prompt_tokens=tuple(tokens),
        prompt_sources=(),
        logprobs=tuple(TokenLogprobs(-1.5, (TopLogprob(1, token, -0.5),)) for token in tokens)
        if likely
        else None,
        activations=activations(tokens),
        interventions=(),
        usage=USAGE,
        request_id="r",
    )


def unscored_generation(tokens: Sequence[str] = TOKENS) -> Generation:
    return generation(tokens, likely=False)


def comparison(tokens: Sequence[str] = TOKENS) -> Comparison:
    count = len(tokens)
    return Comparison(
        tokens=tuple(tokens),
        token_ids=tuple(range(count)),
        request_id="r",
        usage=USAGE,
        plain=generation(tokens, likely=False),
        steered=generation([*reversed(tokens)], likely=False),
        next_ids=np.arange(count),
        next_tokens=tuple(tokens),
        plain_logprobs=np.log(np.clip(1 - numbers(count), 1e-3, 1)),
        steered_logprobs=np.log(np.clip(numbers(count), 1e-3, 1)),
    )


def explained(tokens: Sequence[str] = TOKENS) -> ExplainedText:
    def explanation(at: int) -> Explanation:
        return Explanation(
            text=f"Topic: {tokens[at]}",
            row=at,
            sample=0,
            position=at,
            norm=1.0,
            finish_reason="stop",
            output_tokens=4,
            injections=1,
            flags=("early_position",),
            score=Score(0.81, 0.38, 0.55, 0.7) if at else None,
            claims=(),
        )

    return ExplainedText(
        token_ids=tuple(range(len(tokens))),
        tokens=tuple(tokens),
        sources=(),
        positions=tuple(range(len(tokens))),
        explanations=tuple(map(explanation, range(len(tokens)))),
        interventions=(),
        nla="smollm2-135m",
        site="resid_post.20",
        usage=USAGE,
        request_id="r",
    )


def predictions(tokens: Sequence[str] = TOKENS) -> SitePredictions:
    count = len(tokens)
    top = np.broadcast_to(np.array(tokens[:3], dtype=np.object_), (count, len(tokens[:3])))
    return SitePredictions(
        positions=np.arange(count),
        top_ids=np.zeros(top.shape, np.int64),
        top_tokens=top,
        top_logprobs=np.log(np.clip(1 - numbers(*top.shape), 1e-3, 1)),
        token_logprobs=np.zeros((count, 0), np.float32),
        next_token_logprobs=-numbers(count),
    )


def tokenized(tokens: Sequence[str] = TOKENS) -> Tokenized:
    return Tokenized(tuple(range(len(tokens))), tuple(tokens), ())


def means(tokens: Sequence[str] = TOKENS) -> LabelMeans:
    return LabelMeans({Site.parse("resid_post.1"): numbers(WIDTH)}, rows=3, label="".join(tokens))


def vector(tokens: Sequence[str] = TOKENS) -> SteeringVector:
    return SteeringVector("resid_post.1", numbers(WIDTH), "".join(tokens))


def stored(tokens: Sequence[str] = TOKENS) -> StoredVector:
    text = "".join(tokens)
    return StoredVector(
        name=f"models/m/steeringVectors/{text}",
        rows=tuple(StoredRow(token, 1.5, None, 0.75, None) for token in tokens),
        width=WIDTH,
        labels={text: text},
        provenance=None,
        model_path=text,
        content_sha256="",
        create_time=datetime(2026, 1, 1, tzinfo=timezone.utc),
        etag="",
    )


def sweep(tokens: Sequence[str] = TOKENS) -> Sweep:
    def cell(at: int, coefficient: float | None) -> SweepCell:
        return SweepCell(
            prompt=tokens[at],
            prompt_index=at,
            prompt_text=tokens[at],
            variant="".join(tokens[:4]) if coefficient is not None else "plain",
            variant_index=int(coefficient is not None),
            coefficient=coefficient,
            site=None if coefficient is None else "resid_post.1",
            positions=None,
            error=InvalidRequest(tokens[at]) if at == 1 and coefficient else None,
            text=tokens[at],
            finish_reason="stop",
            answers={tokens[0]: -1.0 - at + (coefficient or 0)},
            scores={},
            perplexity=2.0,
            repetition=None,
            interventions=(),
            stored=False,
        )

    return Sweep(
        cells=tuple(cell(at, c) for c in (None, -1.0, 1.0) for at in range(len(tokens))),
        answers=(*tokens[:1],),
        scores=(),
        usage=USAGE,
        request_id="r",
    )


def model(tokens: Sequence[str] = TOKENS) -> Model:
    text = "".join(tokens)
    return Model(
        id=text,
        path=text,
        architecture=text,
        layer_count=2,
        width=WIDTH,
        vocabulary_size=49152,
        element_type="f32",
        hook_points={
            "resid_post": HookPointSupport(WIDTH, 0, "", ""),
            "mlp_act": HookPointSupport(WIDTH, 0, "", text),
            "router": HookPointSupport(WIDTH, 0, text, ""),
        },
        attention_unserved_reason="",
        limits=Limits(1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024),
        nlas=(),
        adapters=(),
        features=("fetch",),
        default_sampling=Sampling(),
    )


def quality(scores: int = 6) -> Quality:
    return Quality(
        positives=scores,
        negatives=scores,
        auroc=0.9,
        interval=(0.8, 0.95),
        log_auroc=0.5,
        recall_at_1_percent=0.25,
        recall_at_01_percent=0.0,
        positive_scores=numbers(scores) * np.float32(2),
        negative_scores=numbers(scores),
    )


def report(tokens: Sequence[str] = TOKENS) -> FitReport:
    text = "".join(tokens)
    return FitReport(
        monitor=text,
        work=Work("succeeded", 3, 3, InvalidRequest(text)),
        method="logistic",
        tried=tuple(FittedSites((token,), 0.75) for token in tokens),
        held_out=quality(),
        shuffled=quality(),
        longer=None,
        calibration_texts=7,
    )


def monitor(tokens: Sequence[str] = TOKENS) -> Monitor:
    text = "".join(tokens)
    return Monitor(
        name=f"models/m/monitors/{text}",
        kind="mlp",
        sites=tuple(tokens),
        aggregator=Aggregator(),
        positions=text,
        lower=StoredLevel(0.5, "", 0, None, False, True, None, text),
        upper=None,
        watch=Watch(end_users=tokens),
        labels={text: text},
        paused=False,
        fit=report(tokens),
        model_path=text,
        create_time=datetime(2026, 1, 1, tzinfo=timezone.utc),
        update_time=datetime(2026, 1, 1, tzinfo=timezone.utc),
        etag="",
    )


def history(tokens: Sequence[str] = TOKENS) -> ScoreHistory:
    first = datetime(2026, 1, 1, tzinfo=timezone.utc)
    hours = (
        ScoreHour(first - timedelta(hours=at), "e", np.array([at, 2, 1]))
        for at in range(len(tokens))
    )
    return ScoreHistory("".join(tokens), np.array([0.0, 1.0]), tuple(hours), 0.3)


def replay(tokens: Sequence[str] = TOKENS) -> Replay:
    text = "".join(tokens[:1])
    names = (f"new {text}", f"old {text}")

    def item(at: int) -> ReplayedItem:
        told = {
            name: MonitorScore(name, 3, 0.1 * which, 0.2 * at, 1, ("", "upper")[which])
            for which, name in enumerate(names)
        }
        error = InvalidRequest(tokens[at]) if at == 1 and len(tokens) < 100 else None
        return ReplayedItem(tokens[at], at, error, {} if error else told)

    return Replay(tuple(map(item, range(len(tokens)))), names, USAGE)


STUDIES: dict[str, Callable[..., Shown]] = {
    "lens": lens,
    "attention": attention,
    "patch": patch,
    "score": score,
    "comparison": comparison,
}
RESULTS: dict[str, Callable[..., Shown]] = STUDIES | {
    "activations": activations,
    "generation": generation,
    "generation without log probabilities": unscored_generation,
    "explained": explained,
    "predictions": predictions,
    "tokenized": tokenized,
    "means": means,
    "vector": vector,
    "stored vector": stored,
    "sweep": sweep,
    "model": model,
    "fit report": report,
    "monitor": monitor,
    "score history": history,
    "replay": replay,
}
