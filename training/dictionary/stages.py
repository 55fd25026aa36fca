"""The stages of training, each kept in the work folder when it is done and skipped when it is
there."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

from training import corpus, models
from training.dictionary import dictionary_card, folder, measures, site_rows
from training.dictionary.autoencoder import Dictionary
from training.dictionary.choices import Choices
from training.dictionary.learning import learn
from training.progress import console

_SPLICED_CHUNKS = 100
_ACTIVITY_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Places:
    """Folders and files of a training run."""

    model: Path
    corpus: tuple[Path, ...]
    work: Path
    out: Path


def train(choices: Choices, places: Places) -> None:
    """Trains a dictionary and writes it to `places.out`.

    Raises ValueError, which says what to change, for choices that the model or the text does not
    fit, and for a work folder of other choices.
    """
    work = _Work(places, choices)
    if not work.rows.is_file():
        _rows(work, choices, places)
    if not work.weights.is_file():
        _learn(work, choices)
    data, dictionary = load_file(work.rows), Dictionary(**load_file(work.weights))
    started = time.process_time()
    model = models.load(places.model)
    measured = _measured(dictionary, data, model, choices)
    work.note("cpu_seconds", work.noted("cpu_seconds") + time.process_time() - started)
    for name, each in (measured.reconstructions | measured.splices).items():
        console.log(f"{name}: {each}")
    folder.write(places.out, dictionary, _activity(dictionary, data["training"]), choices)
    origin = dictionary_card.Origin(
        [path.name for path in places.corpus],
        int(work.noted("documents")),
        work.noted("cpu_seconds"),
    )
    card = dictionary_card.text(choices, measured, origin)
    (places.out / "README.md").write_text(card, encoding="utf-8")
    weights = (places.out / folder.WEIGHTS).read_bytes()
    told = {"sha256": hashlib.sha256(weights).hexdigest(), **measured.document()}
    scores = json.dumps(told, indent=2)
    (places.out / "scores.json").write_text(scores + "\n", encoding="utf-8")


def _rows(work: "_Work", choices: Choices, places: Places) -> None:
    started = time.process_time()
    documents = corpus.read(places.corpus)
    parts = corpus.split(documents, choices.held_out, choices.seed)
    tokenizer = AutoTokenizer.from_pretrained(places.model)
    model = models.load(places.model)
    if not 0 <= choices.layer < len(models.blocks(model)):
        raise ValueError(
            f"layer is {choices.layer}, but {choices.base} has blocks 0 to "
            f"{len(models.blocks(model)) - 1}"
        )
    models.cut(model, choices.layer)
    a_chunk = choices.chunk_tokens - site_rows.EARLIEST
    wanted = {"training": -(-choices.rows // a_chunk), "held_out": choices.held_out_chunks}
    texts = {"training": parts.training, "held_out": parts.held_out}
    tensors: dict[str, torch.Tensor] = {}
    for name, count in wanted.items():
        chunks = corpus.chunks(texts[name], tokenizer, choices.chunk_tokens)
        if len(chunks) < count:
            raise ValueError(
                f"the {name} documents make {len(chunks)} chunks of {choices.chunk_tokens} tokens, "
                f"but {count} are needed; give more text, or ask for less"
            )
        generator = torch.Generator().manual_seed(choices.seed)
        drawn = torch.randperm(len(chunks), generator=generator)[:count].tolist()
        chosen = [chunks[index] for index in drawn]
        tensors[name] = site_rows.extract(model, chosen, choices.layer)
        tensors[f"{name}_ids"] = torch.tensor(chosen)
    work.claim()
    save_file(tensors, work.rows)
    work.note("documents", len(documents))
    work.note("cpu_seconds", time.process_time() - started)


def _learn(work: "_Work", choices: Choices) -> None:
    started = time.process_time()
    rows = load_file(work.rows)["training"]
    usual = rows[site_rows.usual(rows)]
    del rows
    torch.manual_seed(choices.seed)
    dictionary = learn(usual, choices).kept()
    save_file({name: each.contiguous() for name, each in asdict(dictionary).items()}, work.weights)
    work.note("cpu_seconds", work.noted("cpu_seconds") + time.process_time() - started)


def _measured(
    dictionary: Dictionary,
    data: dict[str, torch.Tensor],
    model: PreTrainedModel,
    choices: Choices,
) -> measures.Measured:
    held_out = data["held_out"]
    rows = held_out[site_rows.usual(held_out)]
    random = measures.random_like(dictionary, rows, choices.seed)
    reconstructions = {
        measures.TRAINED: measures.reconstruction(dictionary, rows),
        measures.RANDOM: measures.reconstruction(random, rows),
        measures.SHUFFLED: measures.reconstruction(dictionary, rows, shuffled=True),
    }
    mean = rows.float().mean(0)
    replacements = {
        measures.ITSELF: lambda rows: rows,
        measures.TRAINED: lambda rows: dictionary.decode(dictionary.encode(rows)),
        measures.RANDOM: lambda rows: random.decode(random.encode(rows)),
        measures.MEAN: lambda rows: mean.expand(rows.shape),
    }
    chunks = data["held_out_ids"][:_SPLICED_CHUNKS]
    splices = measures.spliced(
        model,
        chunks.tolist(),
        choices.layer,
        rows.float().norm(dim=-1).median().item(),
        replacements,
    )
    return measures.Measured(
        reconstructions=reconstructions,
        splices=splices,
        rows=len(rows),
        spliced_tokens=len(chunks) * (chunks.shape[1] - site_rows.EARLIEST - 1),
    )


@torch.inference_mode()
def _activity(dictionary: Dictionary, rows: torch.Tensor) -> torch.Tensor:
    some = rows.flatten(0, 1)[:_ACTIVITY_ROWS]
    blocks = [(dictionary.encode(each) > 0).float().sum(0) for each in some.split(2048)]
    return torch.stack(blocks).sum(0) / len(some)


class _Work:
    """What is done, in the work folder."""

    def __init__(self, places: Places, choices: Choices) -> None:
        """Raises ValueError if the folder is of other choices, another model or other text."""
        self._folder = places.work
        self._folder.mkdir(parents=True, exist_ok=True)
        self.rows = self._folder / "rows.safetensors"
        self.weights = self._folder / "weights.safetensors"
        self._claim = self._folder / "choices.json"
        self._notes = self._folder / "notes.json"
        self._made_from = {
            "model": str(places.model.resolve()),
            "corpus": [str(path.resolve()) for path in places.corpus],
            **asdict(choices),
        }
        if self._claim.is_file() and json.loads(self._claim.read_text()) != self._made_from:
            raise ValueError(
                f"{self._folder} holds what other choices, another model or other text left; "
                "remove it, or name another folder with --work"
            )

    def claim(self) -> None:
        """The folder is of these choices, which fit their model and text."""
        self._claim.write_text(json.dumps(self._made_from, indent=2) + "\n", encoding="utf-8")

    def note(self, name: str, value: float) -> None:
        """Keeps a number for the card."""
        self._notes.write_text(json.dumps(self._all() | {name: value}), encoding="utf-8")

    def noted(self, name: str) -> float:
        return self._all().get(name, 0.0)

    def _all(self) -> dict[str, float]:
        there = self._notes.is_file()
        return json.loads(self._notes.read_text(encoding="utf-8")) if there else {}
