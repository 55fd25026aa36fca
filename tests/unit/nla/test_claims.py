"""Sentences are found where a reader finds them, and words count as they are written."""

import random

import pytest

from actserve_server.nla.claims import Said, content_words, recurrence, sentences, without

EXPLANATION = """\
News report about the U.S. Federal Reserve, likely from Dr. J. Smith. Rates rose by 0.25% in 1984.

- The final token is "said. Then" in a quote!
- Next: a number (e.g. 3.5 or No. 7. Maybe more)."""


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["One."],
        ["No mark at its end"],
        ["It is late.", "We go home."],
        ["Is it late?", "Yes!", "We go home..."],
        ["What?!", "It is!!", "Well…", "Fine."],
        ["It costs $3.50 in 2024.", "That is 0.5% more."],
        ["See example.com.", "It says so."],
        ["It is by J. R. Smith of the U.S. Senate.", "He wrote it at 5 p.m. on a train."],
        ["Dr. Jones met Mrs. May vs. Prof. Lee.", "St. Ives is in Fig. 3 of vol. 2, No. 7."],
        ["Lists, tables, etc. are likely.", "Names, dates, etc.", "Then a verb."],
        ["approx. 30 of them; cf. Smith et al. 2019, pp. 3."],
        ["Trailing off... and on again.", "A new one."],
        ["He chose plan B...", "Then he left. . . .", "She stayed."],
        ["... Then he left."],
        ["He said “It is late. We go.”", "They went."],
        ['He said "It is late. We go."', "They went."],
        ['He said "It is late." and left.'],
        ["「遅い。行こう。」", "と言った。"],
        ["The token (see above. Or below.) is a verb.", "So is this.)"],
        ['A stray " does no harm.', "Nor does (this one.", "Really."],
        ["天气很好。", "我们走吧！", "去哪里？"],
        ["यह अच्छा है।", "हम चलें।"],
        ["1. The first item.", "2. The second item.", "12. The last one."],
        ["It ended in 12.", "Then came more."],
        ["Über alles.", "Él dijo que no."],
        ["iPhone sales fell.", "7b models are small."],
    ],
    ids=lambda expected: expected[0],
)
def test_a_sentence_ends_where_a_reader_sees_its_end(expected: list[str]) -> None:
    assert pieces(" ".join(expected)) == expected


def test_sentences_of_scripts_without_spaces_need_none() -> None:
    assert pieces("天气很好。我们走吧！去哪里？") == ["天气很好。", "我们走吧！", "去哪里？"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n", " \n \t", "\u2028"])
def test_a_line_ends_a_sentence(newline: str) -> None:
    assert pieces(newline.join(["a line", "- and another", "(a third."])) == [
        "a line",
        "- and another",
        "(a third.",
    ]


def test_an_explanation_falls_into_its_claims() -> None:
    assert pieces(EXPLANATION) == [
        "News report about the U.S. Federal Reserve, likely from Dr. J. Smith.",
        "Rates rose by 0.25% in 1984.",
        '- The final token is "said. Then" in a quote!',
        "- Next: a number (e.g. 3.5 or No. 7. Maybe more).",
    ]


@pytest.mark.parametrize("text", ["", " ", "\n \n"])
def test_space_holds_no_sentence(text: str) -> None:
    assert sentences(text) == []


@pytest.mark.parametrize("text", ["...", '". (', "---\n***", "!\u200b! ?"])
def test_text_without_words_is_cut_at_lines_alone(text: str) -> None:
    assert pieces(text) == text.split("\n")


def test_every_character_but_space_is_in_exactly_one_sentence() -> None:
    draw = random.Random(0)
    parts = [*"ab Z  19.!?…\"'“”()[]-_。！」\n\r\t\u2028\u00a0\u200b", "Dr.", "e.g.", "́", "中文"]
    for _ in range(2000):
        text = "".join(draw.choices(parts, k=draw.randint(1, 40)))
        spans = sentences(text)
        covered = [index for start, end in spans for index in range(start, end)]
        assert covered == sorted(set(covered)), text
        left = set(range(len(text))) - set(covered)
        assert all(text[index].isspace() for index in left), text
        assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans), text


def test_what_is_left_holds_every_other_sentence_in_order() -> None:
    texts = pieces(EXPLANATION)
    for index, span in enumerate(sentences(EXPLANATION)):
        assert pieces(without(EXPLANATION, span)) == texts[:index] + texts[index + 1 :]


@pytest.mark.parametrize(
    ("text", "index", "left"),
    [
        ("One. Two. Three.", 0, "Two. Three."),
        ("One. Two. Three.", 1, "One. Three."),
        ("One. Two. Three.", 2, "One. Two."),
        ("One\nTwo\nThree", 1, "One\nThree"),
        ("One. Two.\n\nThree.", 1, "One.\n\nThree."),
        ("One.   Two.\nThree.", 1, "One.\nThree."),
        ("One.\n\nTwo. Three.", 1, "One.\n\nThree."),
        ("一。二。三。", 1, "一。三。"),
        (" One.  ", 0, ""),
    ],
)
def test_a_sentence_is_left_out_and_the_lines_stay(text: str, index: int, left: str) -> None:
    assert without(text, sentences(text)[index]) == left


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The rates of the Federal Reserve", {"rates", "federal", "reserve"}),
        ("It is what they have had, and you?", set()),
        ("It isn't; we don't, the model's doesn’t", {"model"}),
        ("an ox or two go by", {"two"}),
        ("In 1984, 7b and GPT-2 at 5", {"1984", "7b", "gpt", "2", "5"}),
        ("STRASSE Straße straße", {"strasse"}),
        ("naïve snake_case", {"naïve", "snake", "case"}),
        ("Банк и ставка", {"банк", "ставка"}),
        ("银行加息，市场下跌。", {"银行加息", "市场下跌"}),
        ("한국 은행", {"한국", "은행"}),
        ("हिन्दी की किताब", {"हिन्दी", "की", "किताब"}),
        ("", set()),
        ("... — !", set()),
    ],
)
def test_content_words_say_what_a_text_is_about(text: str, words: set[str]) -> None:
    assert content_words(text) == words


@pytest.mark.parametrize(
    ("neighbours", "shares"),
    [
        (["Interest rates rise."], [1 / 3, 0]),
        (["RATES, reserve: federal!"], [1, 0]),
        (["A poem about a cat."], [0, 1]),
        (["federal", "Reserve rates; federal cat"], [(1 / 3 + 1) / 2, 1 / 4]),
        ([""], [0, 0]),
        (["rated reserves"], [0, 0]),
    ],
)
def test_recurrence_is_the_mean_share_of_words_that_neighbours_contain(
    neighbours: list[str], shares: list[float]
) -> None:
    text = "The federal reserve has rates. A poem of a cat."
    assert recurrence(text, sentences(text), Said(neighbours)) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("text", "neighbours"), [("The cat sat.", []), ("It is what it is.", ["The cat sat."])]
)
def test_without_neighbours_or_content_there_is_no_recurrence(
    text: str, neighbours: list[str]
) -> None:
    assert recurrence(text, sentences(text), Said(neighbours)) == [None]
