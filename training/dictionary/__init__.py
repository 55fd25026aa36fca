"""Trains a small sparse autoencoder of one site of any causal language model, from any text, on a
CPU: `python -m training.dictionary --help`. `stages.py` has what is done, in order.

The method is BatchTopK (Bussmann, Leask and Nanda, "BatchTopK Sparse Autoencoders", 2024): while it
learns, the largest features of a whole batch are kept, `k` a row on average, and afterwards those
above the threshold that this comes to. What is written is a SAELens folder of the JumpReLU kind.
"""
