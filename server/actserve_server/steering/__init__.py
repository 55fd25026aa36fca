"""Stored steering vectors, what is made of them, and what is measured with them."""
