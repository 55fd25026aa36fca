"""Runs sequences through a model, with captures and interventions.

`api.py` states what an engine is; `fake.py` is a deterministic one for tests; `vllm/` is the real
one, imported only by composition code. `admission.py` bounds what may run at once.
"""
