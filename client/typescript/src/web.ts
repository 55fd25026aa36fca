/**
 * The client in browsers, and wherever else there is `fetch`: gRPC-Web to the HTTP port of a server.
 *
 * @module
 */
import { Code, ConnectError } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { Client, type CallDefaults } from "./client.js";
import { invalid } from "./errors.js";
import { checkedHeaders, isLocal } from "./options.js";

export * from "./index.js";

/** How to reach a server by `fetch`. */
export interface WebOptions extends CallDefaults {
  /** Sends a token in plaintext to other machines too, where the way is safe, as in a tunnel. */
  readonly allowPlaintextToken?: boolean | undefined;
  /** What makes the requests; `globalThis.fetch` when unset. */
  readonly fetch?: typeof globalThis.fetch | undefined;
}

/**
 * A client of the server at a URL, whose HTTP port that is. Nothing is sent before the first call.
 *
 * @param url such as `https://actserve.example.com:8080`, or `location.origin` in a page that the server
 * itself has given
 * @throws {@link ActserveError} `FIELD_INVALID`, naming the option that cannot be used
 */
export function connect(url: string | URL, options: WebOptions = {}): Client {
  const base = checkedUrl(url);
  if (base.protocol === "http:" && !options.allowPlaintextToken) checkNoToken(base, options);
  return new Client({
    ...options,
    transport: createGrpcWebTransport({
      baseUrl: base.href.replace(/\/$/, ""),
      fetch: telling(options.fetch ?? globalThis.fetch, base),
    }),
  });
}

function checkedUrl(url: string | URL): URL {
  const text = String(url);
  const base = URL.canParse(text) ? new URL(text) : undefined;
  if (base && /^https?:$/.test(base.protocol) && !base.search && !base.hash && !base.username) {
    return base;
  }
  throw invalid(
    `${JSON.stringify(text)} is not the URL of a server; give http(s)://host:port`,
    "FIELD_INVALID",
    "url",
  );
}

function checkNoToken(base: URL, { token, headers }: WebOptions): void {
  if (token === undefined && !checkedHeaders(headers).has("authorization")) return;
  if (isLocal(base)) return;
  throw invalid(
    `the token would go to ${base.host} in plaintext, where everyone on the way can read it; ` +
      "use https, or give allowPlaintextToken where the way is safe, such as a tunnel",
    "FIELD_INVALID",
    "token",
  );
}

/** Has a server that cannot be reached, or that breaks off, be told by the code of such a failure. */
function telling(fetch: typeof globalThis.fetch, base: URL): typeof globalThis.fetch {
  return async (input, init) => {
    const unavailable = (thrown: unknown, what: string) => {
      if (init?.signal?.aborted) return thrown;
      return new ConnectError(`${base.host} ${what}: ${why(thrown)}`, Code.Unavailable, undefined);
    };
    let response: Response;
    try {
      // Called as a function of nothing, as browsers ask.
      response = await fetch.call(undefined, input, init);
    } catch (thrown) {
      throw unavailable(
        thrown,
        "cannot be reached; check that a server has its HTTP port there, and lets pages of this " +
          "origin call (http_origins)",
      );
    }
    if (!response.body) return response;
    const failed = (thrown: unknown) => unavailable(thrown, "broke off its answer");
    const body = read(response.body, init?.signal ?? undefined, failed);
    const { status, statusText, headers } = response;
    return new Response(body, { status, statusText, headers });
  };
}

/** The same bytes, with errors of another kind; and an end as soon as the call is cancelled. */
function read(
  body: ReadableStream<Uint8Array>,
  signal: AbortSignal | undefined,
  failed: (thrown: unknown) => unknown,
): ReadableStream<Uint8Array> {
  const reader = body.getReader();
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        // Node.js does not always end a read that waits.
        signal?.addEventListener("abort", () => {
          controller.error(signal.reason);
          reader.cancel(signal.reason).catch(() => undefined);
        });
      },
      async pull(controller) {
        try {
          const { done, value } = await reader.read();
          if (done) controller.close();
          else controller.enqueue(value);
        } catch (thrown) {
          controller.error(failed(thrown));
        }
      },
      cancel: (reason) => reader.cancel(reason),
    },
    { highWaterMark: 0 }, // Nothing is read ahead of the caller.
  );
}

function why(thrown: unknown): string {
  if (!(thrown instanceof Error)) return String(thrown);
  return thrown.cause instanceof Error ? thrown.cause.message : thrown.message;
}
