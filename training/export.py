"""A trained pair as files: what an NLA server loads, and nothing else."""

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from actserve_server.nla.checkpoints import HEAD
from actserve_server.nla.profile import Baseline
from actserve_server.nla.sidecar import NAME
from training import lora
from training.train_ar import TrainedReconstructor
from training.train_av import TrainedVerbalizer

MEAN = "baseline.safetensors"


def export(
    folder: Path,
    verbalizer: TrainedVerbalizer,
    reconstructor: TrainedReconstructor,
    av_document: dict[str, Any],
    ar_document: dict[str, Any],
    baseline: Baseline,
) -> None:
    """Writes the folders `av` and `ar`, weights in bfloat16. The baseline has a mean row."""
    assert baseline.mean is not None
    measured = {"baseline": _measured(baseline)}
    for half, model, document in (
        ("av", verbalizer.model, av_document),
        ("ar", reconstructor.model, ar_document),
    ):
        lora.save(model, folder / half, document["base_checkpoint"])
        text = yaml.safe_dump(document | measured, sort_keys=False, allow_unicode=True)
        (folder / half / NAME).write_text(text, encoding="utf-8")
        save_file({"mean": torch.from_numpy(baseline.mean)}, folder / half / MEAN)
    save_file({"weight": reconstructor.head.detach().bfloat16()}, folder / "ar" / HEAD)


def _measured(baseline: Baseline) -> dict[str, Any]:
    return {
        "variance": round(baseline.variance, 6),
        "median_norm": round(baseline.median_norm or 0.0, 3),
        "rows": baseline.rows,
        "mean_file": MEAN,
    }
