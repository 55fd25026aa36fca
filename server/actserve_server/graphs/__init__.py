"""Attribution graphs: what a prediction comes from.

`tracing` computes them in a process of its own (`tracer_main`), which `tracer_process` starts and
ends; `graph_work` has those that wait, and `stored_graphs` what came of them.
"""
