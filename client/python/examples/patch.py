"""Patch activations: put rows of one run into another, without a round trip."""

import json
import sys

import actserve

address = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
with actserve.Client(address) as client:
    keep = actserve.Keep(send=False)
    france = client.fetch("The capital of France is", "resid_post.15", positions=-1, keep=keep)
    assert france.kept
    patch = actserve.Replace("resid_post.15", france.kept, positions=-1)
    answers = actserve.Predict("final_norm", "last", top_k=3)
    italy = client.fetch("The capital of Italy is", predictions=answers, intervene=patch)
    predictions = italy.predictions["final_norm"]
    for token, logprob in zip(predictions.top_tokens[0], predictions.top_logprobs[0], strict=True):
        print(f"{json.dumps(token, ensure_ascii=False)} {logprob:.3f}")
    client.delete_kept(france.kept)
