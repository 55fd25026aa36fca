"""Target texts say what a row is likely to hold, of its context and the model's predictions."""

import pytest

from tests.integration.families import make_tokenizer
from training.targets import (
    COMMON_WORDS,
    END,
    LATEST_TOKENS,
    MINIMUM_COUNT,
    TOPIC_WORDS,
    Vocabulary,
    describe,
)

TOKENIZER = make_tokenizer()
COMMON = [
    f"common{'abcdefghijklmnopqrst'[n % 20]}{'abcdefghij'[n // 20]}" for n in range(COMMON_WORDS)
]
PROSE = (
    " ".join(COMMON * 50)
    + " harvest wheat drought farmers " * MINIMUM_COUNT
    + " hapax" * (MINIMUM_COUNT - 1)
)


def _ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("the Wheat harvest", ["wheat", "harvest"]),
        ("wheat " + "commonaa " * 9 + "drought", ["wheat", "drought"]),
        ("wheat hapax rye", ["wheat"]),
        ("wheat drought farmers harvest wheat", ["drought", "farmers", "harvest", "wheat"]),
        ("nothing here", []),
    ],
    ids=["content", "no function words", "no rare words", "each once, last seen last", "none"],
)
def test_the_topic_is_the_words_that_say_most(text: str, topic: list[str]) -> None:
    found = Vocabulary([PROSE.replace("common", "Common")]).topic(text)
    assert found == [word for word in topic if word in found]
    assert len(found) == min(len(topic), TOPIC_WORDS)


def test_late_and_repeated_words_come_before_others() -> None:
    vocabulary = Vocabulary([PROSE])
    filler = " commonaa" * 60
    text = f"harvest{filler} wheat drought farmers"
    assert vocabulary.topic(text) == ["wheat", "drought", "farmers"]
    assert "harvest" in vocabulary.topic("harvest " * 9 + text)


@pytest.mark.parametrize(
    "context",
    ["He said that the rain in the morning was cold", "Then it stopped.\nAnd then", "Hi"],
    ids=["words", "lines", "short"],
)
def test_a_target_ends_with_the_latest_words_as_they_are(context: str) -> None:
    ids = _ids(context)
    words = describe(ids, _ids(" wet"), TOKENIZER, Vocabulary([PROSE])).split("Text: ")[1]
    written = context.replace("\n", "\\n")
    assert written.endswith(words)
    assert len(_ids(words)) >= min(LATEST_TOKENS, len(ids)) - 1
    # No word is cut in two.
    before = written[: -len(words)]
    assert not before or not (before[-1].isalnum() and words[0].isalnum())


def test_a_target_names_likely_next_tokens_in_order() -> None:
    assert TOKENIZER.eos_token_id is not None
    next_ids = [_ids(" a")[0], TOKENIZER.eos_token_id, _ids("\n")[0]]
    text = describe(_ids("It was"), next_ids, TOKENIZER, Vocabulary([PROSE]))
    assert f"Next: a / {END} / \\n. " in text
