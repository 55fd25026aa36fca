"""Vectors in the formats of others: what is written is what is read, and a file that lies is
refused before anything is made of it."""

import io
import json
import os
import pickle
import stat
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy

from actserve import SteeringVector, load_vectors, save_vectors
from actserve.vector_files import SUFFIXES

WIDTH = 16
ROWS = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
ROWS[0, :4] = (1e-40, -0.0, 3.4e38, 1 / 3)  # What a format might round.
SITES = ("resid_post.1", "resid_post.2", "resid_post.11")
MANY = [SteeringVector(site, row, f"row of {site}") for site, row in zip(SITES, ROWS, strict=True)]
REPENG = Path(__file__).parent / "files/repeng.gguf"


def same(found: list[SteeringVector], expected: list[SteeringVector]) -> None:
    assert [each.site for each in found] == [each.site for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.values.dtype == np.float32
        assert one.values.tobytes() == other.values.tobytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".gguf"])
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_written_is_read_bit_by_bit(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"joy{suffix}"
    save_vectors(path, MANY[:count], model="llama")
    found = load_vectors(path)
    same(found, MANY[:count])
    if suffix != ".gguf":
        assert [each.provenance for each in found] == [each.provenance for each in MANY[:count]]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_who_may_read_a_file_is_for_the_umask_to_say(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"joy{suffix}"
    before = os.umask(0o027)
    try:
        save_vectors(path, MANY[0], model="m")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        save_vectors(path, MANY[0], model="m")
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_a_file_without_sites_is_told_them(tmp_path: Path) -> None:
    path = tmp_path / "joy.npy"
    save_vectors(path, MANY)
    same(load_vectors(path, SITES), MANY)
    save_vectors(path, MANY[0])
    assert np.load(path).shape == (WIDTH,)
    same(load_vectors(path, SITES[0]), MANY[:1])


@pytest.mark.parametrize("site", ["resid_post.0", "resid_pre.7"])
def test_a_vector_of_neuronpedia_is_read_as_it_was_written(tmp_path: Path, site: str) -> None:
    path = tmp_path / "joy.json"
    vector = SteeringVector(site, ROWS[0], "joy")
    save_vectors(path, vector, model="gemma-2-2b")
    (found,) = load_vectors(path)
    same([found], [vector])
    assert found.provenance == "joy"
    told = json.loads(path.read_text())
    assert told.keys() == {
        "modelId", "layerNumber", "hookType", "vector", "vectorDefaultSteerStrength", "vectorLabel"
    }  # fmt: skip


@pytest.mark.parametrize(
    "told",
    [
        {"vector": {"hookName": "blocks.3.hook_resid_post", "values": [1, 2], "label": "joy"}},
        {"hookName": "blocks.3.hook_resid_post", "vector": [1.0, 2.0], "vectorLabel": "joy"},
        {"layerNumber": 3, "hookType": "hook_resid_post", "vector": [1, 2], "vectorLabel": "joy"},
    ],
)
def test_what_neuronpedia_tells_of_a_vector_is_read(tmp_path: Path, told: Any) -> None:
    path = tmp_path / "joy.json"
    path.write_text(json.dumps(told))
    (found,) = load_vectors(path)
    same([found], [SteeringVector("resid_post.3", [1, 2])])
    assert found.provenance == "joy"


def test_arrays_that_others_name_by_sites_are_read(tmp_path: Path) -> None:
    arrays = {"resid_post.1": ROWS[0], "blocks.2.hook_resid_post": ROWS[1]}
    np.savez(tmp_path / "joy.npz", **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "joy.safetensors")
    for name in ("joy.npz", "joy.safetensors"):
        found = {str(each.site): each for each in load_vectors(tmp_path / name)}
        same([found[site] for site in SITES[:2]], MANY[:2])


def test_one_array_of_any_name_is_told_its_site(tmp_path: Path) -> None:
    np.savez(tmp_path / "joy.npz", vector=ROWS)
    same(load_vectors(tmp_path / "joy.npz", SITES), MANY)


def test_a_safetensors_file_of_bfloat16_is_read(tmp_path: Path) -> None:
    header = json.dumps(
        {"resid_post.1": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    ).encode()
    path = tmp_path / "joy.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x80\x3f\x00\xc0")
    same(load_vectors(path), [SteeringVector("resid_post.1", [1, -2])])


def test_a_control_vector_is_what_llama_cpp_and_repeng_read(tmp_path: Path) -> None:
    path = tmp_path / "joy.gguf"
    save_vectors(path, MANY, model="llama")
    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        found = reader.get_field(name)
        assert found
        return found.contents()

    assert field("general.architecture") == "controlvector"
    assert field("controlvector.model_hint") == "llama"
    assert field("controlvector.layer_count") == 3
    assert [tensor.name for tensor in reader.tensors] == [
        f"direction.{layer}" for layer in (1, 2, 11)
    ]
    for tensor in reader.tensors:
        assert (tensor.tensor_type, [*tensor.shape]) == (gguf.GGMLQuantizationType.F32, [WIDTH])
    assert load_vectors(path)[0].provenance == "control vector of llama"


def test_a_control_vector_that_repeng_wrote_is_read() -> None:
    """scripts/repeng_control_vector.py made it, and the same numbers as JSON."""
    found = load_vectors(REPENG)
    told = json.loads(REPENG.with_suffix(".json").read_text())
    assert [str(each.site) for each in found] == [f"resid_post.{layer}" for layer in told]
    for each, values in zip(found, told.values(), strict=True):
        np.testing.assert_array_equal(each.values, np.array(values, np.float32))
    assert found[0].provenance == "control vector of llama"


def test_a_control_vector_in_memory_is_saved_as_it_is(tmp_path: Path) -> None:
    vector = SimpleNamespace(model_type="llama", directions={11: ROWS[2], 1: ROWS[0], 2: ROWS[1]})
    save_vectors(tmp_path / "joy.gguf", vector, model=vector.model_type)
    same(load_vectors(tmp_path / "joy.gguf"), MANY)


def written(tmp_path: Path, change: Callable[[Any], object], **fields: Any) -> Path:
    """A GGUF file that is nearly a control vector."""
    path = tmp_path / "joy.gguf"
    writer = gguf.GGUFWriter(path, fields.get("architecture", "controlvector"))
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


NO_VECTORS: dict[str, tuple[Callable[[Any], object], dict[str, Any], str]] = {
    "a model": (lambda w: w.add_tensor("direction.1", ROWS[0]), {"architecture": "llama"}, "llama"),
    "another tensor": (lambda w: w.add_tensor("token_embd.weight", ROWS[0]), {}, "no direction.L"),
    "half precision": (
        lambda w: w.add_tensor("direction.1", np.ones(3, np.float16)),
        {},
        "float16 is no direction.L",
    ),
    "a matrix": (lambda w: w.add_tensor("direction.1", ROWS), {}, r"\[3, 16\]"),
    "two widths": (
        lambda w: (w.add_tensor("direction.1", ROWS[0]), w.add_tensor("direction.2", ROWS[0, :3])),
        {},
        "of one width",
    ),
    "a number that is none": (
        lambda w: w.add_tensor("direction.1", np.full(3, np.nan, np.float32)),
        {},
        "must be finite",
    ),
    "no direction": (lambda w: None, {}, "has no row"),
    "a layer below zero": (lambda w: w.add_tensor("direction.-1", ROWS[0]), {}, "no direction.L"),
    "a layer twice": (
        lambda w: (w.add_tensor("direction.1", ROWS[0]), w.add_tensor("direction.01", ROWS[0])),
        {},
        "no direction.L",
    ),
}


@pytest.mark.parametrize("case", NO_VECTORS)
def test_a_file_of_gguf_that_is_no_control_vector_says_why(tmp_path: Path, case: str) -> None:
    change, fields, message = NO_VECTORS[case]
    with pytest.raises(ValueError, match=message):
        load_vectors(written(tmp_path, change, **fields))


class Dangerous:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def npy(header: str, data: bytes = b"") -> bytes:
    padded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Dangerous()], object), allow_pickle=True)
    return file.getvalue()


def of_gguf(*, tensors: int = 0, fields: int = 0, then: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + then


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


ARCHITECTURE = text(b"general.architecture") + struct.pack("<I", 8) + text(b"controlvector")
HUGE = 1 << 60
# By what the file lies about: its suffix, its bytes, and what is said.
LIES: dict[str, tuple[str, bytes, str]] = {
    "an array longer than its file": (
        ".npy",
        npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 40},), }}"),
        "shorter than its shape",
    ),
    "an array of objects": (".npy", pickled(), "Object arrays cannot be loaded|shorter than"),
    "an array of texts": (
        ".npy",
        npy("{'descr': '<U2', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        "must hold real numbers",
    ),
    "half an array": (
        ".npy",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (64,), }", bytes(60)),
        "shorter than its shape|cannot",
    ),
    "a header that is code": (
        ".npy",
        npy("__import__('os').getcwd()"),
        "malformed|Cannot parse",
    ),
    "a pickle": (".npy", pickle.dumps(ROWS), "magic string is not correct"),
    "a zip that is none": (".npz", b"PK\x03\x04" + bytes(40), "not a zip file"),
    "tensors without end": (".gguf", of_gguf(tensors=HUGE), "ends before|more than"),
    "fields without end": (".gguf", of_gguf(fields=HUGE), "ends before"),
    "a list without end": (
        ".gguf",
        of_gguf(fields=1, then=text(b"a") + struct.pack("<IIQ", 9, 0, HUGE) + bytes(300_000)),
        "more than 100000 entries",
    ),
    "a text without end": (".gguf", of_gguf(fields=1, then=text(b"a", HUGE)), "ends before"),
    "a tensor without its numbers": (
        ".gguf",
        of_gguf(
            tensors=1,
            fields=1,
            then=ARCHITECTURE
            + text(b"direction.1")
            + struct.pack("<IQIQ", 1, 1 << 40, 0, 0)
            + bytes(64),
        ),
        "ends before",
    ),
    "dimensions without end": (
        ".gguf",
        of_gguf(
            tensors=1,
            fields=1,
            then=ARCHITECTURE + text(b"direction.1") + struct.pack("<I", (1 << 32) - 1),
        ),
        "ends before",
    ),
    "nothing": (".gguf", b"", "empty file"),
    "a header of safetensors without end": (
        ".safetensors",
        struct.pack("<Q", HUGE) + b"{}",
        "cannot be read",
    ),
    "a tensor of safetensors without its numbers": (
        ".safetensors",
        (lambda header: struct.pack("<Q", len(header)) + header)(
            b'{"z.0":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
        ),
        "cannot be read",
    ),
    "JSON that is too deep": (".json", b"[" * 100_000, "too deep"),
    "JSON of something else": (".json", b"[1, 2]", "and not the JSON object"),
    "JSON without numbers": (".json", b'{"vector": [true]}', "no list of numbers"),
    "JSON without a site": (".json", b'{"vector": [1.0]}', "names its site neither"),
    "JSON of a number too large": (
        ".json",
        b'{"hookName": "blocks.1.hook_resid_pre", "vector": [1e999]}',
        "must be finite",
    ),
    "JSON of a layer below zero": (
        ".json",
        b'{"layerNumber": -1, "hookType": "hook_resid_pre", "vector": [1]}',
        "names its site neither",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_file_that_lies_is_refused_at_no_cost(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    suffix, content, message = LIES[case]
    path = tmp_path / f"joy{suffix}"
    path.write_bytes(content)
    sites = "resid_post.1" if suffix == ".npy" else None
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as error:
            load_vectors(path, sites)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert peak < 100 << 20
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"joy{suffix}"
    save_vectors(path, MANY[0], model="m")
    whole = path.read_bytes()
    # The end of a GGUF file is what pads it, and of a zip archive a comment may be.
    end = len(whole) - (32 if suffix == ".gguf" else 1)
    for size in range(0, end, max(1, end // 50)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cannot be read"):
            load_vectors(path, "resid_post.1" if suffix == ".npy" else None)


def test_a_file_too_large_for_a_vector_is_not_opened(tmp_path: Path) -> None:
    for name, size in (("joy.gguf", 257 << 20), ("joy.json", 17 << 20)):
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(size)
        with pytest.raises(ValueError, match=f"has {size} bytes"):
            load_vectors(path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle of torch": (lambda path: load_vectors(path / "joy.pt"), "run code"),
    "no format": (lambda path: save_vectors(path / "joy", MANY[0]), "names no format"),
    "a control vector of layer 0": (
        lambda path: save_vectors(path / "joy.gguf", SteeringVector("resid_post.0", [1])),
        "from layer 1 on, and none of resid_post.0",
    ),
    "a control vector of another site": (
        lambda path: save_vectors(path / "joy.gguf", SteeringVector("z.1", [1])),
        "none of z.1",
    ),
    "a control vector of the last layer": (
        lambda path: save_vectors(path / "joy.gguf", SteeringVector("resid_post.-1", [1])),
        "none of resid_post.-1",
    ),
    "several rows for Neuronpedia": (
        lambda path: save_vectors(path / "joy.json", MANY, model="m"),
        "is one row",
    ),
    "another site for Neuronpedia": (
        lambda path: save_vectors(path / "joy.json", SteeringVector("z.1", [1]), model="m"),
        "is one row of resid_pre or resid_post, and not of z.1",
    ),
    "no model for Neuronpedia": (
        lambda path: save_vectors(path / "joy.json", MANY[0]),
        "needs the id of its model",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, case: str) -> None:
    act, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        act(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_sites_are_told_exactly_where_a_file_does_not_say_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=ROWS[0], b=ROWS[1])
    save_vectors(tmp_path / "sites.npz", MANY)
    save_vectors(tmp_path / "none.npy", MANY[0])
    for name, sites, message in (
        ("two.npz", None, "a, b are not named by sites"),
        ("two.npz", SITES[0], "has 2 arrays, and sites are told for one"),
        ("sites.npz", SITES, "says its sites itself"),
        ("none.npy", None, "does not say its sites; name one for each row, as in"),
        ("none.npy", SITES, "1 rows for 3 sites"),
    ):
        with pytest.raises(ValueError, match=message):
            load_vectors(tmp_path / name, sites)


def test_a_missing_file_is_missing_and_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_vectors(tmp_path / "joy.gguf")
