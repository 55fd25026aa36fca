"""The steps. Each is run once in a database; what has been released never changes."""
