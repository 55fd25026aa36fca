"""Requests in: what a message means, checked against the model, as the domain has it.

Every error names its field. Files called `..._fields` turn the fields of one kind of message into a
value.
"""
