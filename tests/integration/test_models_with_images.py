"""Of a model that also takes images the decoder is served as if it were the whole model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Gemma3Config

from actserve_server.engine.vllm.options import EngineOptions
from tests.integration.families import CONTEXT, make_checkpoint, make_tokenizer
from tests.integration.families import FAMILIES as TESTED
from tests.integration.harness import every_site, make_run, relative_errors
from tests.integration.in_process import InProcessEngine
from tests.integration.reference import Reference

IDS = [*range(7, 47)]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = next(each for each in TESTED if each.name == "gemma3")
    return make_checkpoint(family, tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def whole(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 with a small tower for images and that decoder."""
    folder = tmp_path_factory.mktemp("whole")
    alone = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=alone.config.to_dict(), vision_config=vision, mm_tokens_per_image=4
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.model.language_model.load_state_dict(alone.model.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_its_rows_are_those_of_its_decoder(whole: Path, decoder: Path) -> None:
    engine = InProcessEngine(
        EngineOptions(
            model_id="with-images",
            model_path=str(whole),
            dtype="float32",
            max_model_len=CONTEXT,
            max_num_seqs=4,
            kv_cache_memory_bytes=16 << 20,
            enforce_eager=True,
        )
    )
    try:
        assert engine.info.architecture == "Gemma3ForConditionalGeneration"
        sites = every_site(engine.info)
        ours = engine.run(make_run(IDS, sites=sites)).rows
    finally:
        engine.close()
    theirs = Reference(decoder, torch.float32).rows(IDS)
    assert ours.keys() == theirs.keys()
    assert max(relative_errors(rows, theirs[site]).max() for site, rows in ours.items()) <= 1e-3
