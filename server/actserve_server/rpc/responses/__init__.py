"""Responses out: results as messages that every stock client accepts."""
