"""NLA pairs: what of a server can be loaded and unloaded while it runs."""

from dataclasses import dataclass

from actserve._names import short
from actserve.monitor_fits import Work, work_from_proto
from actserve.v1 import explanation_service_pb2 as pb

NLA_PAIRS = "nlaPairs"
_STATE = "NLA_PAIR_STATE_"


@dataclass(frozen=True, slots=True)
class NlaPair:
    """A pair of checkpoints, or half of one, that the server's operator allows to be loaded."""

    id: str
    """What `nla` takes once it is loaded."""
    name: str
    """Its whole name."""
    state: str
    """"unloaded", "loading", "loaded" or "unloading"; its number if this client does not know
    it."""
    loading: Work | None
    """How loading it goes, or went the last time that it was asked for; None before."""
    running_calls: int
    """Calls that it works on; unloading waits for them."""


def pair_from_proto(pair: pb.NlaPair) -> NlaPair:
    """A pair as the contract describes it."""
    states = {number: name for name, number in pb.NlaPairState.items()}
    return NlaPair(
        id=short(pair.name),
        name=pair.name,
        state=states.get(pair.state, str(pair.state)).removeprefix(_STATE).lower(),
        loading=work_from_proto(pair.loading) if pair.HasField("loading") else None,
        running_calls=pair.running_calls,
    )
