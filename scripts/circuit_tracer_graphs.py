"""Make tests/unit/graphs/files/circuit_tracer_*.safetensors, graphs as circuit-tracer makes them.

    make circuit-tracer                  # whether it still makes these files
    make circuit-tracer ARGS=--write     # makes them anew

circuit-tracer needs an older transformers, so it has an environment of its own (`make peers-tool`),
and what it makes is checked in. The models and transcoders are
the tiny random ones of `tests/unit/graphs`, which are the same there and here. A file has, as
circuit-tracer's `Graph` has it and under its names, all of one graph that is not pruned, and which
of its nodes and edges `prune_graph` keeps.
"""

import argparse
import logging
import sys
from typing import Any

import torch
from circuit_tracer import attribute  # pyright: ignore[reportMissingImports]
from circuit_tracer.graph import (  # pyright: ignore[reportMissingImports]
    compute_node_influence,
    prune_graph,
)
from circuit_tracer.replacement_model.replacement_model_nnsight import (  # pyright: ignore[reportMissingImports]
    NNSightReplacementModel,
)
from circuit_tracer.transcoder.activation_functions import (  # pyright: ignore[reportMissingImports]
    JumpReLU,
)
from circuit_tracer.transcoder.single_layer_transcoder import (  # pyright: ignore[reportMissingImports]
    SingleLayerTranscoder,
    TranscoderSet,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.unit.graphs.circuit_tracer_cases import CASES, EDGES, LOGITS, NODES, PROMPT, Case
from tests.unit.graphs.tiny_models import CONFIGS, VOCABULARY, tiny


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the files, compare nothing")
    asked = parser.parse_args()
    wrong: list[str] = []
    # It warns that a graph without the name of its transcoders cannot be uploaded.
    logging.getLogger("circuit_tracer.graph").setLevel(logging.ERROR)
    for case in CASES:
        made = graph(case)
        if asked.write:
            case.file.parent.mkdir(exist_ok=True)
            save_file(made, case.file)
            continue
        kept = load_file(case.file)
        wrong += [
            f"{case.file.name}: {name}"
            for name in sorted(kept.keys() | made.keys())
            if name not in made or name not in kept or not same(kept[name], made[name])
        ]
    print("\n".join(wrong) if wrong else f"circuit-tracer: {len(CASES)} graphs")
    return 1 if wrong else 0


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(
        one.float(), other.float(), rtol=1e-4, atol=1e-6
    )


def graph(case: Case) -> dict[str, torch.Tensor]:
    """The graph of a case, and what is left of it."""
    model = NNSightReplacementModel(
        hf := hugging_face(case.family), tokenizer=words(), dispatch=True
    )
    model._hf_config = hf.config
    # Of Qwen 3 circuit-tracer knows what an MLP writes by this name alone.
    written = "hook_mlp_out" if case.family == "gemma3" else "mlp.hook_out"
    transcoders = {layer: transcoder(case, layer) for layer in range(hf.config.num_hidden_layers)}
    model._configure_replacement_model(TranscoderSet(transcoders, "mlp.hook_in", written))
    found = attribute(torch.tensor(PROMPT), model, max_n_logits=LOGITS, batch_size=16)
    weights = torch.zeros(len(found.adjacency_matrix))
    weights[-len(found.logit_targets) :] = found.logit_probabilities
    kept = prune_graph(found, NODES, EDGES)
    made = {
        "active_features": found.active_features,
        "activation_values": found.activation_values,
        "logit_tokens": torch.tensor([each.vocab_idx for each in found.logit_targets]),
        "logit_probabilities": found.logit_probabilities,
        "adjacency_matrix": found.adjacency_matrix,
        "node_influence": compute_node_influence(found.adjacency_matrix, weights),
        "node_mask": kept.node_mask,
        "edge_mask": kept.edge_mask,
    }
    return {name: each.detach().contiguous() for name, each in made.items()}


def hugging_face(family: str) -> Any:
    config = CONFIGS[family]
    config._attn_implementation = "eager"
    model = tiny(config)
    model.config.architectures = [type(model).__name__]
    return model.requires_grad_(False)


def words() -> PreTrainedTokenizerFast:
    """A tokenizer that is asked for nothing but whether the prompt begins with a special token,
    before which circuit-tracer puts another unless it does."""
    vocabulary = {f"<{each}>": each for each in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<0>")),
        bos_token=f"<{PROMPT[0]}>",
    )


def transcoder(case: Case, layer: int) -> SingleLayerTranscoder:
    """The same numbers as ours; what ours subtracts from its input is taken into its bias."""
    of = case.transcoder(layer).matrices
    assert of.input_bias is not None
    thresholds = None if of.thresholds is None else torch.from_numpy(of.thresholds)
    features, width = of.encoder.shape
    made = SingleLayerTranscoder(
        width,
        features,
        torch.relu if thresholds is None else JumpReLU(thresholds, 0.1),
        layer,
        skip_connection=of.skips[0] is not None,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    state = {
        "W_enc": of.encoder,
        "b_enc": of.encoder_bias - of.encoder @ of.input_bias,
        "W_dec": of.decoders[0],
        "b_dec": of.decoder_biases[0],
        "W_skip": of.skips[0],
        "activation_function.threshold": of.thresholds,
    }
    made.load_state_dict({k: torch.from_numpy(v) for k, v in state.items() if v is not None})
    return made.requires_grad_(False)


if __name__ == "__main__":
    sys.exit(main())
