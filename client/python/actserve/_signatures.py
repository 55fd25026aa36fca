"""Signatures: the options of a `TypedDict` spelled out in the signature of a method that takes
them, so that `help`, notebooks and editors show each one."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def spelled_out(options: type) -> Callable[[F], F]:
    """Puts each key of a `TypedDict`, of which all may be left out, in the place of `**options` in
    what `inspect.signature` tells of a method."""

    def decorate(method: F) -> F:
        signature = inspect.signature(method)
        fixed = [
            each
            for each in signature.parameters.values()
            if each.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        spelled = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                # As it is written, which is shorter than what it stands for.
                annotation=getattr(annotation, "__forward_arg__", annotation),
            )
            for name, annotation in options.__annotations__.items()
        ]
        told: Any = method
        told.__signature__ = signature.replace(parameters=fixed + spelled)
        return method

    return decorate
