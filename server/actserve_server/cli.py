"""The command line: `actserve-server serve [flags]` and `actserve-server prepare-model MODEL`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from actserve_server import config


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="actserve-server", description="A remote microscope for language models."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True)
    # The settings class knows its own flags and prints its own help.
    commands.add_parser("serve", help="serve a model over gRPC", add_help=False)
    prepare = commands.add_parser(
        "prepare-model", help="make an embedded model ready to load, and print its folder"
    )
    prepare.add_argument("model", help="its name, such as smollm2-135m")
    prepare.add_argument("--cache-dir", type=Path, help="where prepared models are kept")
    arguments, flags = parser.parse_known_args(argv)
    if arguments.command == "serve":
        return _serve(flags)
    if flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    return _prepare(arguments.model, arguments.cache_dir)


def _serve(flags: Sequence[str]) -> int:
    try:
        settings = config.load(flags)
        from actserve_server import app  # After the flags, so that --help is quick.

        asyncio.run(app.serve(settings))
    except config.ConfigError as error:
        print(f"actserve-server: {error}", file=sys.stderr)
        return 2
    return 0


def _prepare(model: str, cache_dir: Path | None) -> int:
    from actserve_server.models.embedded import default_cache_dir
    from actserve_server.models.resolve import resolve

    print(resolve(model, cache_dir or default_cache_dir()).path_or_hub_id)
    return 0


def _version() -> str:
    try:
        return f"actserve-server {version('actserve-server')}"
    except PackageNotFoundError:
        return "actserve-server (not installed)"


if __name__ == "__main__":
    raise SystemExit(main())
