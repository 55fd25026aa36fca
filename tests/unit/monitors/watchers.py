"""Small monitors, as they watch a sequence."""

import numpy as np

from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.probes import EACH_TOKEN
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.monitors.watched import Level, LevelName, Watcher, WatcherScore

NETWORK = ProbeNetwork((Site(HookPoint.RESID_POST, 1),), np.ones((1, 16), np.float32))


def watcher(monitor: str, *levels: Level) -> Watcher:
    return Watcher(
        monitor=monitor,
        etag="1",
        network=NETWORK,
        aggregator=EACH_TOKEN,
        selection=Selection(Spans(((0, NO_END),))),
        levels=levels or (Level(LevelName.UPPER, 1.0),),
    )


def score(of: Watcher, highest: float, tokens: int = 3) -> WatcherScore:
    return WatcherScore(of, tokens, highest, highest, 0, None)
