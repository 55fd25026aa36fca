"""The command line: `actserve-server serve [flags]`, `doctor [flags]`, `prepare-model MODEL`,
`convert-dictionary RELEASE SAE FOLDER` and `token`."""

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from actserve_server import config
from actserve_server.domain.principals import Role
from actserve_server.rpc.transport.access_tokens import TENANT, make_token
from actserve_server.version import VERSION

MAX_DAYS = 36500
"""For which a token may be known, if not for ever."""


def make_parser() -> argparse.ArgumentParser:
    """What parses the command line; the documentation's reference is made from it, too."""
    parser = argparse.ArgumentParser(
        prog="actserve-server", description="A remote microscope for language models."
    )
    parser.add_argument("--version", action="version", version=f"actserve-server {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    # The settings class knows its own flags and prints its own help.
    commands.add_parser("serve", help="serve a model over gRPC", add_help=False)
    commands.add_parser(
        "doctor",
        help="check, without loading a model, that a server with the same flags as serve would "
        "start here",
        add_help=False,
    )
    prepare = commands.add_parser(
        "prepare-model", help="make an embedded model ready to load, and print its folder"
    )
    prepare.add_argument("model", help="its name, such as smollm2-135m")
    prepare.add_argument("--cache-dir", type=Path, help="where prepared models are kept")
    convert = commands.add_parser(
        "convert-dictionary",
        help="have SAELens load a dictionary that the server does not read, and save it as one "
        "that it reads; takes the extra saelens",
    )
    convert.add_argument("release", help="SAELens' name of a release, or a repository of the hub")
    convert.add_argument("sae", help="which dictionary of it, by SAELens' id")
    convert.add_argument("folder", type=Path, help="a new folder for it")
    token = commands.add_parser(
        "token",
        help="make a token: it is printed to stderr, and its line of the token file to stdout",
    )
    token.add_argument("--tenant", required=True, help="whose it is, such as vision")
    token.add_argument(
        "--role", required=True, help=f"what it may do: {', '.join(Role)}", choices=list(Role)
    )
    token.add_argument(
        "--days", type=float, help="for how many days it is known; for ever when left out"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    parser = make_parser()
    arguments, flags = parser.parse_known_args(argv)
    if arguments.command == "serve":
        return _serve(flags)
    if arguments.command == "doctor":
        return _doctor(flags)
    if flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    if arguments.command == "token":
        return _token(arguments.tenant, Role(arguments.role), arguments.days)
    if arguments.command == "convert-dictionary":
        return _convert(arguments.release, arguments.sae, arguments.folder)
    return _prepare(arguments.model, arguments.cache_dir)


def _serve(flags: Sequence[str]) -> int:
    try:
        settings = config.load(flags)
    except config.ConfigError as error:
        return _failed(error, 2)
    if settings.node_rank > 0:
        return _compute(settings)
    from actserve_server import app  # After the flags, so that --help is quick.

    try:
        asyncio.run(app.serve(settings))
    except config.ConfigError as error:
        return _failed(error, 2)
    except app.EngineLostError as error:
        app.exit_at_once(_failed(error, 1))
    return 0


def _compute(settings: config.Settings) -> int:
    """On another machine than the server's. Status 1 once the model's other parts are gone."""
    from actserve_server import logs
    from actserve_server.engine.vllm import other_machine
    from actserve_server.model_options import engine_options

    logs.configure(settings.log_level)
    try:
        other_machine.compute(engine_options(settings))
    except (config.ConfigError, ValueError) as error:
        return _failed(error, 2)
    return 1


def _doctor(flags: Sequence[str]) -> int:
    """Prints what was found, a line each. Status 1 if a server would not start."""
    try:
        settings = config.load(flags)
    except config.ConfigError as error:
        return _failed(error, 2)
    from actserve_server.doctor import Verdict, findings

    good = True
    for each in findings(settings):
        print(f"{each.verdict:8} {each.about}: {each.says}", flush=True)
        good = good and each.verdict is not Verdict.BAD
    return 0 if good else 1


def _failed(error: Exception, status: int) -> int:
    print(f"actserve-server: {error}", file=sys.stderr)
    return status


def _prepare(model: str, cache_dir: Path | None) -> int:
    from actserve_server.models.embedded import default_cache_dir
    from actserve_server.models.resolve import resolve

    print(resolve(model, cache_dir or default_cache_dir()).path_or_hub_id)
    return 0


def _convert(release: str, sae: str, folder: Path) -> int:
    from actserve_server.dictionaries.saelens_conversion import ConversionError, convert

    try:
        print(f"{convert(release, sae, folder)}; load it with --dictionary NAME={folder}")
    except ConversionError as error:
        return _failed(error, 2)
    return 0


def _token(tenant: str, role: Role, days: float | None) -> int:
    if not re.fullmatch(TENANT, tenant):
        print(
            f"actserve-server: --tenant is {tenant!r}; use 1 to 63 lower-case letters, digits, "
            "dots, hyphens and underscores, with a letter or digit first and last",
            file=sys.stderr,
        )
        return 2
    if days is not None and not 0 < days <= MAX_DAYS:
        print(
            f"actserve-server: --days is {days:g}; use more than 0 and at most {MAX_DAYS}",
            file=sys.stderr,
        )
        return 2
    token, line = make_token(tenant, role, days)
    print(line)
    print(f"The token, which is stored nowhere: {token}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
