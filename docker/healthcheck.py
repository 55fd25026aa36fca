"""Docker's HEALTHCHECK: exit 0 when the server in this container answers SERVING.

Kubernetes asks grpc.health.v1 itself (see helm/actserve); Docker needs a program. It asks on the
server's ACTSERVE_HEALTH_PORT, which is without TLS.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0


def check(port: int) -> None:
    """Raises `OSError` or `grpc.RpcError` when the server is not ready for calls."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        # The types that pyright brings for this package lack the stub's methods.
        reply = stub.Check(  # pyright: ignore[reportAttributeAccessIssue]
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
        )
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        raise ConnectionRefusedError(f"the server answers {name}")


def main() -> int:
    port = int(os.environ.get("ACTSERVE_HEALTH_PORT", "50052"))
    try:
        check(port)
    except (OSError, grpc.RpcError) as error:
        print(f"port {port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
