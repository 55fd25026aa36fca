"""The HTTP port: one server of several doors, each under paths of its own."""
