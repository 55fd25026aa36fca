"""The dictionary that comes with the server says something true, of text that nobody trained it on.

What it reaches on held-out documents is in its card; these bounds are far below, and far above what
shuffled rows or random directions would reach.
"""

import numpy as np
import pytest

from actserve import Add, Feature, Predict
from tests.integration.conftest import Served

DICTIONARY = "smollm2-135m"
TEXTS = """\
The children sat around the kitchen table and waited until their grandmother cut the fresh bread.
Scientists found that the water near the coast had become two degrees warmer in thirty years.
""".splitlines()


def test_it_explains_rows_of_the_model_and_not_of_other_tokens(served: Served) -> None:
    found = served.client.dictionaries.get(DICTIONARY)
    assert found.of_server
    assert found.check is not None
    assert found.check.explained > 0.6
    assert found.check.shuffled_explained < 0
    assert 10 < found.check.active_features < 80


def test_what_a_feature_raises_by_itself_it_raises_where_it_is_added(served: Served) -> None:
    client = served.client
    top = client.features.top(TEXTS[0], DICTIONARY, k=4)
    indices = sorted({each.index for position, active in top if position > 3 for each in active})
    effects = client.features.logit_effects([Feature(DICTIONARY, each) for each in indices], k=10)
    raised: list[bool] = []
    for effect in effects:
        ids = [*effect.top_ids.tolist(), *effect.bottom_ids.tolist()]
        plain, steered = client.fetch(
            [TEXTS[1]] * 2,
            predictions=Predict(positions="last", token_ids=ids),
            intervene=[
                [],
                [Add("resid_post.20", Feature(DICTIONARY, effect.feature), 40.0, positions="last")],
            ],
        )
        change = (
            steered.predictions["final_norm"].token_logprobs
            - plain.predictions["final_norm"].token_logprobs
        )[0]
        raised.append(bool(change[:10].mean() > change[10:].mean()))
    # By chance half of them.
    assert len(raised) > 10
    assert np.mean(raised) > 0.8


def test_one_row_is_seen_as_features_and_through_the_lens(served: Served) -> None:
    look = served.client.look("The capital of France is", dictionary=DICTIONARY)
    assert (look.site, look.dictionary, look.token) == ("resid_post.20", DICTIONARY, " is")
    assert look.features
    assert look.lens[0].probability == pytest.approx(
        float(np.exp(served.client.logit_lens("The capital of France is").top_logprobs[20, -1, 0])),
        rel=1e-3,
    )
    assert any("no NLA" in each for each in look.missing)
