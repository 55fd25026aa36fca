"""The LoRA adapter that a request names."""

from collections.abc import Collection
from difflib import get_close_matches

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.readouts.plan import LogitAttributionReadout
from actserve_server.rpc.requests.readout_fields import Readouts
from actserve_server.rpc.resource_names import adapter_id, adapter_name

RESOURCE_TYPE = "actserve.v1.Adapter"
_TOLD_NAMES = 10


def adapter(name: str, info: ModelInfo, field: FieldPath) -> str:
    """The id of the adapter of that name; empty where no name is set. Raises RESOURCE_NOT_FOUND."""
    if not name:
        return ""
    found = adapter_id(name, info)
    if found is not None and found in info.adapters:
        return found
    raise ActserveError(
        Reason.RESOURCE_NOT_FOUND,
        f"there is no adapter {name[:200]!r} here; {_served(found or name, info)}",
        field=field,
        metadata={"resource_type": RESOURCE_TYPE, "resource_name": name[:200]},
    )


def check_readouts(
    adapter: str, wanted: Readouts, only: Collection[int], info: ModelInfo, field: FieldPath
) -> None:
    """Raises SITE_NOT_SERVED where a readout would tell of heads by a matrix that the adapter
    changes. `only` are the readouts that are read, all if empty; `field` is that of the adapter."""
    if not adapter or not info.adapters[adapter].changes_attention_outputs:
        return
    for index, each in enumerate(wanted.requests):
        readout = each.readout
        if not isinstance(readout, LogitAttributionReadout) or (only and index not in only):
            continue
        heads = [site for site in readout.sites if site.hook_point is HookPoint.Z]
        if heads:
            raise ActserveError(
                Reason.SITE_NOT_SERVED,
                f"logit attribution of {heads[0]} is not served under adapter {adapter}, which "
                "changes the matrix that reads the heads: it would be that of the model without "
                "it; attribute attn_out, or leave the adapter out",
                field=field,
                metadata={"site": heads[0], "model": info.id},
            )


def _served(wanted: str, info: ModelInfo) -> str:
    if not info.adapters:
        return "this server has none; start it with --lora NAME=FOLDER"
    last = wanted.rpartition("/")[2]
    near = get_close_matches(last, info.adapters, n=3)
    names = near or sorted(info.adapters)[:_TOLD_NAMES]
    told = ", ".join(adapter_name(info.id, each) for each in names)
    return f"{'the nearest are' if near else 'use one of'} {told}"
