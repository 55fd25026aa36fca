"""A natural language autoencoder over fake engines: a row in, made-up text out, and back."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.runs import Placement, Run, Sampling, Tokens
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from actserve_server.engine.fake import BOS, FakeEngine
from actserve_server.nla.autoencoder import Autoencoder, NlaInfo
from actserve_server.nla.profile import (
    Baseline,
    Form,
    NlaProfile,
    ReconstructorProfile,
    ReplaceEmbedding,
    Slot,
    VerbalizerProfile,
)
from actserve_server.nla.reconstructor import Reconstructor, ValueHead
from actserve_server.nla.verbalizer import Verbalizer, scaled
from actserve_server.nla.verbalizer_prompts import VerbalizerPrompt
from tests.contract.harness import collect, serving, site, tensor

WIDTH = 16
SCALE = 3.0
"""L2 norm of a vector in the AV's prompt."""
MAX_TOKENS = 24
SITE = Site(HookPoint.RESID_POST, 1)
SAMPLING = Sampling(temperature=1.0, max_tokens=MAX_TOKENS)
MARKER = "@"
GREEDY = {"temperature": 0.0}

_RNG = np.random.default_rng(7)
ROWS = _RNG.standard_normal((5, WIDTH)).astype(np.float32)
HEAD = _RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A pair to serve, whose parts a test can look at."""

    id: str = "tiny"
    model_id: str = "fake"
    site: Site = SITE
    av: FakeEngine | None = field(default_factory=FakeEngine)
    ar: FakeEngine | None = field(default_factory=FakeEngine)
    head: np.ndarray = field(default_factory=HEAD.copy)
    asks: bool = False
    form: Form = Form.RAW
    prefill: str = ""
    baseline: Baseline | None = None
    sampling: Sampling = SAMPLING
    limits: dict[str, int] = field(default_factory=dict)
    """`max_rows` and `max_samples`."""

    @property
    def width(self) -> int:
        return len(self.head)

    @property
    def name(self) -> str:
        return f"models/{self.model_id}/nlas/{self.id}"

    def prompt(self, question: str = "") -> VerbalizerPrompt:
        before = (BOS, *question.encode())
        return VerbalizerPrompt((*before, ord(MARKER), ord(".")), (len(before),))

    def loaded(self) -> Autoencoder:
        verbalizer = reconstructor = None
        if self.av:
            verbalizer = Verbalizer(_admitted(self.av), self._verbalizer(), self.prompt)
        if self.ar:
            reconstructor = Reconstructor(
                _admitted(self.ar),
                ReconstructorProfile(template="{explanation}"),
                SITE,
                ValueHead(self.head),
                _ids,
            )
        profile = NlaProfile(
            family="tiny",
            base_checkpoint="a/fake",
            site=self.site,
            width=self.width,
            verbalizer=verbalizer and verbalizer.profile,
            reconstructor=reconstructor and ReconstructorProfile(template="{explanation}"),
            baseline=self.baseline,
        )
        return Autoencoder(
            NlaInfo(id=self.id, model_id=self.model_id, profile=profile, **self.limits),
            verbalizer,
            reconstructor,
        )

    def _verbalizer(self) -> VerbalizerProfile:
        return VerbalizerProfile(
            injection=ReplaceEmbedding(SCALE),
            template=("{question}" if self.asks else "") + "{injection_char}.",
            slot=Slot(text=MARKER, token_id=ord(MARKER)),
            prefill=self.prefill,
            form=self.form,
            sampling=self.sampling,
        )

    async def said(self, row: np.ndarray, question: str = "", max_tokens: int = MAX_TOKENS) -> str:
        """What the AV's engine says of a row, greedily."""
        assert self.av is not None
        prompt = self.prompt(question)
        vector = scaled(row.astype(np.float32), SCALE)
        run = Run(
            id=f"said-{row.tobytes()!r}",
            token_ids=prompt.ids,
            placements=tuple(Placement(slot, vector) for slot in prompt.slots),
            sampling=Sampling(temperature=0.0, max_tokens=max_tokens),
        )
        return "".join([e.text async for e in self.av.run(run) if isinstance(e, Tokens)])

    def reconstructed(self, text: str) -> np.ndarray:
        """The row that the AR finds in a text, float64 of norm sqrt(width)."""
        assert self.ar is not None
        row = self.head.astype(np.float64) @ self.ar.row(SITE, _ids(text))
        return row * np.sqrt(self.width) / np.linalg.norm(row)


def _admitted(engine: FakeEngine) -> AdmittedEngine:
    """What refuses no part of a call that was let in."""
    return AdmittedEngine(engine, AdmissionLimits(max_queue=sys.maxsize))


def _ids(text: str) -> tuple[int, ...]:
    return (BOS, *text.encode())


def explain(rows: Any = ROWS, **changes: Any) -> pb.ExplainActivationsRequest:
    """A small valid request, greedy, with `changes`."""
    fields = {"site": site(), "activations": tensor(rows), "spec": GREEDY}
    return pb.ExplainActivationsRequest(**{**fields, **changes})


def explain_text(text: str = "hello", **changes: Any) -> pb.ExplainTextRequest:
    return pb.ExplainTextRequest(**{"prompt": {"text": text}, "spec": GREEDY, **changes})


def compare(rows: Any, less: Any, **changes: Any) -> pb.CompareActivationsRequest:
    fields = {
        "site": site(),
        "activations": tensor(rows),
        "reference": tensor(less),
        "spec": GREEDY,
    }
    return pb.CompareActivationsRequest(**{**fields, **changes})


def reconstruct(*texts: str, **changes: Any) -> pb.ReconstructActivationsRequest:
    return pb.ReconstructActivationsRequest(**{"site": site(), "texts": texts, **changes})


def score(rows: Any, *texts: str, **changes: Any) -> pb.ScoreExplanationsRequest:
    fields = {"site": site(), "activations": tensor(rows), "texts": texts}
    return pb.ScoreExplanationsRequest(**{**fields, **changes})


def set_baseline(name: str, rows: Any = ROWS, **changes: Any) -> pb.SetExplanationBaselineRequest:
    fields = {"name": name, "site": site(), "activations": tensor(rows)}
    return pb.SetExplanationBaselineRequest(**{**fields, **changes})


def call(explanations: Any, request: Any) -> Any:
    """The call of a stub that takes the request."""
    return getattr(explanations, type(request).__name__.removesuffix("Request"))(request)


async def events_of(request: Any, *nlas: Tiny, fake: FakeEngine | None = None) -> list[Any]:
    """The events of a stream, on a server of its own."""
    async with serving(fake, *(nla.loaded() for nla in nlas or (Tiny(),))) as served:
        return await collect(call(served.explanations, request))


def explanations(events: Iterable[Any]) -> dict[tuple[int, int], Any]:
    """By row and sample."""
    items = [e.explanation for e in events if e.WhichOneof("event") == "explanation"]
    found = {(item.row_index, item.sample_index): item for item in items}
    assert len(found) == len(items), "an explanation came twice"
    return found


def texts(events: Iterable[Any]) -> list[str]:
    """Of the first sample of each row."""
    found = explanations(events)
    return [found[key].text for key in sorted(found) if key[1] == 0]


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of L2 norm sqrt(width), in float64."""
    wide = np.asarray(rows, np.float64)
    return wide * np.sqrt(wide.shape[-1]) / np.linalg.norm(wide, axis=-1, keepdims=True)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
