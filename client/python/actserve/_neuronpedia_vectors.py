"""Vectors in JSON as Neuronpedia takes them (`POST /api/vector/new`) and tells them.

What it takes has `modelId`, `layerNumber`, `hookType`, `vector` and a label; what it tells, alone
or under `vector`, has `hookName` and the numbers as `values` or `vector`.
"""

import json
from pathlib import Path
from typing import Any

from actserve._checks import described
from actserve.sites import HookPoint, Site
from actserve.steering_vectors import SteeringVector

_HOOK_TYPES = {
    HookPoint.RESID_PRE: "hook_resid_pre",
    HookPoint.RESID_POST: "hook_resid_post",
}
_STRENGTH = 10
"""What its users begin with; its own default."""


def read_neuronpedia(path: Path) -> list[SteeringVector]:
    """The one vector of a file. Raises `ValueError` with the reason for a file that has none."""
    try:
        told: Any = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("its lists are too deep to read") from None
    if isinstance(told, dict) and isinstance(told.get("vector"), dict):
        told = told["vector"]  # In the answer to the request that made it.
    if not isinstance(told, dict):
        raise ValueError(f"it holds {described(told)}, and not the JSON object of one vector")
    values = told.get("values", told.get("vector"))
    if not isinstance(values, list) or not all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in values
    ):
        raise ValueError("it has no list of numbers, `vector` or `values`")
    label = told.get("vectorLabel", told.get("label")) or ""
    if not isinstance(label, str):
        raise ValueError(f"its label is {described(label)}, and no text")
    return [SteeringVector(_site(told), values, label)]


def write_neuronpedia(path: Path, rows: list[SteeringVector], model: str) -> None:
    """Writes one vector as a request for it. Raises `ValueError` for what it cannot hold."""
    if len(rows) != 1 or rows[0].site.hook_point not in _HOOK_TYPES:
        what = rows[0].site if len(rows) == 1 else f"{len(rows)} sites"
        raise ValueError(
            f"a vector of Neuronpedia is one row of resid_pre or resid_post, and not of {what}; "
            "choose one row, or another format"
        )
    (row,) = rows
    if not model:
        raise ValueError("Neuronpedia needs the id of its model, such as 'gemma-2-2b'; name it")
    request = {
        "modelId": model,
        "layerNumber": row.site.layer,
        "hookType": _HOOK_TYPES[row.site.hook_point],
        "vector": row.values.tolist(),  # Each float32 is a float64, so nothing is lost.
        "vectorDefaultSteerStrength": _STRENGTH,
        "vectorLabel": row.provenance or path.stem,
    }
    path.write_text(json.dumps(request), "utf-8")


def _site(told: dict[str, Any]) -> Site:
    if isinstance(hook := told.get("hookName"), str):
        return Site.parse(hook)
    layer = told.get("layerNumber")
    for hook_point, name in _HOOK_TYPES.items():
        if told.get("hookType") == name and type(layer) is int and layer >= 0:
            return Site(hook_point, layer)
    raise ValueError(
        f"it names its site neither by `hookName` nor by `layerNumber` {described(layer)} and "
        f"`hookType` {described(told.get('hookType'))}"
    )
