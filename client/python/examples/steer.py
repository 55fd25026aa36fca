"""Steer a model: the difference of two rows, added while it writes."""

import json
import sys

import actserve

address = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
with actserve.Client(address) as client:
    texts = ["I loved it, wonderful!", "I hated it, terrible!"]
    liked, hated = client.fetch(texts, "resid_post.15", positions="last")
    mood = liked["resid_post.15"][0] - hated["resid_post.15"][0]
    prompt = "I think the movie was"
    plain = client.generate(prompt, max_tokens=20, temperature=0)
    steer = actserve.Add("resid_post.15", mood, 2)
    steered = client.generate(prompt, max_tokens=20, temperature=0, intervene=steer)
    print(f"plain: {json.dumps(plain.text, ensure_ascii=False)}")
    print(f"steered: {json.dumps(steered.text, ensure_ascii=False)}")
