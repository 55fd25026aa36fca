"""One attempt to deliver an alert: a signed POST to an address that the operator allows.

What answers is not trusted: it is given so long, so many bytes of it are read, and it can send this
server nowhere else.
"""

import asyncio
import hashlib
import hmac
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from actserve_server.monitors.watched import Decision
from actserve_server.monitors.webhook_addresses import Address
from actserve_server.version import VERSION

SIGNATURE = "x-actserve-signature"
MAX_ANSWER_BYTES = 16 << 10
"""Of the body of an answer that may decide. More decides nothing."""
_MAX_HEADER_BYTES = 8 << 10
"""Of one header of an answer, and of its first line."""
_DECISIONS = {"proceed": Decision.PROCEED, "stop": Decision.STOP}


class DeliveryFailed(Exception):
    """The address has not taken the alert; the message says why, in words that whoever may read the
    alert may read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The address has taken the alert."""

    decision: Decision | None = None
    """What it says of a sample that waits."""


class WebhookClient:
    """Sends alerts to these addresses alone."""

    def __init__(self, addresses: Mapping[str, Address], timeout_s: float) -> None:
        """Raises OSError for authorities that cannot be read (ssl.SSLError is one)."""
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._tls = {
            url: ssl.create_default_context(cafile=None if each.ca is None else str(each.ca))
            for url, each in addresses.items()
        }
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, url: str, name: str, body: bytes, *, now_s: float, awaits_decision: bool
    ) -> Answer:
        """Sends the body, JSON, of the alert of that name. Raises DeliveryFailed."""
        address = self._addresses[url]
        headers = {
            "content-type": "application/json",
            "idempotency-key": name,
            SIGNATURE: signature(address.key, int(now_s), body),
        }
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._open().post(
                    # As it is written: nothing is decoded and written anew.
                    URL(url, encoded=True),
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    ssl=self._tls[url],
                ) as response,
            ):
                if not 200 <= response.status < 300:
                    raise DeliveryFailed(_refused(response.status))
                if not awaits_decision:
                    return Answer()
                return Answer(await _decision(response))
        except TimeoutError:
            raise DeliveryFailed(f"it gave no answer within {self._timeout_s:g} s") from None
        except aiohttp.ClientConnectorCertificateError:
            raise DeliveryFailed("its certificate is not valid") from None
        except aiohttp.ClientConnectorError:
            # Without the address that the name had: that is of the operator's network.
            raise DeliveryFailed("it could not be reached") from None
        except aiohttp.ClientError as error:
            raise DeliveryFailed(f"it broke off the answer ({type(error).__name__})") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        """Opened when it is first needed, on the event loop that it is needed on."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # No proxy of the environment, which would see what is sent.
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                # What is read is bounded as it comes, which it would not be once unpacked.
                auto_decompress=False,
                headers={"user-agent": f"actserve/{VERSION}", "accept-encoding": "identity"},
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                read_bufsize=MAX_ANSWER_BYTES,
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session


def signature(key: bytes, seconds: int, body: bytes) -> str:
    """What `x-actserve-signature` is of a body that is sent at this time."""
    code = hmac.new(key, b"%d.%s" % (seconds, body), hashlib.sha256).hexdigest()
    return f"t={seconds},v1={code}"


def _refused(status: int) -> str:
    if 300 <= status < 400:
        return f"it answered {status}, but redirects are not followed"
    return f"it answered {status}"


async def _decision(response: aiohttp.ClientResponse) -> Decision | None:
    """What the body says; None if it says nothing that is understood."""
    body = b""
    while chunk := await response.content.read(MAX_ANSWER_BYTES + 1 - len(body)):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            return None
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    word = said.get("decision") if isinstance(said, dict) else None
    return _DECISIONS.get(word) if isinstance(word, str) else None
