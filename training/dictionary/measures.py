"""What a dictionary is worth, on documents that it has not seen, beside controls.

Without controls a number means little: any 4,096 directions explain some of a row, and a model that
reads the mean row in place of its own is less bad than one might think.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel

from training.dictionary.autoencoder import Dictionary
from training.dictionary.site_rows import EARLIEST, SINK
from training.models import blocks, unembed
from training.progress import track

_Replaced = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """How rows compare with what a dictionary makes of them."""

    variance_explained: float
    """1 - squared error / squared distance from the mean of these rows, both summed."""
    features_per_row: float
    """L0: how many are active at a row, on average."""
    dead_features: int
    """Active at none of these rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splice:
    """The model's loss where its rows are replaced by others."""

    loss: float
    """Mean of -ln p(next token)."""
    recovered: float
    """0 as with the mean row, 1 as with the rows themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    reconstructions: dict[str, Reconstruction]
    splices: dict[str, Splice]
    rows: int
    spliced_tokens: int

    def document(self) -> dict[str, object]:
        return asdict(self)


TRAINED, RANDOM, SHUFFLED, MEAN, ITSELF = (
    "this dictionary",
    "random directions, as many active",
    "this dictionary, of another row",
    "the mean row",
    "the row itself",
)


def random_like(dictionary: Dictionary, rows: torch.Tensor, seed: int) -> Dictionary:
    """A dictionary of random directions that keeps as many features at a row on average, and whose
    features are scaled to fit the rows [rows, width] best."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dictionary.encoder.shape, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    sample = rows[torch.randperm(len(rows), generator=generator)[:1000]].float()
    active = (dictionary.encode(sample) > 0).float().mean().item()
    before = ((sample - dictionary.bias) @ directions.T).flatten()
    threshold = before.kthvalue(round(len(before) * (1 - active))).values
    chosen = Dictionary(
        encoder=directions,
        encoder_bias=torch.zeros(len(directions)),
        thresholds=threshold.expand(len(directions)).clone(),
        decoder=directions,
        bias=dictionary.bias,
    )
    written = chosen.encode(sample) @ directions
    gain = (written * (sample - dictionary.bias)).sum() / written.square().sum()
    return Dictionary(
        encoder=chosen.encoder,
        encoder_bias=chosen.encoder_bias,
        thresholds=chosen.thresholds,
        decoder=directions * gain,
        bias=chosen.bias,
    )


@torch.inference_mode()
def reconstruction(
    dictionary: Dictionary, rows: torch.Tensor, *, shuffled: bool = False, block: int = 2048
) -> Reconstruction:
    """Of rows [rows, width]; `shuffled` compares each with what is made of the one before."""
    mean = rows.float().mean(0)
    error = variance = active = 0.0
    seen = torch.zeros(len(dictionary.encoder), dtype=torch.bool)
    for start in range(0, len(rows), block):
        some = rows[start : start + block].float()
        features = dictionary.encode(some)
        made = dictionary.decode(features)
        error += (some - (made.roll(1, 0) if shuffled else made)).square().sum().item()
        variance += (some - mean).square().sum().item()
        active += (features > 0).sum().item()
        seen |= (features > 0).any(0)
    return Reconstruction(
        variance_explained=1 - error / variance,
        features_per_row=active / len(rows),
        dead_features=int((~seen).sum()),
    )


def spliced(
    model: PreTrainedModel,
    chunks: Sequence[Sequence[int]],
    layer: int,
    median_norm: float,
    replacements: dict[str, _Replaced],
) -> dict[str, Splice]:
    """Losses with the rows of a layer replaced by each function of rows [rows, width]. Attention
    sinks are left as they are. `MEAN` and `ITSELF` have to be among the functions."""
    losses = {
        name: _loss(model, chunks, layer, median_norm, replaced, name)
        for name, replaced in replacements.items()
    }
    span = losses[MEAN] - losses[ITSELF]
    return {
        name: Splice(loss=loss, recovered=(losses[MEAN] - loss) / span)
        for name, loss in losses.items()
    }


@torch.inference_mode()
def _loss(
    model: PreTrainedModel,
    chunks: Sequence[Sequence[int]],
    layer: int,
    median_norm: float,
    replaced: _Replaced,
    name: str,
    batch: int = 10,
) -> float:
    def splice(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        usual = output.float().norm(dim=-1) < SINK * median_norm
        usual[:, :EARLIEST] = False
        changed[usual] = replaced(output[usual]).to(output.dtype)
        return changed

    ids = torch.tensor(chunks)
    total = 0.0
    handle = blocks(model)[layer].register_forward_hook(splice)  # type: ignore[arg-type]
    try:
        for start in track(range(0, len(ids), batch), f"splice {name}"):
            some = ids[start : start + batch]
            states = model.base_model(some, use_cache=False)[0]
            # The first predictions are of an attention sink, whatever is spliced in.
            logits = unembed(model, states[:, EARLIEST:-1])
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), some[:, EARLIEST + 1 :].flatten(), reduction="sum"
            ).item()
    finally:
        handle.remove()
    return total / (ids.shape[0] * (ids.shape[1] - EARLIEST - 1))
