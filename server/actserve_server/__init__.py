"""actserve: an open, remote microscope for language models, served over gRPC on vLLM.

Start reading at `cli.py` (options), `app.py` (composition and lifecycle), then follow a
request: `rpc` translates it, `engine` runs it, `domain` holds the words both speak.
"""
