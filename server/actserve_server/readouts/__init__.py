"""What the server computes from captured rows instead of sending them.

`plan.py` says what a call wants and which captures of a run that takes; `readers.py` turns the rows
of a run into the results of `results.py`. The work is numpy alone, without I/O: `projection.py`
reads probes and sparse autoencoders, `reductions.py` turns a sequence into one row, `statistics.py`
sums rows by label, `attention_summary.py` tells how heads attend, in means over queries. Rows come
as float32 and in blocks; whatever is computed on the way is bounded by `blocks.BLOCK_BYTES`.
`kept.py` holds rows for later.
"""
