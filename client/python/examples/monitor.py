"""Watch what a model writes by a probe, and tell where its score is high."""

import json
import sys

import actserve


def told(alert: actserve.Alert) -> str:
    return f"{alert.level}, {alert.score:.2f} at token {alert.position}"


address = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
with actserve.Client(address) as client:
    site = "resid_post.15"
    texts = ["I loved it, wonderful!", "I hated it, terrible!"]
    loved, hated = (acts[site][0] for acts in client.fetch(texts, site, positions="last"))
    mood = loved - hated
    halfway = float(mood.astype("f8") @ (loved + hated) / 2)
    client.monitors.create(
        "mood",
        probe=actserve.Probe(site, mood),
        lower=actserve.Level(halfway, flag=True),
        watch=actserve.Watch(named_only=True),
    )
    generated = client.generate(
        texts[0], max_tokens=20, temperature=0, monitors="mood", scores="sample"
    )
    print(f"generated: {json.dumps(generated.text, ensure_ascii=False)}")
    for score in generated.monitor_scores.values():
        print(f"highest: {score.highest:.2f} at token {score.highest_position}")
    for alert in generated.alerts:  # of levels with `flag`
        print(f"told: {told(alert)}")
    for alert in client.alerts.watch("mood", from_oldest=True):
        print(f"watched: {told(alert)}")
        break  # it goes on for as long as the loop does
    client.alerts.delete("mood")
    client.monitors.delete("mood")
