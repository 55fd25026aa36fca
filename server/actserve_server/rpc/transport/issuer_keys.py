"""The keys by which an issuer of tokens (OIDC) signs: a JSON Web Key Set in a file, or at an
address.

What is at the address is not trusted to be well: it is given so long and so many bytes, is asked no
more often than every `PAUSE_S` whatever callers send, and can send this server nowhere else. Keys
that were read stay in use for a day while it cannot be reached, and no longer, since a key that was
withdrawn meanwhile would stay known.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from yarl import URL

from actserve_server.reloaded_files import ReloadedFiles
from actserve_server.version import VERSION

FETCH_S = 10.0
"""For the address to answer."""
MAX_BYTES = 256 << 10
"""Of a key set."""
MAX_KEYS = 100
REFRESH_S = 600.0
"""After so long the keys are fetched again."""
PAUSE_S = 30.0
"""Between two fetches, however many tokens name keys that are not known."""
MAX_AGE_S = 24 * 3600.0
"""For which keys stay in use while the address cannot be reached."""

Keys = Mapping[str, Mapping[str, Any]]
"""JSON Web Keys, by their ids. One without an id has the empty one."""

_PUBLIC_KINDS = frozenset({"RSA", "EC", "OKP"})

log = structlog.get_logger("actserve.issuer")


def read_keys(data: bytes) -> Keys:
    """The public keys for signatures of a JSON Web Key Set. Raises ValueError."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"the key set has more than {MAX_BYTES} bytes")
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the key set is no JSON") from None
    listed = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise ValueError('the key set is no JSON Web Key Set: it has no list "keys"')
    if len(listed) > MAX_KEYS:
        raise ValueError(
            f"the key set has {len(listed)} keys, and {MAX_KEYS} are the most that are read"
        )
    found = {str(each.get("kid", "")): each for each in listed if _verifies(each)}
    if not found:
        raise ValueError("the key set has no public key for signatures (RSA, EC or OKP)")
    return found


def _verifies(key: Mapping[str, Any]) -> bool:
    """Whether a key is there to tell signatures by. A symmetric one would let whoever can read the
    set sign."""
    kind, operations = key.get("kty"), key.get("key_ops", ["verify"])
    return (
        isinstance(kind, str)
        and kind in _PUBLIC_KINDS
        and key.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


class KeyFile:
    """The keys of a file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError if the file cannot be used."""
        self.file = ReloadedFiles("keys of the issuer", (path,), lambda: _of_file(path))

    async def find(self, key_id: str) -> Mapping[str, Any] | None:
        return self.file.current.get(key_id)

    async def refresh(self) -> None:
        """Reads the file again if it has changed."""
        self.file.reload()


class KeyAddress:
    """The keys of an address, fetched when they are first needed."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._keys: Keys = {}
        self._fetched: float | None = None
        self._tried: float | None = None
        self._fetching = asyncio.Lock()
        self._works = True

    async def find(self, key_id: str) -> Mapping[str, Any] | None:
        """The key of that id, looked for at the address if it is not known yet."""
        if key_id not in self._known():
            await self._fetch(key_id)
        return self._known().get(key_id)

    async def refresh(self) -> None:
        """Fetches them again when it is time, so that a withdrawn one is not known for long."""
        if self._tried is None or self._clock() - self._tried >= REFRESH_S:
            await self._fetch(None)

    def _known(self) -> Keys:
        old = self._fetched is None or self._clock() - self._fetched >= MAX_AGE_S
        return {} if old else self._keys

    async def _fetch(self, wanted: str | None) -> None:
        async with self._fetching:
            # Whoever waited meanwhile may have what it wants.
            if wanted is not None and wanted in self._known():
                return
            if self._tried is not None and self._clock() - self._tried < PAUSE_S:
                return
            self._tried = self._clock()
            try:
                keys = read_keys(await _get(self._url))
            except (TimeoutError, OSError, ValueError, aiohttp.ClientError) as error:
                if self._works:
                    what = str(error) or type(error).__name__
                    log.error("keys of the issuer", ok=False, url=self._url, error=what)
                self._works = False
                return
            if not self._works or keys.keys() != self._keys.keys():
                log.info("keys of the issuer", ok=True, url=self._url, keys=len(keys))
            self._keys, self._fetched, self._works = keys, self._clock(), True


def _of_file(path: Path) -> Keys:
    try:
        return read_keys(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


async def _get(url: str) -> bytes:
    async with (
        asyncio.timeout(FETCH_S),
        aiohttp.ClientSession(
            # No proxy of the environment, which could answer with keys of its own.
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            # What is read is bounded as it comes, which it would not be once unpacked.
            auto_decompress=False,
            headers={"user-agent": f"actserve/{VERSION}", "accept-encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session,
        session.get(URL(url, encoded=True), allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise ValueError(f"it answered {response.status}")
        data = b""
        while chunk := await response.content.read(MAX_BYTES + 1 - len(data)):
            data += chunk
            if len(data) > MAX_BYTES:
                break
        return data
