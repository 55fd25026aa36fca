"""The option --steer: a vector of a file, or one that the server has stored by name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from actserve._sync.client import Client
from actserve.sites import Site
from actserve.steering import Add
from actserve.vector_files import load_vectors

NAME = re.compile("[a-z][a-z0-9-]{0,62}")
"""Of a stored vector; a file has a dot in its name, or a folder before it."""


@dataclass(frozen=True)
class Steering:
    """What one --steer says."""

    adds: tuple[Add, ...] = ()
    """What is added; empty where only the server knows the sites."""
    name: str = ""
    """The stored vector that is added at its own sites."""
    coefficient: float = 1.0
    """How often."""


def read_steering(text: str) -> Steering:
    """`SITE=VECTOR*COEFFICIENT`, where the vector is a `.npy` file or the name of a stored one; or
    `VECTOR*COEFFICIENT`, where the file or the server says the sites. The coefficient may be left
    out."""
    site, separator, vector = text.rpartition("=")
    vector, coefficient = counted(vector)
    if NAME.fullmatch(vector):
        if not separator:
            return Steering(name=vector, coefficient=coefficient)
        return Steering((Add(Site.parse(site), vector, coefficient),))
    if separator:
        return Steering((Add(Site.parse(site), array_of(vector), coefficient),))
    try:
        return Steering(tuple(each.add(coefficient) for each in load_vectors(vector)))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(
            f"{vector} names no stored vector and is no file of one: {error}. For an array name "
            f"the site: resid_post.15={vector}"
        ) from None


def steering(client: Client, given: Iterable[Steering] | None) -> list[Add]:
    """The interventions of all --steer; asks the server for the sites of stored vectors."""
    adds: list[Add] = []
    for each in given or ():
        adds += each.adds or [client.vectors.get(each.name).add(each.coefficient)]
    return adds


def counted(text: str) -> tuple[str, float]:
    """What stands before the coefficient, and the coefficient; one where there is none."""
    what, star, factor = text.rpartition("*")
    if not star:
        return text, 1.0
    try:
        return what, float(factor)
    except ValueError:
        raise typer.BadParameter(f"the coefficient {factor!r} is not a number") from None


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
