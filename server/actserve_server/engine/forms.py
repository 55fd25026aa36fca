"""What a run does, as numbers: which formula, on which vectors, with which scalars.

Every operation of `domain/operations.py`, which defines them, is one of the following. Projections,
conditions and networks of probes have forms of their own.

    ADD       x + v
    ALONG     x + (min(max(g x.u, lo), hi) - x.u + p |x|) u
    LINEAR    s x + (x R^T) W
    REPLACE   v
    FEATURES  x + sum over i of ((g_i - 1) f_i + o_i) v_i, with f some components of x

The vectors are what a run holds of the engine's memory. They are named by their content, so that
equal ones travel, are held and are counted once, whichever runs have them.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from weakref import WeakKeyDictionary

import numpy as np

from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import (
    Ablate,
    Add,
    Clamp,
    Features,
    Mean,
    Operation,
    Project,
    Replace,
    Swap,
    Zero,
    unit,
)
from actserve_server.domain.probe_networks import ProbeNetwork, ProbeOutputs
from actserve_server.domain.probes import Aggregator, Probe, RollingMean, ScoreReduction
from actserve_server.domain.projection import (
    Identity,
    JumpReLU,
    Projected,
    Projection,
    ReLU,
    TopK,
)
from actserve_server.domain.runs import Capture, Intervention, conditions_of
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import ElementType, convert, held_bytes

_HASHED_BYTES = 1 << 20
"""Of vectors that are views, so many are copied at once to be hashed."""


class Kernel(IntEnum):
    ADD = 0
    ALONG = 1
    LINEAR = 2
    REPLACE = 3
    FEATURES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Vectors of one width, which a worker holds in an element type."""

    digest: bytes
    """Of the width, the numbers and their element type: equal vectors have it in common, and no
    others."""
    count: int
    width: int
    rows: np.ndarray | None
    """Float32 [count, width]; None in a worker, which holds them in its bank."""
    element_type: ElementType = ElementType.F32
    """To which every number is rounded where they are sent, and held."""
    lasting: bool = False
    """Whether a worker is to hold them on when no run has them, as long as nothing else needs the
    room."""

    @staticmethod
    def of(
        rows: np.ndarray,
        *,
        element_type: ElementType = ElementType.F32,
        lasting: bool = False,
    ) -> "Vectors":
        """Takes over float32 [n, width], which must not change any more."""
        count, width = rows.shape
        # What is stored of finished sweeps knows float32 vectors by these words.
        kind = "" if element_type is ElementType.F32 else f"{element_type} "
        digest = hashlib.sha256(f"{count} x {width} {kind}".encode())
        step = max(1, _HASHED_BYTES // (4 * width))
        for start in range(0, count, step):
            digest.update(rows[start : start + step].astype("<f4").tobytes())
        return Vectors(digest.digest(), count, width, rows, element_type, lasting)

    @property
    def nbytes(self) -> int:
        """That a worker holds."""
        return held_bytes(self.count * self.width, self.element_type)

    @property
    def row_bytes(self) -> int:
        """Of one vector."""
        return self.width * self.element_type.itemsize

    def encoded(self, start: int = 0, end: int | None = None) -> bytes:
        """Rows [start, end) as little-endian numbers of the element type."""
        assert self.rows is not None  # Only a worker does without, and sends none.
        bits = convert(self.rows[start:end], ElementType.F32, self.element_type)
        return bits.astype(self.element_type.storage).tobytes()


class Activated(IntEnum):
    """What becomes of components, as `domain/projection.py` defines it."""

    IDENTITY = 0
    RELU = 1
    JUMP_RELU = 2
    TOP_K = 3


@dataclass(frozen=True, slots=True, eq=False)
class ProjectionForm:
    """`Projected` as numbers."""

    directions: Vectors
    offsets: Vectors
    """The bias of every direction, zero where there is none, and the thresholds of JUMP_RELU."""
    activated: Activated
    kept: int
    """Components that TOP_K leaves."""
    top_k: int | None

    @property
    def vectors(self) -> tuple[Vectors, Vectors]:
        return self.directions, self.offsets

    @property
    def key(self) -> tuple[object, ...]:
        """Equal forms have it in common, and no others."""
        digests = (self.directions.digest, self.offsets.digest)
        return (*digests, self.activated, self.kept, self.top_k)


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A kernel, its vectors, and its scalars.

    ADD and ALONG have one vector. LINEAR has the rows of R and then those of W. REPLACE has one
    for all positions, or one for each in ascending order. FEATURES has one for each feature. ALONG
    has the scalars g, lo, hi, p, LINEAR has s, and FEATURES every g and then every o.
    """

    kernel: Kernel
    vectors: Vectors
    scalars: tuple[float, ...] = ()
    reads: ProjectionForm | None = None
    """Of FEATURES: what has them as components. None where every g is one."""
    columns: tuple[int, ...] = ()
    """Of FEATURES: which component each of them is."""

    @property
    def every(self) -> tuple[Vectors, ...]:
        """All vectors, those of what it reads last."""
        return (self.vectors,) if self.reads is None else (self.vectors, *self.reads.vectors)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal forms have it in common, and no others."""
        reads = None if self.reads is None else self.reads.key
        return self.kernel, self.vectors.digest, self.scalars, reads, self.columns

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.every)


@dataclass(frozen=True, slots=True, eq=False)
class ConditionForm:
    """`Condition` as numbers: met by a score above `low` and below `high`."""

    site: Site
    direction: Vectors
    bias: float
    aggregator: Aggregator
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class NetworkForm:
    """Where the numbers of a network are."""

    group: int
    """Which one it belongs to. Its rows of the group's matrix come after those of the networks
    before it."""
    outputs: int
    units: int
    """Of the hidden layer; zero where there is none."""

    @property
    def rows(self) -> int:
        """Of the group's matrix."""
        return self.units or self.outputs


@dataclass(frozen=True, slots=True, eq=False)
class OutputsForm:
    """`ProbeOutputs` as numbers.

    Networks of the same sites are a group. All the linear maps of theirs that read rows are one
    matrix, so that many networks take one product a site.
    """

    groups: tuple[tuple[Site, ...], ...]
    """The sites whose rows lie side by side in the columns of the group's matrix."""
    matrices: tuple[Vectors, ...]
    """Of each group [rows of its networks, width of all its sites]."""
    networks: tuple[NetworkForm, ...]
    rest: Vectors
    """[1, n]: what is added to the products of each group, and then of each network with a hidden
    layer the linear maps that read it, [outputs, units], and what is added to theirs."""
    key: bytes
    """Equal forms have it in common, and no others."""

    @property
    def vectors(self) -> tuple[Vectors, ...]:
        return *self.matrices, self.rest

    @property
    def rest_sizes(self) -> list[int]:
        """Of the parts of `rest`."""
        hidden = [each for each in self.networks if each.units]
        parts = [size for each in hidden for size in (each.outputs * each.units, each.outputs)]
        return [each.count for each in self.matrices] + parts


_FORMS: "WeakKeyDictionary[Operation, Form]" = WeakKeyDictionary()


def form_of(operation: Operation) -> Form:
    """The form of an operation, made once. That of many vectors takes long to hash, so it is to be
    made in a thread first. `Zero` has a vector of width 1, which stands for any."""
    form = _FORMS.get(operation)
    if form is None:
        form = _FORMS[operation] = _form_of(operation)
    return form


_PROJECTIONS: "WeakKeyDictionary[Projection, tuple[Vectors, Vectors]]" = WeakKeyDictionary()


def projection_form(projected: Projected) -> ProjectionForm:
    """The form of a projection. Its vectors are hashed once, which takes long, so it is to be made
    in a thread first."""
    projection, kept = projected.projection, 0
    match projection.activation:
        case Identity():
            activated = Activated.IDENTITY
        case ReLU():
            activated = Activated.RELU
        case JumpReLU():
            activated = Activated.JUMP_RELU
        case TopK(kept):
            activated = Activated.TOP_K
    vectors = _PROJECTIONS.get(projection)
    if vectors is None:
        vectors = _PROJECTIONS[projection] = _projection_vectors(projection)
    return ProjectionForm(*vectors, activated, kept, projected.top_k)


def _projection_vectors(projection: Projection) -> tuple[Vectors, Vectors]:
    bias = projection.bias
    offsets = [np.zeros(len(projection.directions), np.float32) if bias is None else bias]
    if isinstance(projection.activation, JumpReLU):
        offsets.append(projection.activation.threshold)
    lasting = projection.lasting
    directions = Vectors.of(
        projection.directions, element_type=projection.element_type, lasting=lasting
    )
    return directions, Vectors.of(np.stack(offsets), lasting=lasting)


_OUTPUTS: "WeakKeyDictionary[ProbeOutputs, OutputsForm]" = WeakKeyDictionary()


def outputs_form(outputs: ProbeOutputs) -> OutputsForm:
    """The form of what networks make of rows, made once for equal ones, as long as the first of
    them is there. Its vectors are hashed, so many are to be made in a thread first."""
    form = _OUTPUTS.get(outputs)
    if form is None:
        form = _OUTPUTS[outputs] = _outputs_form(outputs.networks)
    return form


def _outputs_form(networks: Sequence[ProbeNetwork]) -> OutputsForm:
    groups = tuple(dict.fromkeys(each.sites for each in networks))
    members = [[each for each in networks if each.sites == sites] for sites in groups]
    matrices = tuple(
        Vectors.of(np.concatenate([_inner(each)[0] for each in group])) for group in members
    )
    forms = tuple(
        NetworkForm(
            groups.index(each.sites),
            each.outputs,
            0 if each.hidden is None else len(each.hidden.bias),
        )
        for each in networks
    )
    rest = [_inner(each)[1] for group in members for each in group]
    for each in networks:
        if each.hidden is not None:
            maps, bias = _outer(each)
            rest += [maps.ravel(), bias]
    numbers = Vectors.of(np.concatenate(rest)[None])
    digest = hashlib.sha256(repr((groups, forms)).encode())
    for each in (*matrices, numbers):
        digest.update(each.digest)
    return OutputsForm(groups, matrices, forms, numbers, digest.digest())


def _inner(network: ProbeNetwork) -> tuple[np.ndarray, np.ndarray]:
    """The linear maps that read rows, and what is added to theirs."""
    if network.hidden is None:
        return _outer(network)
    return network.hidden.weights, network.hidden.bias


def _outer(network: ProbeNetwork) -> tuple[np.ndarray, np.ndarray]:
    """The linear maps that give the outputs, and what is added to theirs."""
    if network.queries is None:
        return network.values, np.array([network.bias], np.float32)
    # The bias is added where heads are summed.
    maps = np.concatenate([network.values, network.queries])
    return maps, np.zeros(len(maps), np.float32)


_DIRECTIONS: "WeakKeyDictionary[Probe, Vectors]" = WeakKeyDictionary()


def condition_form(condition: Condition) -> ConditionForm:
    """The form of a condition, whose direction is hashed once."""
    probe, above, below = condition.probe, condition.above, condition.below
    direction = _DIRECTIONS.get(probe)
    if direction is None:
        direction = _DIRECTIONS[probe] = Vectors.of(probe.direction[None])
    return ConditionForm(
        probe.site,
        direction,
        probe.bias,
        condition.aggregator,
        -math.inf if above is None else above,
        math.inf if below is None else below,
    )


def score_state(aggregator: Aggregator) -> int:
    """Numbers that a score with memory keeps of a sequence: how many tokens it has seen, what its
    smoothing needs of them, and what its reduction needs."""
    if not aggregator.has_memory:
        return 0
    smoothing = aggregator.smoothing
    kept = smoothing.tokens - 1 if isinstance(smoothing, RollingMean) else smoothing is not None
    return 1 + kept + (aggregator.reduction is not ScoreReduction.NEWEST)


def score_state_bytes(interventions: Iterable[Intervention]) -> int:
    """What the conditions of a run keep as float64 of its own sequence."""
    return sum(8 * score_state(each.aggregator) for each in conditions_of(interventions))


def vector_bytes(
    interventions: Sequence[Intervention], captures: Iterable[Capture] = ()
) -> Mapping[bytes, int]:
    """What a run with these holds of vectors: their bytes, by digest."""
    vectors = [one for each in interventions for one in form_of(each.operation).every]
    vectors += [condition_form(each).direction for each in conditions_of(interventions)]
    for each in captures:
        if isinstance(each.derived, Projected):
            vectors += projection_form(each.derived).vectors
        elif isinstance(each.derived, ProbeOutputs):
            vectors += outputs_form(each.derived).vectors
    return {each.digest: each.nbytes for each in vectors}


def _form_of(operation: Operation) -> Form:
    match operation:
        case Add(vector, coefficient, relative=False):
            return _form(Kernel.ADD, (np.float32(coefficient) * vector)[None])
        case Add(vector, coefficient):
            return _along(vector, push=coefficient)
        case Ablate(direction, coefficient):
            return _along(direction, gain=1.0 - coefficient)
        case Clamp(direction, minimum, maximum):
            low = -math.inf if minimum is None else minimum
            return _along(direction, low=low, high=math.inf if maximum is None else maximum)
        case Project(away=True):
            basis = operation.basis
            return _form(Kernel.LINEAR, np.concatenate([basis, -basis]), (1.0,))
        case Project():
            return _form(Kernel.LINEAR, np.concatenate([operation.basis] * 2), (0.0,))
        case Swap():
            return _form_of(operation.reflection)
        case Replace(rows):
            return _form(Kernel.REPLACE, rows)
        case Zero():
            return _form(Kernel.REPLACE, np.zeros((1, 1), np.float32))
        case Mean(mean):
            return _form(Kernel.REPLACE, mean[None])
        case Features(reads, columns, directions, gains, offsets):
            return Form(
                Kernel.FEATURES,
                Vectors.of(directions),
                (*gains.tolist(), *offsets.tolist()),
                None if reads is None else projection_form(Projected(reads)),
                tuple(columns.tolist()),
            )


def _form(kernel: Kernel, vectors: np.ndarray, scalars: tuple[float, ...] = ()) -> Form:
    return Form(kernel, Vectors.of(vectors), scalars)


def _along(
    direction: np.ndarray,
    *,
    gain: float = 1.0,
    low: float = -math.inf,
    high: float = math.inf,
    push: float = 0.0,
) -> Form:
    return _form(Kernel.ALONG, unit(direction)[None], (gain, low, high, push))
