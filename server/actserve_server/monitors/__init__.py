"""Watches generation by probes: what is stored, what a call is watched by, what is raised.

`watched.py` says what a call is watched by. Nothing here knows of messages; `rpc/` translates.
"""
