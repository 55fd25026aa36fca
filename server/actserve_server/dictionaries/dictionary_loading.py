"""Loads the dictionaries that the operator names, and refuses what does not fit the served model.

Each is read once when the server starts, checked against the model, and held against its rows. Its
matrices are then let go of, and read again when a call uses them, as `dictionary_memory.py` has
room.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from actserve_server.dictionaries.dictionary import (
    Dictionary,
    DictionaryKind,
    DictionaryMatrices,
    LoadedDictionary,
)
from actserve_server.dictionaries.dictionary_sources import ID, DictionarySource, site_named
from actserve_server.dictionaries.formats.format_files import (
    DictionaryFormatError,
    FoundDictionary,
    ReadDictionary,
)
from actserve_server.dictionaries.formats.read_folder import found_in
from actserve_server.dictionaries.reconstruction import measured
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.engine.api import Engine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.models.embedded import EMBEDDED_MODELS

log = structlog.get_logger("actserve.dictionaries")


class DictionaryError(ValueError):
    """A dictionary that the operator names cannot be served; the message says why, and what to
    do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDictionary:
    """A dictionary that the operator has loaded."""

    about: Dictionary
    found: FoundDictionary
    sha256: bytes = field(repr=False)
    """Of its matrices: files that have changed since are not used."""

    def read(self) -> DictionaryMatrices:
        """Its matrices. Takes long. Raises DictionaryError, also for files that have changed."""
        try:
            matrices = self.found.read().matrices
        except (OSError, ValueError) as error:
            raise DictionaryError(f"{self.found.path} cannot be read any more: {error}") from None
        if digest(matrices) != self.sha256:
            raise DictionaryError(
                f"{self.found.path} has changed since the server started; restart it"
            )
        return matrices


def look_for(sources: Sequence[DictionarySource]) -> None:
    """Reads no matrix: whether there are dictionaries where the sources say. Raises DictionaryError
    for a folder that has none."""
    for source in sources:
        _found(source)


async def load(
    sources: Sequence[DictionarySource], engine: Engine, *, holds_checks: bool = True
) -> tuple[ServerDictionary, ...]:
    """All of the sources. Without `holds_checks` none is refused for what it does not explain.
    Raises DictionaryError."""
    loaded: dict[str, ServerDictionary] = {}
    for source in sources:
        started = time.monotonic()
        for found in await off_loop(_found, source):
            made = await _loaded(source, found, engine, holds_checks=holds_checks)
            about = made.about
            if about.id in loaded:
                raise DictionaryError(
                    f"two dictionaries are called {about.id!r}; give each a name of its own"
                )
            loaded[about.id] = made
            check = about.check
            log.info(
                "dictionary",
                dictionary=about.id,
                site=str(about.site),
                features=about.features,
                activation=str(about.activation),
                explained=None if check is None else round(check.explained, 4),
                shuffled_explained=None if check is None else round(check.shuffled_explained, 4),
                active_features=None if check is None else round(check.active_features, 1),
                seconds=round(time.monotonic() - started, 1),
            )
    return tuple(loaded.values())


def _found(source: DictionarySource) -> list[FoundDictionary]:
    try:
        return found_in(source.path)
    except (DictionaryFormatError, OSError) as error:
        raise DictionaryError(f"dictionary {source.id}: {error}") from None


async def _loaded(
    source: DictionarySource, found: FoundDictionary, engine: Engine, *, holds_checks: bool
) -> ServerDictionary:
    name = f"{source.id}-{found.part}" if found.part else source.id
    if not ID.fullmatch(name):
        raise DictionaryError(
            f"dictionary {name}: use at most 63 lower-case letters, digits and hyphens as a name"
        )
    try:
        read = await off_loop(found.read)
        matrices = read.matrices
        about = described(name, read, source, engine.info)
    except (DictionaryFormatError, OSError) as error:
        raise DictionaryError(f"dictionary {name}: {error}") from None
    sha256 = await off_loop(digest, matrices)
    about = replace(about, etag=sha256.hex()[:16])
    loaded = LoadedDictionary(about=about, matrices=matrices)
    check = await measured(loaded, engine, engine.info, f"dictionary-{name}")
    least = source.least_explained
    if (
        check is not None
        and holds_checks
        and least > -math.inf
        and not check.explained >= max(least, check.shuffled_explained)
    ):
        raise DictionaryError(
            f"dictionary {name}: it explains {check.explained:.3f} of the variance at "
            f"{_sites(about.targets)} of {engine.info.id}, and {check.shuffled_explained:.3f} "
            f"with rows exchanged, but must explain at least {least:g}; it may be for another "
            "site, another model or rows of another scale, or the wrong way round; give it "
            "least_explained=-inf to load it all the same"
        )
    return ServerDictionary(about=replace(about, check=check), found=found, sha256=sha256)


def described(
    name: str, read: ReadDictionary, source: DictionarySource, info: ModelInfo
) -> Dictionary:
    """What a dictionary is, if it fits the model. Raises DictionaryFormatError."""
    if read.model and not source.any_model and not _is_model(read.model, info):
        raise DictionaryFormatError(
            f"model: it was made for {read.model!r}, but {info.id!r} is served; give it "
            "any_model=true if they are the same"
        )
    matrices = read.matrices
    features, width = matrices.encoder.shape
    site = _placed("site", source.site, read.site, read.unknown_site, info)
    written: tuple[Site, ...] = ()
    if read.kind is DictionaryKind.TRANSCODER:
        named = read.written_sites
        if source.written_site:
            named = (site_named(source.written_site),)
        if len(named) != len(matrices.decoders):
            raise DictionaryFormatError(
                f"written_site: {read.unknown_site or 'its files do not say where it writes'}; "
                "give it written_site=, such as mlp_out.5"
            )
        written = tuple(_placed("written_site", "", each, "", info) for each in named)
    _check_width("the encoder", width, site, info)
    for target, decoder in zip(written or (site,), matrices.decoders, strict=True):
        _check_width("the decoder", decoder.shape[1], target, info)
    if read.kept > features:
        raise DictionaryFormatError(f"k is {read.kept}, but there are {features} features")
    return Dictionary(
        id=name,
        kind=read.kind,
        site=site,
        written_sites=written,
        features=features,
        width=width,
        activation=read.activation,
        kept=read.kept,
        size_bytes=matrices.nbytes,
        created_at_us=time.time_ns() // 1000,
        etag="",
        of_server=True,
    )


def digest(matrices: DictionaryMatrices) -> bytes:
    """Of the numbers and shapes. Takes long."""
    made = hashlib.sha256()
    for each in matrices.every:
        made.update(repr(each.shape).encode())
        made.update(each.data.cast("B"))
    return made.digest()


def _placed(option: str, chosen: str, found: Site | None, unknown: str, info: ModelInfo) -> Site:
    """A served site."""
    site = site_named(chosen) if chosen else found
    if site is None:
        raise DictionaryFormatError(
            f"{option}: {unknown or 'its files do not say which'}; give it {option}=, such as "
            "resid_post.10"
        )
    try:
        return info.check_site(site, ())
    except ActserveError as error:
        raise DictionaryFormatError(f"{option}: {error}") from None


def _check_width(what: str, width: int, site: Site, info: ModelInfo) -> None:
    there = info.at(site).width
    if width != there:
        raise DictionaryFormatError(
            f"width: {what} is {width} wide, but a row of {site} of {info.id} is {there} wide"
        )


def _is_model(name: str, info: ModelInfo) -> bool:
    served = {info.id, info.path, info.id.rpartition("/")[2], info.path.rpartition("/")[2]}
    if embedded := EMBEDDED_MODELS.get(info.id):  # Which others know by another name.
        served.add(embedded.title)
    return _plain(name.rpartition("/")[2]) in set(map(_plain, served))


def _plain(name: str) -> str:
    return "".join(each for each in name.lower() if each.isalnum())


def _sites(sites: Iterable[Site]) -> str:
    return ", ".join(map(str, sites))
