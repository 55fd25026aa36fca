"""The options --steer and --when: a vector of a file, or one that the server has stored by
name, and the condition under which it is added."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from actserve._sync.client import Client
from actserve.interventions import Add
from actserve.probes import Probe
from actserve.sites import Site
from actserve.vector_files import load_vectors
from actserve.when import When

NAME = re.compile("[a-z][a-z0-9-]{0,62}")
"""Of a stored vector; a file has a dot in its name, or a folder before it."""

_BOUND = "[<>][^<>]+"
_WHEN = re.compile(
    "((?P<reduce>last|mean|max) )?(?P<site>[^=<>]+)=(?P<vector>[^<>]+)"
    f"(?P<first>{_BOUND})(?P<second>{_BOUND})?"
)


@dataclass(frozen=True)
class Addition:
    """What one --steer says."""

    adds: tuple[Add, ...] = ()
    """What is added; empty where only the server knows the sites."""
    name: str = ""
    """The stored vector that is added at its own sites."""
    coefficient: float = 1.0
    """How often."""


def read_addition(text: str) -> Addition:
    """`SITE=VECTOR*COEFFICIENT`, where the vector is a `.npy` file or the name of a stored one; or
    `VECTOR*COEFFICIENT`, where the file or the server says the sites. The coefficient may be left
    out."""
    site, separator, vector = text.rpartition("=")
    vector, coefficient = counted(vector)
    if NAME.fullmatch(vector):
        if not separator:
            return Addition(name=vector, coefficient=coefficient)
        return Addition((Add(Site.parse(site), vector, coefficient),))
    if separator:
        return Addition((Add(Site.parse(site), array_of(vector), coefficient),))
    try:
        return Addition(tuple(each.add(coefficient) for each in load_vectors(vector)))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(
            f"{vector} names no stored vector and is no file of one: {error}. For an array name "
            f"the site: resid_post.15={vector}"
        ) from None


def additions(
    client: Client, given: Iterable[Addition] | None, when: When | None = None
) -> list[Add]:
    """The interventions of all --steer, each under the condition of --when; asks the server for
    the sites of stored vectors."""
    adds: list[Add] = []
    for each in given or ():
        adds += each.adds or [client.vectors.get(each.name).add(each.coefficient)]
    if when is None:
        return adds
    if not adds:
        raise typer.BadParameter("--when says where to intervene; give --steer, too")
    return [replace(each, when=when) for each in adds]


def read_when(text: str) -> When:
    """`SITE=VECTOR>BOUND`, `SITE=VECTOR<BOUND` or `SITE=VECTOR>BOUND<BOUND`, where the vector is a
    `.npy` file or the name of a stored one; before it may stand what becomes of the scores of all
    tokens so far, `mean` or `max`."""
    found = _WHEN.fullmatch(text)
    if not found:
        raise typer.BadParameter(
            f"{text!r} is no condition; write it as resid_post.8=joy>1.5, or with max before it to "
            "act from the first such token on"
        )
    vector = found["vector"].strip()
    bounds: dict[str, float] = {}
    for bound in filter(None, (found["first"], found["second"])):
        name = "above" if bound[0] == ">" else "below"
        if name in bounds:
            raise typer.BadParameter(f"{text!r} has two bounds that are {name}; leave one out")
        bounds[name] = _number(bound[1:], "bound")
    direction = vector if NAME.fullmatch(vector) else array_of(vector)
    reduce: Any = found["reduce"]
    return When(Probe(found["site"].strip(), direction, reduce=reduce), **bounds)


def counted(text: str) -> tuple[str, float]:
    """What stands before the coefficient, and the coefficient; one where there is none."""
    what, star, factor = text.rpartition("*")
    if not star:
        return text, 1.0
    return what, _number(factor, "coefficient")


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"the {what} {text.strip()!r} is not a number") from None


def array_of(path: str) -> np.ndarray:
    """The array of a `.npy` file. Raises a usage error for any other."""
    try:
        with Path(path).open("rb") as opened:
            # Pickles run code; a vector needs none.
            vector = np.load(opened, allow_pickle=False)
    # Of a damaged file numpy raises almost anything.
    except Exception as error:
        raise typer.BadParameter(f"{path} cannot be read as a .npy file: {error}") from None
    if not isinstance(vector, np.ndarray):
        raise typer.BadParameter(
            f"{path} is an archive of arrays; give a .npy file of one, or the file of a "
            "SteeringVector without its site"
        )
    return vector
