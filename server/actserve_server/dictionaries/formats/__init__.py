"""Readers of the files in which other projects keep dictionaries. Nothing is unpickled or executed.

Each module reads one project's files, and returns None for a folder that is not of it.
`format_files.py` has what they share, and `read_folder.py` tries all of them.
"""
