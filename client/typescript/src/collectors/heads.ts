import { ActserveError, badResponse, cutShort } from "../errors.js";
import type { Usage } from "../gen/actserve/v1/generation_service_pb.js";
import type {
  HeadMetrics,
  MeasuredItem,
  MeasureHeadsFinished,
  MeasureHeadsRequest,
  MeasureHeadsResponse,
  MeasureHeadsStarted,
  SparsePatternChunk,
} from "../gen/actserve/v1/head_service_pb.js";
import type { TokenizedPrompt } from "../gen/actserve/v1/prompt_pb.js";
import type { Collector } from "../stream.js";
import { joined } from "../tensors.js";
import { asked, shaped } from "./checked.js";
import { tokenized } from "./sequence.js";

/**
 * The largest weights of each query of one head for one item: an entry of each list for each weight, query
 * by query, the largest of a query first.
 */
export interface HeadPattern {
  /** The positions of the queries, ascending. */
  readonly queries: readonly number[];
  /** The positions of the keys. */
  readonly keys: readonly number[];
  readonly weights: Float32Array;
}

/** One item of a corpus. */
export interface MeasuredPrompt {
  /** As the request has it. */
  readonly key: string;
  /** Why the item failed, so that it counts in no number; undefined if it does. */
  readonly error: ActserveError | undefined;
  /** The prompt as the model saw it; undefined if the item failed. */
  readonly prompt: TokenizedPrompt | undefined;
  /**
   * By layer and then by head, where the request asks for patterns; a head none of whose weights is large
   * enough has none.
   */
  readonly patterns: ReadonlyMap<number, ReadonlyMap<number, HeadPattern>>;
}

/** What was measured of attention heads. */
export interface MeasuredHeads {
  /** The server's id of the call. */
  readonly callId: string;
  /** The layers that were measured, ascending. */
  readonly layers: readonly number[];
  /** What was measured of each head: by layer, as in `layers`, and then by head. */
  readonly heads: readonly (readonly HeadMetrics[])[];
  /** One for each item of the request, in its order. */
  readonly prompts: readonly MeasuredPrompt[];
  readonly usage: Usage | undefined;
}

/** By layer and then by head. */
type ByHead<T> = Map<number, Map<number, T>>;

/** Collects what is measured of heads. */
export class HeadsCollector implements Collector<MeasureHeadsResponse, MeasuredHeads> {
  readonly #request: MeasureHeadsRequest;
  readonly #chunks = new Map<number, ByHead<SparsePatternChunk[]>>();
  readonly #prompts = new Map<number, MeasuredPrompt>();
  readonly #metrics: ByHead<HeadMetrics> = new Map();
  #started: MeasureHeadsStarted | undefined;
  #finished: MeasureHeadsFinished | undefined;

  constructor(request: MeasureHeadsRequest) {
    this.#request = request;
  }

  add({ event }: MeasureHeadsResponse): void {
    if (event.case === undefined) return; // An event of a newer server.
    if (this.#finished) throw badResponse("the server went on after it had finished");
    if (event.case === "started") {
      if (this.#started) throw badResponse("the server started twice");
      this.#started = event.value;
      return;
    }
    if (!this.#started) throw badResponse("the server did not begin with `started`");
    switch (event.case) {
      case "pattern":
        this.#addPattern(event.value);
        break;
      case "itemFinished":
        this.#close(this.#started, event.value);
        break;
      case "metrics":
        this.#addMetrics(event.value);
        break;
      case "finished":
        this.#finished = event.value;
    }
  }

  finish(): MeasuredHeads {
    if (!this.#started || !this.#finished) throw cutShort();
    const prompts = this.#request.items.map((_, index) => {
      const prompt = this.#prompts.get(index);
      if (!prompt) throw badResponse(`the server finished without item ${index}`);
      return prompt;
    });
    const layers = [...this.#metrics.keys()].sort((a, b) => a - b);
    checkLayers(this.#request.layers, layers);
    const count = Math.max(...[...this.#metrics.values()].map((heads) => heads.size));
    const heads = layers.map((layer) =>
      Array.from({ length: count }, (_, head) => {
        const metrics = this.#metrics.get(layer)?.get(head);
        if (!metrics) {
          throw badResponse(`the server finished without head ${head} of layer ${layer}`);
        }
        return metrics;
      }),
    );
    for (const { patterns } of prompts) this.#checkPatterns(patterns);
    return {
      callId: this.#started.callId,
      layers,
      heads,
      prompts,
      usage: this.#finished.usage,
    };
  }

  #addPattern(chunk: SparsePatternChunk): void {
    const { itemIndex, layer, head } = chunk;
    asked(this.#request.items, itemIndex, "item");
    if (!this.#request.patterns || this.#prompts.has(itemIndex)) {
      throw badResponse(`the server sent a pattern of item ${itemIndex} unasked`);
    }
    const chunks = of(this.#chunks, itemIndex, () => new Map<number, never>());
    of(
      of(chunks, layer, () => new Map<number, never>()),
      head,
      () => [],
    ).push(chunk);
  }

  #addMetrics(metrics: HeadMetrics): void {
    const { layer, head, topQueryTokens, topKeyTokens } = metrics;
    const heads = of(this.#metrics, layer, () => new Map<number, never>());
    if (heads.has(head)) throw badResponse(`the server sent head ${head} of layer ${layer} twice`);
    const tokens = Math.max(topQueryTokens.length, topKeyTokens.length);
    if (tokens > this.#request.topTokens) {
      throw badResponse(
        `the server sent ${tokens} tokens of a head, but ${this.#request.topTokens} were asked for`,
      );
    }
    heads.set(head, metrics);
  }

  #close({ callId }: MeasureHeadsStarted, { itemIndex, status, prompt }: MeasuredItem): void {
    const { key } = asked(this.#request.items, itemIndex, "item");
    if (this.#prompts.has(itemIndex)) {
      throw badResponse(`the server closed item ${itemIndex} twice`);
    }
    const chunks = this.#chunks.get(itemIndex);
    this.#chunks.delete(itemIndex);
    if (status && status.code !== 0) {
      const error = ActserveError.fromStatus(status, callId);
      const failed = { key, error, prompt: undefined, patterns: new Map<number, never>() };
      this.#prompts.set(itemIndex, failed);
      return;
    }
    const run = tokenized(prompt, false);
    const patterns = new Map(
      [...(chunks ?? [])].map(([layer, heads]) => [
        layer,
        new Map([...heads].map(([head, parts]) => [head, patternOf(parts, run.ids.length)])),
      ]),
    );
    this.#prompts.set(itemIndex, { key, error: undefined, prompt: run, patterns });
  }

  #checkPatterns(patterns: MeasuredPrompt["patterns"]): void {
    for (const [layer, heads] of patterns) {
      for (const head of heads.keys()) {
        if (this.#metrics.get(layer)?.has(head)) continue;
        throw badResponse(`the server sent a pattern of head ${head} of layer ${layer} unasked`);
      }
    }
  }
}

/** Which layer is the last the caller alone knows, so one that counts from there may be any. */
function checkLayers(asked: readonly number[], layers: readonly number[]): void {
  const isSame = asked.length
    ? asked.length === layers.length && asked.every((layer) => layer < 0 || layers.includes(layer))
    : layers.length > 0 && layers.at(-1) === layers.length - 1;
  if (isSame) return;
  throw badResponse(
    `the server measured the layers [${layers.join(", ")}], but [${asked.join(", ")}] were asked ` +
      "for (none are all)",
  );
}

/** The chunks of one head, joined. */
function patternOf(chunks: readonly SparsePatternChunk[], tokens: number): HeadPattern {
  for (const { queries, keys, weights } of chunks) {
    shaped(weights, [queries.length], "weights of a pattern");
    if (keys.length !== queries.length) {
      throw badResponse(
        `the server sent ${queries.length} queries and ${keys.length} keys of one pattern`,
      );
    }
    if (queries.some((query, index) => query >= tokens || (keys[index] ?? 0) > query)) {
      throw badResponse("the server sent a weight of a key that its query cannot see");
    }
  }
  return {
    queries: chunks.flatMap(({ queries }) => queries),
    keys: chunks.flatMap(({ keys }) => keys),
    weights: joined(chunks.flatMap(({ weights }) => weights ?? [])),
  };
}

/** The value of a key, made where there is none. */
function of<Key, Value>(values: Map<Key, Value>, key: Key, make: () => Value): Value {
  const there = values.get(key);
  if (there !== undefined) return there;
  const made = make();
  values.set(key, made);
  return made;
}
