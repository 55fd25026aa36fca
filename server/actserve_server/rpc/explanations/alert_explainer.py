"""What explains the rows that raised alerts: the NLAs that are served, as any call reaches them."""

from collections.abc import Sequence
from contextlib import aclosing

import numpy as np

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.principals import Principal, Role
from actserve_server.domain.sites import Site
from actserve_server.rpc.explanations import served_nlas
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.transport.calls import Call


class AlertExplainer:
    """What `RowExplainer` promises."""

    def __init__(self, nlas: Nlas, info: ModelInfo) -> None:
        """`info` is of the served model."""
        self._nlas = nlas
        self._info = info

    def site(self, nla: str, sites: Sequence[Site]) -> Site:
        if not nla:
            fitting = [each for each in served_nlas.all_of(self._nlas) if each.site in sites]
            if len(fitting) == 1:
                return fitting[0].site
        return served_nlas.find(self._nlas, nla, self._info).site

    async def explain(
        self, nla: str, site: Site, row: np.ndarray, position: int, tenant: str
    ) -> str:
        found = served_nlas.find(self._nlas, nla, self._info, site)
        call = Call(principal=Principal(tenant=tenant, role=Role.READER))
        text = ""
        async with (
            found.asked(pb.ExplainSpec(), [position], call) as explain,
            aclosing(explain(row[np.newaxis])) as events,
        ):
            async for event in events:
                if event.HasField("explanation"):
                    text = event.explanation.text
        return text
