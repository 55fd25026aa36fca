"""The file of addresses that alerts may be sent to."""

from pathlib import Path

import pytest

from actserve_server.monitors import webhook_addresses

KEY = "a key that nobody is told"
URL = "https://alerts.example.com/actserve?team=a"


def written(folder: Path, text: str) -> Path:
    path = folder / "webhooks.yaml"
    path.write_text(text)
    return path


def test_an_address_has_its_key_written_or_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text(f"{KEY}\n")
    other = "http://127.0.0.1:8080/alerts"
    path = written(
        tmp_path,
        f"- {{url: '{URL}', key: '{KEY}'}}\n- {{url: '{other}', key_file: {secret}}}\n",
    )
    found = webhook_addresses.read(path)
    assert {url: each.key for url, each in found.items()} == dict.fromkeys(
        (URL, other), KEY.encode()
    )
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"- {{url: '{URL}'}}", "set one of key and key_file"),
        (f"- {{url: '{URL}', key: '{KEY}', key_file: /x}}", "set one of key and key_file"),
        (f"- {{url: '{URL}', key: short}}", "5 bytes, which can be guessed"),
        (f"- {{url: ftp://a.example/, key: '{KEY}'}}", "is no address"),
        (f"- {{url: 'https:///path', key: '{KEY}'}}", "is no address"),
        (f"- {{url: 'https://a.example:99999/', key: '{KEY}'}}", "is no address"),
        (f"- {{url: 'https://a.example/a b', key: '{KEY}'}}", "is no address"),
        (f"- {{url: 'https://ä.example/', key: '{KEY}'}}", "is no address"),
        (f"- {{url: 'https://user:pass@a.example/', key: '{KEY}'}}", "no user, password"),
        (f"- {{url: 'https://a.example/#x', key: '{KEY}'}}", "no user, password or fragment"),
        (f"- {{url: 'https://a.example/{'x' * 2048}', key: '{KEY}'}}", "at most 2048 characters"),
        (f"- {{url: '{URL}', key: '{KEY}', ca: /nowhere}}", "there is no file /nowhere"),
        (f"- {{url: '{URL}', key: '{KEY}', method: PUT}}", "0.method: Extra inputs"),
        (f"- {{url: '{URL}', key: '{KEY}'}}\n" * 2, "an address twice"),
        (
            "".join(f"- {{url: 'https://a.example/{n}', key: '{KEY}'}}\n" for n in range(65)),
            "65 addresses; at most 64",
        ),
        (f"- {{url: '{URL}', key: '{KEY}'", "is not YAML"),
        (f"url: '{URL}'", "as a whole: Input should be a valid tuple"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_tells_no_key(
    tmp_path: Path, text: str, why: str
) -> None:
    with pytest.raises((ValueError, OSError), match=why) as told:
        webhook_addresses.read(written(tmp_path, text))
    assert KEY not in str(told.value)
    assert "pass@" not in str(told.value)
