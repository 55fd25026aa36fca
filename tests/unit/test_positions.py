"""Selectors become absolute positions, as the contract says."""

import itertools
import random

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.positions import (
    NO_END,
    AllPositions,
    CharacterPositions,
    GeneratedPositions,
    LastPosition,
    PositionList,
    PositionRange,
    Positions,
    PromptPositions,
    Selection,
    Spans,
    TextPositions,
    TokenIdPositions,
    TurnPositions,
    resolve,
)
from actserve_server.domain.prompts import (
    Conversation,
    TextPrompt,
    TokenizedPrompt,
    TokenPrompt,
    TokenSource,
    Turn,
)

PROMPT, RUN = 5, 8
"""5 prompt tokens and 4 generated ones, so activations at 0 to 7."""

IDS = TokenizedPrompt((7, 3, 3, 9, 7), ("a", "b", "b", "c", "a"), (), TokenPrompt((7, 3, 3, 9, 7)))


@pytest.mark.parametrize(
    ("selector", "positions"),
    [
        (AllPositions(), [0, 1, 2, 3, 4, 5, 6, 7]),
        (LastPosition(), [4]),
        (PromptPositions(), [0, 1, 2, 3, 4]),
        (GeneratedPositions(), [5, 6, 7]),
        (PositionList((6, 0, -1)), [0, 4, 6]),
        (PositionRange(), [0, 1, 2, 3, 4, 5, 6, 7]),
        (PositionRange(2, 4), [2, 3]),
        (PositionRange(-2), [3, 4, 5, 6, 7]),
        (PositionRange(None, -3), [0, 1]),
        (PositionRange(-99, 1), [0]),
        (PositionRange(6, 99), [6, 7]),
    ],
    ids=str,
)
def test_a_selector_resolves(selector: Positions, positions: list[int]) -> None:
    selection = resolve(selector, IDS, RUN, ("positions",))
    assert selection.token_ids is None
    assert selection.spans.within(0, RUN).tolist() == positions
    assert selection.spans.count(RUN) == len(positions)


@pytest.mark.parametrize(
    "selector",
    [
        PositionList(()),
        PositionList((8,)),
        PositionList((-6,)),
        PositionList((4, -1)),
        PositionList((2, 2)),
        PositionRange(3, 3),
        PositionRange(4, 2),
        PositionRange(8),
        PositionRange(None, 0),
        PositionRange(None, -5),
    ],
    ids=str,
)
def test_a_selector_of_nothing_or_of_what_is_not_there_is_refused(selector: Positions) -> None:
    with pytest.raises(ActserveError) as caught:
        resolve(selector, IDS, RUN, ("capture", "positions"))
    assert caught.value.reason is Reason.POSITION_OUT_OF_RANGE
    assert caught.value.field == ("capture", "positions")


@pytest.mark.parametrize("seed", range(50))
def test_spans_hold_exactly_their_positions(seed: int) -> None:
    rng = random.Random(seed)
    positions = {rng.randrange(60) for _ in range(rng.randrange(40))}
    spans = Spans.of(positions)
    assert spans.within(0, NO_END).tolist() == sorted(positions)
    for start, end in itertools.combinations(range(0, 70, 3), 2):
        expected = sorted(p for p in positions if start <= p < end)
        assert spans.within(start, end).tolist() == expected
        assert spans.first(start, end) == next(iter(expected), None)
        assert spans.count(end) == len([p for p in positions if p < end])
        assert not len(spans.within(end, start))
    ordered = np.array(sorted(positions), np.int64)
    assert spans.ordinals(ordered).tolist() == list(range(len(positions)))
    assert spans.ordinals(ordered[::3]).tolist() == list(range(len(positions)))[::3]
    for position in range(62):
        until = spans.next_bound(position)
        stretch = [each in positions for each in range(position, min(until, 62))]
        assert len(set(stretch)) == 1
        assert until == NO_END or (until in positions) != stretch[-1]
    assert all(low < high for low, high in spans.ranges)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans.ranges))


@pytest.mark.parametrize("start", [None, *range(-12, 13)])
def test_a_range_is_a_python_slice_of_the_sequence(start: int | None) -> None:
    sequence = list(range(RUN))
    for end in [None, *range(-12, 13)]:
        # A bound from the end counts from the end of the prompt, whatever was generated.
        low, high = (
            max(0, bound + PROMPT) if bound is not None and bound < 0 else bound
            for bound in (start, end)
        )
        try:
            spans = resolve(PositionRange(start, end), IDS, RUN, ()).spans
        except ActserveError:
            assert sequence[low:high] == []
        else:
            assert spans.within(0, RUN).tolist() == sequence[low:high]


# --- token ids ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "run_tokens", "selection"),
    [
        ((3,), PROMPT, Selection(Spans(((1, 3),)))),
        ((9, 7), PROMPT, Selection(Spans(((0, 1), (3, 5))))),
        ((1,), PROMPT, Selection(Spans(()))),
        ((3, 3), RUN, Selection(Spans(((1, 3), (5, NO_END))), frozenset({3}))),
        ((7, 1), RUN, Selection(Spans(((0, 1), (4, NO_END))), frozenset({7, 1}))),
        ((1,), RUN, Selection(Spans(((5, NO_END),)), frozenset({1}))),
    ],
    ids=str,
)
def test_token_ids_select_in_the_prompt_and_wait_for_what_is_generated(
    ids: tuple[int, ...], run_tokens: int, selection: Selection
) -> None:
    assert resolve(TokenIdPositions(ids), IDS, run_tokens, ()) == selection


def test_a_selection_by_token_id_holds_the_generated_tokens_that_match() -> None:
    selection = resolve(TokenIdPositions((7,)), IDS, RUN, ())
    assert selection.among([*IDS.ids, 7, 3, 7]).tolist() == [0, 4, 5, 7]


# --- text ---------------------------------------------------------------------

TEXT = "to be or to bé👍 "
"""Its tokens, after a BOS, are below; the é and the emoji are split over several."""

TEXT_PROMPT = TokenizedPrompt(
    tuple(range(9)),
    ("<bos>", "to", " be", " or to", " b\ufffd", "\ufffd\ufffd", "\ufffd", "", " "),
    (
        TokenSource(),
        TokenSource(0, 2),
        TokenSource(2, 5),
        TokenSource(5, 11),
        TokenSource(11, 14),
        TokenSource(13, 15),
        TokenSource(14, 15),
        TokenSource(15, 15),
        TokenSource(15, 16),
    ),
    TextPrompt(TEXT),
)


@pytest.mark.parametrize(
    ("selector", "positions"),
    [
        (TextPositions("to"), [1, 3]),
        (TextPositions("to", 0), [1]),
        (TextPositions("to", 1), [3]),
        (TextPositions("to", -1), [3]),
        (TextPositions("to", -2), [1]),
        (TextPositions("o b"), [1, 2, 3, 4]),
        (TextPositions(" be"), [2]),
        (TextPositions("é"), [4, 5]),
        (TextPositions("👍"), [5, 6]),
        (TextPositions("é👍"), [4, 5, 6]),
        (TextPositions(" "), [2, 3, 4, 8]),
        (TextPositions(TEXT), [1, 2, 3, 4, 5, 6, 8]),
        (CharacterPositions(0, 1), [1]),
        (CharacterPositions(1, 3), [1, 2]),
        (CharacterPositions(2, 5), [2]),
        (CharacterPositions(13, 14), [4, 5]),
        (CharacterPositions(14, 15), [5, 6]),
        (CharacterPositions(15, 16), [8]),
        (CharacterPositions(0, 16), [1, 2, 3, 4, 5, 6, 8]),
    ],
    ids=str,
)
def test_a_piece_of_a_text_selects_the_tokens_it_overlaps(
    selector: Positions, positions: list[int]
) -> None:
    selection = resolve(selector, TEXT_PROMPT, 20, ())
    assert selection.token_ids is None
    assert selection.spans.within(0, NO_END).tolist() == positions


def test_occurrences_are_found_from_left_to_right_without_overlap() -> None:
    prompt = TokenizedPrompt(
        tuple(range(5)),
        (*"aaaaa",),
        tuple(TokenSource(i, i + 1) for i in range(5)),
        TextPrompt("aaaaa"),
    )
    assert resolve(TextPositions("aa"), prompt, 5, ()).spans == Spans(((0, 4),))
    assert resolve(TextPositions("aa", 1), prompt, 5, ()).spans == Spans(((2, 4),))
    with pytest.raises(ActserveError, match="occurs 2 times"):
        resolve(TextPositions("aa", 2), prompt, 5, ())


# --- conversations ------------------------------------------------------------

TURNS = (
    Turn("system", " be kind\n"),
    Turn("user", "user? kind user!"),
    Turn("assistant", "<think>so</think>yes"),
    Turn("user", ""),
    Turn("user", "user"),
)
"""The template strips; what the assistant says it rewrites."""

SOURCES = (
    TokenSource(),  # <|system|>
    TokenSource(1, 3, 0, "system"),
    TokenSource(3, 8, 0, "system"),
    TokenSource(),  # <|user|>
    TokenSource(0, 4, 1, "user"),
    TokenSource(4, 6, 1, "user"),
    TokenSource(6, 10, 1, "user"),
    TokenSource(10, 16, 1, "user"),
    TokenSource(),  # <|assistant|>
    TokenSource(),  # yes
    TokenSource(),  # <|user|>
    TokenSource(),  # <|user|>
    TokenSource(0, 4, 4, "user"),
    TokenSource(),  # <|assistant|>
)

CHAT = TokenizedPrompt((0,) * 14, ("",) * 14, SOURCES, Conversation(TURNS))
NO_OFFSETS = TokenizedPrompt((0,) * 14, ("",) * 14, (), Conversation(TURNS))
CHAT_RUN = 16


@pytest.mark.parametrize(
    ("selector", "positions"),
    [
        (TextPositions("kind"), [2, 6]),
        (TextPositions("kind", 1), [6]),
        (TextPositions("kind", turn=0), [2]),
        (TextPositions("kind", 0, 1), [6]),
        (TextPositions("user"), [4, 7, 12]),
        (TextPositions("user", -1), [12]),
        (TextPositions("user", -1, 1), [7]),
        (TextPositions("user", turn=-1), [12]),
        (TextPositions(" "), [2, 5, 7]),
        (CharacterPositions(1, 4, 0), [1, 2]),
        (CharacterPositions(0, 4, -1), [12]),
        (CharacterPositions(5, 7, -4), [5, 6]),
        (TurnPositions((0,)), [1, 2]),
        (TurnPositions((-1, 1, 4)), [4, 5, 6, 7, 12]),
        (TurnPositions(roles=("user",)), [4, 5, 6, 7, 12]),
        (TurnPositions(roles=("system", "user")), [1, 2, 4, 5, 6, 7, 12]),
        (TurnPositions((0, 1), ("user", "tool")), [4, 5, 6, 7]),
        (TurnPositions((3,)), []),
        (TurnPositions(roles=("tool",)), []),
        (TurnPositions((0,), ("user",)), []),
        (TurnPositions((5,)), [14, 15]),
        (TurnPositions((1, 5)), [4, 5, 6, 7, 14, 15]),
        (TurnPositions((5,), ("assistant",)), [14, 15]),
        (TurnPositions((5,), ("user",)), []),
        (TurnPositions((1, 5), ("assistant",)), [14, 15]),
    ],
    ids=str,
)
def test_what_turns_say_selects_its_tokens(selector: Positions, positions: list[int]) -> None:
    selection = resolve(selector, CHAT, CHAT_RUN, ())
    assert selection.token_ids is None
    assert selection.spans.within(0, CHAT_RUN).tolist() == positions
    # Without generated tokens, none are selected.
    fetched = resolve(selector, CHAT, len(CHAT.ids), ()).spans
    assert fetched.within(0, NO_END).tolist() == [p for p in positions if p < len(CHAT.ids)]


@pytest.mark.parametrize(
    ("selector", "positions"),
    [
        (TurnPositions(), [1, 2, 3]),
        (TurnPositions(roles=("assistant",)), [1, 3]),
        (TurnPositions(roles=("user", "assistant")), [1, 2, 3]),
        (TurnPositions((0, 1)), [1, 2]),
    ],
    ids=str,
)
def test_generated_tokens_are_a_turn_of_the_assistant(
    selector: Positions, positions: list[int]
) -> None:
    prompt = TokenizedPrompt(
        (0, 0, 0),
        ("", "", ""),
        (TokenSource(), TokenSource(0, 1, 0, "assistant"), TokenSource(0, 1, 1, "user")),
        Conversation((Turn("assistant", "a"), Turn("user", "u"))),
    )
    assert resolve(selector, prompt, 4, ()).spans.within(0, 4).tolist() == positions


def test_turns_are_selected_without_offsets_where_they_say_nothing() -> None:
    assert resolve(TurnPositions((3, 5)), NO_OFFSETS, CHAT_RUN, ()).spans == Spans(((14, NO_END),))


# --- refusals -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "prompt", "reason", "message"),
    [
        (TokenIdPositions(()), IDS, Reason.FIELD_REQUIRED, "name at least one"),
        (TextPositions("a"), IDS, Reason.FIELD_INVALID, "the prompt is token ids"),
        (CharacterPositions(0, 1), IDS, Reason.FIELD_INVALID, "the prompt is token ids"),
        (TurnPositions((0,)), IDS, Reason.FIELD_INVALID, "the prompt is no conversation"),
        (TurnPositions((0,)), TEXT_PROMPT, Reason.FIELD_INVALID, "the prompt is no conversation"),
        (TextPositions("to", turn=0), TEXT_PROMPT, Reason.FIELD_INVALID, "leave the turn unset"),
        (CharacterPositions(0, 1, 0), TEXT_PROMPT, Reason.FIELD_INVALID, "leave the turn unset"),
        (CharacterPositions(0, 1), CHAT, Reason.FIELD_INVALID, "name the turn"),
        (TextPositions(""), TEXT_PROMPT, Reason.FIELD_REQUIRED, "the text is empty"),
        (TextPositions("TO"), TEXT_PROMPT, Reason.TEXT_NOT_FOUND, "the prompt does not contain"),
        (TextPositions("kind", turn=-1), CHAT, Reason.TEXT_NOT_FOUND, "turn -1 does not contain"),
        (TextPositions("to", 2), TEXT_PROMPT, Reason.TEXT_NOT_FOUND, "'to' occurs 2 times"),
        (TextPositions("to", -3), TEXT_PROMPT, Reason.TEXT_NOT_FOUND, "'to' occurs 2 times"),
        (TextPositions("\n"), CHAT, Reason.TEXT_NOT_FOUND, "the chat template leaves it out"),
        (CharacterPositions(3, 3), TEXT_PROMPT, Reason.POSITION_OUT_OF_RANGE, "has 16 characters"),
        (CharacterPositions(4, 3), TEXT_PROMPT, Reason.POSITION_OUT_OF_RANGE, "has 16 characters"),
        (CharacterPositions(9, 17), TEXT_PROMPT, Reason.POSITION_OUT_OF_RANGE, "16 characters"),
        (CharacterPositions(0, 5, -1), CHAT, Reason.POSITION_OUT_OF_RANGE, "turn -1 has 4"),
        (CharacterPositions(0, 1, 3), CHAT, Reason.POSITION_OUT_OF_RANGE, "turn 3 has 0"),
        (CharacterPositions(0, 1, 0), CHAT, Reason.POSITION_OUT_OF_RANGE, "no token holds"),
        (TextPositions("user", turn=5), CHAT, Reason.TURN_OUT_OF_RANGE, "5 turns: use -5 to 4$"),
        (CharacterPositions(0, 1, -6), CHAT, Reason.TURN_OUT_OF_RANGE, "5 turns: use -5 to 4$"),
        (TurnPositions((0, 6)), CHAT, Reason.TURN_OUT_OF_RANGE, "turn 6 .* to 4, and 5 for gen"),
        (TurnPositions((-6,)), CHAT, Reason.TURN_OUT_OF_RANGE, "turn -6 .* 5 turns"),
        (TurnPositions((2,)), CHAT, Reason.FIELD_INVALID, "what turn 2 says: the chat template"),
        (TurnPositions(), CHAT, Reason.FIELD_INVALID, "what turn 2 says: the chat template"),
        (TextPositions("yes"), CHAT, Reason.FIELD_INVALID, "what turn 2 says: the chat template"),
        (CharacterPositions(0, 1, 2), CHAT, Reason.FIELD_INVALID, "what turn 2 says"),
        (TurnPositions((0,)), NO_OFFSETS, Reason.FIELD_INVALID, "tokenizer does not say"),
        (TextPositions("kind"), NO_OFFSETS, Reason.FIELD_INVALID, "tokenizer does not say"),
    ],
    ids=str,
)
def test_what_is_not_there_or_not_known_is_refused(
    selector: Positions, prompt: TokenizedPrompt, reason: Reason, message: str
) -> None:
    with pytest.raises(ActserveError, match=message) as caught:
        resolve(selector, prompt, 100, ("capture", "positions"))
    assert caught.value.reason is reason
    assert caught.value.field == ("capture", "positions")


def test_a_message_quotes_the_start_of_a_long_text_and_nothing_of_the_prompt() -> None:
    with pytest.raises(ActserveError) as caught:
        resolve(TextPositions("x" * 1000), TEXT_PROMPT, 20, ())
    assert "x" * 60 + "..." in caught.value.message
    assert "x" * 61 not in caught.value.message
    assert TEXT not in caught.value.message
