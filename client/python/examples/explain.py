"""Read an activation in words, where the server was started with an autoencoder (`--nla`)."""

import json
import sys

import actserve

address = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
with actserve.Client(address) as client:
    explained = client.explain_text(
        "The capital of France is", positions="last", temperature=0, max_tokens=32, score=True
    )
    (explanation,) = explained.explanations
    assert explanation.score
    print(f"{json.dumps(explanation.text, ensure_ascii=False)} {explanation.score.cosine:.2f}")
