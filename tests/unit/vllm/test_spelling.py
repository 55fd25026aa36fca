"""A word stands for the tokens that the tokenizer makes of it, alone and after a space."""

import asyncio

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm import SamplingParams

from actserve_server.domain.prompts import Spellings
from actserve_server.engine.vllm.tokenizer import PromptTokenizer

C, A, T, SPACE, AT, SPACE_C, SPACE_CAT = range(7)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Knows "cat" as one token only after a space."""
    vocabulary = {"c": C, "a": A, "t": T, "Ġ": SPACE, "at": AT, "Ġc": SPACE_C, "Ġcat": SPACE_CAT}
    merges = [("a", "t"), ("Ġ", "c"), ("Ġc", "at")]
    pairs = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=pairs)


@pytest.mark.parametrize(
    ("word", "spellings"),
    [
        ("cat", ((C, AT), (SPACE_CAT,))),
        ("  cat", ((C, AT), (SPACE_CAT,))),
        ("at", ((AT,), (SPACE, AT))),
        ("  ", ()),
        ("xyz", ()),
    ],
)
def test_a_word_is_spelled_alone_and_after_a_space(
    tokenizer: PreTrainedTokenizerFast, word: str, spellings: Spellings
) -> None:
    ours = PromptTokenizer(tokenizer, 7)
    assert asyncio.run(ours.spell([word, "a"])) == (spellings, ((A,), (SPACE, A)))


def test_vllm_by_itself_would_let_a_word_through_after_a_space(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Why bad words are not left to it: once this fails, they may be."""
    tokenizer.max_token_id = 6  # As vLLM's own wrapper has it.
    params = SamplingParams(bad_words=["cat"])
    params.update_from_tokenizer(tokenizer)  # pyright: ignore[reportArgumentType]
    assert params.bad_words_token_ids == [[C, AT]]
