"""Which model to serve: an embedded one, a local folder, or a Hugging Face id.

`resolve.py` turns what a user typed into what an engine loads, `embedded.py` prepares the models
that install as packages, `targets.py` states what their published folders say, and `conversion.py`
writes such a folder from a GGUF.
"""
