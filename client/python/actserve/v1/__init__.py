"""Generated from proto/actserve/v1: the wire contract, for programs that speak it directly."""
