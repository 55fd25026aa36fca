"""Explaining and reconstructing with the natural language autoencoders that are served."""
