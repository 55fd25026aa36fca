"""Variables of the environment that look like options and are none: a misspelt one is not heard."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from actserve_server.config import ENV_PREFIX, Settings

_CLIENTS = frozenset({"SERVER", "TOKEN", "TLS", "TLS_CA", "CLIENT_CERT", "CLIENT_KEY"})
"""What the command line client reads."""
_KUBERNETES = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)\w*)?)")
"""What Kubernetes sets in every pod for a Service whose name begins with `actserve`."""


def unknown_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Those that begin as options do and are none, each with the option whose name is nearest."""
    options = [name.upper() for name in Settings.model_fields]
    for variable in sorted(environment):
        name = variable.upper().removeprefix(ENV_PREFIX)
        if name == variable.upper() or name in options or name in _CLIENTS:
            continue
        if _KUBERNETES.fullmatch(name):
            continue
        near = get_close_matches(name, options, n=1)
        yield variable, f"{ENV_PREFIX}{near[0]}" if near else None
