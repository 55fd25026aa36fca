"""The asyncio client, from which `scripts/blocking_client.py` writes the blocking one, in `_sync`.

The transport alone is written twice, since tasks and threads differ; what a caller sees is not.
"""
