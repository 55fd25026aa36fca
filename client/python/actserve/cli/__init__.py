"""The `actserve` command. Needs the extra `cli`, and says so."""

import sys
from importlib.util import find_spec

_EXTRA = ("typer", "rich", "safetensors", "pyarrow", "yaml")
_INTERRUPTED = 130
"""The exit code of what Ctrl-C ends, as shells have it."""


def main() -> None:
    """Runs the command."""
    if missing := [name for name in _EXTRA if find_spec(name) is None]:
        sys.exit(
            f"the actserve command needs {', '.join(missing)}; install them with: "
            "pip install 'actserve[cli]'"
        )
    try:
        from actserve.cli.app import app

        app()
    except KeyboardInterrupt:  # While it was loading, or past all commands.
        sys.exit(_INTERRUPTED)
