"""Elements that are remembered are bounded, and those that were used last."""

from actserve_server.steering.vector_contents import VectorContents


def test_what_was_not_used_for_longest_makes_room() -> None:
    held = VectorContents(3)
    for name in (b"a", b"b", b"c"):
        held.put(name, name)
    assert held.get(b"a") == b"a"
    held.put(b"d", b"d")
    assert [held.get(name) for name in (b"a", b"b", b"c", b"d")] == [b"a", None, b"c", b"d"]
    assert held.held_bytes == 3


def test_what_is_larger_than_all_that_may_be_held_is_not() -> None:
    held = VectorContents(3)
    held.put(b"small", b"123")
    held.put(b"large", b"1234")
    assert held.get(b"large") is None
    assert held.get(b"small") == b"123"


def test_equal_contents_count_once() -> None:
    held = VectorContents(4)
    for _ in range(3):
        held.put(b"name", b"1234")
    assert held.held_bytes == 4
