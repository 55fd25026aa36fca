"""What of the contract a server tells that it serves."""

from collections.abc import Iterable
from typing import Protocol

from actserve.v1 import model_service_pb2 as pb
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.graphs.traced_graph import unserved as graphs_unserved

ALWAYS = (
    pb.FEATURE_FETCH,
    pb.FEATURE_GENERATE,
    pb.FEATURE_INTERVENTIONS,
    pb.FEATURE_PREDICTIONS,
    pb.FEATURE_KEPT_ACTIVATIONS,
    pb.FEATURE_STEERING_VECTORS,
    pb.FEATURE_SWEEPS,
    pb.FEATURE_DICTIONARIES,
)
"""Served for every model. Whatever is not listed here or below is not served: a feature of the
contract must be named to be told."""


class Halves(Protocol):
    """What counts of an NLA."""

    @property
    def verbalizes(self) -> bool: ...
    @property
    def reconstructs(self) -> bool: ...


def features(info: ModelInfo, nlas: Iterable[Halves], *, attention: bool) -> list["pb.Feature"]:
    """What is served of a model with these autoencoders, ascending."""
    # Attribution takes the scale of the last residual, which may have been withdrawn.
    last = info.hook_points[HookPoint.RESID_POST]
    sometimes = {
        pb.FEATURE_ATTENTION: attention,
        pb.FEATURE_HEAD_METRICS: attention,
        pb.FEATURE_ATTRIBUTION_GRAPHS: not graphs_unserved(info),
        pb.FEATURE_ADAPTERS: bool(info.adapters),
        pb.FEATURE_CONDITIONS: not info.conditions_unserved,
        pb.FEATURE_MONITORS: not info.monitors_unserved,
        pb.FEATURE_EXPLAIN: any(nla.verbalizes for nla in nlas),
        pb.FEATURE_RECONSTRUCT: any(nla.reconstructs for nla in nlas),
        pb.FEATURE_LOGIT_ATTRIBUTION: not (info.weights.attribution_unserved or last.unserved),
        pb.FEATURE_TOKEN_ROWS: not info.weights.tokens_unserved,
        pb.FEATURE_HEAD_MATRICES: not info.weights.heads_unserved,
    }
    return sorted([*ALWAYS, *(feature for feature, served in sometimes.items() if served)])
