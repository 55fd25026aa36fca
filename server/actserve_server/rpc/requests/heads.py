"""Heads from the wire."""

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site


def check_heads(heads: tuple[int, ...], count: int, where: str, field: FieldPath) -> None:
    """Raises unless all are among the `count` heads of `where`, and each is listed once."""
    for index, head in enumerate(heads):
        if head >= count:
            raise ActserveError(
                Reason.HEAD_OUT_OF_RANGE,
                f"head {head} is out of range; {where} has heads 0 to {count - 1}",
                field=field,
                metadata={"head": head, "heads": count},
            )
        if head in heads[:index]:
            raise ActserveError(
                Reason.HEAD_OUT_OF_RANGE,
                f"head {head} is listed twice; list it once",
                field=field,
                metadata={"head": head},
            )


def row_shape(site: Site, info: ModelInfo, *, heads: bool) -> str:
    """The shape of a site's row in words, with `heads` how it is made up of heads."""
    here = info.at(site)
    return f"{here.width} wide" + (f" in {here.heads} heads" if heads else "")
