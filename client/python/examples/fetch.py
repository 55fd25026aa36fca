"""Read activations: how long the residual stream is at each token of a prompt."""

import json
import sys

import numpy as np

import actserve

address = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
with actserve.Client(address) as client:
    acts = client.fetch("The capital of France is", "resid_post.15")
    norms = np.linalg.norm(acts["resid_post.15"].astype(np.float64), axis=1)
    for position, token, norm in zip(acts.positions, acts.tokens, norms, strict=True):
        print(f"{position} {json.dumps(token, ensure_ascii=False)} {norm:.3f}")
