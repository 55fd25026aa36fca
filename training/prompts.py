"""What is asked of a pair in training: through the profiles and prompts that serve it, so that what
is trained is what is served."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from actserve_server.nla.pair_families import FAMILIES
from actserve_server.nla.parsing import parse
from actserve_server.nla.profile import Form
from actserve_server.nla.schema import profile
from actserve_server.nla.sidecar import Half, merge
from actserve_server.nla.verbalizer_prompts import ReconstructorPrompts, VerbalizerPrompts
from training.models import decode
from training.recipe import Recipe

AV_TEMPLATE = "Explain this activation:{injection_char}"
"""Short, and the row late in it: what comes before is run once a batch, what comes after for every
row."""
AR_TEMPLATE = "{explanation}"
"""Nothing around the text, whose last words are those the row was taken at."""
OPEN, CLOSE = "<explanation>", "</explanation>"
FAMILY = "kitft"


def av_document(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, width: int, scale: float
) -> dict[str, Any]:
    """The AV's sidecar. Raises ValueError for a marker that is not one token."""
    marker: list[int] = tokenizer.encode(recipe.marker, add_special_tokens=False)
    if len(marker) != 1:
        raise ValueError(
            f"the marker {recipe.marker!r} is {len(marker)} tokens of this tokenizer, but must be "
            "one; name a rare token of it with --marker"
        )
    document = {
        **_document(recipe, width, "av"),
        "extraction": {"injection_scale": scale},
        "tokens": {"injection_char": recipe.marker, "injection_token_id": marker[0]},
        "prompt_templates": {"av": AV_TEMPLATE},
        "chat": {"enable_thinking": None, "prefill": OPEN},
        # That of the rounds. The greedy explanation is the better one, but several would be equal.
        "sampling": {
            "temperature": recipe.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "max_tokens": recipe.max_tokens,
        },
    }
    prompt = av_prompt(document, tokenizer, recipe.layer)
    document["tokens"] |= {
        "injection_left_neighbor_id": prompt.ids[prompt.slot - 1],
        "injection_right_neighbor_id": prompt.ids[prompt.slot + 1],
    }
    return document


def ar_document(recipe: Recipe, width: int) -> dict[str, Any]:
    """The AR's sidecar."""
    return {
        **_document(recipe, width, "ar"),
        "prompt_templates": {"ar": AR_TEMPLATE},
        "reconstruction": {"special_tokens": False, "normalize_state": False},
    }


def _document(recipe: Recipe, width: int, role: str) -> dict[str, Any]:
    return {
        "kind": "nla_model",
        "schema_version": 2,
        "role": role,
        "family": FAMILY,
        "base_checkpoint": recipe.base,
        "d_model": width,
        "extraction_layer_index": recipe.layer,
    }


@dataclass(frozen=True, slots=True)
class Prompt:
    """The AV's prompt as token ids, and where in it the row goes."""

    ids: tuple[int, ...]
    slot: int


def av_prompt(document: dict[str, Any], tokenizer: PreTrainedTokenizerBase, layer: int) -> Prompt:
    """What a server would ask by this sidecar."""
    verbalizer = profile(merge(FAMILIES[FAMILY], document), Half.AV, "av").verbalizer
    assert verbalizer is not None
    prompt = VerbalizerPrompts(verbalizer, tokenizer, layer).prompt("")
    return Prompt(prompt.ids, prompt.slots[0])


class Words:
    """Texts to the token ids that the two models see, and back."""

    def __init__(self, document: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
        """`document` is the AR's sidecar. Raises ValueError for a tokenizer without an end."""
        reconstructor = profile(merge(FAMILIES[FAMILY], document), Half.AR, "ar").reconstructor
        assert reconstructor is not None
        if not isinstance(tokenizer.eos_token_id, int):
            raise ValueError("the base's tokenizer has no EOS token, which ends an explanation")
        self.end = tokenizer.eos_token_id
        """The token that ends an answer."""
        self._tokenizer = tokenizer
        self._prompts = ReconstructorPrompts(reconstructor, tokenizer)

    def answer(self, text: str) -> list[int]:
        """What the AV is to write after its prompt."""
        ids: list[int] = self._tokenizer.encode(text + CLOSE, add_special_tokens=False)
        return [*ids, self.end]

    def explanation(self, answer: list[int]) -> tuple[str, bool]:
        """What an answer of the AV says, and whether it has the form."""
        raw = OPEN + decode(self._tokenizer, answer)
        text, parsed = parse(raw, Form.TAGS)
        return (text, True) if parsed else (raw.removeprefix(OPEN), False)

    def prompt(self, text: str) -> list[int]:
        """What the AR reads of an explanation."""
        return list(self._prompts.ids(text))
