"""The blocking client, which `scripts/blocking_client.py` writes from `_async`; the transport is
written by hand."""
