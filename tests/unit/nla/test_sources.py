"""What `--nla` may say, and the folders it comes to."""

from pathlib import Path

import pytest

from actserve_server.config import ConfigError, load
from actserve_server.nla.pair_sources import NlaSource, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for half in ("av", "ar"):
        (tmp_path / "pair" / half).mkdir(parents=True)
    return tmp_path / "pair"


def test_a_folder_stands_for_the_halves_in_it(folder: Path) -> None:
    (source,) = load(["--nla", str(folder)]).nla
    assert source == NlaSource(id="pair", av=str(folder / "av"), ar=str(folder / "ar"))


def test_a_folder_may_hold_one_half(folder: Path) -> None:
    (folder / "ar").rmdir()
    (source,) = load(["--nla", str(folder)]).nla
    assert source == NlaSource(id="pair", av=str(folder / "av"))


def test_halves_may_live_apart() -> None:
    (source,) = load(["--nla", "av=org/av ar='/a folder/ar' id=mine sidecar=/x.yaml"]).nla
    assert source == NlaSource(id="mine", av="org/av", ar="/a folder/ar", sidecar=Path("/x.yaml"))


def test_an_nla_may_be_of_another_server() -> None:
    mine = "address=grpcs://host:1 id=mine ca=/ca token_file=/t"
    plain, chosen = load(["--nla", "grpc://host:50051", "--nla", mine]).nla
    assert plain == NlaSource(address="grpc://host:50051")
    assert chosen == NlaSource(
        address="grpcs://host:1", id="mine", ca=Path("/ca"), token_file=Path("/t")
    )


def test_several_are_given_one_by_one_or_in_the_file(folder: Path, tmp_path: Path) -> None:
    flags = load(["--nla", str(folder), "--nla", "av=org/av"]).nla
    file = tmp_path / "actserve.yaml"
    file.write_text(f"nla:\n- {folder}\n- av: org/av\n")
    assert load(["--config", str(file)]).nla == flags
    assert [source.av for source in flags] == [str(folder / "av"), "org/av"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("no-such-folder", "'no-such-folder' is neither a pair that comes with the server"),
        ("ar=", "give av, ar or both, or an address"),
        ("av=org/av address=grpc://host:1", "address is about an NLA of another server"),
        ("av=org/av token_file=/t", "token_file is about an NLA of another server"),
        ("address=host:1", "address: String should match pattern"),
        ("grpc://host:1/path", "address: String should match pattern"),
        ("address=grpc://host:1 ca=/ca", "make the address grpcs://"),
        ("av=org/av verbalizer=org/av", "verbalizer: Extra inputs are not permitted"),
        ("av=org/av id=two/parts", "id: String should match pattern"),
    ],
)
def test_what_cannot_be_meant_is_refused(value: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(["--nla", value])
    assert says in str(caught.value)


def test_a_pair_is_named_after_its_folder_unless_told_otherwise(folder: Path) -> None:
    av = folder / "av"
    assert resolve(NlaSource(av=str(av))).id == "av"
    assert resolve(NlaSource(av=str(av), id="mine")).id == "mine"


def test_a_pair_of_the_hub_is_named_after_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = tmp_path / "snapshots" / "0123abc"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(commit))
    found = resolve(NlaSource(av="org/their-av", ar="org/their-ar"))
    assert (found.id, found.av) == ("their-av", commit)


@pytest.mark.parametrize(
    "source",
    [NlaSource(av="/no/such/folder"), NlaSource(av="org/av", sidecar=Path("/no/such/file"))],
)
def test_what_is_not_there_is_said(source: NlaSource) -> None:
    with pytest.raises(FileNotFoundError, match="there is no"):
        resolve(source)
