"""What reads bytes that strangers wrote: each as a function of bytes, with the errors that it may
raise, beside the bytes of `corpus/` that it begins with.

`make fuzz` changes them at length, led by what of the code they reach (`guided.py`); the suite
changes them a little (`tests/unit/test_fuzzed_decoders.py`). Any error that is not listed here is a
fault, and so is a hang, a crash of the process, or much memory.
"""

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import typer
from google.protobuf.message import DecodeError, Message

import actserve
from actserve import errors, tensors
from actserve.cli import prompts, sweep_spec
from actserve.v1 import (
    generation_service_pb2,
    monitor_service_pb2,
    sweep_service_pb2,
    tensor_pb2,
)
from actserve_server.dictionaries.formats.format_files import DictionaryFormatError
from actserve_server.dictionaries.formats.read_folder import found_in
from actserve_server.domain.errors import ActserveError
from actserve_server.monitors import alert_tokens
from actserve_server.nla import sidecar
from actserve_server.openai import form_patterns
from actserve_server.rpc.requests import pages, tensor_fields
from actserve_server.rpc.requests.json_values import JsonReader
from actserve_server.rpc.transport import client_certificates, issuer_keys, request_messages
from actserve_server.rpc.transport.request_size import check_parts
from actserve_server.rpc.transport.signed_tokens import SignedTokens, Trust
from actserve_server.rpc.web import json_messages
from actserve_server.steering.resume_tokens import CellsHad

CORPUS = Path(__file__).parent / "corpus"
MAX_BYTES = 4096
"""Of an input. What takes more is nothing that a reader of few bytes would do otherwise."""
PARTS = 64
CELLS = 77


@dataclass(frozen=True)
class Decoder:
    """One reader."""

    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    """What it may raise."""

    def try_one(self, data: bytes) -> None:
        """Raises whatever it should not."""
        with suppress(*self.errors):
            self.read(data)


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="actserve-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _file(name: str, read: Callable[[Path], object], data: bytes) -> object:
    path = _folder() / name
    path.write_bytes(data)
    return read(path)


def _of_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    return partial(_file, name, read)


def _tensor(data: bytes) -> None:
    tensor = tensor_pb2.Tensor.FromString(data)
    for read in (
        tensors.decode,
        lambda tensor: tensor_fields.vector(tensor, 4, "a row", ("tensor",)),
        lambda tensor: tensor_fields.matrix(tensor, 4, "a row", ("tensor",)),
    ):
        try:
            values = read(tensor)
        except (ActserveError, errors.ActserveError):
            continue
        assert values.size * 2 <= max(1, len(tensor.data))


def _request(kind: type[Message], data: bytes) -> None:
    """As a call reads it: its parts are counted first, so no more come of it than are allowed."""
    descriptor: Any = kind.DESCRIPTOR  # Of one of two classes that are the same.
    check_parts(data, descriptor, PARTS)
    parsed = request_messages._parsed(data, kind.FromString, descriptor)
    assert _messages(parsed) <= PARTS


def _messages(message: Message) -> int:
    """How many are inside."""
    count = 0
    for field, value in message.ListFields():
        if field.message_type is not None:
            inside: Any = value if field.is_repeated else (value,)
            if field.message_type.GetOptions().map_entry:
                inside = [each for each in value.values() if isinstance(each, Message)]
            count += sum(1 + _messages(each) for each in inside)
    return count


def _json(data: bytes) -> None:
    json_messages.from_json(data, generation_service_pb2.GenerateRequest)


def _json_object(data: bytes) -> None:
    JsonReader().object(data.decode(), ("tools",))


def _cells(payload: bytes) -> None:
    """Behind the hash, which nothing made up would pass."""
    made = CellsHad(b"digest", CELLS)
    had = CellsHad.of(made._tag(payload) + payload, b"digest", CELLS)
    assert len(had) == sum(number in had for number in range(CELLS))
    again = CellsHad.of(had.token(), b"digest", CELLS)
    assert [number in again for number in range(CELLS)] == [
        number in had for number in range(CELLS)
    ]
    for number in range(CELLS):
        had.add(number)
    assert len(had) == CELLS


def _alert_token(payload: bytes) -> None:
    token = alert_tokens._tag("tenant", "model", payload) + payload
    place = alert_tokens.read(token, "tenant", "model")
    assert alert_tokens.write("tenant", "model", place) == token


def _page_token(data: bytes) -> None:
    last = pages.after(data.decode())
    assert pages.after(pages.token(last)) == last


class _Keys:
    """A key under every name, by which nothing was signed."""

    async def find(self, key_id: str) -> Mapping[str, Any] | None:
        return {"kty": "RSA", "n": "_" * 342, "e": "AQAB"}

    async def refresh(self) -> None: ...


def _signed_token(data: bytes) -> None:
    trust = Trust(issuer="https://login.example.com", audience="actserve")
    assert asyncio.run(SignedTokens(trust, _Keys()).principal(data)) is None


def _certificate(data: bytes) -> None:
    client_certificates.names.__wrapped__(data)


def _pattern(data: bytes) -> None:
    assert form_patterns.size(data.decode()) >= 0


def _records(path: Path) -> None:
    for _ in prompts.records(path):
        pass


def _sweep_spec(path: Path) -> None:
    class Nobody:
        """Whoever is asked for stored vectors has none."""

        def __getattr__(self, name: str) -> Any:
            raise errors.ActserveError("there is no server")

    client: Any = Nobody()
    sweep_spec.sweep_arguments(sweep_spec.read_spec(path), client)


def _dictionary(folder: Path) -> None:
    for each in found_in(folder):
        each.read()


def _dictionary_of(name: str, beside: str | None = None) -> Callable[[bytes], object]:
    """A folder with that file, and beside it one of the corpus as it is."""

    def read(data: bytes) -> None:
        folder = _folder() / f"dictionary of {name}"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        if beside is not None:
            whole = CORPUS / beside / "whole"
            (folder / _BESIDE[beside]).write_bytes(whole.read_bytes())
        _dictionary(folder)

    return read


_BESIDE = {
    "dictionary_config": "cfg.json",
    "dictionary_safetensors": "sae_weights.safetensors",
}

_SITES = {".npy": "resid_post.1"}


def _vectors(suffix: str) -> Decoder:
    read = partial(actserve.load_vectors, sites=_SITES.get(suffix))
    return Decoder(_of_file(f"vectors{suffix}", read), (ValueError,))


def _rows(suffix: str) -> Decoder:
    return Decoder(_of_file(f"rows{suffix}", actserve.load), (ValueError,))


_REFUSED = (ActserveError,)

DECODERS: Mapping[str, Decoder] = {
    # From the wire.
    "tensor": Decoder(_tensor, (DecodeError,)),
    "generate_request": Decoder(
        partial(_request, generation_service_pb2.GenerateRequest), _REFUSED
    ),
    "sweep_request": Decoder(partial(_request, sweep_service_pb2.RunSweepRequest), _REFUSED),
    "monitor_request": Decoder(
        partial(_request, monitor_service_pb2.CreateMonitorRequest), _REFUSED
    ),
    "json_request": Decoder(_json, _REFUSED),
    "json_object": Decoder(_json_object, (*_REFUSED, UnicodeDecodeError)),
    "resume_token": Decoder(_cells, _REFUSED),
    "alert_token": Decoder(_alert_token, _REFUSED),
    "page_token": Decoder(_page_token, (*_REFUSED, UnicodeDecodeError)),
    "signed_token": Decoder(_signed_token, ()),
    "issuer_keys": Decoder(issuer_keys.read_keys, (ValueError,)),
    "client_certificate": Decoder(_certificate, ()),
    "regular_expression": Decoder(_pattern, (UnicodeDecodeError,)),
    # From files.
    "vectors_safetensors": _vectors(".safetensors"),
    "vectors_npz": _vectors(".npz"),
    "vectors_npy": _vectors(".npy"),
    "vectors_gguf": _vectors(".gguf"),
    "vectors_neuronpedia": _vectors(".json"),
    "rows_safetensors": _rows(".safetensors"),
    "rows_npz": _rows(".npz"),
    "rows_parquet": _rows(".parquet"),
    "prompts_jsonl": Decoder(_of_file("prompts.jsonl", _records), (typer.BadParameter,)),
    "sweep_spec": Decoder(
        _of_file("sweep.yaml", _sweep_spec),
        (typer.BadParameter, errors.ActserveError, OSError),  # A text as prompts names a file.
    ),
    "dictionary_config": Decoder(
        _dictionary_of("cfg.json", "dictionary_safetensors"), (DictionaryFormatError,)
    ),
    "dictionary_safetensors": Decoder(
        _dictionary_of("sae_weights.safetensors", "dictionary_config"), (DictionaryFormatError,)
    ),
    "dictionary_npz": Decoder(_dictionary_of("params.npz"), (DictionaryFormatError,)),
    "nla_sidecar": Decoder(_of_file("nla.yaml", sidecar.read), (ValueError,)),
}
"""By the folder of `corpus/` that each begins with."""


def begun_with(name: str) -> list[bytes]:
    """The inputs of the corpus, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
