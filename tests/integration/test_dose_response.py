"""The more of a vector that the server made is added, the further the model goes its way."""

import os
from pathlib import Path

import grpc
import numpy as np
import pytest

from scripts.dose_response import COEFFICIENTS, LAYERS, PICTURE, Curve, Study, draw
from scripts.sentiment import NEUTRAL
from tests.integration.conftest import Served


@pytest.fixture(scope="module")
def curves(served: Served) -> dict[int, Curve]:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        found = Study(channel).curves(LAYERS, COEFFICIENTS)
    if folder := os.environ.get("ACTSERVE_PICTURES"):
        draw(found, COEFFICIENTS, Path(folder) / PICTURE.name)
    return {curve.layer: curve for curve in found}


@pytest.mark.parametrize("layer", LAYERS)
def test_the_metric_rises_with_every_step_from_minus_two_to_two(
    layer: int, curves: dict[int, Curve]
) -> None:
    assert (COEFFICIENTS[0], COEFFICIENTS[-1], len(NEUTRAL)) == (-2, 2, 32)
    metric = curves[layer].made.mean(axis=1)
    print(f"layer {layer}: {metric.round(2).tolist()}")
    assert (np.diff(metric) > 0).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_random_vectors_of_its_norm_move_it_by_less_than_a_third(
    layer: int, curves: dict[int, Curve]
) -> None:
    curve, plain = curves[layer], COEFFICIENTS.index(0.0)
    moved = curve.made[-1].mean() - curve.made[plain].mean()
    by_chance = curve.random[:, -1].mean(axis=1) - curve.made[plain].mean()
    print(f"layer {layer}: {moved:.2f}, at random {np.abs(by_chance).round(2).tolist()}")
    # On average: among random vectors some lean towards sentiment too.
    assert np.abs(by_chance).mean() < moved / 3


@pytest.mark.parametrize("layer", LAYERS)
def test_what_it_was_made_of_tells_that_it_will(layer: int, curves: dict[int, Curve]) -> None:
    assert curves[layer].held_out_auroc > 0.8
    assert 0.05 < curves[layer].norm < 2
