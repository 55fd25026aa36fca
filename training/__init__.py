"""Trains a small natural language autoencoder for any causal language model, from any text, on a
CPU: `python -m training --help`. `run.py` has the stages, in order.

Where other programs share the cores, load Intel's OpenMP first (`LD_PRELOAD` of the environment's
`lib/libiomp5.so`, with `KMP_BLOCKTIME=0`): threads of the default one wait by spinning.
"""
