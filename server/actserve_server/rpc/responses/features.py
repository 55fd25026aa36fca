"""What of the contract a server tells that it serves."""

from collections.abc import Sequence

from actserve.v1 import explanation_service_pb2
from actserve.v1 import model_service_pb2 as pb

ALWAYS = (
    pb.FEATURE_FETCH,
    pb.FEATURE_GENERATE,
    pb.FEATURE_INTERVENTIONS,
    pb.FEATURE_PREDICTIONS,
    pb.FEATURE_KEPT_ACTIVATIONS,
)
"""Served for every model. Whatever is not listed here or below is not served: a feature of the
contract must be named to be told."""


def features(
    nlas: Sequence[explanation_service_pb2.Nla], *, attention: bool, logit_attribution: bool
) -> list["pb.Feature"]:
    """What is served of a model with these autoencoders, ascending."""
    sometimes = {
        pb.FEATURE_ATTENTION: attention,
        pb.FEATURE_EXPLAIN: any(nla.verbalizes for nla in nlas),
        pb.FEATURE_LOGIT_ATTRIBUTION: logit_attribution,
        pb.FEATURE_RECONSTRUCT: any(nla.reconstructs for nla in nlas),
    }
    return sorted([*ALWAYS, *(feature for feature, served in sometimes.items() if served)])
