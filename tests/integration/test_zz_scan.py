import grpc
import numpy as np
from scripts import dose_response
from scripts.dose_response import COEFFICIENTS, Study


def test_scan(served, monkeypatch):
    monkeypatch.setattr(dose_response, "RANDOM_VECTORS", 1)
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        for c in Study(channel).curves((4, 6, 8, 10, 12, 13, 14, 16, 17), COEFFICIENTS):
            m = c.made.mean(axis=1)
            print("SCAN", c.layer, (np.diff(m) > 0).all(), m.round(2).tolist(), round(c.norm, 3), c.held_out_auroc, flush=True)
