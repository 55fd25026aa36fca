"""What the server keeps: rows of a capture, under a name."""

from __future__ import annotations

from actserve._async.base import AsyncBase
from actserve.kept import Kept, kept_from_proto, kept_name
from actserve.v1 import kept_activations_service_pb2


class AsyncKeeping(AsyncBase):
    """Kept rows."""

    async def kept(self, name: str, *, timeout: float | None = None) -> Kept:
        """What the server keeps under a name, as `activations.kept` says it. Raises `NotFound` once
        it has expired or was deleted."""
        request = kept_activations_service_pb2.GetKeptActivationsRequest(name=kept_name(name))
        response = await self._transport.response("GetKeptActivations", request, timeout)
        return kept_from_proto(response.kept_activations)

    async def list_kept(self, *, timeout: float | None = None) -> list[Kept]:
        """All that the tenant of the client's token keeps on the server, by name. Raises
        `NotServed` on a server without tokens."""
        request = kept_activations_service_pb2.ListKeptActivationsRequest()
        pages = self._transport.pages("ListKeptActivations", request, timeout)
        return [kept_from_proto(kept) async for page in pages for kept in page.kept_activations]

    async def delete_kept(self, name: str, *, timeout: float | None = None) -> None:
        """Frees what the server keeps under a name before it expires. Raises `NotFound`."""
        request = kept_activations_service_pb2.DeleteKeptActivationsRequest(name=kept_name(name))
        await self._transport.response("DeleteKeptActivations", request, timeout)
