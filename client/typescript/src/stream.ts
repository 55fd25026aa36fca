import type { DescService, MessageInitShape } from "@bufbuild/protobuf";
import {
  createClient,
  makeAnyClient,
  type CallOptions,
  type Client as Stub,
  type Transport,
} from "@connectrpc/connect";
import { ActserveError, cutShort } from "./errors.js";

/** What is put together from the events of a stream. */
export interface Collector<Event, Whole> {
  /** Takes the next event. Throws if it breaks the contract. */
  add(event: Event): void;
  /** The whole, once the stream has ended. Throws if something of it is missing. */
  finish(): Whole;
}

/** A message of a stream: an event, or, of explanations, what holds one. */
export interface Response {
  readonly event?:
    | { readonly case?: string | undefined }
    | { readonly event: { readonly case?: string | undefined } }
    | undefined;
}

/**
 * An answer that comes in events. Nothing is sent before it is read. It is read once, by a loop or by
 * `collect`; leaving a loop over it cancels the call.
 */
export class EventStream<Event extends Response, Whole> implements AsyncIterable<Event> {
  readonly #open: () => AsyncIterable<Event>;
  readonly #collector: () => Collector<Event, Whole>;
  #isRead = false;

  /** @internal */
  constructor(open: () => AsyncIterable<Event>, collector: () => Collector<Event, Whole>) {
    this.#open = open;
    this.#collector = collector;
  }

  /**
   * The events as the server sends them; those that this client does not know have no `case`.
   *
   * @throws {@link ActserveError} `STREAM_CUT_SHORT` at its end, if `finished` did not come;
   * `FAILED_PRECONDITION` if it was read before
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<Event, void, undefined> {
    if (this.#isRead) {
      throw new ActserveError(
        "this stream was read before, and is not there a second time; call the method again, or " +
          "either loop over a stream or collect it",
        "FAILED_PRECONDITION",
      );
    }
    this.#isRead = true;
    let finished = false;
    for await (const event of this.#open()) {
      finished ||= isLast(event);
      yield event;
    }
    if (!finished) throw cutShort();
  }

  /**
   * Reads all events, and checks and joins them.
   *
   * @throws {@link ActserveError} `STREAM_CUT_SHORT` if the stream ended too early, and
   * `BAD_RESPONSE` if the server broke the contract
   */
  async collect(): Promise<Whole> {
    const collector = this.#collector();
    for await (const event of this) collector.add(event);
    return collector.finish();
  }
}

function isLast({ event }: Response): boolean {
  const oneof = event !== undefined && "event" in event ? event.event : event;
  return oneof?.case === "finished";
}

/** The methods of a service. Unlike those of connect, streams that are left are cancelled. */
export function stubOf<Service extends DescService>(
  service: Service,
  transport: Transport,
): Stub<Service> {
  const stub: Record<string, unknown> = createClient(service, transport);
  return makeAnyClient(service, (method) => {
    if (method.methodKind !== "server_streaming") return stub[method.localName] as never;
    return async function* (request: MessageInitShape<typeof method.input>, options?: CallOptions) {
      const response = await transport.stream(
        method,
        options?.signal,
        options?.timeoutMs,
        options?.headers,
        one(request),
        options?.contextValues,
      );
      options?.onHeader?.(response.header);
      yield* response.message;
      options?.onTrailer?.(response.trailer);
    };
  }) as Stub<Service>;
}

// eslint-disable-next-line @typescript-eslint/require-await
async function* one<T>(item: T): AsyncGenerator<T> {
  yield item;
}
