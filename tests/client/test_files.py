"""Files of activations: they come back as they were, other programs read them, and no file that is
not ours is taken for one."""

import contextlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import actserve
from actserve import Activations, InterventionReport, Projection, TokenSource, Usage
from actserve.files import SUFFIXES
from actserve.projections import SparseRows
from actserve.sites import Site

from .conftest import Run

every_format = pytest.mark.parametrize("suffix", SUFFIXES)


def made(*positions: int, tokens: tuple[str, ...] = ("a", "b", "c"), **more: Any) -> Activations:
    """Activations of two sites, of random rows."""
    rows = np.random.default_rng(len(positions)).normal(size=(len(positions), 10))
    rows = rows.astype(np.float32)
    return Activations(
        {Site.parse("resid_post.-1"): rows[:, :4], Site.parse("z.0"): rows[:, 4:]},
        positions=np.array(positions, np.int64),
        token_ids=range(7, 7 + len(tokens)),
        tokens=tokens,
        **more,
    )


def assert_same(loaded: Activations, written: Activations) -> None:
    assert loaded.token_ids == written.token_ids
    assert loaded.tokens == written.tokens
    assert loaded.sources == written.sources
    assert loaded.interventions == written.interventions
    assert (loaded.key, loaded.request_id) == (written.key, written.request_id)
    assert loaded.reduction == written.reduction
    assert loaded.usage == written.usage
    assert dict(loaded.head_counts) == dict(written.head_counts)
    assert loaded.positions.dtype == np.int64
    np.testing.assert_array_equal(loaded.positions, written.positions)
    assert loaded.sites == written.sites
    for site in written:
        assert loaded[site].dtype == np.float32
        assert loaded[site].shape == written[site].shape
        np.testing.assert_array_equal(loaded[site], written[site])
    assert loaded.sparse.sites == written.sparse.sites
    for site in written.sparse:
        for name in ("indices", "values"):
            one, other = (getattr(acts.sparse[site], name) for acts in (loaded, written))
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


CASES: dict[str, list[Activations]] = {
    "one": [made(0, 1, 2)],
    "many": [made(0, 1, 2), made(2), made(1, 2)],
    "a sequence of no rows": [made(), made(1), made()],
    "no rows at all": [made(), made()],
    "no sequence": [],
    "tokens that are hard to write": [
        made(0, 1, 2, tokens=("\0", "é\ufffd\n\0\0", '"],{'), head_counts={Site.parse("z.0"): 3})
    ],
    "keys, requests and usage": [
        made(0, key="first", request_id="r", usage=Usage(3, 2, 48)),
        made(1, key="é"),
    ],
    "a mean": [made(2, reduction="mean")],
    "all that is told of tokens and interventions": [
        made(
            1,
            sources=[
                TokenSource(),
                TokenSource(0, 3),
                TokenSource(start=1, end=2, turn=0, role="user"),
            ],
            interventions=[
                InterventionReport(3, 2, 1, 0.1),
                InterventionReport(0, 0, 0, None, 0.5),
            ],
        )
    ],
}


@every_format
@pytest.mark.parametrize("case", CASES)
def test_what_is_loaded_is_what_was_saved(case: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"acts{suffix}"
    actserve.save(path, CASES[case], model="small")
    loaded = actserve.load(str(path))
    assert len(loaded) == len(CASES[case])
    for one, other in zip(loaded, CASES[case], strict=True):
        assert_same(one, other)


@every_format
def test_fetched_activations_come_back(client: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"acts{suffix}"
    acts = client.fetch("a b  c", ["z.1", "mlp_act.0"], positions=[0, 2], intervene=None)
    acts.save(path)
    (loaded,) = actserve.load(path)
    assert_same(loaded, acts)
    assert loaded.heads("z.1").shape == (2, 2, 2)
    sparse = client.fetch(["a b", "c"], "z.1", projection=Projection(np.eye(4), send_top=2))
    actserve.save(path, sparse)
    for one, other in zip(actserve.load(path), sparse, strict=True):
        assert_same(one, other)


@every_format
def test_what_the_command_writes_comes_back(
    run: Run, client: Any, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"acts{suffix}"
    options = ("-s", "embedding", "--positions", "last", "--model", "small", "--out", str(path))
    assert run("fetch", "one two", *options).exit_code == 0
    (loaded,) = actserve.load(path)
    assert_same(loaded, client.fetch("one two", "embedding", positions="last"))
    assert metadata(path)["model"] == "small"


@every_format
def test_loaded_rows_can_be_written_to(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"acts{suffix}"
    actserve.save(path, [made(0, 1), made(2)])
    for acts in actserve.load(path):
        for rows in acts.values():
            rows += 1
            assert rows.dtype == np.float32
        acts.positions[:] = 0


def metadata(path: Path) -> dict[str, Any]:
    """As anyone would read it."""
    match path.suffix:
        case ".npz":
            with np.load(path, allow_pickle=False) as archive:
                told = archive["metadata"].tobytes()
        case ".safetensors":
            with safe_open(path, "numpy") as file:
                told = file.get_tensor("metadata").tobytes()
        case _:
            told = pq.read_schema(path).metadata[b"metadata"]
    return json.loads(told)


@every_format
def test_the_metadata_is_json_with_all_that_the_table_has_no_place_for(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"acts{suffix}"
    actserve.save(path, made(1), model="small")
    told = metadata(path)
    assert told["kind"] == "actserve activations"
    assert (told["format"], told["model"]) == (1, "small")
    assert isinstance(told["client"], str)
    assert told["sequences"][0]["tokens"] == ["a", "b", "c"]


def test_pandas_reads_parquet_as_it_is(tmp_path: Path) -> None:
    acts = [made(0, 2), made(1)]
    actserve.save(tmp_path / "acts.parquet", acts)
    frame = pd.read_parquet(tmp_path / "acts.parquet")
    assert frame["token"].tolist() == ["a", "c", "b"]
    assert frame["prompt"].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(np.stack(frame["z.0"].tolist())[:2], acts[0]["z.0"])


def test_sequences_of_other_sites_make_no_table(client: Any, tmp_path: Path) -> None:
    acts = [client.fetch("a", "z.1"), client.fetch("a", "z.0")]
    with pytest.raises(ValueError, match=r"sequence 1 has rows of z\.0 and the first of z\.1"):
        actserve.save(tmp_path / "acts.npz", acts)


@pytest.mark.parametrize("path", ["acts", "acts.pt", "acts.npy", "acts.pkl"])
def test_a_path_that_names_no_format_is_refused(path: str, tmp_path: Path) -> None:
    for act in (lambda to: actserve.save(to, made(0)), actserve.load, made(0).save):
        with pytest.raises(ValueError, match=r"names no format; let it end in \.npz or \.saf"):
            act(tmp_path / path)
    assert not [*tmp_path.iterdir()]


class Trap:
    """Fails the test that unpickles it."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("the file was unpickled",)


def _npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def _npy(path: Path, array: Any) -> None:
    with path.open("wb") as file:  # numpy adds a suffix of its own to a path.
        np.save(file, array)


FOREIGN: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "an archive of other arrays": (".npz", lambda path: _npz(path, weights=np.ones(3))),
    "another array named metadata": (".npz", lambda path: _npz(path, metadata=np.ones(3))),
    "metadata of something else": (
        ".npz",
        lambda path: _npz(path, metadata=np.frombuffer(b'{"kind": "other"}', np.uint8)),
    ),
    "metadata that is no text": (
        ".npz",
        lambda path: _npz(path, metadata=np.frombuffer(b"\xff\xfe", np.uint8)),
    ),
    "objects": (".npz", lambda path: _npz(path, metadata=np.array([Trap()], object))),
    "a pickle": (".npz", lambda path: path.write_bytes(pickle.dumps(Trap()))),
    "a single array": (".npz", lambda path: _npy(path, np.ones(3))),
    "an empty file": (".npz", lambda path: path.touch()),
    "a steering vector": (".npz", lambda path: actserve.SteeringVector("z.0", [1]).save(path)),
    "other tensors": (".safetensors", lambda path: save_file({"w": np.ones(3)}, path)),
    "no safetensors": (".safetensors", lambda path: path.write_bytes(b"\x09" * 99)),
    "another table": (".parquet", lambda path: pq.write_table(pa.table({"a": [1]}), path)),
    "no table": (".parquet", lambda path: path.write_bytes(b"PAR1 and nothing")),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_of_another_program_is_refused(case: str, tmp_path: Path) -> None:
    suffix, write = FOREIGN[case]
    path = tmp_path / f"acts{suffix}"
    write(path)
    with pytest.raises(ValueError, match=f"{path} was not written as activations by actserve"):
        actserve.load(path)


def rewritten(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    table = {**arrays, "told": json.loads(arrays.pop("metadata").tobytes())}
    edit(table)
    told = json.dumps(table.pop("told")).encode()
    np.savez(path, **{**table, "metadata": np.frombuffer(told, np.uint8)})


def test_a_file_of_an_older_client_has_no_key_request_or_usage(tmp_path: Path) -> None:
    path = tmp_path / "acts.npz"
    actserve.save(path, made(0, key="k", request_id="r", usage=Usage(1, 1, 1)))

    def as_once(table: dict[str, Any]) -> None:
        for name in ("key", "request_id", "reduction", "usage"):
            table["told"]["sequences"][0].pop(name)

    rewritten(path, as_once)
    (loaded,) = actserve.load(path)
    assert (loaded.key, loaded.request_id, loaded.usage) == ("", "", Usage(3, 0, 0))


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a newer format": (
        lambda table: table["told"].update(format=2),
        "has format 2 .* and this client reads format 1; upgrade",
    ),
    "a missing column": (lambda table: table.pop("z.0"), "is damaged: 'z.0'"),
    "a missing row": (
        lambda table: table.update({"z.0": table["z.0"][1:]}),
        "column z.0 has 2 values of float32, not 3",
    ),
    "other numbers": (
        lambda table: table.update({"z.0": table["z.0"] > 0}),
        "column z.0 has 3 values of bool",
    ),
    "no vectors": (
        lambda table: table.update({"z.0": table["z.0"][:, 0]}),
        "column z.0 is of numbers, not of vectors",
    ),
    "a prompt too many": (
        lambda table: table["told"]["sequences"].pop(),
        "rows of prompts that are not among its 1",
    ),
    "prompts out of order": (
        lambda table: table.update(prompt=table["prompt"][::-1]),
        "not in the order of their prompts",
    ),
    "a position too far": (
        lambda table: table["position"].__setitem__(0, 3),
        "a sequence of 3 tokens has rows of others",
    ),
    "a token without an id": (
        lambda table: table["told"]["sequences"][0]["token_ids"].pop(),
        "2 token ids and 3 tokens",
    ),
    "no sequences": (lambda table: table["told"].pop("sequences"), "is damaged"),
    "rows of another float": (
        lambda table: table.update({"z.0": table["z.0"].astype(np.float64)}),
        "column z.0 has 3 values of float64, not 3 of float32",
    ),
    "rows that are whole numbers": (
        lambda table: table.update({"z.0": table["z.0"].astype(np.int64)}),
        "column z.0 has 3 values of int64, not 3 of float32",
    ),
    "positions that are no whole numbers": (
        lambda table: table.update(position=table["position"].astype(np.float32)),
        "column position has 3 values of float32, not 3 of int64",
    ),
    "positions that are vectors": (
        lambda table: table.update(position=table["position"][:, None]),
        "column position is of vectors, not of numbers",
    ),
    "prompts without an axis": (
        lambda table: table.update(prompt=np.int64(0)),
        "is damaged",
    ),
    "tokens that are one text": (
        lambda table: table["told"]["sequences"][0].update(tokens="abc", token_ids="abc"),
        "a token id is 'a'",
    ),
    "a token that is no text": (
        lambda table: table["told"]["sequences"][0]["tokens"].__setitem__(0, None),
        "a token is None",
    ),
    "a token id that is no whole number": (
        lambda table: table["told"]["sequences"][0]["token_ids"].__setitem__(0, 1.5),
        r"a token id is 1\.5",
    ),
    "more sources than tokens": (
        lambda table: table["told"]["sequences"][0].update(sources=[[0, 1, None, ""]] * 4),
        "4 sources of 3 tokens",
    ),
    "a source of too few parts": (
        lambda table: table["told"]["sequences"][0].update(sources=[[0, 1]]),
        "is damaged",
    ),
    "a source of no number": (
        lambda table: table["told"]["sequences"][0].update(sources=[["0", 1, None, ""]]),
        "a source is '0'",
    ),
    "an intervention of no number": (
        lambda table: table["told"]["sequences"][0].update(interventions=[[1, 1, 0, "x"]]),
        "a relative change is 'x'",
    ),
    "sequences that are texts": (
        lambda table: table["told"].update(sequences=["a", "b"]),
        "is damaged",
    ),
    "a key that is no text": (
        lambda table: table["told"]["sequences"][0].update(key=3),
        "a key is 3",
    ),
    "a reduction that does not exist": (
        lambda table: table["told"]["sequences"][0].update(reduction="sum"),
        "reduction 'sum' does not exist",
    ),
    "a usage of two parts": (
        lambda table: table["told"]["sequences"][0].update(usage=[1, 2]),
        "is damaged",
    ),
    "heads that are a list": (lambda table: table["told"].update(heads=[1]), "is damaged"),
    "a site that is a number": (lambda table: table["told"]["sites"].append(1), "a site is 1"),
    "sites that are none": (lambda table: table["told"].update(sites=None), "not written"),
    "a site that is none": (lambda table: table["told"]["sites"].append("x"), "is not a site"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused(case: str, tmp_path: Path) -> None:
    edit, message = DAMAGED[case]
    path = tmp_path / "acts.npz"
    actserve.save(path, [made(0, 2), made(1)])
    rewritten(path, edit)
    with pytest.raises(ValueError, match=message):
        actserve.load(path)


@every_format
def test_sparse_rows_of_other_shapes_are_refused(suffix: str, tmp_path: Path) -> None:
    sparse = SparseRows(np.zeros((1, 2), np.int64), np.ones((1, 3), np.float32))
    acts = Activations(
        {}, positions=np.arange(1), token_ids=[1], tokens=["a"], sparse={Site.parse("z.0"): sparse}
    )
    actserve.save(tmp_path / f"acts{suffix}", acts)
    with pytest.raises(ValueError, match=r"indices \[1, 2\] and values \[1, 3\]"):
        actserve.load(tmp_path / f"acts{suffix}")


def saved(path: Path) -> bytes:
    """What a file of activations holds."""
    actserve.save(path, [made(0, 2), made(1)])
    return path.read_bytes()


def _members(path: Path, **members: bytes) -> None:
    """An archive of members as they are, that are compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def _header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + f"{text}\n".encode()


def _nested(path: Path) -> None:
    _npz(path, metadata=np.frombuffer(b"[" * 200_000, np.uint8))


def _encrypted(path: Path) -> None:
    content = bytearray(saved(path))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + flags] |= 1
    path.write_bytes(content)


def _of_method(path: Path) -> None:
    content = bytearray(saved(path))
    for signature, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + method] = 97
    path.write_bytes(content)


def _broken_deflate(path: Path) -> None:
    _members(path, metadata=random_bytes(5000))
    content = bytearray(path.read_bytes())
    content[60:90] = b"\xff" * 30
    path.write_bytes(content)


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(1).integers(0, 9, count, np.uint8).tobytes()


def _inflating(path: Path) -> None:
    """A thousand bytes of zeros for each of the file."""
    saved(path)
    with np.load(path) as archive:
        np.savez_compressed(path, **{**archive, "z.0": np.zeros((3, 2**20), np.float32)})


def _constant_parquet(path: Path) -> None:
    saved(path)
    table = pq.read_table(path)
    count = 2**23
    more = {
        name: pa.DictionaryArray.from_arrays(np.zeros(count, np.int8), [0]).cast(pa.int64())
        for name in ("prompt", "position", "token_id")
    }
    pq.write_table(pa.table(more).replace_schema_metadata(table.schema.metadata), path)


HOSTILE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "metadata of lists in lists": (".npz", _nested),
    "an archive with a password": (".npz", _encrypted),
    "an unknown compression": (".npz", _of_method),
    "compressed bytes that are broken": (".npz", _broken_deflate),
    "an array that inflates": (".npz", _inflating),
    "an array of an endless shape": (
        ".npz",
        lambda path: _members(
            path,
            metadata=_header(
                "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }"
            ),
        ),
    ),
    "an array without a header": (".npz", lambda path: _members(path, metadata=b"")),
    "a header that is no text": (".npz", lambda path: _members(path, metadata=_header("{'a'"))),
    "half an archive": (".npz", lambda path: path.write_bytes(saved(path)[:600])),
    "half of its tensors": (".safetensors", lambda path: path.write_bytes(saved(path)[:400])),
    "half a table": (".parquet", lambda path: path.write_bytes(saved(path)[:400])),
    "a table with a byte changed": (
        ".parquet",
        lambda path: path.write_bytes(saved(path)[:-9] + b"\xff" + path.read_bytes()[-8:]),
    ),
    "a table that repeats a value": (".parquet", _constant_parquet),
    "zeros": (".parquet", lambda path: path.write_bytes(b"\0" * 4096)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_as_any_other(case: str, tmp_path: Path) -> None:
    suffix, write = HOSTILE[case]
    path = tmp_path / f"acts{suffix}"
    write(path)
    with pytest.raises(ValueError, match=f"{path} was not written as activations by actserve"):
        actserve.load(path)


def test_members_that_the_metadata_does_not_name_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "acts.npz"
    saved(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", b"no array")
    assert len(actserve.load(path)) == 2


@every_format
def test_a_file_with_any_byte_changed_is_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"acts{suffix}"
    content = saved(path)
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with contextlib.suppress(ValueError):
            actserve.load(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        with pytest.raises(FileNotFoundError):
            actserve.load(tmp_path / f"acts{suffix}")
