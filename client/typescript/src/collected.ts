import { ActserveError } from "./errors.js";
import type { Alert } from "./gen/actserve/v1/alert_pb.js";
import type {
  MonitorInterventions,
  MonitorScore,
  SampleFinished,
  TokenLogprobs,
  Usage,
  FinishReason,
} from "./gen/actserve/v1/generation_service_pb.js";
import type { InterventionReport } from "./gen/actserve/v1/intervention_pb.js";
import type { TokenizedPrompt } from "./gen/actserve/v1/prompt_pb.js";
import type { Float32Tensor } from "./tensors.js";

/** Rows of one site: `shape` is [positions, width]. */
export interface Rows extends Float32Tensor {
  /** The token position of each row, ascending; with a reduction only the last one. */
  readonly positions: readonly number[];
  /** With `send_top`: the direction that each element belongs to, in the shape of the rows. */
  readonly indices: readonly number[] | undefined;
}

/** Next-token predictions at one site. What was not asked for is undefined, or empty. */
export interface Predictions {
  readonly positions: readonly number[];
  /** The likeliest tokens of each position, likeliest first. */
  readonly topIds: readonly (readonly number[])[];
  readonly topTexts: readonly (readonly string[])[];
  /** Natural log probabilities of `topIds`: [positions, top_k]. */
  readonly topLogprobs: Float32Tensor | undefined;
  /** Those of the tokens that were asked for: [positions, token_ids]. */
  readonly tokenLogprobs: Float32Tensor | undefined;
  /** That of the prompt token that does come next: [positions]; NaN where there is none. */
  readonly nextTokenLogprobs: Float32Tensor | undefined;
}

/** The attention pattern of one head: `shape` is [queries, tokens], or [queries, top_k]. */
export interface Attention extends Float32Tensor {
  /** The token position of each query, ascending. */
  readonly queries: readonly number[];
  /** With `top_k`: the position of each weight's key, in the shape of the weights; -1 is none. */
  readonly keys: readonly number[] | undefined;
}

/** How the heads of one layer attend, in means over queries; `AttentionSummaryChunk` says which. */
export interface AttentionSummary {
  /** How many queries, and of them those that each mean is over. */
  readonly queries: number;
  readonly previousTokenQueries: number;
  readonly inductionQueries: number;
  readonly offsetQueries: readonly number[];
  /** Each of shape [heads]. */
  readonly previousToken: Float32Tensor;
  readonly currentToken: Float32Tensor;
  readonly firstToken: Float32Tensor;
  readonly induction: Float32Tensor;
  readonly entropy: Float32Tensor;
  readonly distance: Float32Tensor;
  /** Of shape [heads, offsets]. */
  readonly atOffsets: Float32Tensor;
  /** Positions in the shape [heads, top_keys]; -1 is none. */
  readonly topKeys: readonly number[];
  /** Of shape [heads, top_keys]. */
  readonly topKeyMeans: Float32Tensor;
}

/**
 * How much rows of one site add to logits: `shape` is [positions, targets], and of z
 * [positions, heads, targets].
 */
export interface LogitAttribution extends Float32Tensor {
  readonly positions: readonly number[];
  /** What the bias of the final norm adds to each target at every position. */
  readonly constants: readonly number[];
}

/** What a readout gave; sites are written as the request has them. */
export type ReadoutResult =
  | { readonly kind: "rows"; readonly sites: ReadonlyMap<string, Rows> }
  | { readonly kind: "predictions"; readonly sites: ReadonlyMap<string, Predictions> }
  | { readonly kind: "attention"; readonly heads: ReadonlyMap<number, Attention> }
  | { readonly kind: "attentionSummary"; readonly layers: ReadonlyMap<number, AttentionSummary> }
  | { readonly kind: "logitAttribution"; readonly sites: ReadonlyMap<string, LogitAttribution> }
  /** `name` is `keptActivations/...`; undefined where no position was read. */
  | { readonly kind: "kept"; readonly name: string | undefined };

/** How the rows of one label at one site are distributed. */
export interface LabelStatistics {
  /** A sum over the call, of 64 bits. */
  readonly rows: bigint;
  /** Of shape [width]. */
  readonly mean: Float32Tensor;
  /** Variances, of shape [width], or the covariance matrix, of shape [width, width]. */
  readonly secondMoments: Float32Tensor;
}

/** By name of the readout, site and label. */
export type Statistics = ReadonlyMap<
  string,
  ReadonlyMap<string, ReadonlyMap<string, LabelStatistics>>
>;

/** What a sequence that did not fail has. */
export interface SequenceFields {
  readonly prompt: TokenizedPrompt;
  readonly tokenIds: readonly number[];
  readonly tokens: readonly string[];
  readonly readouts: ReadonlyMap<string, ReadoutResult>;
  readonly interventions: readonly InterventionReport[];
}

/** One sequence that was run: an item or a sample. */
export abstract class Sequence {
  /** Into the items or samples of the call. */
  readonly index: number;
  readonly #fields: SequenceFields | ActserveError;

  /** @internal */
  constructor(index: number, fields: SequenceFields | ActserveError) {
    this.index = index;
    this.#fields = fields;
  }

  /** Why an item failed; all its other properties then throw this error. */
  get error(): ActserveError | undefined {
    return this.#fields instanceof ActserveError ? this.#fields : undefined;
  }

  /** The prompt as the model sees it. */
  get prompt(): TokenizedPrompt {
    return this.#found.prompt;
  }

  /** The tokens of the prompt and, of a sample, the generated ones after them. */
  get tokenIds(): readonly number[] {
    return this.#found.tokenIds;
  }

  /** Each token decoded alone; empty with `ids_only`. */
  get tokens(): readonly string[] {
    return this.#found.tokens;
  }

  /** What each readout gave, by its name. */
  get readouts(): ReadonlyMap<string, ReadoutResult> {
    return this.#found.readouts;
  }

  /** What each intervention did: those of the call, then the item's own. */
  get interventions(): readonly InterventionReport[] {
    return this.#found.interventions;
  }

  /** The rows of a site. Throws a `RangeError` if they were not asked for; as all below. */
  rows(readout: string, site: string): Rows {
    return found(this.#readout(readout, "rows").sites, site);
  }

  predictions(readout: string, site: string): Predictions {
    return found(this.#readout(readout, "predictions").sites, site);
  }

  attention(readout: string, head: number): Attention {
    return found(this.#readout(readout, "attention").heads, head);
  }

  /** @param layer zero-based, also where the request counts from the last one */
  attentionSummary(readout: string, layer: number): AttentionSummary {
    return found(this.#readout(readout, "attentionSummary").layers, layer);
  }

  logitAttribution(readout: string, site: string): LogitAttribution {
    return found(this.#readout(readout, "logitAttribution").sites, site);
  }

  /** The name of the rows that the server keeps, `keptActivations/...`. */
  kept(readout: string): string {
    const { name } = this.#readout(readout, "kept");
    if (name === undefined) {
      throw new RangeError(`${readout} has kept nothing, since no position was read`);
    }
    return name;
  }

  get #found(): SequenceFields {
    if (this.#fields instanceof ActserveError) throw this.#fields;
    return this.#fields;
  }

  #readout<Kind extends ReadoutResult["kind"]>(
    name: string,
    kind: Kind,
  ): Extract<ReadoutResult, { kind: Kind }> {
    const readout = found(this.readouts, name);
    if (isOf(readout, kind)) return readout;
    throw new RangeError(`the readout ${JSON.stringify(name)} has ${readout.kind}, not ${kind}`);
  }
}

/** What was read of one item of a fetch. */
export class Item extends Sequence {
  /** As the request has it. */
  readonly key: string;

  /** @internal */
  constructor(index: number, key: string, fields: SequenceFields | ActserveError) {
    super(index, fields);
    this.key = key;
  }
}

/** One sample of a generation. */
export class Sample extends Sequence {
  /** What was generated. */
  readonly text: string;
  readonly finishReason: FinishReason;
  /** The end token, stop string or monitor that ended it. */
  readonly stoppedBy: SampleFinished["stoppedBy"];
  /** Of each generated token, if they were asked for; else empty. */
  readonly logprobs: readonly TokenLogprobs[];
  /** Those that monitors have the call told of, as they were raised. */
  readonly alerts: readonly Alert[];
  /**
   * Of the monitors that watched it, as the request asks. `decodeTensor` reads the scores as of each
   * token.
   */
  readonly monitorScores: readonly MonitorScore[];
  /**
   * What monitors changed, an entry for each level that came to intervene, in the order in which they
   * began to.
   */
  readonly monitorInterventions: readonly MonitorInterventions[];

  /** @internal */
  constructor(
    index: number,
    fields: SequenceFields,
    generated: Pick<
      Sample,
      | "text"
      | "finishReason"
      | "stoppedBy"
      | "logprobs"
      | "alerts"
      | "monitorScores"
      | "monitorInterventions"
    >,
  ) {
    super(index, fields);
    this.text = generated.text;
    this.finishReason = generated.finishReason;
    this.stoppedBy = generated.stoppedBy;
    this.logprobs = generated.logprobs;
    this.alerts = generated.alerts;
    this.monitorScores = generated.monitorScores;
    this.monitorInterventions = generated.monitorInterventions;
  }
}

/** All that was fetched by a call. */
export class Fetched {
  /** The server's id of the call. */
  readonly callId: string;
  /** One for each item of the request, in its order. */
  readonly items: readonly Item[];
  /** Of readouts with `statistics`. */
  readonly statistics: Statistics;
  readonly usage: Usage | undefined;

  /** @internal */
  constructor(fields: Pick<Fetched, "callId" | "items" | "statistics" | "usage">) {
    this.callId = fields.callId;
    this.items = fields.items;
    this.statistics = fields.statistics;
    this.usage = fields.usage;
  }

  /** The item of an index. Throws a `RangeError` if the request has none. */
  item(index: number): Item {
    const item = this.items[index];
    if (item) return item;
    throw new RangeError(`there is no item ${index} of ${this.items.length}`);
  }
}

/** All that was generated by a call. */
export interface Generated {
  /** The server's id of the call. */
  readonly callId: string;
  /** One for each sample that was asked for; one at least. */
  readonly samples: readonly [Sample, ...Sample[]];
  readonly usage: Usage | undefined;
}

function found<Key, Value>(values: ReadonlyMap<Key, Value>, key: Key): Value {
  const value = values.get(key);
  if (value !== undefined) return value;
  const there = [...values.keys()].join(", ") || "none";
  throw new RangeError(`${String(key)} was not asked for; there are: ${there}`);
}

function isOf<Kind extends ReadoutResult["kind"]>(
  readout: ReadoutResult,
  kind: Kind,
): readout is Extract<ReadoutResult, { kind: Kind }> {
  return readout.kind === kind;
}
