/**
 * The client in Node.js: gRPC over HTTP/2, to one server or several replicas.
 *
 * @module
 */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { createSecureContext } from "node:tls";

import { createGrpcTransport } from "@connectrpc/connect-node";

import { Client, type CallDefaults } from "./client.js";
import { Connections, type Target, type Tls } from "./connections.js";
import { invalid } from "./errors.js";
import { checkedHeaders, isLocal } from "./options.js";
import { VERSION } from "./version.js";

export * from "./index.js";
export type { Tls } from "./connections.js";

/** How to reach a server from Node.js. */
export interface ConnectOptions extends CallDefaults {
  /** `true` is TLS with the authorities that Node.js trusts; plaintext when unset. */
  readonly tls?: boolean | Tls | undefined;
  /** Sends a token in plaintext to other machines too, where the way is safe, as in a tunnel. */
  readonly allowPlaintextToken?: boolean | undefined;
}

/** No message of the contract comes near it; the limit of most gRPC libraries. */
const MAX_MESSAGE_BYTES = 4 << 20;

const DEFAULT_PORT = 50051;

/**
 * A client of the server at an address, or of several replicas, to which calls go in turn. Nothing
 * is sent before the first call.
 *
 * @param targets `host:port` each, a host alone for the port 50051, or `unix:/path/of/a.sock`
 * @throws {@link ActserveError} `FIELD_INVALID`, naming the option that cannot be used
 */
export function connect(targets: string | readonly string[], options: ConnectOptions = {}): Client {
  const tls = checkedTls(options.tls);
  const several = [targets].flat().map((text) => parse(text, tls !== undefined));
  if (several.length === 0) {
    throw invalid("there are no targets; give one at least", "FIELD_INVALID", "targets");
  }
  if (!tls && !options.allowPlaintextToken) checkNoToken(several, options);
  const connections = new Connections(several, tls);
  const headers = checkedHeaders(options.headers);
  const agent = headers.get("user-agent");
  headers.set("user-agent", `${agent ? `${agent} ` : ""}actserve-typescript/${VERSION}`);
  return new Client({
    ...options,
    headers,
    transport: createGrpcTransport({
      baseUrl: connections.authority,
      sessionManager: connections,
      readMaxBytes: MAX_MESSAGE_BYTES,
    }),
    addHeaders: addTrace,
    close: () => {
      connections.close();
    },
  });
}

/** OpenTelemetry, if the program has it. */
const telemetry = import("@opentelemetry/api").catch(() => undefined);

async function addTrace(headers: Headers): Promise<void> {
  const api = await telemetry;
  api?.propagation.inject(api.context.active(), headers, {
    set: (carrier, name, value) => {
      carrier.set(name, value);
    },
  });
}

function parse(text: string, secure: boolean): Target {
  if (typeof text !== "string") {
    throw invalid(`${String(text)} is not a target; give a text`, "FIELD_INVALID", "targets");
  }
  const path = /^unix:(?:\/\/)?(.+)$/.exec(text)?.[1];
  if (path !== undefined && !secure) return { text, url: "http://localhost", path };
  const [, host, port] = /^(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@[\]]+)(?::(\d{1,5}))?$/.exec(text) ?? [];
  const url = `${secure ? "https" : "http"}://${host ?? ""}:${port ?? DEFAULT_PORT}`;
  if (host !== undefined && URL.canParse(url)) return { text, url };
  throw invalid(
    `${JSON.stringify(text)} is not a target; give host:port` +
      (path === undefined ? "" : ", since TLS is not for unix sockets"),
    "FIELD_INVALID",
    "targets",
  );
}

function checkedTls(tls: boolean | Tls | undefined): Tls | undefined {
  if (!tls) return undefined;
  const { ca, cert, key } = tls === true ? {} : tls;
  if ((cert === undefined) !== (key === undefined)) {
    throw invalid("cert and key belong together; give both, or none", "FIELD_INVALID", "tls");
  }
  const given = { ...(ca !== undefined && { ca }), ...(cert !== undefined && { cert, key }) };
  try {
    // What is empty or no PEM at all, Node.js would pass over.
    for (const certificate of [ca, cert]) {
      if (certificate !== undefined) new X509Certificate(certificate);
    }
    if (key !== undefined) createPrivateKey(key);
    createSecureContext(given);
  } catch (thrown) {
    const reason = thrown instanceof Error ? thrown.message : String(thrown);
    throw invalid(
      `the certificates or the key cannot be used: ${reason}; give them as PEM`,
      "FIELD_INVALID",
      "tls",
    );
  }
  return given;
}

function checkNoToken(targets: readonly Target[], { token, headers }: ConnectOptions): void {
  if (token === undefined && !checkedHeaders(headers).has("authorization")) return;
  const remote = targets.find(({ url, path }) => path === undefined && !isLocal(new URL(url)));
  if (remote) {
    throw invalid(
      `the token would go to ${remote.text} in plaintext, where everyone on the way can read it; ` +
        "give tls, or allowPlaintextToken where the way is safe, such as a tunnel",
      "FIELD_INVALID",
      "token",
    );
  }
}
