"""Sweeps from the wire.

All that is wrong for every cell is refused here, before any runs; a cell is prepared, and checked,
when its turn comes."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actserve.v1 import sweep_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Kind, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.runs import GREEDY_ONE_TOKEN, Sampling
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.engine.forms import projection_form
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import (
    probe_fields,
    prompt_fields,
    sweep_digests,
    swept_variants,
    vector_sources,
)
from actserve_server.rpc.requests.kept_rows import KeptCache
from actserve_server.rpc.requests.named_dictionaries import Dictionaries
from actserve_server.rpc.requests.position_selectors import Place
from actserve_server.rpc.requests.sampling_fields import sampling, tokens_to_sample
from actserve_server.rpc.requests.swept_variants import Variant
from actserve_server.rpc.requests.token_choice import invalid
from actserve_server.rpc.requests.vector_sources import Found, Sources
from actserve_server.steering.stored_vectors import LoadedVector
from actserve_server.steering.sweep_cells import PREDICTING, Asked, CellRequest, Change
from actserve_server.steering.sweep_grid import Cell, Grid
from actserve_server.steering.sweep_scores import Score, Scores

MAX_KEY_BYTES = 256
"""Of a prompt or a variant, in UTF-8. They are told again."""
MAX_NAME_BYTES = 64
"""Of an answer or a score."""
MAX_ANSWERS = MAX_SCORES = 64
_PROMPTS_HELD = 8
"""Prompts that stay tokenized: the cells of one follow each other."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SweepRequest:
    """A sweep that has been checked."""

    grid: Grid
    asked: Asked
    digest: bytes
    """Equal requests to the same checkpoint have the same one, and no others do."""
    cells: "CellRequests"


async def sweep_request(
    wire: pb.RunSweepRequest, engine: AdmittedEngine, sources: Sources, autoencoders: Nlas
) -> SweepRequest:
    """The sweep, with everything checked that does not depend on a prompt."""
    info = engine.info
    _check_shape(wire, info)
    grid = Grid(len(wire.prompts), swept_variants.axes(wire.variants))
    grid.check()
    swept_variants.check_grids(wire.variants, ("variants",))
    sampled = await _sampling(wire, engine)
    answers = await _answers(wire.answers, engine)
    # Once for all, so that a name means one vector in the whole sweep.
    named = dict(await off_loop(lambda: [*vector_sources.named(wire, ())]))
    vectors = await vector_sources.look_up_vectors(named, sources, info)
    dictionaries = await vector_sources.look_up_dictionaries([((), wire)], sources, info)
    scores = await _scores(wire.scores, sources, vectors, dictionaries, info)
    variants = await swept_variants.variants(
        wire.variants, sources, vectors, dictionaries, autoencoders, info, ("variants",)
    )
    return SweepRequest(
        grid=grid,
        asked=Asked(
            answers=answers,
            scores=scores,
            perplexity=wire.perplexity,
            samples=sampled is not None,
        ),
        # In a thread: a request may be tens of megabytes.
        digest=await off_loop(
            sweep_digests.digest, wire, variants, scores, vectors, dictionaries, info
        ),
        cells=CellRequests(wire, engine, variants, sampled, answers),
    )


class CellRequests:
    """Prepares the cells of a sweep."""

    def __init__(
        self,
        wire: pb.RunSweepRequest,
        engine: AdmittedEngine,
        variants: Sequence[Variant],
        sampled: Sampling | None,
        answers: Sequence[Sequence[int]],
    ) -> None:
        self._wire = wire
        self._engine = engine
        self._variants = variants
        self._sampled = sampled
        self._longest_answer = max(map(len, answers), default=0)
        self._prompts: OrderedDict[int, TokenizedPrompt | ActserveError] = OrderedDict()
        self._tokenizing = asyncio.Lock()

    async def prepare(self, cell: Cell) -> CellRequest:
        """The cell, with everything checked that can be before it runs."""
        variant = self._variants[cell.variant]
        prompt = await self._prompt(cell.prompt)
        at, count, info = ("prompts", cell.prompt), len(prompt.ids), self._engine.info
        if self._longest_answer:
            prompt_fields.check_fits(count, self._longest_answer, info, (*at, "prompt"))
        sampled = self._sampled
        if sampled is not None:
            most = tokens_to_sample(self._wire.sampling, count, info, ("sampling",))
            sampled = replace(sampled, max_tokens=most)
        else:
            sampled = GREEDY_ONE_TOKEN
        run_tokens = count + max(sampled.max_tokens, self._longest_answer) - 1
        place = Place(prompt=prompt, run_tokens=run_tokens, item=at)
        with variant.as_sent(cell):
            changes = tuple(
                Change(
                    parts=edit.at(place),
                    allow_unused=edit.allow_unused,
                    dose_factor=edit.dose_factor,
                    field=edit.field,
                )
                for edit in await variant.at(cell, info)
            )
        return CellRequest(
            prompt_ids=prompt.ids, changes=changes, sampling=sampled, adapter=variant.adapter
        )

    async def _prompt(self, index: int) -> TokenizedPrompt:
        # One at a time, so that the cells of a prompt do not tokenize it together.
        async with self._tokenizing:
            if index not in self._prompts:
                wire, at = self._wire.prompts[index], ("prompts", index, "prompt")
                try:
                    self._prompts[index] = await prompt_fields.tokenize_to_run(
                        self._engine, wire.prompt, at
                    )
                except ActserveError as error:
                    if error.kind is not Kind.INVALID_ARGUMENT:
                        raise
                    # Every cell of the prompt is told, and it need not be tokenized for each.
                    self._prompts[index] = error
                if len(self._prompts) > _PROMPTS_HELD:
                    self._prompts.popitem(last=False)
            self._prompts.move_to_end(index)
            prompt = self._prompts[index]
        if isinstance(prompt, ActserveError):
            raise _again(prompt)
        return prompt


def _again(error: ActserveError) -> ActserveError:
    """One of its own for each cell, since whoever hands it on may change its path."""
    return ActserveError(
        error.reason,
        error.message,
        field=error.field,
        item=error.item,
        metadata=error.metadata,
        retry_after_s=error.retry_after_s,
    )


def _check_shape(wire: pb.RunSweepRequest, info: ModelInfo) -> None:
    _check_prompts(wire.prompts, info.limits.max_items)
    swept_variants.check(wire.variants, ("variants",))
    _check_keys(wire.variants, ("variants",))
    if not (wire.HasField("sampling") or wire.answers or wire.scores):
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "nothing is asked of the cells; set sampling, answers or scores",
            field=("sampling",),
        )
    if wire.perplexity and not wire.HasField("sampling"):
        raise ActserveError(
            Reason.FIELD_INVALID,
            "the perplexity is of what is generated, and nothing is; set sampling, or leave it",
            field=("perplexity",),
        )
    _check_names("answers", [each.name for each in wire.answers], MAX_ANSWERS)
    _check_names("scores", [each.name for each in wire.scores], MAX_SCORES)
    if wire.answers:
        info.check_site(PREDICTING, ("answers",))
    if wire.perplexity:
        info.check_site(PREDICTING, ("perplexity",))


def _check_prompts(wire: Sequence[pb.SweepPrompt], limit: int) -> None:
    if not wire:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "the request has no prompts; send one", field=("prompts",)
        )
    if len(wire) > limit:
        raise ActserveError(
            Reason.TOO_MANY_ITEMS,
            f"{len(wire)} prompts were sent, but a call may have at most {limit}; make several "
            "calls",
            field=("prompts",),
            metadata={"items": len(wire), "limit": limit},
        )
    for index, each in enumerate(wire):
        if not each.HasField("prompt"):
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                "the prompt is not set; send one",
                field=("prompts", index, "prompt"),
            )
    _check_keys(wire, ("prompts",))


def _check_keys(wire: Sequence[pb.SweepPrompt] | Sequence[pb.SweepVariant], at: FieldPath) -> None:
    for index, each in enumerate(wire):
        size = len(each.key.encode())
        if size > MAX_KEY_BYTES:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the key has {size} bytes; use at most {MAX_KEY_BYTES}",
                field=(*at, index, "key"),
                metadata={"bytes": size, "limit": MAX_KEY_BYTES},
            )


def _check_names(what: str, names: Sequence[str], limit: int) -> None:
    if len(names) > limit:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{len(names)} {what} were sent, but a call may have at most {limit}; make several "
            "calls",
            field=(what,),
            metadata={"names": len(names), "limit": limit},
        )
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        size, at = len(name.encode()), (what, index, "name")
        if not size:
            raise ActserveError(Reason.FIELD_REQUIRED, "the name is empty; choose one", field=at)
        if size > MAX_NAME_BYTES:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the name has {size} bytes; use at most {MAX_NAME_BYTES}",
                field=at,
                metadata={"bytes": size, "limit": MAX_NAME_BYTES},
            )
        if seen.setdefault(name, index) != index:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{what} {seen[name]} and {index} have the same name; give each its own",
                field=at,
            )


async def _sampling(wire: pb.RunSweepRequest, engine: AdmittedEngine) -> Sampling | None:
    """How to sample after the shortest prompt."""
    if not wire.HasField("sampling"):
        return None
    params = wire.sampling
    if params.HasField("samples") and params.samples != 1:
        raise invalid(
            f"samples is {params.samples}, but a cell has one; send the prompt as often as you "
            "want samples of it, or several sweeps with seeds of their own",
            ("sampling", "samples"),
        )
    if params.HasField("logprobs"):
        raise invalid(
            "a cell does not tell the log probabilities of its tokens; name answers, or leave it "
            "unset",
            ("sampling", "logprobs"),
        )
    return (await sampling(params, engine, 1, ("sampling",))).base


async def _answers(
    wire: Sequence[pb.SweepAnswer], engine: AdmittedEngine
) -> tuple[tuple[int, ...], ...]:
    answers: list[tuple[int, ...]] = []
    for index, each in enumerate(wire):
        at = ("answers", index, "text")
        if not each.text:
            raise ActserveError(
                Reason.FIELD_REQUIRED, "the text is empty; write what may come next", field=at
            )
        answers.append(await prompt_fields.continuation(engine, each.text, at))
    return tuple(answers)


async def _scores(
    wire: Sequence[pb.SweepScore],
    sources: Sources,
    vectors: Mapping[str, LoadedVector],
    dictionaries: Dictionaries,
    info: ModelInfo,
) -> Scores:
    named = {
        at: source
        for index, each in enumerate(wire)
        for at, source in vector_sources.named(each, ("scores", index))
    }
    found = Found(
        info=info,
        kept=vector_sources.look_up(named, sources.kept),
        vectors=vectors,
        dictionaries=dictionaries,
        rows=KeptCache(sources.kept.copies),
    )
    return await off_loop(_parsed_scores, wire, found)


def _parsed_scores(wire: Sequence[pb.SweepScore], found: Found) -> Scores:
    parsed: list[Score] = []
    for index, each in enumerate(wire):
        at = ("scores", index)
        if not each.HasField("probe"):
            raise ActserveError(
                Reason.FIELD_REQUIRED, "the probe is not set; send one", field=(*at, "probe")
            )
        probe = probe_fields.probe(each.probe, found, (*at, "probe"))
        how = probe_fields.aggregator(each.aggregator, (*at, "aggregator"))
        parsed.append(Score(probe=probe, aggregator=how))
    scores = Scores(parsed)
    for projected in scores.projections:
        projection_form(projected)  # Hashes its vectors.
    return scores
