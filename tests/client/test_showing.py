"""How results show themselves: as HTML, on a terminal, as plots, tables and JSON."""

import io
import json
import re
import subprocess
import sys
from typing import Any

import html5lib
import numpy as np
import pytest
from matplotlib import pyplot
from rich.console import Console

from actserve._show import scales
from actserve._show.bounds import ends
from actserve._show.cells import share
from actserve._show.token_text import prose, visible

from . import made_results as made

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='x",
    "&amp;",
    "\n\n",
    "\t",
    "\0",
    "\ud800",
    "\u200b\u202e",
    "\u0301",
    "שלום",
    "[bold]",
    "$x_1$",
    "\ufffe",
    "</td></table>",
    "x" * 300,
)
MANY = tuple(f" t{at}" for at in range(1000))
MOST_BYTES = 500_000
"""Of the HTML of one result."""

results = pytest.mark.parametrize("make", made.RESULTS.values(), ids=made.RESULTS)
studies = pytest.mark.parametrize("make", made.STUDIES.values(), ids=made.STUDIES)


def parsed(shown: Any) -> Any:
    """The HTML of a result, or the error of a strict parser."""
    return html5lib.HTMLParser(strict=True).parseFragment(shown._repr_html_())


def texts(shown: Any) -> str:
    return "".join(parsed(shown).itertext())


def titles(shown: Any) -> list[str]:
    return [each.get("title") for each in parsed(shown).iter() if each.get("title")]


def printed(shown: Any, width: int = 100, **options: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=width, **options).print(shown)
    return file.getvalue()


@results
def test_html_is_valid_and_takes_nothing_from_elsewhere(make: Any) -> None:
    for tokens in (made.TOKENS, made.TOKENS[:1], MANY):
        shown = make(tokens)
        parsed(shown)
        html = shown._repr_html_()
        assert not re.search(r"http|src=|href=|url\(|<script|<style|<link|@import", html)


@results
def test_html_escapes_what_comes_from_elsewhere(make: Any) -> None:
    # A steering vector and a label are checked when they are made, so they have no half character.
    tokens = [token for token in HOSTILE if make is not made.vector or token != "\ud800"]
    shown = make(tokens)
    known = {"div", "span", "br", "bdi", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    for element in parsed(shown).iter():
        if isinstance(element.tag, str) and element.tag != "DOCUMENT_FRAGMENT":
            assert element.tag.rpartition("}")[2] in known
            assert {*element.attrib} <= {"class", "dir", "style", "title", "scope"}
    html = shown._repr_html_()
    html.encode()
    assert not re.search(r"[\0\t\u200b\u202e\ufffe]", html)


@results
def test_html_of_a_thousand_tokens_is_bounded_and_says_what_is_left_out(make: Any) -> None:
    html = make(MANY)._repr_html_()
    assert len(html.encode()) < MOST_BYTES
    means = (made.means, made.sweep)  # Over as many as there are.
    if make not in (*means, made.vector, made.model, made.unscored_generation):
        assert re.search(r"\d+ of 1000 [a-z ]+ are left out", html)


def test_html_of_many_layers_heads_and_candidates_is_bounded() -> None:
    for shown in (made.lens(MANY, MANY, sites=100), made.attention(MANY[:100], 30, 9)):
        assert len(shown._repr_html_().encode()) < 2 * MOST_BYTES
    assert "·t5 " not in "".join(titles(made.lens(likely=MANY)))


@results
def test_results_of_no_tokens_are_shown(make: Any) -> None:
    shown = make(())
    parsed(shown)
    assert printed(shown)


@results
def test_a_terminal_shows_what_html_shows_within_its_width(make: Any) -> None:
    for width in (30, 80, 200):
        for tokens in (made.TOKENS, HOSTILE[:7], MANY):
            lines = printed(make(tokens), width).splitlines()
            assert max(map(len, lines)) <= width
    title = texts(make()).split(":")[0]
    assert title.split("\n")[0][:5] in printed(make())


def test_a_narrow_terminal_says_how_many_columns_it_leaves_out() -> None:
    lines = printed(made.patch(MANY[:9]), 40)
    (missing,) = re.findall(r"(\d+) columns more are left out", lines)
    heading = next(line for line in lines.splitlines() if "·t0" in line)
    assert heading.count("·t") == 9 - int(missing)
    assert "columns more" not in printed(made.patch(MANY[:9]), 120)


def test_a_terminal_without_colours_has_the_numbers_that_colours_would_tell() -> None:
    assert re.search(r"resid_post.0 +·Paris 1.00 ", printed(made.lens()))
    colored = printed(made.lens(), force_terminal=True, color_system="truecolor")
    assert "·Paris 1.00" not in colored
    assert "probability: 0" in colored


@results
def test_markup_of_a_terminal_is_not_read_in_tokens(make: Any) -> None:
    assert "[bold]" in printed(make(("[bold]", "[/bold]")), 200)


@studies
def test_show_prints_and_a_study_says_in_one_line_what_it_is(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make(MANY)
    study.show()
    assert len(capsys.readouterr().out.splitlines()) > 2
    assert "\n" not in repr(study)
    assert len(repr(study)) < 100
    assert repr(study).startswith(type(study).__name__)


@studies
def test_json_of_a_study_is_plain_and_complete(make: Any) -> None:
    study = make()
    found = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert {*vars(study)} <= {*found}
    assert found["tokens"] == list(made.TOKENS)


def test_json_has_none_for_what_is_no_number_and_the_numbers_of_properties() -> None:
    found = made.score().to_json()
    assert found["logprobs"][0] is None
    assert found["perplexity"] == made.score().perplexity
    assert np.shape(made.patch().to_json()["restored"]) == (3, 5)
    assert made.patch(clean=-1.0).to_json()["restored"][0][0] is None
    assert made.comparison().to_json()["steered"]["text"] == " is France of capitalThe"


def test_a_lens_shows_the_likeliest_token_its_probability_and_the_others() -> None:
    html = made.lens()._repr_html_()
    assert "·Paris" in texts(made.lens())
    assert "resid_post.0, after The (position 0)\n·Paris 1.000\n⏎ 0.966" in titles(made.lens())
    assert "probability of ·Rome" in html


def test_a_lens_of_no_likely_tokens_shows_the_tokens_asked_about() -> None:
    shown = made.lens(likely=())
    assert "probability of ·Rome" in texts(shown)
    assert shown.plot().get_xlabel() == "token"
    assert "top_tokens" not in shown.to_pandas()


def test_attention_shows_some_heads_and_says_how_many_there_are() -> None:
    shown = texts(made.attention(layers=3, heads=9))
    assert "layer 5, head 0" in shown
    assert "12 of 27 heads are shown; name the layers and heads to see" in shown
    assert "layers=[7], heads=[8]" in shown


def test_a_terminal_says_how_many_heads_it_shows_and_how_to_name_others() -> None:
    shown = " ".join(printed(made.attention(layers=3, heads=9)).split())
    assert len(re.findall(r"layer 5, head \d", shown)) == 4
    assert "4 of 27 heads are shown; name the layers and heads to see" in shown
    assert "--layers 7 --heads 8" in shown
    for other in ("12 of 27", "notebook", "plot("):
        assert other not in shown
    assert "are shown" not in printed(made.attention())


def test_a_patch_shows_how_much_is_restored_and_where_the_prompts_differ() -> None:
    shown = texts(made.patch())
    measured = "difference of log probabilities"
    assert f"resid_post.0 at The (position 0)\nrestored 0.000\n{measured} -1.000" in titles(
        made.patch()
    )
    assert shown.split("resid_post.2")[1].startswith("0.710.790.860.931.00")
    assert "·France (Paris)" in shown
    assert "do not differ" in texts(made.patch(clean=-1.0))


@pytest.mark.parametrize(
    ("value", "shown"), [(-0.004, "0.00"), (-0.006, "-0.01"), (0.996, "1.00"), (np.nan, "nan")]
)
def test_a_share_that_rounds_to_zero_has_no_sign(value: float, shown: str) -> None:
    assert share(value) == shown


def test_a_score_colours_tokens_and_says_how_likely_each_is() -> None:
    spans = [each for each in parsed(made.score()).iter() if each.get("title")]
    assert [each.get("title") for each in spans[:2]] == [
        "nothing predicts it",
        "log probability -2.000, probability 0.135",
    ]
    assert "background" not in spans[0].get("style")
    colors = [re.findall("background:(#.{6})", each.get("style"))[0] for each in spans[1:]]
    lights = [scales.luminance(color) for color in colors]
    assert lights == sorted(lights, reverse=True)  # The less likely, the darker.
    assert "perplexity" in texts(made.score())
    assert "log probability·is4-8.000·France3-6.000" in texts(made.score())


def test_a_comparison_shows_both_texts_and_bars() -> None:
    html = made.comparison()._repr_html_()
    shown = texts(made.comparison())
    assert "The capital of France is" in shown
    assert " is France of capitalThe" in shown
    widths = [int(width) for width in re.findall(r"inline-block;width:(\d+)px;height:9px", html)]
    assert (min(widths), max(widths)) == (1, 110)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_a_comparison_keeps_each_number_in_its_line_however_narrow(width: int) -> None:
    lines = printed(made.comparison(), width).splitlines()
    rows = [("1.00", "0.00", "-6.91"), ("0.75", "0.25", "-1.10"), ("0.00", "1.00", "+6.91")]
    for plain, steered, raised in rows:
        pattern = rf" {plain} █* +{steered} █* +\{raised} "
        assert sum(bool(re.search(pattern, line)) for line in lines) == 1
    bars = max(len(each) for line in lines for each in re.findall("█*", line))
    assert bars == {30: 0, 40: 0, 60: 7, 80: 17, 200: 20}[width]


def test_a_generation_shows_prompt_and_output_apart() -> None:
    for shown in (made.generation(), made.unscored_generation()):
        assert re.search(r"prompt The·capital.*output The", texts(shown))
        assert "ended by stop <end>" in texts(shown)


def test_activations_show_norms_and_shapes() -> None:
    acts = made.activations()
    norm = float(np.linalg.norm(acts["resid_post.1"][2]))
    assert f"resid_post.1 [5, {made.WIDTH}]" in texts(acts)
    assert f"{norm:.3g}" in texts(acts)
    assert "final_norm" in texts(acts)


def test_an_explanation_shows_its_score_and_flags() -> None:
    shown = texts(made.explained())
    assert "Topic:  capital0.810.55early_position" in shown


def test_numbers_that_are_none_are_shown_and_drawn() -> None:
    acts, score, lens = made.activations(), made.score(), made.lens()
    acts["resid_post.1"][:3, 0] = [np.nan, np.inf, 0]
    acts["resid_post.1"][2] = 0
    score.logprobs[2] = -np.inf
    lens.top_logprobs[0] = -np.inf
    assert re.search(r"nan.*inf.*0", texts(acts))
    assert "perplexity inf" in texts(score)
    for shown in (acts, score, lens):
        assert printed(shown)
    studies: list[Any] = [score, lens, made.patch(clean=-1.0)]
    for study in studies:
        study.plot().figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "·the"),
        ("\n\n", "⏎⏎"),
        ("\t", "⇥"),
        ("\u200b", "\\u200b"),
        ("\u202e", "\\u202e"),
        ("\0", "\\x00"),
        ("\xa0", "\\xa0"),
        ("\ud800", "\\ud800"),
        ("\u0301", "◌\u0301"),
        ("🙂", "🙂"),
        ("", ""),
        ("x" * 40, "x" * 23 + "…"),
    ],
)
def test_a_token_is_visible(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_prose_keeps_its_lines_and_says_how_much_is_left_out() -> None:
    assert prose("a b\n\u202ec") == "a b⏎\n\\u202ec"
    assert prose("abcdef", 4) == "abcd … (2 more characters)"


def test_what_is_too_long_is_shown_from_both_ends() -> None:
    assert ends(3, 3) == [0, 1, 2]
    assert ends(9, 4) == [0, 1, None, 7, 8]


@pytest.mark.parametrize(
    "scale",
    [scales.probability(), scales.surprise(), scales.change("", 1.0), scales.magnitude("", 0, 5)],
)
def test_the_ink_can_be_read_on_every_colour(scale: scales.Scale) -> None:
    for value in np.linspace(scale.low, scale.high, 100):
        color = scale.color(float(value))
        assert color is not None
        one, two = scales.luminance(color), scales.luminance(scales.ink(color))
        assert (max(one, two) + 0.05) / (min(one, two) + 0.05) >= 4.5  # WCAG 2.2, level AA
    assert scale.color(float("nan")) is None


@studies
def test_a_plot_is_labelled_and_leaves_no_global_state(make: Any) -> None:
    study = make()
    which = {"layer": 5, "head": 1} if make is made.attention else {}
    ax = study.plot(**which)
    assert ax.get_title()
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert pyplot.get_fignums() == []
    ax.figure.savefig(io.BytesIO(), format="png")
    ours = pyplot.figure().add_subplot()
    assert study.plot(ours, **which) is ours
    pyplot.close("all")


def test_heat_maps_have_a_colour_bar_and_words() -> None:
    ax: Any = made.lens().plot()
    assert ax.images[0].colorbar.ax.get_ylabel() == "probability of the likeliest token"
    assert [label.get_text() for label in ax.get_xticklabels()] == [*map(visible, made.TOKENS)]
    assert ax.texts[0].get_text() == "·Paris"
    image = made.patch().plot().images[0]
    np.testing.assert_array_equal(image.get_array(), made.patch().restored)
    many: Any = made.lens(MANY).plot()
    assert not many.texts
    assert len(many.get_xticklabels()) <= 48


def test_a_plot_of_attention_names_the_head_or_says_which_there_are() -> None:
    patterns = made.attention()
    assert patterns.plot(head=1).get_title() == "Attention of layer 5, head 1"
    with pytest.raises(ValueError, match=r"name a head, as in head=0, of 0, 1"):
        patterns.plot()
    with pytest.raises(ValueError, match=r"layer 7 is not in this study; there are 5"):
        patterns.plot(layer=7, head=1)


def test_plots_take_tokens_as_they_are() -> None:
    ax: Any = made.lens(("$x_1$", "$"), likely=("$\\bad$",)).plot()
    ax.figure.savefig(io.BytesIO(), format="svg")


def test_a_frame_holds_the_arrays_under_their_names() -> None:
    lens, patch, score = made.lens(), made.patch(), made.score()
    frame = lens.to_pandas()
    assert frame.index.names == ["site", "position", "token"]
    assert frame["top_tokens"].to_numpy().tolist() == lens.top_tokens.reshape(15, 2).tolist()
    np.testing.assert_array_equal(frame["logprobs"][" Rome"], lens.logprobs.ravel())
    np.testing.assert_array_equal(patch.to_pandas()["restored"], patch.restored)
    np.testing.assert_array_equal(patch.to_pandas().loc["resid_post.1", "values"], patch.values[1])
    np.testing.assert_array_equal(score.to_pandas()["logprobs"], score.logprobs)
    patterns = made.attention()
    np.testing.assert_array_equal(patterns.to_pandas().loc[(5, 1)], patterns.weights[0, 1])
    comparison = made.comparison()
    steered = comparison.to_pandas()["steered_logprobs"]
    np.testing.assert_array_equal(steered, comparison.steered_logprobs)
    assert steered.index.get_level_values("token").tolist() == list(comparison.next_tokens)


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("rich", "show()", "cli"),
        ("matplotlib", "plot()", "plot"),
        ("pandas", "to_pandas()", "pandas"),
    ],
)
def test_what_needs_an_extra_names_it(module: str, call: str, extra: str) -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; sys.modules[{module!r}] = None\n"
        "import numpy as np, actserve\n"
        "score = actserve.TextScore(tokens=('a', 'b'), token_ids=(1, 2), request_id='',\n"
        "    usage=actserve.Usage(2, 0, 0), logprobs=np.array([np.nan, -1], np.float32))\n"
        "assert score._repr_html_()\n"
        f"score.{call}"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"pip install 'actserve[{extra}]'" in result.stderr
