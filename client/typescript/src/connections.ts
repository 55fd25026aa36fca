import type {
  Http2Session,
  ClientHttp2Stream,
  ClientSessionRequestOptions,
  IncomingHttpHeaders,
  OutgoingHttpHeaders,
} from "node:http2";
import { connect as connectSocket } from "node:net";

import { fromBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, decodeBinaryHeader } from "@connectrpc/connect";
import { Http2SessionManager } from "@connectrpc/connect-node";

import { StatusSchema } from "./gen/google/rpc/status_pb.js";

/** Certificates and keys as PEM. */
export interface Tls {
  /** The authorities to trust, in place of those that Node.js trusts. */
  readonly ca?: string | Buffer | undefined;
  /** The client's own certificate. */
  readonly cert?: string | Buffer | undefined;
  /** The key of `cert`. */
  readonly key?: string | Buffer | undefined;
}

/** Where a server is. */
export interface Target {
  /** As the caller wrote it. */
  readonly text: string;
  readonly url: string;
  /** Of a unix socket. */
  readonly path?: string;
}

/** A server that vanished is noticed, also while a call waits for its first row. */
const PING = { pingIntervalMs: 60_000, pingTimeoutMs: 20_000 };

/** How long to wait for one of several targets that does not answer, and then to pass it over. */
const CONNECT_MS = 2_000;
const PASS_OVER_MS = 30_000;

/** Node's windows of 64 KiB would hold up rows wherever the way is long. */
const CONNECTION_WINDOW_BYTES = 16 << 20;

/** Every piece of a message that comes costs promises, and frames of the default are 16 KiB. */
const FRAME_BYTES = 1 << 20;

const SETTINGS = {
  enablePush: false,
  initialWindowSize: 4 << 20,
  maxFrameSize: FRAME_BYTES,
};

/** What a connection to a target is. */
interface Connection {
  readonly target: Target;
  readonly session: Http2SessionManager;
  /** When it may be waited for again, since it did not answer. */
  passedOverUntil: number;
}

/**
 * A connection to each of several replicas, which stand for one: each call takes the next that can
 * be reached.
 */
export class Connections {
  /** Of no meaning: each connection has its own. */
  readonly authority = "http://actserve.invalid";
  readonly #all: readonly Connection[];
  readonly #widened = new WeakSet<Http2Session>();
  #next = 0;

  constructor(targets: readonly Target[], tls: Tls | undefined) {
    this.#all = targets.map((target) => ({
      target,
      session: new Http2SessionManager(target.url, PING, {
        ...tls,
        settings: SETTINGS,
        ...(target.path === undefined ? {} : socketOptions(target.path)),
      }),
      passedOverUntil: 0,
    }));
  }

  /** Opens a stream; called by the transport for each attempt of a call. */
  async request(
    method: string,
    path: string,
    headers: OutgoingHttpHeaders,
    options: ClientSessionRequestOptions,
  ): Promise<ClientHttp2Stream> {
    const { session } = await this.#reachable();
    const stream = await session.request(method, path, headers, options);
    if (stream.session && !this.#widened.has(stream.session)) {
      this.#widened.add(stream.session);
      stream.session.setLocalWindowSize(CONNECTION_WINDOW_BYTES);
    }
    stream.on("response", dropBadDetails);
    stream.on("trailers", dropBadDetails);
    return stream;
  }

  /** Tells that data came, which shows that the connection is alive. */
  notifyResponseByteRead(stream: ClientHttp2Stream): void {
    for (const { session } of this.#all) session.notifyResponseByteRead(stream);
  }

  close(): void {
    for (const { session } of this.#all) session.abort();
  }

  async #reachable(): Promise<Connection> {
    const first = this.#next++ % this.#all.length;
    const inTurn = [...this.#all.slice(first), ...this.#all.slice(0, first)];
    const now = performance.now();
    const late = (connection: Connection) => (connection.passedOverUntil > now ? 1 : 0);
    for (const connection of inTurn.sort((a, b) => late(a) - late(b))) {
      const state = await this.#connect(connection);
      if (state === "open" || state === "idle") return connection;
      if (state === undefined) connection.passedOverUntil = now + PASS_OVER_MS;
    }
    const reasons = this.#all.map(
      ({ target, session }) => `${target.text} cannot be reached${because(session.error())}`,
    );
    throw new ConnectError(
      `${reasons.join("; ")}; check that a server runs there, and whether it takes TLS`,
      Code.Unavailable,
    );
  }

  /** The state after an attempt to connect; undefined if it took too long. */
  async #connect({ session }: Connection): Promise<"open" | "idle" | "error" | undefined> {
    if (this.#all.length === 1) return session.connect(); // The call's own deadline is enough.
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<undefined>((resolve) => {
      timer = setTimeout(resolve, CONNECT_MS, undefined);
    });
    try {
      return await Promise.race([answered(session), late]);
    } finally {
      clearTimeout(timer);
    }
  }
}

/**
 * The state once the server has answered: it has acknowledged the client's settings. A connection alone
 * is also had where nobody will ever answer.
 */
async function answered(manager: Http2SessionManager): Promise<"open" | "idle" | "error"> {
  const state = await manager.connect();
  // The manager has no other way to its session.
  const { conn } = (manager as unknown as { s: { conn?: Http2Session } }).s;
  if (state === "error" || !conn?.pendingSettingsAck) return state;
  conn.setMaxListeners(0); // Any number of calls may wait.
  return new Promise((resolve) => {
    conn.once("localSettings", () => {
      resolve(state);
    });
    conn.once("close", () => {
      resolve("error");
    });
  });
}

function socketOptions(path: string) {
  return { createConnection: () => connectSocket(path) };
}

function because(reason: unknown): string {
  return reason === undefined ? "" : `: ${ConnectError.from(reason).rawMessage}`;
}

/**
 * Takes away the details of a status that cannot be read, or that are not those of the status: they
 * would hide it.
 */
function dropBadDetails(headers: IncomingHttpHeaders): void {
  const details = headers["grpc-status-details-bin"];
  if (details === undefined) return;
  try {
    const status = fromBinary(StatusSchema, decodeBinaryHeader(String(details)));
    if (String(status.code) === headers["grpc-status"]) return;
  } catch {
    // They cannot be read.
  }
  delete headers["grpc-status-details-bin"];
}
