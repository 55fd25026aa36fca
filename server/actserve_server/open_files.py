"""How many files may be open, and how many connections each port may take of them.

gRPC serves nobody any more where a file cannot be opened for one more connection, whose connection
was open before either. So all ports together take no more than what others leave.
"""

import resource

from actserve_server.config import ConfigError, Settings
from actserve_server.metrics_page import MAX_SCRAPES
from actserve_server.rpc.server import MAX_PROBE_CONNECTIONS

SPARE_FILES = 256
"""Open beside connections: of libraries, the database, logs, and what the engine talks by."""
FEWEST_CONNECTIONS = 64
"""Of each port for calls: with fewer a handful of clients would lock out all others."""
ENOUGH_FILES = 65_536
"""The limit is raised no further: some programs that a process starts look at every file that they
might have open, and containers often allow a billion."""


def raise_limit() -> None:
    """Has the soft limit of the process follow its hard one, which needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = limit()
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def limit() -> int:
    """How many files may be open once the limit is raised."""
    soft, hard = (
        ENOUGH_FILES if each == resource.RLIM_INFINITY else each
        for each in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return min(max(soft, min(hard, ENOUGH_FILES)), 1 << 30)  # gRPC counts by int32.


def taken(settings: Settings) -> int:
    """Files that calls cannot have."""
    probes = 0 if settings.health_port is None else MAX_PROBE_CONNECTIONS
    scrapes = 0 if settings.metrics_port == 0 else MAX_SCRAPES
    return SPARE_FILES + probes + scrapes


def room_for_connections(settings: Settings) -> int:
    """How many connections each port for calls takes."""
    return max(1, (limit() - taken(settings)) // _ports(settings))


def check_open_files(settings: Settings) -> None:
    """Raises ConfigError if there is no room for a few connections."""
    needed = taken(settings) + _ports(settings) * FEWEST_CONNECTIONS
    if limit() < needed:
        raise ConfigError(
            f"{limit()} files may be open, and a server with these ports needs {needed}: "
            f"{taken(settings)} beside calls, and {FEWEST_CONNECTIONS} for connections of each "
            "port; raise the hard limit (ulimit -Hn, LimitNOFILE, docker: --ulimit nofile)"
        )


def _ports(settings: Settings) -> int:
    return 1 if settings.http_port is None else 2
