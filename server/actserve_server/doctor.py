"""`actserve-server doctor [flags]`: whether a server with these options would start here, and what
to change if not. It loads no model, and takes a few seconds.

What the server itself finds out before it loads is asked of the same functions; what it would find
out by failing, such as too little memory, is worked out from the model's files.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from cryptography import x509
from sqlalchemy import exc

from actserve_server import open_files, trace_export
from actserve_server.config import FAKE_MODEL, ConfigError, Settings, check_autoencoders
from actserve_server.dictionaries import dictionary_loading
from actserve_server.dictionaries.dictionary_loading import DictionaryError
from actserve_server.environment import unknown_variables
from actserve_server.listening import check_ports, how_to_listen
from actserve_server.models import memory_needs
from actserve_server.models.memory_needs import MemoryNeeds
from actserve_server.models.resolve import local_folder
from actserve_server.monitoring import allowed_webhooks
from actserve_server.storage import store_failures
from actserve_server.storage.database_places import FILE, SqliteFile, StoreConfigError, place
from actserve_server.storage.folder_owner import is_owned, shared_folder
from actserve_server.storage.migrate import is_current, is_empty

EXPIRES_SOON = timedelta(days=14)
FREE_DISK_BYTES = 1 << 30
"""Less than this for what is stored is worth a warning."""


class Verdict(StrEnum):
    """How bad a finding is."""

    GOOD = "ok"
    WORTH_A_LOOK = "warning"
    BAD = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do if it is not good."""

    about: str
    verdict: Verdict
    says: str


def findings(settings: Settings) -> Iterator[Finding]:
    """One after the other, as they are found."""
    for about, check in _CHECKS:
        try:
            yield from (Finding(about, *found) for found in check(settings))
        except ConfigError as error:
            yield Finding(about, Verdict.BAD, str(error))


Found = Iterator[tuple[Verdict, str]]


def _environment(settings: Settings) -> Found:
    """Every variable that begins as options do is one."""
    for name, near in unknown_variables(os.environ):
        fix = f"did you mean {near}?" if near else "leave it out"
        yield Verdict.WORTH_A_LOOK, f"{name} is no option and is not heard; {fix}"


def _callers(settings: Settings) -> Found:
    """Certificates and files of those who may call can be read."""
    # Nothing is written, and the server would make an audit log that is not there yet.
    given = how_to_listen(settings.model_copy(update={"audit_log": None}))
    if not given.callers:
        yield Verdict.WORTH_A_LOOK, "anybody who reaches the ports may call; set token_file"
    else:
        yield Verdict.GOOD, "callers are known"
    if settings.tls_cert is None:
        yield Verdict.WORTH_A_LOOK, "calls are not encrypted; set tls_cert and tls_key"
        return
    for certificate in x509.load_pem_x509_certificates(settings.tls_cert.read_bytes()):
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        until = f"{settings.tls_cert} is valid until {certificate.not_valid_after_utc:%Y-%m-%d}"
        if certificate.not_valid_before_utc > datetime.now(UTC):
            begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            yield Verdict.BAD, f"{settings.tls_cert} is not valid before {begins}; check the clock"
        elif left < timedelta(0):
            yield Verdict.BAD, f"{until}, which is over; put a new one there"
        elif left < EXPIRES_SOON:
            yield (
                Verdict.WORTH_A_LOOK,
                f"{until}; put a new one there",
            )
        else:
            yield Verdict.GOOD, until


def _audit_log(settings: Settings) -> Found:
    """Lines can be added to it."""
    path = settings.audit_log
    if path is None:
        return
    there = path if path.exists() else path.absolute().parent
    if not os.access(there, os.W_OK) or (there == path and not path.is_file()):
        raise ConfigError(
            f"{path} cannot be written to by this user; make its folder, or choose another "
            "audit_log"
        )
    yield Verdict.GOOD, f"{path} can be added to"


def _webhooks(settings: Settings) -> Found:
    """The file of addresses can be read."""
    if settings.webhooks is not None:
        count = len(allowed_webhooks(settings))
        yield Verdict.GOOD, f"{settings.webhooks} has {count} addresses"


def _dictionaries(settings: Settings) -> Found:
    """There are some where the options say. Whether they fit the model, the server measures."""
    try:
        dictionary_loading.look_for(settings.dictionary)
    except DictionaryError as error:
        raise ConfigError(str(error)) from None
    for source in settings.dictionary:
        yield Verdict.GOOD, f"{source.path} can be read"


def _traces(settings: Settings) -> Found:
    """What sends spans is installed, where they are asked for."""
    if trace_export.wanted(settings):
        yield Verdict.GOOD, "spans are sent to a collector"


def _adapters(settings: Settings) -> Found:
    """LoRA adapters are served as they are. Whether they fit the model, the server finds out."""
    if not settings.lora or settings.model == FAKE_MODEL:
        return
    from actserve_server.models.lora_folders import load_adapter

    for source in settings.lora:
        try:
            if local_folder(source.source, source.revision) is None:
                fetched = f"{source.source} is no folder here, and would be fetched by that id"
                yield Verdict.WORTH_A_LOOK, fetched
                continue
            rank = load_adapter(source).rank
        except (OSError, ValueError) as error:
            raise ConfigError(f"{source.id}: {error}") from None
        yield Verdict.GOOD, f"{source.source} has an adapter of rank {rank}"


def _ports(settings: Settings) -> Found:
    check_ports(settings)
    yield Verdict.GOOD, "every port is free"


def _store(settings: Settings) -> Found:
    """The database answers, and is of this version of the server or an older one. Nothing is
    written."""
    url = settings.database_url
    try:
        where = place(url.get_secret_value() if url else None, settings.data_dir)
    except StoreConfigError as error:
        raise ConfigError(str(error)) from None
    try:
        if isinstance(where, SqliteFile):
            yield from _folder_for(where)
            if not (where.folder / FILE).exists():
                return
            if is_owned(where):
                yield Verdict.WORTH_A_LOOK, shared_folder(where)
        engine = where.engine()
        try:
            is_new, current = is_empty(engine), is_current(engine, where)
        finally:
            engine.dispose()
    except StoreConfigError as error:
        raise ConfigError(str(error)) from None
    except exc.SQLAlchemyError as error:
        raise ConfigError(f"{where}: {store_failures.described(error)}") from None
    if current:
        yield Verdict.GOOD, f"{where} answers"
    elif is_new:
        yield Verdict.GOOD, f"{where} is empty, and this server will make its tables"
    else:
        yield Verdict.WORTH_A_LOOK, f"{where} is older than this server, which will migrate it"


def _folder_for(file: SqliteFile) -> Found:
    there = next(each for each in (file.folder, *file.folder.absolute().parents) if each.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{there} cannot be written to by this user; choose another data_dir")
    free = shutil.disk_usage(there).free
    says = f"{file.folder} has {_size(free)} left"
    if free < FREE_DISK_BYTES:
        yield Verdict.WORTH_A_LOOK, f"{says}; make room, or choose another data_dir"
    else:
        yield Verdict.GOOD, says


def _model(settings: Settings) -> Found:
    """There is such a model, and it is of a family that the server knows."""
    if settings.model == FAKE_MODEL:
        yield Verdict.GOOD, "the fake model needs none"
        return
    from actserve_server.engine.vllm.families import FAMILIES

    folder = _sought(settings)
    if folder is None:
        fetched = f"{settings.model} is not on this machine, and would be fetched from Hugging Face"
        yield Verdict.WORTH_A_LOOK, fetched
        return
    architecture = (_config(folder).get("architectures") or ["none"])[0]
    if architecture in FAMILIES:
        yield Verdict.GOOD, f"{folder} has a {architecture}, which is served"
        return
    says = (
        f"{folder} has a {architecture}, of which the server knows nothing: if vLLM runs it, it "
        "serves what it finds of the residual stream and can prove; see docs/models.md"
    )
    yield Verdict.WORTH_A_LOOK, says


def _autoencoders(settings: Settings) -> Found:
    """The model is one that may have some."""
    check_autoencoders(settings)
    yield from ()


def _memory(settings: Settings) -> Found:
    """What is taken at the start fits: weights, KV cache, bank of vectors, processes."""
    if settings.model == FAKE_MODEL or (folder := _folder(settings)) is None:
        return
    import torch

    weights = memory_needs.weight_bytes(folder, _config(folder), settings.dtype)
    if torch.cuda.is_available():
        share = settings.gpu_memory_utilization or 0.9
        _, total = torch.cuda.mem_get_info()
        needs = MemoryNeeds(
            weights=weights // settings.tensor_parallel_size,
            kv_cache=0,
            vectors=settings.vector_budget_bytes,
            room=int(total * share),
            where=f"{share:.0%} of a GPU",
        )
    else:
        needs = MemoryNeeds(
            weights=weights,
            kv_cache=settings.kv_cache_memory_bytes or 2 << 30,
            vectors=settings.vector_budget_bytes,
            processes=memory_needs.PROCESSES_BYTES,
            room=memory_needs.available_bytes(),
            where="this machine",
        )
    # Without what its processes take the server would refuse to start.
    refused = not replace(needs, processes=0).fits
    tight = Verdict.BAD if refused else Verdict.WORTH_A_LOOK
    yield Verdict.GOOD if needs.fits else tight, str(needs)


def _device(settings: Settings) -> Found:
    """What computes, and whether vLLM is built for it."""
    if settings.model == FAKE_MODEL:
        return
    import torch
    from vllm.platforms import current_platform

    from actserve_server.engine.vllm import processor

    if not current_platform.is_cpu():
        count = torch.cuda.device_count()
        names = {torch.cuda.get_device_name(each) for each in range(count)}
        says = f"{count} GPUs: {', '.join(sorted(names))}"
        wanted = settings.tensor_parallel_size // settings.nnodes
        if count < wanted:
            most = count * settings.nnodes
            yield Verdict.BAD, f"{says}; set tensor_parallel_size to {most} at most"
        else:
            yield Verdict.GOOD, says
        return
    folder = _folder(settings)
    dtype = settings.dtype
    if dtype == "auto" and folder is not None:
        dtype = memory_needs.stored_dtype(_config(folder))
    slow = processor.slow_in(getattr(torch, dtype, torch.float32))
    says = f"{processor.name()}, {processor.instructions()}"
    yield (Verdict.WORTH_A_LOOK, slow) if slow else (Verdict.GOOD, says)


def _shared_memory(settings: Settings) -> Found:
    """The rings of the engine, and of each NLA that is loaded here, have room. Pairs that operators
    may load later keep no server from starting."""
    if settings.model == FAKE_MODEL:
        return
    from actserve_server.engine.vllm.ring import DEFAULT_CAPACITY
    from actserve_server.nla.loadable_pairs import LoadablePairs

    here = [source for source in settings.nla if not source.address]
    try:
        pairs = LoadablePairs([*here, *settings.nla_loadable], settings.nla_folder).all()
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    wanted, with_all = ((1 + 2 * count) * DEFAULT_CAPACITY for count in (len(here), len(pairs)))
    free = shutil.disk_usage("/dev/shm").free
    says = f"/dev/shm has {_size(free)} free, of which {_size(wanted)} are needed"
    larger = "make it larger (docker: --shm-size, the chart: sharedMemory)"
    if free < wanted:
        yield Verdict.BAD, f"{says}; {larger}"
    elif free < with_all:
        yield (
            Verdict.WORTH_A_LOOK,
            f"{says}, and {_size(with_all)} with every pair that may be loaded; {larger}",
        )
    else:
        yield Verdict.GOOD, says


def _open_files(settings: Settings) -> Found:
    open_files.check_open_files(settings)
    limit = open_files.limit()
    wanted = settings.max_calls + open_files.taken(settings)
    says = f"{limit} files may be open, {wanted} are needed for max_calls {settings.max_calls}"
    if limit < wanted:
        yield (
            Verdict.WORTH_A_LOOK,
            f"{says}; raise it (ulimit -Hn, LimitNOFILE), or lower max_calls",
        )
    else:
        yield Verdict.GOOD, says


_CHECKS: tuple[tuple[str, Callable[[Settings], Found]], ...] = (
    ("environment", _environment),
    ("callers", _callers),
    ("audit log", _audit_log),
    ("webhooks", _webhooks),
    ("ports", _ports),
    ("traces", _traces),
    ("store", _store),
    ("model", _model),
    ("dictionaries", _dictionaries),
    ("autoencoders", _autoencoders),
    ("adapters", _adapters),
    ("device", _device),
    ("memory", _memory),
    ("shared memory", _shared_memory),
    ("open files", _open_files),
)


def _folder(settings: Settings) -> Path | None:
    """Of the model; None if it is not on this machine or cannot be read, which `_model` tells."""
    try:
        folder = _sought(settings)
        if folder is not None:
            _config(folder)
    except ConfigError:
        return None
    return folder


def _sought(settings: Settings) -> Path | None:
    """Of the model; None if it would be fetched. Raises ConfigError where it is missing."""
    from actserve_server.models.embedded import MissingModelPackageError, default_cache_dir
    from actserve_server.models.resolve import resolve

    try:
        cache = settings.cache_dir or default_cache_dir()
        resolved = resolve(settings.model, cache).path_or_hub_id
    except (FileNotFoundError, MissingModelPackageError) as error:
        raise ConfigError(f"model: {error}") from None
    return local_folder(resolved, settings.revision)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = memory_needs.config_of(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {folder}/config.json cannot be read: {error}") from None
    return config


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
