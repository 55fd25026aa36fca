"""Prompts of both halves of an NLA, as token ids.

They are checked against the tokenizer that is served: with a marker that is split, or a template
that has drifted, an AV explains its placeholder instead of the vector, and as fluently.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.nla.profile import ReconstructorProfile, Slot, VerbalizerProfile
from actserve_server.nla.schema import check_ar_template, check_av_template

if TYPE_CHECKING:  # To import it takes a second, which a server without an NLA need not.
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_SAMPLE = "a sample"
"""A text, or a question, to see at load what the prompt around it becomes."""


@dataclass(frozen=True, slots=True)
class VerbalizerPrompt:
    """What the AV reads."""

    ids: tuple[int, ...]
    slots: tuple[int, ...]
    """Positions that vectors go to: consecutive, and all that hold the marker."""


class VerbalizerPrompts:
    """What an AV is asked."""

    def __init__(
        self, profile: VerbalizerProfile, tokenizer: PreTrainedTokenizerBase, layer: int
    ) -> None:
        """Raises ValueError, which names the field of the sidecar, unless the tokenizer makes of
        the template what the profile says; `layer` is the NLA's."""
        check_av_template(profile.template)
        _check_marker(profile.slot, tokenizer)
        if not tokenizer.chat_template:
            raise ValueError("the AV's tokenizer has no chat template, which its prompt needs")
        self._profile = profile
        self._tokenizer = tokenizer
        self._layer = layer
        ids = self._ids(_SAMPLE)
        if not profile.prefill and list(ids) != self._chat(_SAMPLE, tokenize=True):
            raise ValueError(
                "the AV's tokenizer makes other tokens of the chat template's text than of the "
                "conversation; use the tokenizer it came with"
            )
        self._sample = VerbalizerPrompt(ids, _find_slots(ids, profile.slot))

    def prompt(self, question: str) -> VerbalizerPrompt:
        """The prompt with the caller's question, which is empty where none is answered.

        Raises QUESTION_INVALID for a question that is missing or not answered, or that has the
        marker in it.
        """
        if not self._profile.answers_questions:
            if question.strip():
                raise _question_invalid("this NLA answers no questions; leave the question out")
            return self._sample
        if not question.strip():
            raise _question_invalid("this NLA answers questions; give one, such as what is said")
        ids = self._ids(question)
        slot = self._profile.slot
        if ids.count(slot.token_id) != slot.count:
            raise _question_invalid(
                f"the question has {slot.text!r} in it, which stands for the vector; write it "
                "differently"
            )
        try:
            return VerbalizerPrompt(ids, _find_slots(ids, slot))
        except ValueError as error:
            raise _question_invalid(
                f"the question changes the prompt around it: {error}"
            ) from error

    def _ids(self, question: str) -> tuple[int, ...]:
        rendered = self._chat(question, tokenize=False)
        # The chat template has written BOS, where there is one; the prefill continues its text.
        return _encoded(self._tokenizer, rendered + self._profile.prefill, special_tokens=False)

    def _chat(self, question: str, *, tokenize: bool) -> Any:
        profile = self._profile
        content = _filled(
            profile.template,
            {
                "injection_char": profile.slot.text * profile.slot.count,
                "layer": str(self._layer),
                "question": question,
            },
        )
        options: dict[str, Any] = {}
        if profile.enable_thinking is not None:
            options["enable_thinking"] = profile.enable_thinking
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=tokenize,
            add_generation_prompt=True,
            return_dict=False,
            **options,
        )


class ReconstructorPrompts:
    """What an AR is asked."""

    def __init__(self, profile: ReconstructorProfile, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ValueError, which names the field of the sidecar, unless the tokenizer makes of
        the template what the profile says."""
        check_ar_template(profile.template)
        self._profile = profile
        self._tokenizer = tokenizer
        ids = self._ids(_SAMPLE)
        plain = self._ids(_SAMPLE, special_tokens=False)
        if ids[len(ids) - len(plain) :] != plain:
            raise ValueError(
                f"the AR's tokenizer puts special tokens after a text ({ids} for {plain} alone), "
                "but the AR is read at the text's last token; use the tokenizer it came with"
            )
        bos = tokenizer.bos_token_id
        if bos is not None and ids[:2] == (bos, bos):
            raise ValueError(
                f"prompt_templates.ar begins with {tokenizer.bos_token!r}, which the tokenizer "
                "adds as well; take it out of the template"
            )
        if profile.special_tokens and bos is not None and ids[0] != bos:
            # Not an error: SmolLM2's declares one that is never there, in training either.
            log.info("the AR's tokenizer has a BOS, %r, but adds none", tokenizer.bos_token)
        if not self._ends_well(ids):
            raise ValueError(
                f"tokens.critic_suffix_ids are {profile.suffix_ids}, but prompts end with "
                f"{ids[-len(profile.suffix_ids) :]}; tokenizer and template must be those that the "
                "AR was trained with"
            )

    def ids(self, text: str) -> tuple[int, ...]:
        """The prompt for an explanation. Raises FIELD_INVALID if the text changes the tokens that
        every prompt ends with, at which the AR is read."""
        ids = self._ids(text.strip())
        if not self._ends_well(ids):
            raise ActserveError(
                Reason.FIELD_INVALID,
                "the end of a text runs into the words of the prompt that follow it; end it with "
                "a word or a full stop",
                field=("texts",),
            )
        return ids

    def _ids(self, text: str, special_tokens: bool | None = None) -> tuple[int, ...]:
        prompt = _filled(self._profile.template, {"explanation": text})
        if special_tokens is None:
            special_tokens = self._profile.special_tokens
        return _encoded(self._tokenizer, prompt, special_tokens=special_tokens)

    def _ends_well(self, ids: Sequence[int]) -> bool:
        suffix = self._profile.suffix_ids
        return not suffix or tuple(ids[-len(suffix) :]) == suffix


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders replaced: once, so that what replaces one is never read
    as another."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, text: str, *, special_tokens: bool
) -> tuple[int, ...]:
    ids: Any = tokenizer.encode(text, add_special_tokens=special_tokens)
    return tuple(ids)


def _check_marker(slot: Slot, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = _encoded(tokenizer, slot.text, special_tokens=False)
    if ids != (slot.token_id,) or slot.token_id == tokenizer.unk_token_id:
        raise ValueError(
            f"tokens.injection_token_id is {slot.token_id}, but the tokenizer makes {ids} of "
            f"tokens.injection_char, {slot.text!r}; both must be those that the AV was trained "
            "with, and the character one known token"
        )


def _find_slots(ids: Sequence[int], slot: Slot) -> tuple[int, ...]:
    """Where the markers are; raises ValueError unless they are one run with the right neighbors."""
    slots = tuple(position for position, token in enumerate(ids) if token == slot.token_id)
    if len(slots) != slot.count or slots[-1] - slots[0] != slot.count - 1:
        raise ValueError(
            f"the prompt has the marker {slot.text!r} (tokens.injection_token_id "
            f"{slot.token_id}) at positions {list(slots)}, but must have {slot.count} in a row, "
            "and no other; check prompt_templates.av and tokens.injection_count"
        )
    for side, expected, position in (
        ("left", slot.left_id, slots[0] - 1),
        ("right", slot.right_id, slots[-1] + 1),
    ):
        found = ids[position] if 0 <= position < len(ids) else None
        if expected is not None and found != expected:
            raise ValueError(
                f"tokens.injection_{side}_neighbor_id is {expected}, but in the prompt it is "
                f"{found}; tokenizer and prompt_templates.av must be those that the AV was "
                "trained with"
            )
    return slots


def _question_invalid(message: str) -> ActserveError:
    return ActserveError(
        Reason.QUESTION_INVALID,
        message,
        field=("spec", "question"),
    )
