"""Dashboards: features of an index in the forms that other projects show.

Both are written as read in the sources named; neither project's own code was run on them.

- The feature files of circuit-tracer's viewer (Anthropic's form): a JSON for each feature, named
  by the pairing number of its layer and index.
- The export of Neuronpedia: JSON lines, with what it calls sources, features, activations and
  explanations.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from actserve._checks import described
from actserve._names import short
from actserve.dictionaries import feature_index
from actserve.errors import InvalidRequest
from actserve.feature_index import FeatureExample, FeatureIndex
from actserve.features import LogitEffect
from actserve.sites import Site

_INTERVALS = 4
"""Parts of the range of a feature of which examples are shown, beside the largest ones."""
_BARS = 40
"""Of a histogram."""
_LINES_PER_FILE = 1024
"""Features of one file of an export."""


def write_feature_files(
    folder: str | PathLike[str],
    index: FeatureIndex,
    features: Iterable[int | LogitEffect],
    *,
    examples: int = 20,
) -> list[Path]:
    """Writes the JSON of each feature as circuit-tracer's viewer reads it, and returns the files.

    - `features`: their numbers, or what `client.features.logit_effects` returned, by which the
      files also tell the tokens that they raise and lower.
    - `examples`: prompts that are shown of the largest values, and a fourth of it of each quarter
      below.

    A feature that is active nowhere in the index has no examples.

        effects = client.features.logit_effects([Feature("smollm2-135m", 7)])
        actserve.write_feature_files("features", index, effects)
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    layer = _layer(index)
    counts = index.counts()
    written: list[Path] = []
    for number, effect in _named(features, index):
        told = _feature_file(index, number, effect, layer, int(counts[number]), examples)
        path = place / f"{pairing(layer, number)}.json"
        path.write_text(json.dumps(told, ensure_ascii=False), "utf-8")
        written.append(path)
    return written


def write_neuronpedia_export(
    folder: str | PathLike[str],
    index: FeatureIndex,
    features: Iterable[int | LogitEffect],
    *,
    model: str,
    source_set: str,
    creator: str = "",
    examples: int = 20,
) -> Path:
    """Writes the files of a Neuronpedia export, and returns the folder that they are in:
    `<folder>/<model>/<layer>-<source_set>`.

    - `features`: as for `write_feature_files`; a `LogitEffect` also brings its label, which becomes
      an explanation.
    - `model`: the id that Neuronpedia has for the model. `source_set`: what this dictionary's set
      is to be called there. `creator`: the id of who made it.

    Vectors, and histograms of logits, are left empty.
    """
    layer = _layer(index)
    source = f"{layer}-{source_set}"
    for name, text in (("model", model), ("source_set", source_set)):
        if not isinstance(text, str) or not text or Path(text).name != text:
            raise InvalidRequest(
                f"{name} is {described(text)}; give a name without slashes",
                reason="FIELD_INVALID",
                path=(name,),
            )
    place = Path(folder) / model / source
    named = [*_named(features, index)]
    whole = {
        "release": {"name": source_set, "description": "", "creatorId": creator},
        "model": {"id": model, "displayName": model, "creatorId": creator},
        "sourceset": {
            "modelId": model,
            "name": source_set,
            "description": "",
            "creatorId": creator,
            "hasDashboards": True,
        },
        "source": {
            "id": source,
            "modelId": model,
            "setName": source_set,
            "creatorId": creator,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "num_prompts": index.prompts,
            "dataset": str(index.folder.name),
        },
    }
    place.mkdir(parents=True, exist_ok=True)
    for name, told in whole.items():
        (place / f"{name}.jsonl").write_text(json.dumps(told) + "\n", "utf-8")
    counts, hook = index.counts(), f"blocks.{layer}.hook_{Site.parse(index.of.site).hook_point}"
    for batch, first in enumerate(range(0, len(named), _LINES_PER_FILE)):
        some = named[first : first + _LINES_PER_FILE]
        ids = {"modelId": model, "layer": source}
        lines: Mapping[str, Iterable[Any]] = {
            "features": (
                _neuronpedia_feature(index, number, effect, int(counts[number]))
                | ids
                | {"sourceSetName": source_set, "hookName": hook}
                for number, effect in some
            ),
            "activations": (
                _neuronpedia_activation(example, source) | ids
                for number, _ in some
                for example in index.top_examples(number, examples)
            ),
            "explanations": (
                ids
                | {
                    "id": _id(source, str(number), effect.label),
                    "index": str(number),
                    "description": effect.label,
                    "authorId": creator,
                    "typeName": "",
                    "explanationModelName": "",
                }
                for number, effect in some
                if effect and effect.label
            ),
        }
        for name, many in lines.items():
            path = place / name / f"batch-{batch}.jsonl.gz"
            path.parent.mkdir(exist_ok=True)
            with gzip.open(path, "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in many)
    return place


def pairing(layer: int, feature: int) -> int:
    """The one number that stands for a layer and a feature there (Cantor's pairing function)."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def _named(
    features: Iterable[int | LogitEffect], index: FeatureIndex
) -> Iterator[tuple[int, LogitEffect | None]]:
    for each in features:
        effect = each if isinstance(each, LogitEffect) else None
        number = effect.feature if effect else feature_index(each)
        dictionary = short(index.of.dictionary)
        if effect and effect.dictionary != dictionary:
            raise InvalidRequest(
                f"the effect is of the dictionary {effect.dictionary!r}, and the index of "
                f"{dictionary!r}",
                reason="FIELD_INVALID",
                path=("features",),
            )
        if number >= index.of.features:
            raise InvalidRequest(
                f"there is no feature {number}; the dictionary has {index.of.features}",
                reason="FIELD_INVALID",
                path=("features",),
            )
        yield number, effect


def _layer(index: FeatureIndex) -> int:
    layer = Site.parse(index.of.site).layer
    if layer is None:
        raise InvalidRequest(
            f"{index.of.site} has no layer, by which both forms name features",
            reason="SITE_INVALID",
        )
    return layer


def _feature_file(
    index: FeatureIndex,
    number: int,
    effect: LogitEffect | None,
    layer: int,
    count: int,
    examples: int,
) -> dict[str, Any]:
    values = index.values(number)
    top = float(values.max(initial=0))
    heights, edges = np.histogram(values, _BARS, (0.0, top or 1.0))
    groups = [("Top activations", index.top_examples(number, examples))]
    bounds = np.linspace(0, top, _INTERVALS + 1)[::-1].tolist()
    groups += [
        (
            f"Subsample interval {at}",
            index.examples_between(number, low, high, max(1, examples // _INTERVALS)),
        )
        for at, (high, low) in enumerate(pairwise(bounds))
        if top > 0
    ]
    return {
        "index": number,
        "examples_quantiles": [
            {
                "quantile_name": name,
                "examples": [
                    {
                        "tokens": [*example.tokens],
                        "tokens_acts_list": _rounded(example.values),
                        "train_token_ind": example.position,
                        "is_repeated_datapoint": False,
                    }
                    for example in many
                ],
            }
            for name, many in groups
            if many
        ],
        "top_logits": [*effect.top_tokens] if effect else [],
        "bottom_logits": [*effect.bottom_tokens] if effect else [],
        "transcoder_id": f"{layer}-{short(index.of.dictionary)}",
        "act_min": 0.0,
        "act_max": round(top, 5),
        "quantile_values": _rounded(np.quantile(values, np.linspace(0, 1, 5))) if count else [],
        "histogram": [heights.tolist(), _rounded(edges)],
        "activation_frequency": count / max(1, index.tokens),
    }


def _neuronpedia_feature(
    index: FeatureIndex, number: int, effect: LogitEffect | None, count: int
) -> dict[str, Any]:
    values = index.values(number)
    top = float(values.max(initial=0))
    heights, edges = np.histogram(values, _BARS, (0.0, top or 1.0))
    return {
        "index": str(number),
        "maxActApprox": round(top, 5),
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "topkCosSimIndices": [],
        "topkCosSimValues": [],
        "pos_str": [*effect.top_tokens] if effect else [],
        "pos_values": _rounded(effect.top_effects) if effect else [],
        "neg_str": [*effect.bottom_tokens] if effect else [],
        "neg_values": _rounded(effect.bottom_effects) if effect else [],
        "frac_nonzero": count / max(1, index.tokens),
        "freq_hist_data_bar_heights": heights.tolist(),
        "freq_hist_data_bar_values": _rounded((edges[:-1] + edges[1:]) / 2),
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
    }


def _neuronpedia_activation(example: FeatureExample, source: str) -> dict[str, Any]:
    return {
        "id": _id(source, str(example.feature), example.key),
        "index": str(example.feature),
        "tokens": [*example.tokens],
        "values": _rounded(example.values),
        "maxValue": round(example.value, 5),
        "maxValueTokenIndex": example.position,
        "minValue": round(float(example.values.min()), 5),
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
    }


def _id(*parts: str) -> str:
    """One that is the same when the same is written again."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _rounded(values: Sequence[Any] | np.ndarray[Any, Any]) -> list[float]:
    return [round(float(each), 5) for each in values]
