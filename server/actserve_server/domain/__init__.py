"""The words of the service as plain, frozen dataclasses. Imports nothing but the standard library
and numpy; everything else in the server imports this."""
