"""The client that callers make: all parts together."""

from actserve._async.graphs import AsyncGraphMaking
from actserve._async.heads import AsyncHeadStudies
from actserve._async.looks import AsyncLooks
from actserve._async.monitors import AsyncMonitoring
from actserve._async.nla_pairs import AsyncPairLoading
from actserve._async.sweeps import AsyncSweeps
from actserve._async.vectors import AsyncVectorStore
from actserve._async.weights import AsyncWeights


class AsyncClient(
    AsyncLooks,
    AsyncHeadStudies,
    AsyncSweeps,
    AsyncMonitoring,
    AsyncPairLoading,
    AsyncGraphMaking,
    AsyncVectorStore,
    AsyncWeights,
):
    """A client of one server. `Client` blocks, and is safe to share between threads; `AsyncClient`
    is for asyncio, belongs to the event loop that first uses it, and is otherwise the same: write
    `await` before what returns a value, and `async for` over what yields. Cancelling a task cancels
    its calls.

    - `target`: `host:port`, or any gRPC name; one with many addresses is spread over all of them.
      Or a list of IP addresses with ports, which are replicas.
    - `model`: the id of the model to use; not needed where only one is served.
    - `tls`: True for TLS with the system's certificate authorities, or `grpc` credentials for
      your own authorities and client certificates. Plaintext otherwise.
    - `token`: sent as `authorization: Bearer`. Without TLS everyone on the way could read it, so
      that is refused for any target but this machine itself unless `plaintext_token` is True.
    - `timeout`: seconds one call may take, all attempts together; None is no limit. Every method
      can override it. A list of prompts is many calls.
    - `metadata`: gRPC metadata sent with every call.
    - `replica_target`: where each of several servers is, with `{replica}` in place of its name,
      such as `{replica}.actserve.example.com:50051`. A call that names kept rows goes to the
      server that keeps them; without this to `target`, with the header `actserve-replica`, by
      which a proxy can send it there.
    - `concurrency`: prompts, or rows to explain, in flight at once when a method is given a list.
    - `traces`: True to make a span of OpenTelemetry of each attempt at a call, which needs
      `opentelemetry-api`, and an SDK that says where spans go.

    A call that the contract calls harmless, as all that fetch and generate are, is made again when
    the server is unavailable, up to four times in all and when the server says; so is one whose
    connection breaks, unless it is a stream that you have seen a part of. An answer is whole or an
    error. A trace that is current is passed on where OpenTelemetry is installed, and a server that
    is older than the client is warned of. Every method raises a subclass of `ActserveError`;
    `InvalidRequest` also before anything is sent.
    """
