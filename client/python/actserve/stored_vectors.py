"""Stored vectors: what a server keeps by name until it is deleted, and where it comes from.

A stored vector has one row, or one for each of several sites. By its name it stands wherever one
vector may: a vector of one row goes to any site of its width, and of several rows each site takes
its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import numpy as np

from actserve._checks import described, finite
from actserve._names import short
from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve._times import time_from_proto
from actserve.errors import BadResponse, InvalidRequest
from actserve.positions import Positions
from actserve.sites import Site, SiteLike, site_name
from actserve.steering_vectors import Intervene, SteeringVector
from actserve.tensors import Float32Array, decode
from actserve.v1 import steering_vector_service_pb2 as pb

if TYPE_CHECKING:
    from actserve.interventions import Add

_ID = "[a-z][a-z0-9-]{0,62}"
_SHORT = re.compile(_ID)
_WHOLE = re.compile(f"models/[^/]+/steeringVectors/{_ID}")

VectorMethod: TypeAlias = Literal["mean_difference", "pca", "logistic_regression"]
"""How a vector is made of positive and negative examples: their mean difference, the first
principal component of the differences of pairs, or the weights of a logistic regression."""

_METHODS: Mapping[str, pb.VectorMethod] = {
    "mean_difference": pb.VECTOR_METHOD_MEAN_DIFFERENCE,
    "pca": pb.VECTOR_METHOD_PCA,
    "logistic_regression": pb.VECTOR_METHOD_LOGISTIC_REGRESSION,
}


@dataclass(frozen=True)
class Stored:
    """A stored vector, in place of an array: the vector of any intervention.

    `name` is its id, such as `joy`, which is looked for in the model that the client calls, or all
    of `models/{model}/steeringVectors/joy`. A text alone means the same there. Raises
    `InvalidRequest` for what is no such name.

        client.generate(prompt, intervene=Add("resid_post.12", Stored("joy"), 4.0))
        client.generate(prompt, intervene=Add("resid_post.12", "joy", 4.0))
    """

    name: str

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not is_stored_name(name):
            raise InvalidRequest(
                f"{described(name)} does not name a stored vector; use its id, 1 to 63 lower-case "
                "letters, digits and hyphens from a letter on, or all of "
                "models/{model}/steeringVectors/{id}",
                reason="FIELD_INVALID",
            )

    @property
    def is_short(self) -> bool:
        """Whether it is without its model."""
        return "/" not in self.name

    def of_model(self, model: str) -> Stored:
        """The same with the name of its model, `models/...`, where it has none."""
        return Stored(f"{model}/steeringVectors/{self.name}") if self.is_short else self

    @property
    def whole(self) -> str:
        """Its whole name. Raises `InvalidRequest` where only a client knows the model."""
        if self.is_short:
            raise InvalidRequest(
                f"the stored vector {self.name!r} is named without its model, which a client adds "
                "where it makes a call; here write models/{model}/steeringVectors/" + self.name,
                reason="FIELD_INVALID",
            )
        return self.name


@dataclass(frozen=True)
class VectorTerm:
    """One stored vector in a combination: `coefficient` times `vector`; of a vector of several
    rows only that of `site`, if it is given. Raises `InvalidRequest`."""

    vector: str | Stored | StoredVector
    coefficient: float = 1.0
    site: SiteLike | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", stored(self.vector))
        object.__setattr__(self, "coefficient", finite(self.coefficient, "coefficient"))
        object.__setattr__(self, "site", None if self.site is None else Site.parse(self.site))

    def to_proto(self) -> pb.VectorTerm:
        """The term as the contract writes it."""
        return pb.VectorTerm(
            steering_vector=stored(self.vector).whole,
            coefficient=self.coefficient,
            site=None if self.site is None else Site.parse(self.site).to_proto(),
        )


@dataclass(frozen=True, slots=True)
class Contrasted:
    """That a vector was made of examples, which are not stored."""

    method: str
    """A `VectorMethod`; its number if this client does not know it."""
    positives: int
    """Positive examples."""
    negatives: int
    """Negative examples."""
    prompts: bool
    """Whether they were prompts that the server ran, and not rows."""
    adapter: str = ""
    """The id of the LoRA adapter that they ran with; empty if none, or for rows."""


@dataclass(frozen=True, slots=True)
class Combined:
    """That a vector was computed from stored ones."""

    terms: tuple[VectorTerm, ...]
    """What was added up."""
    without: tuple[VectorTerm, ...]
    """What the sum was made orthogonal to."""
    norm: float | None
    """What each row was scaled to; None if it was not."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """What is known of one row of a stored vector."""

    site: str
    """The canonical name of the site whose rows it is like."""
    norm: float
    """Its L2 norm."""
    median_row_norm: float | None
    """The median L2 norm of the rows of the site; None where it is not known."""
    held_out_auroc: float | None
    """The chance that a positive example scores higher along it than a negative one, of examples
    that it was not made of; None unless it was made of enough examples."""
    half_cosine: float | None
    """The cosine between what is made of one half of the examples and of the other; None as above.
    """

    @property
    def relative_norm(self) -> float | None:
        """`norm` by `median_row_norm`: what adding it once comes to; None where that is unknown."""
        return self.norm / self.median_row_norm if self.median_row_norm else None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredVector(Intervene, Shown):
    """A stored vector, as a server describes it. It stands wherever `Stored` does, and in
    `intervene=` it is added at each of its sites.

        joy = client.vectors.create("joy", liked, hated, "resid_post.5:20")
        client.generate(prompt, intervene=joy.add(4.0, sites=joy.best.site))
    """

    name: str
    """Of the form models/{model}/steeringVectors/{id}."""
    rows: tuple[StoredRow, ...]
    """Its rows, one for each site."""
    width: int
    """Elements of each."""
    labels: Mapping[str, str]
    """What it is, for people and for `vectors.list`."""
    provenance: Contrasted | Combined | None
    """How it was made; None if it was stored as it was given."""
    model_path: str
    """The checkpoint that it was stored for, as `Model.path` was then."""
    content_sha256: str
    """SHA-256 of its elements, little-endian, in hexadecimal."""
    create_time: datetime
    """When it was stored, in UTC."""
    etag: str
    """Changes whenever its labels do; opaque."""
    elements: Float32Array | None = None
    """Its elements, float32 [rows, width], read-only; None unless they were asked for."""
    ranking: tuple[int, ...] = ()
    """Indices into `rows`, the best first, as the server that made it says; empty otherwise."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    @property
    def sites(self) -> tuple[str, ...]:
        """The canonical names of its sites."""
        return tuple(row.site for row in self.rows)

    def ranked(self) -> tuple[StoredRow, ...]:
        """Its rows, those first that tell the examples apart best: by `held_out_auroc`, and where
        that is equal by `half_cosine`. In their own order where nothing of this is known."""
        if self.ranking:
            return tuple(self.rows[index] for index in self.ranking)

        def known(value: float | None) -> float:
            return -np.inf if value is None else value

        return tuple(
            sorted(
                self.rows,
                key=lambda row: (known(row.held_out_auroc), known(row.half_cosine)),
                reverse=True,
            )
        )

    @property
    def best(self) -> StoredRow:
        """The first of `ranked()`."""
        return self.ranked()[0]

    def add(
        self,
        coefficient: float = 1.0,
        *,
        sites: SiteLike | Iterable[SiteLike] | None = None,
        positions: Positions = "all",
        relative: bool = False,
    ) -> Add:
        """The intervention that adds it, as often as `coefficient` says, at some sites, or at all
        of its own; `positions` and `relative` are those of `Add`."""
        from actserve.interventions import Add  # Which takes stored vectors.

        where = self.sites if sites is None else sites
        return Add(where, Stored(self.name), coefficient, positions=positions, relative=relative)

    def vectors(self) -> list[SteeringVector]:
        """Its rows as values, one for each site. Raises `ValueError` unless its elements are here.

        client.vectors.get("joy", elements=True).vectors()
        """
        if self.elements is None:
            raise ValueError(
                f"the elements of {self.id} were not asked for; ask for them by "
                f"client.vectors.get({self.id!r}, elements=True)"
            )
        return [
            SteeringVector(row.site, values, f"stored as {self.id}")
            for row, values in zip(self.rows, self.elements, strict=True)
        ]

    def _computed(self, *_: object) -> NoReturn:
        raise TypeError(
            "what is computed from stored vectors is stored, too: "
            f"client.vectors.combine('new', {{{self.id!r}: 2}}); to add {self.id} twice give "
            f"{self.id}.add(2), and for its numbers as values "
            f"client.vectors.get({self.id!r}, elements=True).vectors()"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _computed
    __array_ufunc__ = None  # So that a number of numpy's leaves it to the above.

    def to_json(self) -> dict[str, Any]:
        """What is known of it as plain lists, numbers and strings; of its elements nothing.

        json.dumps(client.vectors.get("joy").to_json())
        """
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        del told["elements"]
        found: dict[str, Any] = plain({**told, "create_time": self.create_time.isoformat()})
        return found

    def __repr__(self) -> str:
        where = self.sites[0] if len(self.rows) == 1 else f"{len(self.rows)} sites"
        return f"StoredVector({self.id!r}, {where}, {self.width} wide)"


def is_stored_name(name: str) -> bool:
    """Whether a text may be the name of a stored vector."""
    return bool(_SHORT.fullmatch(name) or _WHOLE.fullmatch(name))


def stored(vector: object) -> Stored:
    """The name of a stored vector, however it is given. Raises `InvalidRequest`."""
    match vector:
        case Stored():
            return vector
        case StoredVector():
            return Stored(vector.name)
        case str():
            return Stored(vector)
        case _:
            raise InvalidRequest(
                f"{described(vector)} does not name a stored vector; give its id, or what "
                "client.vectors returned",
                reason="FIELD_INVALID",
            )


def vector_method(method: object) -> pb.VectorMethod:
    """The method as the contract writes it; None is the server's default. Raises
    `InvalidRequest`."""
    if method is None:
        return pb.VECTOR_METHOD_UNSPECIFIED
    if not isinstance(method, str) or method not in _METHODS:
        raise InvalidRequest(
            f"the method {described(method)} does not exist; use one of {', '.join(_METHODS)}",
            reason="FIELD_INVALID",
            path=("method",),
        )
    return _METHODS[method]


def stored_from_proto(
    vector: pb.SteeringVector,
    *,
    elements: Float32Array | None = None,
    ranking: Iterable[int] = (),
) -> StoredVector:
    """A stored vector as the contract describes it. Raises `BadResponse` where that does not fit
    together."""
    shape, ranked = tuple(vector.shape), tuple(ranking)
    if not vector.rows or len(shape) != 2 or shape[0] != len(vector.rows):
        raise BadResponse(
            f"the server sent a vector of shape {[*shape]} with {len(vector.rows)} rows described"
        )
    if elements is not None and elements.shape != shape:
        raise BadResponse(
            f"the server sent elements of shape {[*elements.shape]} for a vector of {[*shape]}"
        )
    if ranked and sorted(ranked) != [*range(shape[0])]:
        raise BadResponse(f"the server ranked the rows {[*ranked]} of {shape[0]}")
    if elements is not None:
        elements.flags.writeable = False
    return StoredVector(
        name=vector.name,
        rows=tuple(_row(row) for row in vector.rows),
        width=shape[1],
        labels=dict(vector.labels),
        provenance=_provenance(vector.provenance),
        model_path=vector.model_path,
        content_sha256=vector.content_sha256.hex(),
        create_time=time_from_proto(vector.create_time),
        etag=vector.etag,
        elements=elements,
        ranking=ranked,
    )


def got_from_proto(answer: pb.GetSteeringVectorResponse, elements: bool) -> StoredVector:
    """The answer to a question for one vector, with its elements if they were asked for."""
    if elements and not answer.HasField("elements"):
        raise BadResponse("the server sent no elements, which were asked for")
    values = decode(answer.elements) if elements else None
    return stored_from_proto(answer.steering_vector, elements=values)


def _row(row: pb.SteeringVectorRow) -> StoredRow:
    told = row.separation
    return StoredRow(
        site=site_name(row.site),
        norm=row.norm,
        median_row_norm=row.median_row_norm if row.HasField("median_row_norm") else None,
        held_out_auroc=told.held_out_auroc if told.HasField("held_out_auroc") else None,
        half_cosine=told.half_cosine if told.HasField("half_cosine") else None,
    )


def _provenance(told: pb.VectorProvenance) -> Contrasted | Combined | None:
    match told.WhichOneof("origin"):
        case "contrasted":
            made = told.contrasted
            names = {number: name for name, number in _METHODS.items()}
            return Contrasted(
                names.get(made.method, str(made.method)),
                made.positives,
                made.negatives,
                made.prompts,
                short(made.adapter),
            )
        case "combination":
            made = told.combination
            return Combined(
                tuple(_term(each) for each in made.terms),
                tuple(_term(each) for each in made.without),
                made.norm if made.HasField("norm") else None,
            )
        case _:
            return None


def _term(term: pb.VectorTerm) -> VectorTerm:
    coefficient = term.coefficient if term.HasField("coefficient") else 1.0
    site = site_name(term.site) if term.HasField("site") else None
    return VectorTerm(term.steering_vector, coefficient, site)
