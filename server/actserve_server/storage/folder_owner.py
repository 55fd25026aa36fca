"""Whether another server keeps what it stores in the same folder.

Two may: they see each other's vectors, monitors and alerts, as replicas with one PostgreSQL do. But
whoever starts two of them on one machine has mostly forgotten to name a second folder, so the
second one says so. The operating system forgets who was first when that server ends, however it
ends.
"""

from filelock import FileLock, Timeout

from actserve_server.storage.database_places import FILE, SqliteFile

_LOCK = f"{FILE}.server"


def own(file: SqliteFile) -> FileLock | None:
    """What to hold while the server runs; None if another server has it. Raises OSError."""
    lock = FileLock(file.folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def is_owned(file: SqliteFile) -> bool:
    """Whether a server that runs has it. No file is made."""
    if not (file.folder / _LOCK).exists():
        return False
    lock = own(file)
    if lock is not None:
        lock.release()
    return lock is None


def shared_folder(file: SqliteFile) -> str:
    """What to say of one that is owned."""
    return (
        f"another server stores in {file.folder} too: they see each other's vectors, monitors and "
        "alerts, and each waits where the other writes; name another data_dir, or give both a "
        "PostgreSQL database (database_url)"
    )
