"""`--lora` names an adapter, and a folder is read only where all of it is served."""

from pathlib import Path
from typing import Any

import pytest

from actserve_server import config
from actserve_server.models.lora_folders import MAX_RANK, load_adapter
from actserve_server.models.lora_sources import MAX_ADAPTERS, LoraSource, check_names
from tests.unit.saved_adapters import Q, saved


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("polite=/models/polite", ("polite", "/models/polite", None)),
        ("a.B-1=owner/name revision=0123abc", ("a.B-1", "owner/name", "0123abc")),
        ("'a=with space'", ("a", "with space", None)),
    ],
)
def test_an_option_names_an_adapter_and_where_it_is(
    text: str, wanted: tuple[str, str, str | None]
) -> None:
    (found,) = config.load(["--lora", text]).lora
    assert (found.id, found.source, found.revision) == wanted


@pytest.mark.parametrize(
    "text", ["/models/polite", "a/b=c", "=c", "a=", "a=b extra", "a=b other=c"]
)
def test_an_option_that_names_none_is_refused(text: str) -> None:
    with pytest.raises(config.ConfigError, match="lora"):
        config.load(["--lora", text])


def test_a_model_on_several_devices_has_no_adapters() -> None:
    with pytest.raises(config.ConfigError, match="tensor_parallel_size is 2, but adapters"):
        config.load(["--lora", "a=b", "--tensor-parallel-size", "2"])


def test_a_name_means_one_thing() -> None:
    sources = [LoraSource(id=each, source="x") for each in ("a", "b")]
    check_names(sources, "model")
    with pytest.raises(ValueError, match="b names two things"):
        check_names([*sources, sources[1]], "model")
    with pytest.raises(ValueError, match="a names two things"):
        check_names(sources, "a")
    with pytest.raises(ValueError, match=f"at most {MAX_ADAPTERS}"):
        check_names([LoraSource(id=f"a{n}", source="x") for n in range(MAX_ADAPTERS + 1)], "m")


def test_an_adapter_tells_what_it_changes_and_what_its_files_are(tmp_path: Path) -> None:
    other = "model.layers.1.self_attn.o_proj"
    found = load_adapter(saved(tmp_path, Q, other))
    assert (found.id, found.path, found.rank) == ("a", str(tmp_path), 4)
    assert found.shapes == {Q: (8, 6), other: (8, 6)}
    assert found.modules == {"q_proj", "o_proj"}
    assert found.changes_attention_outputs
    changed = load_adapter(saved(tmp_path, Q, other, value=2.0))
    assert changed.sha256 != found.sha256
    assert load_adapter(saved(tmp_path, Q, other)).sha256 == found.sha256


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modules": ["lm_head"]}, "change the vocabulary"),
        ({"modules": ["model.embed_tokens"]}, "change the vocabulary"),
        ({"modules": ["model.layers.0.mlp.experts.0.up_proj"]}, "adapters of experts"),
        ({"rank": MAX_RANK + 1}, f"rank {MAX_RANK + 1}; at most {MAX_RANK}"),
        ({"value": float("nan")}, "not finite"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_is_not_served_exactly_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    source = saved(tmp_path, *changes.pop("modules", ()), **changes)
    with pytest.raises(ValueError, match=says):
        load_adapter(source)


def test_weights_that_would_be_unpickled_are_not_read(tmp_path: Path) -> None:
    source = saved(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        load_adapter(source)


def test_a_folder_that_is_not_there_is_no_hugging_face_id(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_adapter(LoraSource(id="a", source=str(tmp_path / "none")))
