"""The activation verbalizer (AV): a language model that says what a vector means.

A row becomes a generation whose prompt has the vector in one slot or several. How it gets there is
the profile's: in place of the slot's embedding, or added to the residual stream after a block.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import Add
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import Intervention, Placement, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.nla.explanations import Asking
from actserve_server.nla.profile import AddAtBlock, ReplaceEmbedding, VerbalizerProfile
from actserve_server.nla.verbalizer_prompts import VerbalizerPrompt


class Verbalizer:
    """An engine with an AV's weights, and how to ask it."""

    def __init__(
        self,
        engine: AdmittedEngine,
        profile: VerbalizerProfile,
        prompt: Callable[[str], VerbalizerPrompt],
    ) -> None:
        """`prompt` makes the prompt for a question, which is empty for most families."""
        self.engine = engine
        self.profile = profile
        self._prompt = prompt

    @property
    def default_temperature(self) -> float | None:
        """What is used where a call says nothing, as is the next."""
        own = self.profile.sampling.temperature
        return self.engine.info.default_sampling.temperature if own is None else own

    @property
    def default_top_p(self) -> float | None:
        own = self.profile.sampling.top_p
        return self.engine.info.default_sampling.top_p if own is None else own

    def prompt(self, asking: Asking) -> VerbalizerPrompt:
        """The prompt of every row. Raises QUESTION_INVALID, also for a question so long that no
        room is left for the answer."""
        prompt = self._prompt(asking.question)
        limit = self.engine.info.limits.max_sequence_tokens
        answer = self._sampling(asking, 0).max_tokens
        if self.profile.answers_questions and len(prompt.ids) + answer > limit:
            raise ActserveError(
                Reason.QUESTION_INVALID,
                f"with this question the prompt has {len(prompt.ids)} tokens and the answer up to "
                f"{answer}, but together they may have {limit}; ask a shorter one, or set "
                "max_tokens lower",
                field=("spec", "question"),
                metadata={"tokens": len(prompt.ids), "max_tokens": answer, "limit": limit},
            )
        return prompt

    def vector(self, row: np.ndarray) -> np.ndarray:
        """What goes into the prompt for a row, float32 [width]."""
        injection = self.profile.injection
        if isinstance(injection, ReplaceEmbedding) and injection.scale is not None:
            return scaled(row, injection.scale)
        return row

    def run(
        self, run_id: str, vector: np.ndarray, prompt: VerbalizerPrompt, asking: Asking, number: int
    ) -> Run:
        """The run of a sample, the call's one of that number."""
        run = Run(id=run_id, token_ids=prompt.ids, sampling=self._sampling(asking, number))
        match self.profile.injection:
            case ReplaceEmbedding():
                return replace(
                    run, placements=tuple(Placement(slot, vector) for slot in prompt.slots)
                )
            case AddAtBlock(layer, coefficient):
                change = Intervention(
                    (Site(HookPoint.RESID_POST, layer),),
                    Selection(Spans.of(prompt.slots)),
                    Add(vector, coefficient, relative=True),
                )
                return replace(run, interventions=(change,))

    def _sampling(self, asking: Asking, number: int) -> Sampling:
        own = self.profile.sampling
        return replace(
            own,
            temperature=own.temperature if asking.temperature is None else asking.temperature,
            top_p=own.top_p if asking.top_p is None else asking.top_p,
            max_tokens=own.max_tokens if asking.max_tokens is None else asking.max_tokens,
            seed=None if asking.seed is None else asking.seed + number,
        )


def scaled(vector: np.ndarray, norm: float) -> np.ndarray:
    """The vector at that L2 norm, computed in float32 as the recipe has it."""
    # Divided first by the largest element, so that no square leaves the range of float32.
    unit = vector / np.abs(vector).max()
    return (unit * (norm / np.linalg.norm(unit))).astype(np.float32)
