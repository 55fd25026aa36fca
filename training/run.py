"""The stages of training, each kept in the work folder when it is done and skipped when it is
there. Every stage draws from a seed of its own, so a run that was stopped ends as any other."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actserve_server.nla.baselines import measure
from training import card, corpus, dataset, expert, lora, models
from training import train_ar as ar
from training import train_av as av
from training.dataset import Dataset, Examples
from training.evaluate import evaluate
from training.export import export
from training.progress import console
from training.prompts import Words, ar_document, av_document, av_prompt
from training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Places:
    """Folders and files of a training run."""

    model: Path
    corpus: tuple[Path, ...]
    work: Path
    out: Path


def train(recipe: Recipe, places: Places) -> None:
    """Trains a pair and writes it to `places.out`.

    Raises ValueError, which says what to change, for a recipe that the model or the text does not
    fit, and for a work folder of another recipe.
    """
    stages = _Stages(places, recipe)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(places.model)
    data = _data(recipe, places, tokenizer, stages)
    baseline = measure(data.training.rows.float().numpy())
    width = data.training.rows.shape[1]
    # The usual norm: the base's own blocks then find the row as they would at its layer.
    scale = float(round(baseline.median_norm or 1.0, 1))
    about_av = av_document(recipe, tokenizer, width, scale)
    about_ar = ar_document(recipe, width)
    words = Words(about_ar, tokenizer)
    prompt = av_prompt(about_av, tokenizer, recipe.layer)

    torch.manual_seed(recipe.seed)
    verbalizer = av.TrainedVerbalizer(
        models.load(places.model), recipe.av_rank, prompt.ids, prompt.slot, scale
    )
    reconstructor = ar.TrainedReconstructor(models.load(places.model), recipe.ar_rank, recipe.layer)
    targets = Examples(
        data.training.rows[: recipe.av_examples],
        data.training.texts[: recipe.av_examples],
        data.training.tokens[: recipe.av_examples],
    )
    stages.trained("av", verbalizer, lambda: _first_av(verbalizer, targets, words, recipe))
    stages.trained("ar", reconstructor, lambda: _first_ar(reconstructor, targets, words, recipe))
    for number in range(recipe.rounds):
        rows = data.training.rows[recipe.round_slice(number)]
        _round(number, rows, targets, verbalizer, reconstructor, words, recipe, stages)

    evaluation = evaluate(verbalizer, reconstructor, data.held_out, baseline, words, recipe)
    for name, result in evaluation.results.items():
        console.log(f"{name}: FVE {result.variance_explained:.3f} top-1 {result.retrieval:.1%}")
    export(places.out, verbalizer, reconstructor, about_av, about_ar, baseline)
    origin = card.Origin([path.name for path in places.corpus], stages.documents, stages.seconds)
    card.write(places.out / "README.md", recipe, evaluation, origin)
    scores = json.dumps(evaluation.document(), indent=2, ensure_ascii=False)
    (places.out / "scores.json").write_text(scores + "\n", encoding="utf-8")


def _data(
    recipe: Recipe, places: Places, tokenizer: PreTrainedTokenizerBase, stages: "_Stages"
) -> Dataset:
    if (data := Dataset.load(places.work)) is not None:
        return data
    start = time.monotonic()
    documents = corpus.read(places.corpus)
    model = models.load(places.model)
    if not 0 <= recipe.layer < len(models.blocks(model)):
        raise ValueError(
            f"layer is {recipe.layer}, but {recipe.base} has blocks 0 to "
            f"{len(models.blocks(model)) - 1}"
        )
    data = dataset.make(documents, model, tokenizer, recipe)
    data.save(places.work)
    stages.claim()
    stages.note(len(documents), time.monotonic() - start)
    return data


def _first_av(
    verbalizer: av.TrainedVerbalizer, targets: Examples, words: Words, recipe: Recipe
) -> None:
    av.train(
        verbalizer,
        targets.rows,
        [words.answer(text) for text in targets.texts],
        batch=recipe.batch,
        rate=recipe.rate,
        seed=recipe.seed,
        name="AV",
    )


def _first_ar(
    reconstructor: ar.TrainedReconstructor, targets: Examples, words: Words, recipe: Recipe
) -> None:
    ar.train(
        reconstructor,
        targets.rows[: recipe.ar_examples],
        [words.prompt(text) for text in targets.texts[: recipe.ar_examples]],
        batch=recipe.batch,
        rate=recipe.rate,
        head_rate=recipe.head_rate,
        seed=recipe.seed,
        name="AR",
    )


def _round(
    number: int,
    rows: torch.Tensor,
    targets: Examples,
    verbalizer: av.TrainedVerbalizer,
    reconstructor: ar.TrainedReconstructor,
    words: Words,
    recipe: Recipe,
    stages: "_Stages",
) -> None:
    seed = recipe.seed + 1 + number
    name = f"round {number + 1}"
    attempts = stages.attempts(
        f"attempts-{number}",
        rows,
        lambda: expert.attempt(
            verbalizer, rows, words, recipe, seed=seed, name=f"{name}: attempts"
        ),
    )
    stages.trained(
        f"ar-{number}",
        reconstructor,
        lambda: expert.learn_to_read(
            reconstructor, attempts, targets, words, recipe, seed=seed, name=f"{name}: AR"
        ),
    )

    def write_better() -> None:
        best = expert.best(reconstructor, attempts, words, f"{name}: best")
        expert.learn_to_write(verbalizer, *best, words, recipe, seed=seed, name=f"{name}: AV")

    stages.trained(f"av-{number}", verbalizer, write_better)


class _Stages:
    """What is done, in the work folder."""

    def __init__(self, places: Places, recipe: Recipe) -> None:
        """Raises ValueError if the folder is of another recipe, model or text."""
        self._folder = places.work
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made_from = {
            "model": str(places.model.resolve()),
            "corpus": [str(path.resolve()) for path in places.corpus],
            **asdict(recipe),
        }
        self._claim = self._folder / "recipe.json"
        if self._claim.is_file() and json.loads(self._claim.read_text()) != self._made_from:
            raise ValueError(
                f"{self._folder} holds what another recipe, model or text left; remove it, or name "
                "another folder with --work"
            )

    def claim(self) -> None:
        """The folder is this recipe's, which fits its model and text."""
        self._claim.write_text(json.dumps(self._made_from, indent=2) + "\n", encoding="utf-8")

    def trained(self, name: str, model: nn.Module, stage: Callable[[], None]) -> None:
        """Trains a model, or takes up what it learned before."""
        path = self._folder / f"{name}.safetensors"
        if path.is_file():
            lora.load_state(model, path)
            return
        start = time.monotonic()
        stage()
        lora.save_state(model, path)
        self.note(0, time.monotonic() - start)

    def attempts(
        self, name: str, rows: torch.Tensor, stage: Callable[[], expert.Attempts]
    ) -> expert.Attempts:
        """What the AV wrote of rows, now or before."""
        path = self._folder / f"{name}.json"
        if path.is_file():
            return expert.Attempts(rows, json.loads(path.read_text(encoding="utf-8")))
        start = time.monotonic()
        attempts = stage()
        attempts.save(path)
        self.note(0, time.monotonic() - start)
        return attempts

    def note(self, documents: int, seconds: float) -> None:
        """Adds to what the model card says of the whole run."""
        path = self._folder / "origin.json"
        spent = {"documents": self.documents + documents, "seconds": self.seconds + seconds}
        path.write_text(json.dumps(spent), encoding="utf-8")

    @property
    def documents(self) -> int:
        return int(self._origin.get("documents", 0))

    @property
    def seconds(self) -> float:
        return float(self._origin.get("seconds", 0.0))

    @property
    def _origin(self) -> dict[str, float]:
        path = self._folder / "origin.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
