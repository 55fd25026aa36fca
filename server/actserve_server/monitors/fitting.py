"""Fits a probe to the rows of labelled examples, and says how well it does. A pure function.

Sites are chosen by a part that is set aside; what is told is of a part that nothing was fitted to
or chosen by. Examples are scored by their highest score at any token that counts, which is what
raises an alert.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.probes import Aggregator, Attention, Ema, ScoreReduction
from actserve_server.domain.roc import auroc
from actserve_server.domain.running_scores import RunningScores
from actserve_server.domain.sites import Site
from actserve_server.monitors import fit_linear
from actserve_server.monitors.fit_data import Examples, FittedRows, Split
from actserve_server.monitors.fit_quality import Quality, Scored, over_shuffles, quality


class FitMethod(Enum):
    """As FitMethod of the contract."""

    LOGISTIC = auto()
    MEAN_DIFFERENCE = auto()
    STREAMED = auto()
    MLP = auto()
    ATTENTION = auto()

    @property
    def closed(self) -> bool:
        """Whether it is of mean rows in closed form, or else trained on those of all tokens."""
        return self in (FitMethod.LOGISTIC, FitMethod.MEAN_DIFFERENCE)

    @property
    def aggregator(self) -> Aggregator:
        """What suits it."""
        match self:
            case FitMethod.STREAMED:
                return Aggregator(Ema(2 / 17), ScoreReduction.MAX)
            case FitMethod.ATTENTION:
                return Aggregator(Attention(10), ScoreReduction.MAX)
            case _:
                return Aggregator(None, ScoreReduction.MEAN)

    @property
    def shuffles(self) -> int:
        """How often the control is fitted. With few examples held out one fit to chance may tell
        them apart well, so it is the mean of many that says something."""
        return 32 if self.closed else 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to fit."""

    method: FitMethod
    sites: tuple[Site, ...]
    all_sites: bool
    """Whether to read all of them side by side; else the best one is chosen."""
    aggregator: Aggregator
    hidden_units: int
    """Of MLP."""
    heads: int
    """Of ATTENTION."""

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the sites that are read together, of each choice."""
        count = len(self.sites)
        return (tuple(range(count)),) if self.all_sites else tuple((i,) for i in range(count))

    @property
    def fits(self) -> int:
        """How many probes are fitted."""
        return len(self.choices) + self.method.shuffles


@dataclass(frozen=True, slots=True)
class Tried:
    """How well a probe of some sites tells apart what was set aside."""

    sites: tuple[Site, ...]
    auroc: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fitted:
    """A probe, and how well it does."""

    network: ProbeNetwork
    tried: tuple[Tried, ...]
    """The chosen one first."""
    held_out: Quality
    shuffled: Quality
    harmless: np.ndarray
    """The scores of the negative examples that were held out, float64."""


class Progress(Protocol):
    """Who asked for it."""

    def check(self) -> None:
        """Called often; raises if nobody wants it any more."""
        ...

    def step(self) -> None:
        """Called after each of `Recipe.fits`."""
        ...


def fit(examples: Examples, parts: Split, recipe: Recipe, progress: Progress) -> Fitted:
    """The same of the same examples in the same order. Raises TENSOR_DEGENERATE where nothing tells
    them apart at any site."""
    train, set_aside, held_out = (
        examples.part(each) for each in (parts.train, parts.set_aside, parts.held_out)
    )
    tried = [_try(choice, train, set_aside, recipe, progress) for choice in recipe.choices]
    # Of equal areas, which are common where few examples are set aside, that of the probe that
    # has both kinds further apart; of those the first.
    order = sorted(range(len(tried)), key=lambda i: (-tried[i].auroc, -tried[i].apart))
    best, choice = tried[order[0]], recipe.choices[order[0]]
    network = best.network
    if recipe.method.closed:
        # What was set aside has chosen, and is fitted to as well. Training needs it to know when
        # to end.
        every = examples.part(np.sort(np.concatenate([parts.train, parts.set_aside])))
        network = _probe(choice, every, set_aside, recipe, progress)
    if not network.values.any():
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            "nothing tells the positive examples from the negative ones at any site; use others, "
            "or other sites",
            field=("examples",),
        )
    scored = score(network, choice, held_out, recipe.aggregator, progress)
    return Fitted(
        network=network,
        tried=tuple(Tried(_sites(recipe, recipe.choices[i]), tried[i].auroc) for i in order),
        held_out=quality(scored),
        shuffled=_shuffled(choice, train, set_aside, held_out, recipe, progress),
        harmless=scored.negative,
    )


def score(
    network: ProbeNetwork,
    choice: Sequence[int],
    examples: Examples,
    how: Aggregator,
    progress: Progress,
) -> Scored:
    """The highest score of each example at any token that counts."""
    scores = []
    for index in range(len(examples)):
        progress.check()
        numbers = network.apply(examples.counted(choice, index))
        scores.append(highest(network, how, numbers))
    return Scored(np.array(scores), examples.is_positive, examples.groups)


def highest(network: ProbeNetwork, how: Aggregator, numbers: np.ndarray) -> float:
    """Of a sequence whose tokens have these outputs of the network, float32 [tokens, outputs].
    Raises TENSOR_NOT_FINITE."""
    _, scores = RunningScores([(network, how)]).after(numbers)
    if not np.isfinite(scores).all():
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            "the scores of the fitted probe are not finite; use another method, or other sites",
        )
    return float(scores.max())


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    network: ProbeNetwork
    auroc: float
    apart: float
    """Between the means of both kinds, in deviations."""


def _try(
    choice: tuple[int, ...],
    train: Examples,
    set_aside: Examples,
    recipe: Recipe,
    progress: Progress,
) -> _Attempt:
    network = _probe(choice, train, set_aside, recipe, progress)
    scored = score(network, choice, set_aside, recipe.aggregator, progress)
    positive, negative = scored.positive, scored.negative
    deviation = np.sqrt((positive.var() + negative.var()) / 2)
    apart = (positive.mean() - negative.mean()) / (deviation + np.finfo(np.float32).tiny)
    progress.step()
    return _Attempt(network, auroc(positive, negative), float(apart))


def _shuffled(
    choice: tuple[int, ...],
    train: Examples,
    set_aside: Examples,
    held_out: Examples,
    recipe: Recipe,
    progress: Progress,
) -> Quality:
    """The same with labels that are drawn at random, of what was fitted to."""
    rng = np.random.default_rng(2)
    every = []
    for _ in range(recipe.method.shuffles):
        given, other = (
            each.relabelled(rng.permutation(each.is_positive)) for each in (train, set_aside)
        )
        network = _probe(choice, given, other, recipe, progress)
        every.append(score(network, choice, held_out, recipe.aggregator, progress))
        progress.step()
    return over_shuffles(every)


def _probe(
    choice: tuple[int, ...],
    train: Examples,
    set_aside: Examples,
    recipe: Recipe,
    progress: Progress,
) -> ProbeNetwork:
    progress.check()
    sites, rows = _sites(recipe, choice), FittedRows(train, choice)
    match recipe.method:
        case FitMethod.LOGISTIC:
            return _linear(fit_linear.logistic, rows, train, sites)
        case FitMethod.MEAN_DIFFERENCE:
            return _linear(fit_linear.mean_difference, rows, train, sites)
        case _:
            pass
    # Not before, since it takes torch, which the engine brings along and others do without.
    from actserve_server.monitors import fit_networks

    given = fit_networks.Training(
        rows,
        train.is_positive,
        FittedRows(set_aside, choice),
        set_aside.is_positive,
        progress.check,
    )
    match recipe.method:
        case FitMethod.STREAMED:
            return fit_networks.streamed(given, sites)
        case FitMethod.MLP:
            return fit_networks.hidden_layer(given, sites, recipe.hidden_units, recipe.aggregator)
        case FitMethod.ATTENTION:
            return fit_networks.attention(given, sites, recipe.heads, recipe.aggregator)


def _linear(
    method: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]],
    rows: FittedRows,
    examples: Examples,
    sites: tuple[Site, ...],
) -> ProbeNetwork:
    weights, bias = method(rows.means(), examples.is_positive)
    return ProbeNetwork(sites, weights[None].astype(np.float32), bias=bias)


def _sites(recipe: Recipe, choice: Sequence[int]) -> tuple[Site, ...]:
    return tuple(recipe.sites[index] for index in choice)
