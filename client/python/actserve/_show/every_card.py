"""The card of each kind of result."""

from functools import singledispatch

from actserve._show import (
    feature_cards,
    graph_cards,
    head_cards,
    monitor_cards,
    result_cards,
    study_cards,
    sweep_cards,
)
from actserve._show.cards import Card
from actserve._show.shown import Shown
from actserve.dictionaries import StoredDictionary
from actserve.explanations import ExplainedText
from actserve.features import ChosenFeatures, FeatureTotals, TopFeatures
from actserve.graphs import AttributionGraph, GraphTest
from actserve.heads import HeadGrid, HeadTable
from actserve.looks import Look
from actserve.means import LabelMeans
from actserve.models import Model
from actserve.monitor_fits import FitReport
from actserve.monitors import Monitor
from actserve.predictions import SitePredictions
from actserve.qualities import Quality
from actserve.replays import Replay
from actserve.results import Activations, Generation, Tokenized
from actserve.score_histories import ScoreHistory
from actserve.steering_vectors import SteeringVector
from actserve.stored_vectors import StoredVector
from actserve.studies import AttentionMap, Comparison, LogitLens, PatchGrid, TextScore
from actserve.sweeps import Sweep


@singledispatch
def card_of(result: Shown) -> Card:
    """What is shown of a result."""
    raise NotImplementedError(f"nothing is shown of {type(result).__name__}")


card_of.register(Activations, result_cards.activations_card)
card_of.register(AttributionGraph, graph_cards.graph_card)
card_of.register(AttentionMap, study_cards.attention_card)
card_of.register(ChosenFeatures, feature_cards.chosen_features_card)
card_of.register(Comparison, study_cards.comparison_card)
card_of.register(ExplainedText, result_cards.explained_card)
card_of.register(FeatureTotals, feature_cards.totals_card)
card_of.register(FitReport, monitor_cards.report_card)
card_of.register(Generation, result_cards.generation_card)
card_of.register(HeadGrid, head_cards.head_grid_card)
card_of.register(HeadTable, head_cards.heads_card)
card_of.register(GraphTest, graph_cards.ablation_card)
card_of.register(LabelMeans, result_cards.means_card)
card_of.register(LogitLens, study_cards.lens_card)
card_of.register(Look, feature_cards.look_card)
card_of.register(Model, result_cards.model_card)
card_of.register(Monitor, monitor_cards.monitor_card)
card_of.register(PatchGrid, study_cards.patch_card)
card_of.register(Quality, monitor_cards.quality_card)
card_of.register(Replay, monitor_cards.replay_card)
card_of.register(ScoreHistory, monitor_cards.history_card)
card_of.register(SitePredictions, result_cards.predictions_card)
card_of.register(SteeringVector, result_cards.vector_card)
card_of.register(StoredDictionary, feature_cards.dictionary_card)
card_of.register(StoredVector, result_cards.stored_card)
card_of.register(Sweep, sweep_cards.sweep_card)
card_of.register(TextScore, study_cards.score_card)
card_of.register(Tokenized, result_cards.tokenized_card)
card_of.register(TopFeatures, feature_cards.top_features_card)
