/**
 * Calls of the server's services in the JSON of the Connect protocol, to where this page came from.
 *
 * A stream is a sequence of envelopes: a byte of flags, four of length, and JSON. The last one, with the
 * flag 2, says how the stream ended; without it the stream was cut short.
 */

const COMPRESSED = 1;
const LAST = 2;
const HEADER_BYTES = 5;
/** Of one envelope; more is no answer of this server. */
const MAX_ENVELOPE_BYTES = 64 << 20;

/** The HTTP statuses of an answer that is no Connect error, as its codes. @type {Record<number, string>} */
const CODES = {
  400: "internal",
  401: "unauthenticated",
  403: "permission_denied",
  404: "unimplemented",
  429: "unavailable",
  502: "unavailable",
  503: "unavailable",
  504: "unavailable",
};

/** A call that failed. */
export class CallError extends Error {
  /**
   * @param {string} code one of Connect's, such as "unauthenticated"
   * @param {string} message
   * @param {string} [reason] one of the contract's, such as "FIELD_INVALID"
   */
  constructor(code, message, reason = "") {
    super(message || code);
    this.name = "CallError";
    this.code = code;
    this.reason = reason;
  }
}

/** Calls with the token that is current when they are made. */
export class Calls {
  /** @param {() => string} token the access token, or nothing */
  constructor(token) {
    this.token = token;
  }

  /**
   * The answer to a call that has one.
   *
   * @template Answer
   * @param {string} method such as "ModelService/ListModels"
   * @param {object} request
   * @param {AbortSignal} [signal]
   * @returns {Promise<Answer>}
   */
  async ask(method, request, signal) {
    const response = await this.#post(method, "application/json", JSON.stringify(request), signal);
    if (!response.ok) throw await failure(response);
    return /** @type {Promise<Answer>} */ (response.json());
  }

  /**
   * The messages of a stream, as they come. Leaving the loop cancels the call.
   *
   * @template Answer
   * @param {string} method such as "GenerationService/Generate"
   * @param {object} request
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<Answer, void, void>}
   */
  async *stream(method, request, signal) {
    const response = await this.#post(
      method,
      "application/connect+json",
      envelope(request),
      signal,
    );
    if (!response.ok || !response.body) throw await failure(response);
    const reader = response.body.getReader();
    try {
      for await (const { flags, text } of envelopes(reader)) {
        const message = /** @type {unknown} */ (JSON.parse(text));
        if (!(flags & LAST)) {
          yield /** @type {Answer} */ (message);
          continue;
        }
        const { error } = /** @type {{ error?: unknown }} */ (message);
        if (error) throw callError(error, "unknown");
        return;
      }
      throw new CallError("unavailable", "the server's answer was cut short");
    } finally {
      await reader.cancel().catch(() => undefined);
    }
  }

  /**
   * @param {string} method
   * @param {string} type
   * @param {BodyInit} body
   * @param {AbortSignal | undefined} signal
   */
  async #post(method, type, body, signal) {
    const headers = new Headers({ "content-type": type, "connect-protocol-version": "1" });
    const token = this.token();
    if (token) headers.set("authorization", `Bearer ${token}`);
    try {
      return await fetch(`/actserve.v1.${method}`, {
        method: "POST",
        headers,
        body,
        signal: signal ?? null,
        mode: "same-origin",
        credentials: "omit",
        cache: "no-store",
        redirect: "error",
        referrerPolicy: "no-referrer",
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new CallError("unavailable", "the server cannot be reached");
    }
  }
}

/** @param {object} request */
function envelope(request) {
  const message = new TextEncoder().encode(JSON.stringify(request));
  const whole = new Uint8Array(HEADER_BYTES + message.length);
  new DataView(whole.buffer).setUint32(1, message.length);
  whole.set(message, HEADER_BYTES);
  return whole;
}

/**
 * @param {ReadableStreamDefaultReader<Uint8Array>} reader
 * @returns {AsyncGenerator<{ flags: number, text: string }, void, void>}
 */
async function* envelopes(reader) {
  const decoder = new TextDecoder();
  /** @type {Uint8Array[]} */
  let parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    parts.push(value);
    size += value.length;
    if (size < HEADER_BYTES) continue;
    if (size < HEADER_BYTES + announced(parts)) continue;
    let whole = joined(parts, size);
    while (whole.length >= HEADER_BYTES) {
      const flags = whole[0] ?? 0;
      const end = HEADER_BYTES + lengthOf(whole);
      if (whole.length < end) break;
      if (flags & COMPRESSED)
        throw new CallError("internal", "the server compressed its answer unasked");
      yield { flags, text: decoder.decode(whole.subarray(HEADER_BYTES, end)) };
      whole = whole.subarray(end);
    }
    parts = whole.length ? [whole] : [];
    size = whole.length;
  }
}

/** How long the first envelope says it is; its header may lie in several parts. @param {Uint8Array[]} parts */
function announced(parts) {
  const header = new Uint8Array(HEADER_BYTES);
  let at = 0;
  for (const part of parts) {
    const taken = part.subarray(0, HEADER_BYTES - at);
    header.set(taken, at);
    at += taken.length;
    if (at === HEADER_BYTES) break;
  }
  return lengthOf(header);
}

/** @param {Uint8Array} bytes */
function lengthOf(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(1);
  if (length > MAX_ENVELOPE_BYTES)
    throw new CallError("internal", `the server announces a message of ${length} bytes`);
  return length;
}

/** @param {Uint8Array[]} parts @param {number} size */
function joined(parts, size) {
  const [first] = parts;
  if (first && parts.length === 1) return first;
  const whole = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** @param {Response} response */
async function failure(response) {
  const code = CODES[response.status] ?? "unknown";
  try {
    return callError(/** @type {unknown} */ (await response.json()), code);
  } catch {
    return new CallError(code, `the server answers with status ${response.status}`);
  }
}

/** @param {unknown} error @param {string} otherwise */
function callError(error, otherwise) {
  const { code, message, details } =
    /** @type {{ code?: unknown, message?: unknown, details?: unknown }} */ (error);
  return new CallError(
    typeof code === "string" ? code : otherwise,
    typeof message === "string" ? message : "",
    reasonOf(details),
  );
}

/** The reason in google.rpc.ErrorInfo, which travels as the bytes of a message: its first field. @param {unknown} details */
function reasonOf(details) {
  if (!Array.isArray(details)) return "";
  for (const detail of /** @type {{ type?: unknown, value?: unknown }[]} */ (details)) {
    if (detail.type !== "google.rpc.ErrorInfo" || typeof detail.value !== "string") continue;
    const bytes = atob(detail.value.replaceAll("-", "+").replaceAll("_", "/"));
    if (bytes.charCodeAt(0) === 0x0a) return bytes.slice(2, 2 + bytes.charCodeAt(1));
  }
  return "";
}
