"""The client that callers make: all parts together."""

from actserve._sync.graphs import GraphMaking
from actserve._sync.heads import HeadStudies
from actserve._sync.looks import Looks
from actserve._sync.monitors import Monitoring
from actserve._sync.nla_pairs import PairLoading
from actserve._sync.sweeps import Sweeps
from actserve._sync.vectors import VectorStore
from actserve._sync.weights import Weights


class Client(
    Looks,
    HeadStudies,
    Sweeps,
    Monitoring,
    PairLoading,
    GraphMaking,
    VectorStore,
    Weights,
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
