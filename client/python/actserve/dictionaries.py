"""Dictionaries: sparse autoencoders and transcoders that a server has by name.

In the formulas x is a row of one site and f the features of the dictionary at it: f =
activation(E (x - b_in) + b), and y = D f + b_out, where y is x again, or of a transcoder a row that
is written elsewhere. A feature writes its direction, a row of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from actserve._checks import UINT32, described, integer, unicode
from actserve._names import Named, named, short
from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve._times import time_from_proto
from actserve.errors import InvalidRequest
from actserve.sites import site_name
from actserve.v1 import dictionary_service_pb2 as pb
from actserve.v1 import source_pb2

if TYPE_CHECKING:
    from actserve.interventions import ChangeFeatures
    from actserve.positions import Positions

DICTIONARIES = "dictionaries"

DictionaryKind: TypeAlias = Literal["sparse_autoencoder", "transcoder"]
"""What a dictionary reconstructs: its own row, or what a part of the model makes of it."""

KINDS: Mapping[str, pb.DictionaryKind] = {
    "sparse_autoencoder": pb.DICTIONARY_KIND_SPARSE_AUTOENCODER,
    "transcoder": pb.DICTIONARY_KIND_TRANSCODER,
}


@dataclass(frozen=True)
class Feature:
    """A feature of a dictionary, in place of an array: what it writes, a row of the decoder, is the
    vector of any intervention.

    - `dictionary`: its id, which is looked for in the model that the client calls, its whole name
      `models/{model}/dictionaries/{id}`, or what `client.dictionaries` returned.
    - `index`: which of its features, from zero.
    - `site_index`: of a transcoder that writes at several sites, which of `written_sites`.

    Raises `InvalidRequest` for what is no such name or number.

        client.generate(prompt, intervene=Add("resid_post.20", Feature("smollm2-135m", 123), 40))
    """

    dictionary: str | Named | StoredDictionary
    index: int
    site_index: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dictionary", named(DICTIONARIES, self.dictionary))
        object.__setattr__(self, "index", feature_index(self.index))
        if self.site_index is not None:
            integer(self.site_index, "an index of written_sites", UINT32, "FIELD_INVALID")

    @property
    def whole(self) -> str:
        """The whole name of its dictionary. Raises `InvalidRequest` where only a client knows the
        model."""
        return whole_name(self.dictionary)

    def to_proto(self) -> source_pb2.DictionaryFeature:
        """The feature as the contract writes it."""
        return source_pb2.DictionaryFeature(
            dictionary=self.whole, index=self.index, site_index=self.site_index
        )

    def __repr__(self) -> str:
        return f"Feature({short(named(DICTIONARIES, self.dictionary).name)!r}, {self.index})"


@dataclass(frozen=True, slots=True)
class FeatureLabel:
    """What a feature stands for, as somebody says."""

    index: int
    """Which feature, from zero."""
    label: str
    """What it stands for; empty takes a label away."""
    source: str = ""
    """Who says so, such as a person or a model."""

    def to_proto(self) -> pb.FeatureLabel:
        """The label as the contract writes it. Raises `InvalidRequest`."""
        for name, text in (("label", self.label), ("source", self.source)):
            if not isinstance(text, str):
                raise InvalidRequest(
                    f"the {name} of feature {described(self.index)} is {described(text)}; give a "
                    "text",
                    reason="FIELD_INVALID",
                    path=("labels",),
                )
        return pb.FeatureLabel(
            index=feature_index(self.index),
            label=unicode(self.label, "a label"),
            source=unicode(self.source, "a source"),
        )


@dataclass(frozen=True, slots=True)
class DictionaryCheck:
    """How well a dictionary reconstructs rows of the served model, of a short text that the server
    has."""

    tokens: int
    """Rows that were reconstructed."""
    explained: float
    """The part of the variance that is explained."""
    shuffled_explained: float
    """The same where each row is reconstructed from that of another token: the control."""
    active_features: float
    """Features that are not zero, in the mean over tokens."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredDictionary(Shown):
    """A dictionary, as a server describes it.

    sae = client.dictionaries.get("smollm2-135m")
    client.generate(prompt, intervene=sae.set({123: 60.0}))
    """

    name: str
    """Of the form models/{model}/dictionaries/{id}."""
    kind: str
    """A `DictionaryKind`; its number if this client does not know it."""
    site: str
    """The canonical name of the site that it reads."""
    written_sites: tuple[str, ...]
    """Of transcoders: where they write. Empty for sparse autoencoders, which write what they read.
    """
    features: int
    """How many it has."""
    activation: str
    """"relu", "jump_relu", "top_k" or "identity"."""
    k: int | None
    """Features that are active at a row at most; None unless the activation is "top_k"."""
    size_bytes: int
    """Of its matrices."""
    of_server: bool
    """Whether the server's operator has loaded it, for everybody."""
    check: DictionaryCheck | None
    """How well it reconstructs; None where that was not measured."""
    create_time: datetime
    """When it was stored, in UTC."""
    etag: str
    """Changes whenever a label does; opaque."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return short(self.name)

    @property
    def targets(self) -> tuple[str, ...]:
        """The canonical names of the sites that it writes to."""
        return self.written_sites or (self.site,)

    def feature(self, index: int, site_index: int | None = None) -> Feature:
        """One of its features, as a vector of interventions."""
        return Feature(self.name, index, site_index)

    def set(
        self, values: Mapping[int, float], *, positions: Positions = "all", **options: Any
    ) -> ChangeFeatures:
        """The intervention that sets features to values, at the site that it reads. `options` are
        those of `ChangeFeatures`."""
        return self._change(values=values, positions=positions, **options)

    def add(
        self, additions: Mapping[int, float], *, positions: Positions = "all", **options: Any
    ) -> ChangeFeatures:
        """The intervention that adds to features, where it writes."""
        return self._change(additions=additions, positions=positions, **options)

    def scale(
        self, factors: Mapping[int, float], *, positions: Positions = "all", **options: Any
    ) -> ChangeFeatures:
        """The intervention that multiplies features, at the site that it reads."""
        return self._change(factors=factors, positions=positions, **options)

    def ablate(
        self, features: int | Iterable[int], *, positions: Positions = "all", **options: Any
    ) -> ChangeFeatures:
        """The intervention that makes features zero, at the site that it reads."""
        several = features if isinstance(features, Iterable) else (features,)
        return self._change(factors=dict.fromkeys(several, 0.0), positions=positions, **options)

    def _change(self, **options: Any) -> ChangeFeatures:
        from actserve.interventions import ChangeFeatures  # Which takes dictionaries.

        return ChangeFeatures(self.targets, self.name, **options)

    def to_json(self) -> dict[str, Any]:
        """What is known of it as plain lists, numbers and strings."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        found: dict[str, Any] = plain({**told, "create_time": self.create_time.isoformat()})
        return found

    def __repr__(self) -> str:
        return f"StoredDictionary({self.id!r}, {self.site}, {self.features} features)"


def feature_index(index: Any) -> int:
    """The index of a feature. Raises `InvalidRequest`."""
    return integer(
        index, "the index of a feature", UINT32, "FIELD_INVALID", "use whole numbers from 0 on"
    )


def feature_indices(features: Any) -> tuple[int, ...]:
    """One feature or several, each once. Raises `InvalidRequest`."""
    several = (features,) if not isinstance(features, Iterable) else tuple(features)
    found = tuple(feature_index(each) for each in several)
    if not found or len({*found}) < len(found):
        raise InvalidRequest(
            f"the features are {described(list(found))}; name at least one, and each once",
            reason="FIELD_INVALID",
            path=("features",),
        )
    return found


def whole_name(dictionary: Any) -> str:
    """The whole name of a dictionary. Raises `InvalidRequest` where only a client knows the
    model."""
    found = named(DICTIONARIES, dictionary)
    if found.is_short:
        raise InvalidRequest(
            f"the dictionary {found.name!r} is named without its model, which a client adds where "
            "it makes a call; here write models/{model}/dictionaries/" + found.name,
            reason="FIELD_INVALID",
        )
    return found.name


def dictionary_from_proto(told: pb.Dictionary) -> StoredDictionary:
    """A dictionary as the contract describes it."""
    kinds = {number: name for name, number in KINDS.items()}
    check = told.check
    return StoredDictionary(
        name=told.name,
        kind=kinds.get(told.kind, str(told.kind)),
        site=site_name(told.site),
        written_sites=tuple(map(site_name, told.written_sites)),
        features=told.features,
        activation=told.WhichOneof("activation") or "identity",
        k=told.top_k.k if told.HasField("top_k") else None,
        size_bytes=told.size_bytes,
        of_server=told.of_server,
        check=DictionaryCheck(
            check.tokens, check.explained, check.shuffled_explained, check.active_features
        )
        if told.HasField("check")
        else None,
        create_time=time_from_proto(told.create_time),
        etag=told.etag,
    )


def label_from_proto(told: pb.FeatureLabel) -> FeatureLabel:
    """A label as the contract has it."""
    return FeatureLabel(told.index, told.label, told.source)
