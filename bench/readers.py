"""Others that read the residual stream of every layer, each in a process of its own.

`python -m bench.readers NAME MODEL DTYPE` loads the model, prints a line, and then reads a corpus
for every line that it is sent: token ids in JSON. Each answer says how long it took.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

BATCH_TOKENS = 2048
"""Of a batch, padding included: what vLLM computes in a step unless told otherwise."""

Ids = Sequence[Sequence[int]]
Read = Callable[[Ids], Iterator[np.ndarray]]
"""Rows of each text, in any order, float32 [layers, tokens, width]."""


def by_length(texts: Ids) -> Iterator[Ids]:
    """Batches of texts of similar length, so that little of each batch is padding."""
    batch: list[Sequence[int]] = []
    for text in sorted(texts, key=len):
        if batch and len(text) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def transformers(model: str, dtype: str) -> Read:
    import torch
    from transformers import AutoModel

    # Without the unembedding, which this needs as little as a fetch does.
    network = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def read(texts: Ids) -> Iterator[np.ndarray]:
        for batch in by_length(texts):
            with torch.inference_mode():
                output = network(**_padded(batch), output_hidden_states=True, use_cache=False)
            # The last of them is after the final norm; it is as much to read.
            yield from _unpadded(output.hidden_states[1:], batch)

    return read


def nnsight(model: str, dtype: str) -> Read:
    import torch
    from transformers import AutoTokenizer

    nnsight: Any = importlib.import_module("nnsight")
    tokenizer = AutoTokenizer.from_pretrained(model)
    traced = nnsight.LanguageModel(
        model, tokenizer=tokenizer, dtype=getattr(torch, dtype), dispatch=True
    )

    def read(texts: Ids) -> Iterator[np.ndarray]:
        for batch in by_length(texts):
            with torch.inference_mode(), traced.trace(_padded(batch)) as tracer:
                outputs = nnsight.save([layer.output for layer in traced.model.layers])
                tracer.stop()  # Before the unembedding.
            yield from _unpadded(outputs, batch)

    return read


def vllm_lens(model: str, dtype: Any) -> Read:
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype=dtype, max_model_len=1024, kv_cache_memory_bytes=1 << 30)
    layers = [*range(llm.llm_engine.model_config.get_total_num_hidden_layers())]
    params = SamplingParams(
        max_tokens=1, temperature=0.0, extra_args={"output_residual_stream": layers}
    )

    def read(texts: Ids) -> Iterator[np.ndarray]:
        prompts: Any = [{"prompt_token_ids": [*text]} for text in texts]
        for output in llm.generate(prompts, params, use_tqdm=False):
            rows: Any = output.activations["residual_stream"]  # type: ignore[attr-defined]
            yield rows.float().numpy()

    return read


READERS: Mapping[str, Callable[[str, str], Read]] = {
    "transformers": transformers,
    "nnsight": nnsight,
    "vllm_lens": vllm_lens,
}
"""By the name of the module that each needs."""


def _padded(batch: Ids) -> dict[str, Any]:
    import torch

    width = max(map(len, batch))
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(batch):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _unpadded(layers: Sequence[Any], batch: Ids) -> Iterator[np.ndarray]:
    for row, text in enumerate(batch):
        yield np.stack([layer[row, : len(text)].float().numpy() for layer in layers])


def main() -> None:
    name, model, dtype = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print is no answer.
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    read = READERS[name](model, dtype)
    print("ready", file=answers)
    for line in sys.stdin:
        texts = json.loads(line)
        started = time.perf_counter()
        elements = sum(rows.size for rows in read(texts))
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "elements": elements}), file=answers)


if __name__ == "__main__":
    main()
