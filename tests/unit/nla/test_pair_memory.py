"""A pair is not begun to be loaded where the memory that is free does not hold it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.nla import pair_memory
from actserve_server.nla.pair_memory import EngineMemory, check_fits
from actserve_server.nla.pair_sources import NlaFolders

MIB = 1 << 20
ON_CPU = EngineMemory(dtype="auto", cache_bytes=512 * MIB, vector_bytes=16 * MIB)
PROCESSES = 1536 * MIB


@pytest.fixture
def halves(tmp_path: Path) -> NlaFolders:
    """An AV of 100 MiB, and an AR that is an adapter for a base of 300 MiB."""
    for name, mib in (("av", 100), ("base", 300), ("ar", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.truncate(mib * MIB)
    (tmp_path / "ar" / "adapter_config.json").write_text("{}")
    return NlaFolders(
        id="mine", av=tmp_path / "av", ar=tmp_path / "ar", sidecar=None, base=tmp_path / "base"
    )


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_free(count: int) -> None:
        monkeypatch.setattr(pair_memory, "available_bytes", lambda: count)
        monkeypatch.setattr(pair_memory, "device_bytes", lambda: (count, 8 << 30))

    return set_free


@pytest.mark.parametrize(
    ("each", "wanted"),
    [
        (ON_CPU, (100 + 300 + 2 * (512 + 16)) * MIB + 2 * PROCESSES),
        # Twice as wide as they are stored.
        (
            EngineMemory(dtype="float32", cache_bytes=0, vector_bytes=0),
            2 * 400 * MIB + 2 * PROCESSES,
        ),
        (
            EngineMemory(dtype="auto", cache_bytes=MIB, vector_bytes=0, on_device=True),
            (400 + 2) * MIB,
        ),
        (
            EngineMemory(
                dtype="auto", cache_bytes=0, vector_bytes=0, device_share=0.25, on_device=True
            ),
            4 << 30,
        ),
    ],
    ids=["as they are", "widened", "on a GPU with a cache of a size", "a share of a GPU"],
)
def test_what_both_engines_take_must_be_free(
    halves: NlaFolders, free: Callable[[int], None], each: EngineMemory, wanted: int
) -> None:
    free(wanted)
    check_fits(halves, halves.base, each)
    free(wanted - 1)
    with pytest.raises(ActserveError) as refused:
        check_fits(halves, halves.base, each)
    assert refused.value.reason is Reason.MEMORY_EXCEEDED
    assert refused.value.metadata == {"bytes": str(wanted), "limit": str(wanted - 1)}


def test_the_refusal_has_the_sum(halves: NlaFolders, free: Callable[[int], None]) -> None:
    free(1 << 30)
    with pytest.raises(ActserveError) as refused:
        check_fits(halves, halves.base, ON_CPU)
    assert (
        "the pair mine takes about 4.4 GiB of memory (AV 2.1 GiB (0.1 GiB of weights, 0.5 GiB of "
        "KV cache, 1.5 GiB besides), AR 2.3 GiB (0.3 GiB of weights, 0.5 GiB of KV cache, 1.5 GiB "
        "besides)), but 1.0 GiB are free"
    ) in refused.value.message


def test_half_a_pair_takes_half(halves: NlaFolders, free: Callable[[int], None]) -> None:
    free((100 + 512 + 16) * MIB + PROCESSES)
    check_fits(NlaFolders(id="half", av=halves.av, ar=None, sidecar=None, base=None), None, ON_CPU)


def test_what_is_no_checkpoint_is_told(halves: NlaFolders) -> None:
    assert halves.av is not None
    (halves.av / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        check_fits(halves, halves.base, ON_CPU)
