"""Natural language autoencoders (NLA): activations into words and back.

`profile.py` says what an NLA is, `sidecar.py` and `pair_families.py` read one from a checkpoint,
`verbalizer_prompts.py` makes and checks its prompts; `verbalizer.py` (AV) and `reconstructor.py`
(AR) run its two models, and `autoencoder.py` puts them together. The engine knows nothing of all
this: an AV is a generation with a vector placed in its prompt, an AR a capture of the last token's
row, times a matrix.
"""
