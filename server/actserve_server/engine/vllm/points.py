"""Where sites lie in the computation: tap points, and the stages of each.

A decoder layer of vLLM defers its residual adds: what flows is a pair (branch, residual) whose sum
is the residual stream, and the sum is formed inside the next fused norm. So there are three kinds
of point where a pair can be read and edited:

    point 0           the embedding, before layer 0          branch = embedding, residual = none
    point 2 L + 1     between attention and MLP of layer L   branch = attn_out.L
    point 2 L + 2     after layer L                          branch = mlp_out.L

At a point three stages follow each other. BRANCH is the branch alone. STREAM is branch + residual.
NEXT is the same sum under its name in the next layer (resid_pre). An edit always goes into the
branch, which the sum contains; the stage only orders edits and captures.
"""

from enum import IntEnum
from typing import NamedTuple

from actserve_server.domain.sites import HookPoint, Site


class Stage(IntEnum):
    BRANCH = 0
    STREAM = 1
    NEXT = 2


class Tap(NamedTuple):
    """A point and a stage of it."""

    point: int
    stage: int


EMBEDDING_POINT = 0


def mid_point(layer: int) -> int:
    return 2 * layer + 1


def post_point(layer: int) -> int:
    return 2 * layer + 2


def point_count(layer_count: int) -> int:
    return 2 * layer_count + 1


def tap_of(site: Site) -> Tap:
    """The tap of a site with an absolute layer."""
    if site.layer is None:
        return Tap(EMBEDDING_POINT, Stage.STREAM)
    match site.hook_point:
        case HookPoint.RESID_PRE:
            # The stream before layer L is the stream after layer L - 1; before layer 0, the
            # embedding. post_point(-1) is EMBEDDING_POINT.
            return Tap(post_point(site.layer - 1), Stage.NEXT)
        case HookPoint.ATTN_OUT:
            return Tap(mid_point(site.layer), Stage.BRANCH)
        case HookPoint.RESID_MID:
            return Tap(mid_point(site.layer), Stage.STREAM)
        case HookPoint.MLP_OUT:
            return Tap(post_point(site.layer), Stage.BRANCH)
        case HookPoint.RESID_POST:
            return Tap(post_point(site.layer), Stage.STREAM)
        case HookPoint.EMBEDDING:
            raise ValueError("the embedding has no layer")
