"""What it means that a database fails: that it cannot be reached now, or that it never can be as it
is configured."""

import sqlite3
import ssl
from typing import Any

from sqlalchemy import exc

RETRY_AFTER_S = 1.0
"""When to try again whatever could not be reached."""

_REFUSED = ("28", "3D", "42", "3F")
"""Classes of SQLSTATE of a database that lets us in to nothing, or not to what we need: a wrong
password, no such database, no right to make tables."""
_LATER = ("08", "25", "40", "53", "55", "57", "58")
"""Those of one that may work again: connections, read-only while a standby takes over, conflicts,
resources, locks, an operator's intervention, the system."""


def sqlstate(error: BaseException) -> str:
    """PostgreSQL's code of an error; empty where it is not PostgreSQL's."""
    told: Any = error.args[0] if error.args else None
    return str(told.get("C", "")) if isinstance(told, dict) else ""


def is_refusal(error: BaseException) -> bool:
    """Whether the database answers, and will not be used as it is configured."""
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in (
            sqlite3.SQLITE_NOTADB,
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_PERM,
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return True
    return sqlstate(cause).startswith(_REFUSED)


def is_unreachable(error: BaseException) -> bool:
    """Whether it may work again by itself; else the fault is in what was asked."""
    if isinstance(error, exc.TimeoutError | OSError):
        return True
    if not isinstance(error, exc.DBAPIError):
        return False
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        # A statement or a value that is wrong is our fault; all others are the disk's.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF not in (
            sqlite3.SQLITE_ERROR,
            sqlite3.SQLITE_CONSTRAINT,
            sqlite3.SQLITE_MISMATCH,
            sqlite3.SQLITE_MISUSE,
            sqlite3.SQLITE_RANGE,
            sqlite3.SQLITE_TOOBIG,
        )
    code = sqlstate(cause)
    if code:
        return code.startswith((*_LATER, "28", "3D"))
    return error.connection_invalidated or isinstance(error, exc.InterfaceError)


def described(error: BaseException) -> str:
    """The error in a few words that hold no secret: neither statements nor URLs."""
    cause = _cause(error)
    if isinstance(cause, OSError):
        return f"{type(cause).__name__}: {cause.strerror or cause}"
    told: Any = cause.args[0] if cause.args else ""
    if isinstance(told, dict):
        return f"{told.get('M', '')} ({told.get('C', '')})"
    return f"{type(cause).__name__}: {told}" if told else type(cause).__name__


def _cause(error: BaseException) -> BaseException:
    """The driver's own error."""
    original = error.orig if isinstance(error, exc.DBAPIError) else None
    return original or error
