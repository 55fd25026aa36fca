"""The version of this server, as it was installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("actserve-server")
except PackageNotFoundError:  # Run from its sources.
    VERSION = "unknown"
