"""The services over Connect and gRPC-Web, for browsers."""
