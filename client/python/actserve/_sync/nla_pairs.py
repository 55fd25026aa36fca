"""NLA pairs: loaded and unloaded while the server runs."""

from __future__ import annotations

from collections.abc import Generator
from functools import cached_property
from typing import Any

from actserve._names import Named, named
from actserve._progress import reaching
from actserve._retries import Retries
from actserve._sync.base import Base
from actserve.errors import DeadlineExceeded
from actserve.nla_pairs import NLA_PAIRS, NlaPair, pair_from_proto
from actserve.v1 import explanation_service_pb2 as pb

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
"""Between two looks at how far it has come."""


class NlaPairs:
    """The pairs that the server's operator allows to be loaded. All methods take the role operator.

    A pair is named by its id or by its whole name, or is what a method here returned. Raises
    `NotFound` for one that the operator does not allow.
    """

    def __init__(self, transport: Any, resolved: Any) -> None:
        self._transport = transport
        self._resolved = resolved

    def get(self, name: str | Named | NlaPair, *, timeout: float | None = None) -> NlaPair:
        """One pair, as it is now."""
        request = pb.GetNlaPairRequest(name=self._whole(name, timeout))
        answer = self._transport.response("GetNlaPair", request, timeout)
        return pair_from_proto(answer.nla_pair)

    def load(
        self,
        name: str | Named | NlaPair,
        *,
        wait: bool = True,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> NlaPair:
        """Loads a pair, which takes minutes, and returns it once it explains. Where it is loaded
        already this does nothing.

        Raises what loading failed with: reason MEMORY_EXCEEDED where too little memory is free, and
        NLA_PAIR_INVALID for checkpoints that do not fit; and `DeadlineExceeded` after `timeout`
        seconds, after which loading goes on all the same.

        - `wait`: False returns at once, with what `get` tells from then on.
        - `progress`: a bar on standard error; by default on a terminal, with rich.

            client.nla_pairs.load("gemma-layer-20")
            client.explain_text("The capital of France is", nla="gemma-layer-20")
        """
        request = pb.LoadNlaPairRequest(name=self._whole(name, timeout))
        answer = self._transport.response("LoadNlaPair", request, timeout)
        pair = pair_from_proto(answer.nla_pair)
        if wait:
            pair = self._once(pair, "loading", timeout, progress)
            if pair.state == "unloaded" and pair.loading and pair.loading.error:
                raise pair.loading.error
        return pair

    def unload(
        self,
        name: str | Named | NlaPair,
        *,
        wait: bool = True,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> NlaPair:
        """Unloads a pair: no new call finds it, and once those that it works on are finished its
        memory is free. Its baselines stay stored. Arguments as for `load`."""
        request = pb.UnloadNlaPairRequest(name=self._whole(name, timeout))
        answer = self._transport.response("UnloadNlaPair", request, timeout)
        pair = pair_from_proto(answer.nla_pair)
        return self._once(pair, "unloading", timeout, progress) if wait else pair

    # Last: below it `list` is this method.
    def list(self, *, timeout: float | None = None) -> Generator[NlaPair, None]:
        """The pairs, by name.

        for pair in client.nla_pairs.list():
            print(pair.id, pair.state)
        """
        request = pb.ListNlaPairsRequest()
        for page in self._transport.pages("ListNlaPairs", request, timeout):
            for pair in page.nla_pairs:
                yield pair_from_proto(pair)

    def _once(
        self, pair: NlaPair, state: str, timeout: float | None, progress: bool | None
    ) -> NlaPair:
        """The pair, once it is not in that state any more."""
        left, pause = Retries(timeout), _FIRST_PAUSE_S
        with reaching(f"{state} {pair.id}", progress) as reach:
            while pair.state == state:
                remaining = left.left()
                if remaining == 0:
                    raise DeadlineExceeded(
                        f"{pair.id} is {state} still after {timeout} seconds; that goes on, and "
                        f"client.nla_pairs.get({pair.id!r}) tells how far it is"
                    )
                self._transport.sleep(pause if remaining is None else min(pause, remaining))
                pause = min(1.5 * pause, _LONGEST_PAUSE_S)
                pair = self.get(pair.name)
                if pair.loading is not None:
                    reach(pair.loading.steps_done, pair.loading.steps)
        return pair

    def _whole(self, name: Any, timeout: float | None) -> str:
        """The whole name of a pair."""
        asked = {"pair": named(NLA_PAIRS, name)}
        return (self._resolved(asked, timeout))["pair"].name


class PairLoading(Base):
    """Pairs of NLAs."""

    @cached_property
    def nla_pairs(self) -> NlaPairs:
        """What the server can load and unload, for operators.

        client.nla_pairs.load("gemma-layer-20")
        """
        return NlaPairs(self._transport, self._resolved)
