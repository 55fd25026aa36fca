"""NLAs: the natural language autoencoders that a server has loaded for a model.

Each is a pair of fine-tuned language models (Fraser-Taliente, Kantamneni, Ong et al., 2026): a
verbalizer, which turns an activation into text, and a reconstructor, which turns the text back into
an activation. One half may be missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from actserve._checks import described
from actserve.errors import InvalidRequest
from actserve.sites import site_name
from actserve.v1 import explanation_service_pb2 as pb

_NLAS = "/nlas/"
_BASELINES = "/baselines/"
_ANY_MODEL = "models/-"
"""Which stands for the model that the server serves."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What scores are relative to, measured from rows that were scaled to an L2 norm of
    sqrt(width)."""

    name: str
    """What `baseline` takes."""
    variance: float
    """The mean over elements of the variance over rows."""
    median_norm: float | None
    """Median L2 norm of the rows before they were scaled; None if not known."""
    rows: int | None
    """Rows it was measured from; None if not known."""
    centered: bool
    """Whether the mean row is known too, which centred cosines need."""


@dataclass(frozen=True, slots=True)
class Nla:
    """A natural language autoencoder."""

    id: str
    """What `nla` takes."""
    family: str
    """The family of checkpoints it is of, such as "kitft"."""
    base_checkpoint: str
    """The checkpoint it was trained to explain, as the pair itself names it."""
    site: str
    """The canonical name of the site whose rows it explains."""
    width: int
    """Width of a row."""
    verbalizes: bool
    """Whether it can explain."""
    reconstructs: bool
    """Whether it can reconstruct and score."""
    answers_questions: bool
    """Whether it takes a `question`, and needs one."""
    max_rows: int
    """Rows, or texts, of one call at most."""
    max_samples: int
    """Samples of one row at most."""
    max_tokens: int
    """Tokens of one explanation at most."""
    baselines: Mapping[str, Baseline]
    """What scores can be relative to, by short name. `"default"` is used where none is named."""
    default_temperature: float | None
    """What `temperature` is where it is not given; None if it cannot explain."""
    default_top_p: float | None
    """What `top_p` is where it is not given; None if it cannot explain."""


def nla_name(nla: object) -> str:
    """The resource name of an NLA's id; empty for None, which is the only one of the site. Raises
    `InvalidRequest` if it cannot be one."""
    if nla is None:
        return ""
    if not isinstance(nla, str) or not nla_id(nla) or _BASELINES in nla:
        raise InvalidRequest(
            f"{described(nla)} is not the id of an NLA; `client.models()[0].nlas` lists them",
            reason="FIELD_INVALID",
            path=("nla",),
        )
    return nla if _NLAS in nla else _ANY_MODEL + _NLAS + nla


def nla_id(name: str) -> str:
    """The id in the resource name of an NLA."""
    return name.rpartition(_NLAS)[2]


def same_resource(told: str, asked: str) -> bool:
    """Whether a name that the server tells, of an NLA or a baseline, is what was asked for."""
    return told == asked or (
        asked.startswith(_ANY_MODEL + _NLAS) and told.endswith(asked.removeprefix(_ANY_MODEL))
    )


def baseline_name(baseline: object, nla: str | None) -> str:
    """The resource name of a baseline, given whole or as its short name beside an NLA; empty for
    None, which is the default one. Raises `InvalidRequest` if it cannot be one."""
    if baseline is None:
        return ""
    if not isinstance(baseline, str) or not baseline:
        raise InvalidRequest(
            f"{described(baseline)} is not the name of a baseline; use what `set_baseline` "
            "returned, or a key of `Nla.baselines`",
            reason="FIELD_INVALID",
            path=("baseline",),
        )
    if _BASELINES in baseline:
        return baseline
    if nla is None:
        raise InvalidRequest(
            f"baseline {baseline!r} is a short name, and every NLA has its own; name the NLA as "
            "well, or use the whole name that `set_baseline` returned",
            reason="FIELD_REQUIRED",
            path=("nla",),
        )
    return nla_name(nla) + _BASELINES + baseline


def is_short(baseline: object) -> bool:
    """Whether this is the short name of a baseline, which takes an NLA beside it."""
    return isinstance(baseline, str) and bool(baseline) and _BASELINES not in baseline


def nla_from_proto(nla: pb.Nla) -> Nla:
    """An NLA as the contract describes it."""
    return Nla(
        id=nla_id(nla.name),
        family=nla.family,
        base_checkpoint=nla.base_checkpoint,
        site=site_name(nla.site),
        width=nla.width,
        verbalizes=nla.verbalizes,
        reconstructs=nla.reconstructs,
        answers_questions=nla.answers_questions,
        max_rows=nla.max_rows,
        max_samples=nla.max_samples,
        max_tokens=nla.max_tokens,
        baselines={
            each.name.rpartition(_BASELINES)[2]: baseline_from_proto(each) for each in nla.baselines
        },
        default_temperature=(
            nla.default_temperature if nla.HasField("default_temperature") else None
        ),
        default_top_p=nla.default_top_p if nla.HasField("default_top_p") else None,
    )


def baseline_from_proto(baseline: pb.ExplanationBaseline) -> Baseline:
    """A baseline as the contract describes it."""
    return Baseline(
        name=baseline.name,
        variance=baseline.variance,
        median_norm=baseline.median_norm or None,
        rows=baseline.rows or None,
        centered=baseline.centered,
    )
