"""Scores of monitors in an answer: checked to be those that were asked for, all of them."""

from collections.abc import Iterable, Sequence

from actserve.errors import BadResponse
from actserve.monitors import MonitorScore, score_from_proto
from actserve.v1 import generation_service_pb2 as pb


def scores_of_sample(
    scores: Sequence[pb.MonitorScore], request: pb.GenerateRequest
) -> dict[str, MonitorScore]:
    """By id of the monitor, as `request` asks for them: of every monitor that it names, and perhaps
    of others that watch its caller. Raises `BadResponse`."""
    names = [each.monitor for each in scores]
    asked = request.score_detail != pb.SCORE_DETAIL_UNSPECIFIED
    if len({*names}) < len(names) or (names and not asked):
        raise BadResponse(f"the server sent scores of {names}, some twice or unasked")
    if asked and (missing := {*request.monitors} - {*names}):
        raise BadResponse(f"the server sent no score of {', '.join(sorted(missing))}")
    return checked_scores(scores, request.score_detail == pb.SCORE_DETAIL_TOKEN)


def checked_scores(scores: Iterable[pb.MonitorScore], each_token: bool) -> dict[str, MonitorScore]:
    """By id of the monitor. Raises `BadResponse` unless they have the score as of each token that
    counts where that was asked for, and nothing of tokens otherwise."""
    found: dict[str, MonitorScore] = {}
    for told in scores:
        score = score_from_proto(told)
        count = score.tokens if each_token else 0
        positions = [*told.positions]
        if len(positions) != count or positions != sorted({*positions}):
            raise BadResponse(
                f"the server sent positions {positions} with the score of {score.monitor}, not "
                f"{count} that ascend"
            )
        if count and score.scores is None:
            raise BadResponse(
                f"the server sent no scores of the {count} tokens of {score.monitor} that count"
            )
        found[score.monitor] = score
    return found
