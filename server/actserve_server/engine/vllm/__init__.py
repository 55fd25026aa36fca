"""The real engine, on vLLM.

`engine.py` runs in the server process; `worker.py` runs where vLLM computes. Between them go two
things: a `RunTaps` with each request (`wire.py`), and rows and receipts back through shared memory
(`ring.py`, `collector.py`). In the worker, `attach.py` puts taps into the model, `step_plan.py`
plans each step, `graphs.py` chooses what it is computed by, `taps.py` is the custom op that carries
the plan out. In vLLM's scheduler,
`scheduler.py` decides by each run's `cache_salt.py` which blocks of the prefix cache it shares.
"""
