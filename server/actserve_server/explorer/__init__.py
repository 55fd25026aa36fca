"""The explorer: the page by which people look into the served model, and its files."""
