"""Whatever bytes a stranger wrote, a reader of them takes them or refuses them as it says.

Here each reader gets its corpus, and a few hundred changes of it, the same every time; `make fuzz`
goes on for long, led by what the changes reach.
"""

from random import Random

import pytest

from tests.fuzzing.decoders import CORPUS, DECODERS, begun_with

CHANGES = 60
"""Of each file of the corpus. With more, it would take more than a few seconds."""


def changed(data: bytes, random: Random) -> bytes:
    """The bytes with a few of them gone, twice there, or others."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at, size = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 16))
        match random.randrange(5):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + data[at + size :]
            case 2:
                data = data[:at] + data[at : at + size] + data[at:]
            case 3:
                data = data[:at] + random.randbytes(size) + data[at + size :]
            case _:
                data = (
                    data[:at] + random.choice((b"\0", b"\xff", b"\x7f")) * size + data[at + size :]
                )
    return data


@pytest.mark.parametrize("name", DECODERS)
def test_a_reader_takes_bytes_or_refuses_them_as_it_says(name: str) -> None:
    decoder = DECODERS[name]
    for number, data in enumerate(begun_with(name)):
        random = Random(number)
        decoder.try_one(data)
        for _ in range(CHANGES):
            decoder.try_one(changed(data, random))


@pytest.mark.parametrize("name", DECODERS)
def test_each_begins_with_something_that_its_reader_takes(name: str) -> None:
    """Or all changes of it would end at the first check."""
    DECODERS[name].read((CORPUS / name / "whole").read_bytes())
