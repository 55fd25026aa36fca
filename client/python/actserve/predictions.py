"""Predictions: what the model would say next, read off the residual stream on the server.

A row of a residual stream site passes through the final norm and the unembedding: the logit lens
(nostalgebraist, 2020). At `final_norm` this is what the model does predict.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actserve._checks import integer, several
from actserve._show.shown import Shown
from actserve.errors import InvalidRequest
from actserve.positions import Positions, check_positions, positions_to_proto
from actserve.sites import SiteLike, parse_sites, plain_sites
from actserve.tensors import Float32Array
from actserve.tokens import TOKENS, TokenLike, checked_tokens, token_id
from actserve.v1 import readout_pb2 as pb

if TYPE_CHECKING:
    import pandas as pd

_TOP_K = range(1001)


@dataclass(frozen=True, eq=False)
class Predict:
    """Asks for predictions of the next token. At least one of the last three is asked for.

    - `sites`: residual stream sites, or `final_norm`.
    - `positions`: where; see `Positions`. The prediction at a position is of the token after it.
    - `top_k`: the likeliest tokens to report, 0 to 1000.
    - `token_ids`: tokens whose log probability to report, by id or text such as `" Paris"`, at
      most 1000.
    - `next_token`: whether to report the log probability of the prompt token that does come next,
      which scores a prompt without sampling.

    Checks what it is given when it is made, and raises `InvalidRequest`.
    """

    sites: SiteLike | Iterable[SiteLike] = "final_norm"
    positions: Positions = "all"
    top_k: int = 0
    token_ids: TokenLike | Sequence[TokenLike] | NDArray[np.integer] = field(
        default=(), metadata=TOKENS
    )
    next_token: bool = False

    def __post_init__(self) -> None:
        sites = parse_sites(self.sites)
        if not sites:
            raise InvalidRequest(
                "sites is empty; name at least one, as in 'final_norm'", reason="FIELD_REQUIRED"
            )
        check_positions(self.positions)
        integer(self.top_k, "a number of likeliest tokens", _TOP_K, "FIELD_INVALID")
        token_ids = checked_tokens(self.token_ids)
        if not (self.top_k or token_ids or self.next_token):
            raise InvalidRequest(
                "nothing to report is asked for; set top_k, token_ids or next_token",
                reason="FIELD_REQUIRED",
            )
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "token_ids", token_ids)

    def to_proto(self) -> pb.PredictionReadout:
        """The request as the contract writes it."""
        return pb.PredictionReadout(
            sites=[site.to_proto() for site in plain_sites(self.sites)],
            positions=positions_to_proto(self.positions),
            top_k=self.top_k,
            token_ids=[token_id(token) for token in several(self.token_ids)],
            next_token=self.next_token,
        )


@dataclass(frozen=True, slots=True, eq=False)
class SitePredictions(Shown):
    """Predictions at one site. Row i is of the token after `positions[i]`; log probabilities are
    natural."""

    positions: NDArray[np.int64]
    """Ascending. Shape [positions]."""
    top_ids: NDArray[np.int64]
    """The likeliest tokens, likeliest first. Shape [positions, top_k]."""
    top_tokens: NDArray[np.object_]
    """Those tokens, each a string decoded alone. Shape [positions, top_k]."""
    top_logprobs: Float32Array
    """Of those tokens. Shape [positions, top_k]."""
    token_logprobs: Float32Array
    """Of `Predict.token_ids`. Shape [positions, token_ids]."""
    next_token_logprobs: Float32Array | None
    """Of the prompt token that does come next; NaN at the last prompt position and at generated
    ones. Shape [positions]; None unless asked for."""

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each position, and the arrays above as its columns, by
        `field` and `rank`: `frame["top_tokens"]` is [positions, top_k]. What was not asked for is
        not there. Needs the extra `pandas`.

            frame = acts.predictions["final_norm"].to_pandas()
            frame["top_tokens"]  # who is likeliest, by position and rank
            frame.stack("rank")  # a row for each position and rank
        """
        from actserve.frames import predictions_to_pandas  # Which takes predictions.

        return predictions_to_pandas(self)
