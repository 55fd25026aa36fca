"""The database, used from the event loop: work runs in a few threads, each in one transaction.

One that cannot be reached is no reason to stop: what needs it is refused with STORE_UNREACHABLE,
everything else goes on, and once it is back it is used again.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import exc

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.fair_threads import FairThreads
from actserve_server.storage import store_failures
from actserve_server.storage.database_places import CONNECTIONS, WRITES, Place, StoreConfigError
from actserve_server.storage.migrate import migrate
from actserve_server.storage.store_failures import RETRY_AFTER_S

T = TypeVar("T")

log = structlog.get_logger("actserve.storage")


class Database:
    """What is stored at a place. Nothing is opened before it is first used."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._engine = place.engine()
        self._threads = FairThreads(CONNECTIONS, CONNECTIONS // 2, "actserve-store")
        self._preparing = threading.Lock()
        self._prepared = False
        self._closed = False
        self._down_until = 0.0
        self.reachable = True
        """Until something needs it and cannot have it."""

    async def prepare(self) -> None:
        """Migrates the tables, now and not when they are first used. Raises StoreConfigError where
        that can never work; a database that cannot be reached now is migrated when it can."""
        try:
            await self._threads.run(self._prepare)
        except Exception as error:
            if store_failures.is_refusal(error) or not store_failures.is_unreachable(error):
                if isinstance(error, StoreConfigError):
                    raise
                raise StoreConfigError(
                    f"cannot use the database {self.place}: {store_failures.described(error)}"
                ) from None
            self._tell(error)

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """What `work` returns; each of its statements sees what had been written when it began.
        Raises STORE_UNREACHABLE, and what `work` raises."""
        return await self._threads.run(self._run, work, False)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """What `work` returns, once all that it wrote is on the disk; nothing of it is where it
        raises. Nobody else writes meanwhile, in this server or another, so it had better be quick.

        Raises STORE_UNREACHABLE, and what `work` raises. It may have been written although this
        says that it was not, if the connection was lost at the very end: whoever writes must be
        able to do so again. If this is cancelled the work is still done.
        """
        return await self._threads.run(self._run, work, True)

    def close(self) -> None:
        """Waits for nothing; what is being done goes on."""
        self._closed = True
        self._threads.close()
        self._engine.dispose()

    def _run(self, work: Callable[[sa.Connection], T], writes: bool) -> T:
        # Whoever asks while it is down need not each wait until a connection fails.
        if time.monotonic() < self._down_until:
            raise self._unreachable()
        try:
            self._prepare()
            result = self._write(work) if writes else self._read(work)
        except StoreConfigError as error:
            self._tell(error)
            raise self._unreachable() from None
        except (exc.SQLAlchemyError, OSError) as error:
            if not store_failures.is_unreachable(error):
                raise
            self._tell(error)
            raise self._unreachable() from None
        self._tell(None)
        return result

    def _read(self, work: Callable[[sa.Connection], T]) -> T:
        with self._connected() as connection:
            return work(connection)

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        with self._connected() as connection:
            connection = connection.execution_options(**{WRITES: True})
            with connection.begin():
                self.place.begin_write(connection)
                return work(connection)

    @contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        with self._engine.connect() as connection:
            try:
                yield connection
            finally:
                if self._closed:  # Nobody else would.
                    connection.invalidate()

    def _prepare(self) -> None:
        if self._prepared:
            return
        with self._preparing:
            if not self._prepared:
                self.place.make()
                migrate(self._engine, self.place)
                self._prepared = True

    def _tell(self, error: Exception | None) -> None:
        """Logs that the database cannot be reached, or can be again, once."""
        if error is not None:
            self._down_until = time.monotonic() + RETRY_AFTER_S
        if self.reachable == (error is None):
            return
        self.reachable = error is None
        if error is None:
            log.info("store", ok=True, database=str(self.place))
        else:
            why = store_failures.described(error)
            log.error("store", ok=False, database=str(self.place), reason=why)

    def _unreachable(self) -> ActserveError:
        return ActserveError(
            Reason.STORE_UNREACHABLE,
            "the database that holds what is stored cannot be reached; everything else is served; "
            f"try again in {RETRY_AFTER_S:g} s",
            retry_after_s=RETRY_AFTER_S,
        )
