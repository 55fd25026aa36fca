"""Dictionaries of features by name: sparse autoencoders and transcoders.

`dictionary.py` says what one is, `dictionary_registry.py` has those that a tenant can name, and
the readers of `formats` make them of files that other projects write.
"""
