"""`python -m training.dictionary`: trains a small sparse autoencoder from any folder of text."""

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args, get_type_hints

from training.dictionary.choices import Choices
from training.dictionary.stages import Places, train


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.dictionary",
        description="Trains a small sparse autoencoder of rows of a model's residual stream, and "
        "writes it as a folder of SAELens. What is finished is kept in the work folder, so the "
        "same command goes on where it was stopped.",
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of the model, safetensors and tokenizer"
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, action="append", help="text: folder, zip or file"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the dictionary")
    parser.add_argument("--work", type=Path, help="folder for what is unfinished; OUT.work")
    hints = get_type_hints(Choices, include_extras=True)
    for field in fields(Choices):
        kind, help_text = get_args(hints[field.name])
        required = field.default is MISSING
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            required=required,
            default=None if required else field.default,
            help=help_text if required else f"{help_text} ({field.default})",
        )
    options = parser.parse_args(arguments)
    choices = Choices(**{field.name: getattr(options, field.name) for field in fields(Choices)})
    work = options.work or options.out.with_name(options.out.name + ".work")
    try:
        train(choices, Places(options.model, tuple(options.corpus), work, options.out))
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
