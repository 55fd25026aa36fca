"""An embedded model becomes an ordinary Hugging Face folder, once, and says sensible things."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from actserve_server.models import embedded
from actserve_server.models.embedded import Chunk, EmbeddedModel, MissingModelPackageError
from actserve_server.models.resolve import resolve
from actserve_server.models.targets import SMOLLM2_135M_INSTRUCT

# A cold cache pays for a conversion inside a fixture.
pytestmark = pytest.mark.timeout(300)

SMOLLM2 = "smollm2-135m"
GEMMA3 = "gemma3-270m"


# --- the folders of the real models ------------------------------------------


@dataclass(frozen=True)
class Loaded:
    id: str
    folder: Path
    config: Any
    tokenizer: Any
    model: Any
    loading_info: dict[str, Any]

    def continuation(self, prompt: str, tokens: int, *, special: bool = True) -> str:
        inputs = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=special)
        ids = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0]
        return self.tokenizer.decode(ids[inputs["input_ids"].shape[1] :])


def load(model_id: str, folder: Path) -> Loaded:
    # float32, because in bfloat16 a near tie falls either way from machine to machine.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model, info = loaded
    return Loaded(
        id=model_id,
        folder=folder,
        config=AutoConfig.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        model=model,
        loading_info=info,
    )


@pytest.fixture(scope="module")
def smollm2(model_path: Callable[[str], Path]) -> Loaded:
    return load(SMOLLM2, model_path(SMOLLM2))


@pytest.fixture(scope="module")
def gemma3(model_path: Callable[[str], Path]) -> Loaded:
    return load(GEMMA3, model_path(GEMMA3))


@pytest.fixture(scope="module", params=[SMOLLM2, GEMMA3])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return request.getfixturevalue({SMOLLM2: "smollm2", GEMMA3: "gemma3"}[request.param])


def test_a_prepared_folder_holds_every_weight_of_its_config(loaded: Loaded) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not loaded.loading_info[kind]
    output, embedding = loaded.model.lm_head.weight, loaded.model.model.embed_tokens.weight
    assert output.data_ptr() == embedding.data_ptr()


def test_preparing_again_touches_no_file(loaded: Loaded) -> None:
    def state() -> dict[str, tuple[int, int]]:
        stats = {path.name: path.stat() for path in loaded.folder.iterdir()}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}

    before = state()
    assert embedded.prepare(loaded.id, loaded.folder.parent) == loaded.folder
    assert state() == before


def test_every_user_of_the_machine_may_read_the_folder(loaded: Loaded) -> None:
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in loaded.folder.iterdir())


def test_smollm2_has_the_published_config(smollm2: Loaded) -> None:
    config = smollm2.config
    assert config.architectures == ["LlamaForCausalLM"]
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (
        30,
        576,
        1536,
    )
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.max_position_embeddings) == (49152, 8192)
    assert config.rope_parameters == {"rope_theta": 100000, "rope_type": "default"}
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings
    assert config.dtype == torch.bfloat16


def test_gemma3_has_the_published_config(gemma3: Loaded) -> None:
    config = gemma3.config
    assert config.architectures == ["Gemma3ForCausalLM"]
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (
        18,
        640,
        2048,
    )
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 1, 256)
    assert (config.vocab_size, config.max_position_embeddings) == (262144, 32768)
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == [
        5,
        11,
        17,
    ]
    assert config.layer_types.count("sliding_attention") == 15
    assert config.sliding_window == 512
    assert config.rope_parameters["full_attention"]["rope_theta"] == 1e6
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 1e4
    assert config.query_pre_attn_scalar == 256
    assert config.attn_logit_softcapping is config.final_logit_softcapping is None
    assert config.rms_norm_eps == 1e-6
    assert config.tie_word_embeddings
    assert config.dtype == torch.bfloat16


def test_smollm2_stops_at_the_end_of_a_turn(smollm2: Loaded) -> None:
    assert smollm2.tokenizer.eos_token == "<|im_end|>"
    assert smollm2.model.generation_config.eos_token_id == smollm2.tokenizer.eos_token_id == 2


def test_gemma3_stops_at_the_end_of_a_text(gemma3: Loaded) -> None:
    assert gemma3.tokenizer.eos_token == "<eos>"
    assert gemma3.model.generation_config.eos_token_id == gemma3.tokenizer.eos_token_id == 1


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is",
        "  two spaces, then 1,234.5\n\n\n\tand a tab  ",
        "Naïve café — 北京 🙂👍🏽 zero​width",
        "def f(x):\n    return x ** 2  # comment\r\n",
    ],
)
def test_a_text_survives_encoding_and_decoding(loaded: Loaded, text: str) -> None:
    ids = loaded.tokenizer(text)["input_ids"]
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_smollm2_declares_a_bos_and_never_prepends_it(smollm2: Loaded) -> None:
    assert smollm2.tokenizer.bos_token_id == 1
    assert smollm2.tokenizer("The capital of France is")["input_ids"] == [504, 3575, 282, 4649, 314]


def test_gemma3_prepends_its_bos_to_every_text(gemma3: Loaded) -> None:
    assert gemma3.tokenizer.bos_token_id == 2
    ids = [818, 5279, 529, 7001, 563]
    assert gemma3.tokenizer("The capital of France is")["input_ids"] == [2, *ids]
    assert (
        gemma3.tokenizer("The capital of France is", add_special_tokens=False)["input_ids"] == ids
    )


def test_smollm2_splits_off_every_digit_before_merging(smollm2: Loaded) -> None:
    # The reference is llama.cpp on the same GGUF; without the split the two spaces stay apart.
    ids = [788, 256, 34, 32, 34, 36, 42, 333, 33, 216, 32, 32, 32]
    assert smollm2.tokenizer("In  2024:   1 000")["input_ids"] == ids


def test_smollm2_renders_a_conversation_as_chatml(smollm2: Loaded) -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    rendered = smollm2.tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_gemma3_is_a_pretrained_model_and_claims_no_chat_template(gemma3: Loaded) -> None:
    assert gemma3.tokenizer.chat_template is None


def test_smollm2_completes_the_capital_of_france(smollm2: Loaded) -> None:
    assert smollm2.continuation("The capital of France is", 2) == " Paris."


def test_smollm2_answers_a_question_and_ends_its_turn(smollm2: Loaded) -> None:
    prompt = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    answer = smollm2.continuation(prompt, 16, special=False)
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_gemma3_completes_the_capital_of_france(gemma3: Loaded) -> None:
    # On "The capital of France is" this small pretrained model prefers " the capital of the
    # country of France", with Paris third.
    assert gemma3.continuation("The capital city of France is called", 2) == " Paris."


# --- the life of a cache folder, with a toy package and a toy conversion ------


@dataclass
class Workshop:
    """A toy model of two chunks, and what its conversion does."""

    cache: Path
    version: str | None = "1.0"
    conversions: int = 0
    before_finishing: Callable[[Path], None] = lambda folder: None

    @property
    def folder(self) -> Path:
        return self.cache / "toy"

    def write_folder(self, gguf_path: Path, model: EmbeddedModel, folder: Path) -> None:
        self.conversions += 1
        (folder / "config.json").write_text("{}")
        self.before_finishing(folder)
        (folder / "model.safetensors").write_bytes(gguf_path.read_bytes())

    def prepare(self) -> Path:
        return embedded.prepare("toy", self.cache)

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    package = tmp_path / "site" / "actserve_toy_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('located, never imported')")
    (package / "part0").write_bytes(b"GG")
    (package / "part1").write_bytes(b"UF")
    toy = EmbeddedModel(
        id="toy",
        title="Toy",
        licence="none",
        distribution="toy-model",
        extra="toy",
        chunks=tuple(Chunk(module="actserve_toy_model", path=f"part{n}") for n in range(2)),
        sha256=sha256(b"GGUF").hexdigest(),
        target=SMOLLM2_135M_INSTRUCT,
    )
    shop = Workshop(cache=tmp_path / "cache")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", {"toy": toy})
    monkeypatch.setattr(embedded, "_installed_version", lambda _: shop.version)
    monkeypatch.setattr(embedded, "_write_folder", shop.write_folder)
    return shop


WHOLE = {"config.json", "model.safetensors", "actserve.json"}


def test_chunks_are_joined_in_order_and_the_joined_copy_is_not_kept(workshop: Workshop) -> None:
    assert workshop.prepare() == workshop.folder
    assert (workshop.folder / "model.safetensors").read_bytes() == b"GGUF"
    assert workshop.names() == WHOLE


def test_a_complete_folder_is_not_converted_again(workshop: Workshop) -> None:
    workshop.prepare()
    workshop.prepare()
    assert workshop.conversions == 1


def test_an_interrupted_conversion_leaves_no_folder_and_is_repeated(workshop: Workshop) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    workshop.before_finishing = interrupt
    with pytest.raises(KeyboardInterrupt):
        workshop.prepare()
    assert not workshop.folder.exists()

    workshop.before_finishing = lambda folder: None
    workshop.prepare()
    assert workshop.names() == WHOLE


def test_what_a_killed_conversion_left_behind_is_discarded(workshop: Workshop) -> None:
    # A killed process cleans up nothing, but its lock is gone with it.
    left_behind = workshop.cache / ".toy.tmp"
    left_behind.mkdir(parents=True)
    (left_behind / "half.safetensors").write_bytes(b"GG")
    workshop.prepare()
    assert workshop.names() == WHOLE
    assert not left_behind.exists()


def test_a_folder_without_its_marker_is_not_used(workshop: Workshop) -> None:
    workshop.folder.mkdir(parents=True)
    (workshop.folder / "half.safetensors").write_bytes(b"GG")
    workshop.prepare()
    assert workshop.names() == WHOLE


def test_another_version_of_the_package_is_converted_again(workshop: Workshop) -> None:
    workshop.prepare()
    workshop.version = "1.1"
    workshop.prepare()
    assert workshop.conversions == 2
    marker = json.loads((workshop.folder / "actserve.json").read_text())
    assert marker["source"]["version"] == "1.1"


def test_another_version_of_the_conversion_converts_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.prepare()
    monkeypatch.setattr(embedded, "CONVERSION_VERSION", embedded.CONVERSION_VERSION + 1)
    workshop.prepare()
    assert workshop.conversions == 2


def test_a_complete_folder_is_used_without_its_package(workshop: Workshop) -> None:
    workshop.prepare()
    workshop.version = None
    assert workshop.prepare() == workshop.folder
    assert workshop.conversions == 1


def test_callers_at_the_same_time_share_one_conversion(workshop: Workshop) -> None:
    # Each caller opens the lock file anew, so threads exclude each other as processes do.
    started, finish = threading.Event(), threading.Event()

    def wait(folder: Path) -> None:
        started.set()
        assert finish.wait(30)

    workshop.before_finishing = wait
    folders: list[Path] = []
    callers = [
        threading.Thread(target=lambda: folders.append(workshop.prepare())) for _ in range(3)
    ]
    callers[0].start()
    assert started.wait(30)
    for caller in callers[1:]:
        caller.start()
    finish.set()
    for caller in callers:
        caller.join(30)
    assert folders == [workshop.folder] * 3
    assert workshop.conversions == 1
    assert workshop.names() == WHOLE


def test_a_missing_package_is_named_with_the_extra_that_installs_it(workshop: Workshop) -> None:
    workshop.version = None
    with pytest.raises(MissingModelPackageError, match=r"pip install 'actserve-server\[toy\]'"):
        workshop.prepare()


def test_a_missing_chunk_counts_as_a_missing_package(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "site" / "actserve_toy_model" / "part1").unlink()
    with pytest.raises(MissingModelPackageError, match="not \\(completely\\) installed"):
        workshop.prepare()


def test_a_damaged_package_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "site" / "actserve_toy_model" / "part1").write_bytes(b"??")
    with pytest.raises(ValueError, match="damaged"):
        workshop.prepare()
    assert not workshop.folder.exists()


def test_an_unknown_id_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gemma3-270m, smollm2-135m"):
        embedded.prepare("smollm3", tmp_path)


# --- resolving ----------------------------------------------------------------


def test_an_embedded_id_resolves_to_its_converted_folder(smollm2: Loaded) -> None:
    resolved = resolve(SMOLLM2, smollm2.folder.parent)
    assert (resolved.id, resolved.path_or_hub_id) == (SMOLLM2, str(smollm2.folder))


def test_a_folder_resolves_to_itself_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert resolve(str(folder), tmp_path).id == "my-model"
    assert resolve(str(folder), tmp_path).path_or_hub_id == str(folder)
    monkeypatch.chdir(folder)
    assert resolve(".", tmp_path).id == "my-model"


def test_anything_else_is_passed_on_as_a_hub_id(tmp_path: Path) -> None:
    resolved = resolve("Qwen/Qwen3-0.6B", tmp_path)
    assert (resolved.id, resolved.path_or_hub_id) == ("Qwen/Qwen3-0.6B",) * 2


def test_a_path_that_is_no_folder_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model folder not found"):
        resolve(str(tmp_path / "absent"), tmp_path)


def test_the_default_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert embedded.default_cache_dir() == Path("/elsewhere/actserve")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.default_cache_dir() == Path.home() / ".cache" / "actserve"
