"""The file of a sweep: what the arguments of `Client.sweep` are, in YAML.

    prompts: prompts.txt            # a file, a list, or prompts by key
    intervene: joy                      # a stored vector, or as --steer; or several
    coefficients: [-2, -1, 0, 1, 2]
    sites: resid_post.5:20:5        # one, a pattern, or a list
    positions: [all]
    when: resid_post.3=joy>1.5      # as --when
    variants: {joy: {intervene: joy, coefficients: [1, 2], sites: resid_post.12}}  # in their place
    answers: {good: " good", bad: " bad"}
    scores: {joy: {site: resid_post.20, direction: joy, reduce: mean}}
    sampling: {max_tokens: 20}
    perplexity: true

Files are looked for where the command runs.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer
import yaml

from actserve._sync.client import Client
from actserve.cli.interventions import NAME, additions, array_of, read_addition, read_when
from actserve.cli.prompts import read_prompts, user_turn
from actserve.interventions import Add
from actserve.probes import Ema, Probe, RollingMean
from actserve.sampling import Sampling
from actserve.sweeps import Variant

_GRID = ("intervene", "coefficients", "sites", "positions", "when")
_OF_VARIANT = (*_GRID, "adapter")
_OF_SCORE = ("site", "direction", "bias", "ema", "rolling_mean", "reduce")
_WHEN = "resid_post.8=joy>1.5"
_AS_THEY_ARE = ("answers", "perplexity", "baseline", "afresh")
_ALL = (*_GRID, *_AS_THEY_ARE, "prompts", "variants", "scores", "sampling", "chat", "column")


def read_spec(path: Path) -> dict[str, Any]:
    """What a file says. Raises a usage error with the reason for one that cannot be read."""
    try:
        told = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise typer.BadParameter(f"{path} is not YAML: {error}") from None
    spec = _fields(told, _ALL, str(path))
    if "prompts" not in spec:
        raise typer.BadParameter(f"{path} has no prompts")
    return spec


def sweep_arguments(spec: Mapping[str, Any], client: Client) -> dict[str, Any]:
    """The arguments of `Client.sweep`; asks the server for the sites of stored vectors that are
    named without."""
    asked: dict[str, Any] = {name: spec[name] for name in _AS_THEY_ARE if name in spec}
    asked["prompts"] = _prompts(spec)
    if "variants" in spec:
        if beside := [name for name in _GRID if name in spec]:
            raise typer.BadParameter(f"{beside[0]} stands beside variants; write it in each")
        asked["variants"] = {
            str(key): _variant(_fields(each, _OF_VARIANT, f"variant {key}"), client)
            for key, each in _mapping(spec["variants"], "variants").items()
        }
    elif any(name in spec for name in _GRID):
        asked["variants"] = {"steered": _variant(spec, client)}
    if "scores" in spec:
        asked["scores"] = {
            str(key): _probe(_fields(each, _OF_SCORE, f"score {key}"), str(key))
            for key, each in _mapping(spec["scores"], "scores").items()
        }
    sampling = _fields(spec.get("sampling", {}), tuple(Sampling.__annotations__), "sampling")
    return {**asked, **sampling}


def _prompts(spec: Mapping[str, Any]) -> Any:
    given, chat = spec["prompts"], bool(spec.get("chat"))
    if isinstance(given, str):
        return read_prompts(Path(given), spec.get("column"), chat)

    def one(prompt: Any) -> Any:
        return user_turn(prompt) if chat and isinstance(prompt, str) else prompt

    if isinstance(given, Mapping):
        return {str(key): one(each) for key, each in given.items()}
    if not isinstance(given, list):
        raise typer.BadParameter("prompts are a file, a list, or prompts by key")
    return [one(each) for each in given]


def _variant(spec: Mapping[str, Any], client: Client) -> Variant:
    grid = {name: spec[name] for name in _OF_VARIANT if name in spec}
    intervene, when = grid.pop("intervene", None), grid.pop("when", None)
    if when is not None:
        if not isinstance(when, str):
            raise typer.BadParameter(f"when is {when!r}; write it as --when, such as {_WHEN}")
        when = read_when(when)
    if isinstance(intervene, str) and NAME.fullmatch(intervene) and grid.get("sites"):
        return Variant(Add(grid["sites"], intervene, when=when), **grid)
    given: Iterable[Any] = [intervene] if isinstance(intervene, str) else intervene or ()
    if not all(isinstance(each, str) for each in given):
        raise typer.BadParameter(f"intervene is {intervene!r}; write it as --steer, such as joy*2")
    return Variant(additions(client, map(read_addition, given), when) or None, **grid)


def _probe(spec: Mapping[str, Any], name: str) -> Probe:
    if missing := [each for each in ("site", "direction") if each not in spec]:
        raise typer.BadParameter(f"score {name} has no {missing[0]}")
    direction = spec["direction"]
    if isinstance(direction, str) and not NAME.fullmatch(direction):
        direction = array_of(direction)
    smoothing: Ema | RollingMean | None = None
    if "ema" in spec:
        smoothing = Ema(spec["ema"])
    elif "rolling_mean" in spec:
        smoothing = RollingMean(spec["rolling_mean"])
    return Probe(spec["site"], direction, spec.get("bias", 0.0), smoothing, spec.get("reduce"))


def _fields(told: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    """A mapping of known names."""
    found = _mapping(told, what)
    for name in found:
        if name not in names:
            close = get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; it takes {', '.join(names)}"
            raise typer.BadParameter(f"{what} has the field {name!r}, which is none{hint}")
    return found


def _mapping(told: Any, what: str) -> dict[Any, Any]:
    if not isinstance(told, dict):
        raise typer.BadParameter(f"{what} holds no fields with names, as in answers: ...")
    return told
