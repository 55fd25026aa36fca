import {
  type DescMessage,
  type DescMethodStreaming,
  type DescMethodUnary,
  type MessageInitShape,
} from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import {
  Code,
  ConnectError,
  type CallOptions,
  type ContextValues,
  type StreamResponse,
  type Transport,
  type UnaryResponse,
} from "@connectrpc/connect";

import { ActserveError } from "./errors.js";
import { ModelService } from "./gen/actserve/v1/model_service_pb.js";
import { checkedHeaders, checkedTimeout } from "./options.js";
import type { Reconnects } from "./reconnects.js";
import { VERSION } from "./version.js";

/** The longest pause before each further attempt of a call; a pause is random, from zero on. */
const PAUSES_MS = [250, 750, 2250];

/** A server may tell a call to wait for as long as this; longer, and the caller is told instead. */
export const LONGEST_DELAY_MS = 30_000;

/** The longest deadline that gRPC can write in milliseconds, 27 hours. More is none. */
const LONGEST_TIMEOUT_MS = 99_999_999;

/** How calls are made. */
export interface CallSettings {
  readonly transport: Transport;
  readonly timeoutMs: number;
  /** Sent with every call. */
  readonly headers: Headers;
  /** The resource name of the model that calls are for; or empty. */
  readonly model: string;
  readonly addHeaders: ((headers: Headers) => void | Promise<void>) | undefined;
  readonly warn: (message: string) => void;
}

/**
 * A transport that does for every call what this client promises: headers, one deadline for all
 * attempts, further attempts, typed errors, and the warning about an older server.
 */
export class Calls implements Transport {
  readonly #settings: CallSettings;
  readonly #running = new Set<AbortController>();
  #closed = false;
  #warned = false;

  constructor(settings: CallSettings) {
    this.#settings = settings;
  }

  /** Ends all calls with `CANCELLED`, and those that are made from now on. */
  close(): void {
    this.#closed = true;
    for (const controller of this.#running) controller.abort(cancelled("the client was closed"));
  }

  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    signal: AbortSignal | undefined,
    timeoutMs: number | undefined,
    headers: HeadersInit | undefined,
    input: MessageInitShape<I>,
    contextValues?: ContextValues,
  ): Promise<UnaryResponse<I, O>> {
    const call = this.#begin(signal, timeoutMs);
    try {
      const sent = await this.#headers(method, headers);
      return await this.#attempts(method, call, async (leftMs) => {
        const response = await this.#settings.transport.unary(
          method,
          call.signal,
          leftMs,
          sent,
          input,
          contextValues,
        );
        this.#readVersion(response.trailer);
        return response;
      });
    } finally {
      call.end();
    }
  }

  async stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodStreaming<I, O>,
    signal: AbortSignal | undefined,
    timeoutMs: number | undefined,
    headers: HeadersInit | undefined,
    input: AsyncIterable<MessageInitShape<I>>,
    contextValues?: ContextValues,
  ): Promise<StreamResponse<I, O>> {
    const call = this.#begin(signal, timeoutMs);
    try {
      const sent = await this.#headers(method, headers);
      // What is sent once can be sent again only if it is kept.
      const requests = method.methodKind === "server_streaming" ? await all(input) : undefined;
      return await this.#attempts(method, call, async (leftMs) => {
        const response = await this.#settings.transport.stream(
          method,
          call.signal,
          leftMs,
          sent,
          requests ? each(requests) : input,
          contextValues,
        );
        const messages = response.message[Symbol.asyncIterator]();
        // The first message decides whether there is another attempt.
        const first = requests && (await messages.next());
        call.signal.addEventListener("abort", () => void drained(messages));
        return { ...response, message: this.#messages(call, messages, first, response.trailer) };
      });
    } catch (thrown) {
      call.end();
      throw thrown;
    }
  }

  /** Waits between calls; ends early, with `CANCELLED`, as a call does. */
  async sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
    const call = this.#begin(signal, Infinity);
    try {
      await call.sleep(ms);
    } finally {
      call.end();
    }
  }

  /**
   * The events of a stream that is opened anew where it is lost after its first event. The attempts
   * are one call, with its signal and deadline.
   *
   * @param come counts what has come and is not to come again; more of it, and attempts count anew
   * @param reconnects of a stream that is to last, which goes on however long the server is gone
   */
  async *goingOn<T>(
    open: (options: CallOptions) => AsyncIterable<T>,
    come: () => number,
    options: CallOptions = {},
    reconnects?: Reconnects,
  ): AsyncGenerator<T> {
    const call = this.#begin(options.signal, options.timeoutMs);
    try {
      for (let made = 1; ; made++) {
        const before = come();
        let isOpen = false;
        try {
          const { signal } = call;
          for await (const event of open({ ...options, signal, timeoutMs: call.leftMs() ?? 0 })) {
            if (!isOpen) reconnects?.opened(this.#settings.warn);
            isOpen = true;
            yield event;
          }
          return;
        } catch (thrown) {
          const error = ActserveError.from(call.signal.aborted ? call.signal.reason : thrown);
          if (come() > before) made = 1;
          if (come() > before) reconnects?.good();
          // Before its first event it was made again already.
          const again = isOpen ? pauseMs(error, made) : undefined;
          const pause = reconnects ? reconnects.pauseMs(error) : again;
          if (pause === undefined || pause >= (call.leftMs() ?? Infinity)) throw error;
          reconnects?.tell(error, this.#settings.warn);
          await call.sleep(pause);
        }
      }
    } finally {
      call.end();
    }
  }

  async *#messages<T>(
    call: Call,
    messages: AsyncIterator<T>,
    first: IteratorResult<T> | undefined,
    trailer: Headers,
  ): AsyncGenerator<T> {
    let left = true;
    try {
      for (let next = first; ; next = undefined) {
        next ??= await messages.next();
        // What was cancelled while nobody read it does not end as if it were whole.
        if (call.signal.aborted) throw call.signal.reason;
        if (next.done) break;
        yield next.value;
      }
      left = false;
      this.#readVersion(trailer);
    } catch (thrown) {
      left = false;
      throw this.#error(thrown, call);
    } finally {
      call.end();
      if (left) {
        call.controller.abort(cancelled("the stream was left"));
      }
    }
  }

  async #attempts<T>(
    method: DescMethodUnary | DescMethodStreaming,
    call: Call,
    attempt: (leftMs: number | undefined) => Promise<T>,
  ): Promise<T> {
    for (let made = 1; ; made++) {
      try {
        return await attempt(call.leftMs());
      } catch (thrown) {
        const error = this.#error(thrown, call);
        const pause = isHarmless(method) ? pauseMs(error, made) : undefined;
        if (pause === undefined || pause >= (call.leftMs() ?? Infinity)) throw error;
        await call.sleep(pause);
      }
    }
  }

  #begin(signal: AbortSignal | undefined, timeoutMs: number | undefined): Call {
    // Zero is how connect has none.
    if (timeoutMs !== undefined && timeoutMs !== 0) checkedTimeout(timeoutMs);
    const call = new Call(signal, timeoutMs ?? this.#settings.timeoutMs, () =>
      this.#running.delete(call.controller),
    );
    this.#running.add(call.controller);
    if (this.#closed) call.controller.abort(cancelled("the client was closed"));
    return call;
  }

  async #headers(
    method: DescMethodUnary | DescMethodStreaming,
    given: HeadersInit | undefined,
  ): Promise<Headers> {
    const { headers, model, addHeaders } = this.#settings;
    const sent = new Headers(headers);
    // A call that lists models is for none of them.
    if (model && method !== ModelService.method.listModels) {
      sent.set("x-actserve-model", percentEncoded(model));
    }
    await addHeaders?.(sent);
    checkedHeaders(given).forEach((value, name) => {
      sent.set(name, value);
    });
    return sent;
  }

  #error(thrown: unknown, call: Call): ActserveError {
    if (call.signal.aborted) return ActserveError.from(call.signal.reason);
    const error = ActserveError.from(thrown);
    const metadata = thrown instanceof ConnectError ? thrown.metadata : new Headers();
    this.#readVersion(metadata);
    if (metadata.has("grpc-status")) return error;
    // At the deadline the server resets the stream, perhaps before the client's own timer fires.
    const isLate = isBroken(error) && (call.leftMs() ?? Infinity) <= 100;
    if (isLate || error.code === "DEADLINE_EXCEEDED") {
      const message = `the call was not over after ${call.timeoutMs} ms, its deadline`;
      return new ActserveError(message, "DEADLINE_EXCEEDED", error, { cause: error.cause });
    }
    const code = isBroken(error) ? "UNAVAILABLE" : isGarbled(error) ? "INTERNAL" : error.code;
    return new ActserveError(error.message, code, error, { cause: error.cause });
  }

  #readVersion(metadata: Headers): void {
    const version = metadata.get("x-actserve-version");
    if (version === null || this.#warned || !isOlder(version, VERSION)) return;
    this.#warned = true;
    this.#settings.warn(
      `the server has version ${version}, which is older than ${VERSION} of this client; what it ` +
        "does not know yet it refuses",
    );
  }
}

/** Whether a connection broke, which the transport calls by several names. */
function isBroken({ code, cause, message }: ActserveError): boolean {
  if (message === "missing trailer") return true; // An answer of gRPC-Web that was cut short.
  if (code === "ABORTED" || code === "CANCELLED") return true;
  if (code !== "INTERNAL" || !(cause instanceof Error) || !("code" in cause)) return false;
  // Node's own errors have names; one of them means that the server reset the stream alone. It
  // refuses a stream, perhaps by GOAWAY, before it has done anything for it.
  const isReset = cause.code === "ERR_HTTP2_STREAM_ERROR";
  return isReset ? cause.message.includes("REFUSED_STREAM") : typeof cause.code === "string";
}

/** Whether what came is no answer, such as half a message; the transport has several codes for it. */
function isGarbled({ message }: ActserveError): boolean {
  return /^(?:protocol error|parse binary):/.test(message);
}

/** One call with all its attempts. */
class Call {
  readonly controller = new AbortController();
  readonly timeoutMs: number;
  readonly #caller: AbortSignal | undefined;
  readonly #deadline: number | undefined;
  readonly #ended: () => void;

  constructor(caller: AbortSignal | undefined, timeoutMs: number, ended: () => void) {
    this.timeoutMs = timeoutMs;
    this.#caller = caller;
    // As connect has it, a call without a deadline of its own has zero.
    const isLimited = timeoutMs > 0 && timeoutMs <= LONGEST_TIMEOUT_MS;
    this.#deadline = isLimited ? performance.now() + timeoutMs : undefined;
    this.#ended = ended;
    caller?.addEventListener("abort", this.#abort);
    if (caller?.aborted) this.#abort();
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** Until the deadline, in whole milliseconds as gRPC writes them, at least one. */
  leftMs(): number | undefined {
    if (this.#deadline === undefined) return undefined;
    return Math.max(1, Math.ceil(this.#deadline - performance.now()));
  }

  async sleep(ms: number): Promise<void> {
    if (this.signal.aborted) throw ActserveError.from(this.signal.reason);
    await new Promise<void>((resolve, reject) => {
      const abort = () => {
        clearTimeout(timer);
        reject(ActserveError.from(this.signal.reason));
      };
      const timer = setTimeout(() => {
        this.signal.removeEventListener("abort", abort);
        resolve();
      }, ms);
      this.signal.addEventListener("abort", abort, { once: true });
    });
  }

  /** Lets go of the caller's signal, which may live for long. */
  end(): void {
    this.#caller?.removeEventListener("abort", this.#abort);
    this.#ended();
  }

  readonly #abort = (): void => {
    this.controller.abort(cancelled("the call was cancelled", this.#caller?.reason));
  };
}

/** With this code the server is told so, too. */
function cancelled(message: string, cause?: unknown): ConnectError {
  return new ConnectError(message, Code.Canceled, undefined, undefined, cause);
}

function isHarmless(method: DescMethodUnary | DescMethodStreaming): boolean {
  return method.idempotency !== MethodOptions_IdempotencyLevel.IDEMPOTENCY_UNKNOWN;
}

/** How long to wait before the next attempt; undefined if there is none. */
function pauseMs(error: ActserveError, made: number): number | undefined {
  const longest = PAUSES_MS[made - 1];
  const delay = error.retryAfterMs ?? 0;
  if (error.code !== "UNAVAILABLE" || longest === undefined || delay > LONGEST_DELAY_MS) {
    return undefined;
  }
  return delay + Math.random() * longest;
}

function percentEncoded(name: string): string {
  return Array.from(new TextEncoder().encode(name), (byte) => {
    const character = String.fromCharCode(byte);
    return /[A-Za-z0-9\-._~/]/.test(character)
      ? character
      : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  }).join("");
}

/** Whether the major and minor version are older. What is no version is not. */
function isOlder(version: string, than: string): boolean {
  const [major, minor] = numbers(version);
  const [thanMajor, thanMinor] = numbers(than);
  return major < thanMajor || (major === thanMajor && minor < thanMinor);
}

function numbers(version: string): [number, number] {
  const [, major, minor] = /^(\d+)\.(\d+)/.exec(version) ?? [];
  return [Number(major ?? Infinity), Number(minor ?? Infinity)];
}

/**
 * The transport lets go of its timer only when it is asked once more, for what comes after all that has
 * come.
 */
async function drained(messages: AsyncIterator<unknown>): Promise<void> {
  try {
    while (!(await messages.next()).done);
  } catch {
    // It was aborted.
  }
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

// eslint-disable-next-line @typescript-eslint/require-await
async function* each<T>(items: readonly T[]): AsyncGenerator<T> {
  yield* items;
}
