"""The files of an adapter as PEFT saves it."""

import hashlib
from pathlib import Path

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"


def peft_digest(folder: Path) -> str:
    """SHA-256 of both, in hexadecimal."""
    made = hashlib.sha256()
    for name in (PEFT_CONFIG, PEFT_WEIGHTS):
        with (folder / name).open("rb") as file:
            made.update(hashlib.file_digest(file, "sha256").digest())
    return made.hexdigest()
