"""Stored steering vectors, what is made of them, and what is measured with them.

`registry.py` stores them. `contrast.py` finds the direction in which rows of two kinds differ,
`separation.py` how well it tells others apart, and `arithmetic.py` computes vectors from vectors:
in numpy and float64, without I/O, the same bits for the same rows.
"""
