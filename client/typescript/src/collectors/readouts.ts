import type {
  Attention,
  AttentionSummary,
  LogitAttribution,
  Predictions,
  ReadoutResult,
  Rows,
} from "../collected.js";
import { badResponse } from "../errors.js";
import {
  Reduction,
  type ActivationChunk,
  type AttentionChunk,
  type AttentionReadout,
  type AttentionSummaryChunk,
  type AttentionSummaryReadout,
  type LogitAttributionChunk,
  type LogitAttributionReadout,
  type PredictionChunk,
  type PredictionReadout,
  type Readout,
  type ReadoutStarted,
  type RowReadout,
} from "../gen/actserve/v1/readout_pb.js";
import { HookPoint } from "../gen/actserve/v1/site_pb.js";
import type { Tensor } from "../gen/actserve/v1/tensor_pb.js";
import { siteName } from "../sites.js";
import { decodeTensor, joined, size, type Float32Tensor } from "../tensors.js";
import { asked, counted, shaped } from "./checked.js";
import { Chunks } from "./chunks.js";

/** What is read of one sequence by one readout. */
export interface Reader {
  /**
   * All of it, if it is whole: read at these positions of a sequence, of which so many tokens were
   * run.
   */
  finish(positions: readonly number[], tokens: number): ReadoutResult;
}

/** The reader of a readout; undefined if nothing of it comes with a sequence. */
export function readerOf({ kind }: Readout, started: ReadoutStarted): Reader | undefined {
  switch (kind.case) {
    case "rows":
      return kind.value.statistics ? undefined : new RowReader(kind.value, started);
    case "predictions":
      return new PredictionReader(kind.value);
    case "attention":
      return new AttentionReader(kind.value);
    case "attentionSummary":
      return new AttentionSummaryReader(kind.value, started);
    case "logitAttribution":
      return new LogitAttributionReader(kind.value, started);
    default:
      return undefined;
  }
}

/** The widths that the server announces, if there is one for each site. */
export function widthsOf({ sites }: RowReadout, { widths }: ReadoutStarted): readonly number[] {
  return counted(widths, sites.length, "widths of sites");
}

/** Rows of sites. */
export class RowReader implements Reader {
  readonly #sites: readonly string[];
  readonly #widths: readonly number[];
  readonly #reduced: boolean;
  readonly #cut: boolean;
  readonly #chunks: Chunks<string, { tensor: Tensor; indices: readonly number[] }>;

  constructor(readout: RowReadout, started: ReadoutStarted) {
    this.#sites = readout.sites.map(siteName);
    this.#widths = widthsOf(readout, started);
    this.#reduced = readout.reduction !== Reduction.UNSPECIFIED;
    this.#cut = readout.projection?.sendTop !== undefined;
    this.#chunks = new Chunks("rows", this.#sites);
  }

  add({ siteIndex, positions, rows, indices }: ActivationChunk): void {
    const site = asked(this.#sites, siteIndex, "rows of site");
    const width = asked(this.#widths, siteIndex, "rows of site");
    const tensor = shaped(rows, [positions.length, width], `rows of ${site}`);
    counted(indices, this.#cut ? size(tensor.shape) : 0, `indices of rows of ${site}`);
    this.#chunks.add(site, positions, { tensor, indices });
  }

  finish(promised: readonly number[]): ReadoutResult {
    const positions = this.#reduced ? promised.slice(-1) : promised;
    const sites = this.#chunks.finish(positions, (chunks, site): Rows => {
      const width = this.#widths[this.#sites.indexOf(site)] ?? 0;
      return {
        positions,
        shape: [positions.length, width],
        data: joined(chunks.map(({ tensor }) => tensor)),
        indices: this.#cut ? chunks.flatMap(({ indices }) => indices) : undefined,
      };
    });
    return { kind: "rows", sites };
  }
}

/** Next-token predictions. */
export class PredictionReader implements Reader {
  readonly #readout: PredictionReadout;
  readonly #sites: readonly string[];
  readonly #chunks: Chunks<string, PredictionChunk>;

  constructor(readout: PredictionReadout) {
    this.#readout = readout;
    this.#sites = readout.sites.length ? readout.sites.map(siteName) : ["final_norm"];
    this.#chunks = new Chunks("predictions", this.#sites);
  }

  add(chunk: PredictionChunk): void {
    const site = asked(this.#sites, chunk.siteIndex, "predictions of site");
    const { topK } = this.#readout;
    counted(chunk.topIds, chunk.positions.length * topK, `predicted ids of ${site}`);
    counted(chunk.topTexts, chunk.positions.length * topK, `predicted texts of ${site}`);
    this.#chunks.add(site, chunk.positions, chunk);
  }

  finish(positions: readonly number[]): ReadoutResult {
    const { topK, tokenIds, nextToken } = this.#readout;
    const sites = this.#chunks.finish(positions, (chunks, site): Predictions => {
      const all = (
        name: "topLogprobs" | "tokenLogprobs" | "nextTokenLogprobs",
        axes: readonly number[],
      ): Float32Tensor => {
        const blocks = chunks.map((chunk) =>
          shaped(chunk[name], [chunk.positions.length, ...axes], `${name} of ${site}`),
        );
        return { shape: [positions.length, ...axes], data: joined(blocks) };
      };
      return {
        positions,
        topIds: topK ? split(chunks, "topIds", topK) : [],
        topTexts: topK ? split(chunks, "topTexts", topK) : [],
        topLogprobs: topK ? all("topLogprobs", [topK]) : undefined,
        tokenLogprobs: tokenIds.length ? all("tokenLogprobs", [tokenIds.length]) : undefined,
        nextTokenLogprobs: nextToken ? all("nextTokenLogprobs", []) : undefined,
      };
    });
    return { kind: "predictions", sites };
  }
}

/** So many values for each position. */
function split<Name extends "topIds" | "topTexts">(
  chunks: readonly PredictionChunk[],
  name: Name,
  width: number,
): PredictionChunk[Name][] {
  return chunks.flatMap((chunk) =>
    chunk.positions.map(
      (_, row) => chunk[name].slice(row * width, (row + 1) * width) as PredictionChunk[Name],
    ),
  );
}

const NO_KEY = -1;

/** Weights are filled up to the last token, which multiplies what was sent; up to this, 256 MiB. */
const MAX_FILLED = 1 << 26;

/** Attention patterns of one layer. */
export class AttentionReader implements Reader {
  readonly #readout: AttentionReadout;
  readonly #chunks: Chunks<number, { chunk: AttentionChunk; columns: number; data: Float32Array }>;

  constructor(readout: AttentionReadout) {
    this.#readout = readout;
    this.#chunks = new Chunks("attention of head", readout.heads);
  }

  add(chunk: AttentionChunk): void {
    const { head, queries, keys } = chunk;
    const { shape, data } = chunk.weights ? decodeTensor(chunk.weights) : NOTHING;
    const [rows, columns = 0] = shape;
    // A query attends to itself and to what is before it; these weights must all be there.
    const seen = queries.reduce((most, query) => Math.max(most, query + 1), 0);
    const { topK } = this.#readout;
    const fits = topK === undefined ? columns >= seen : columns >= Math.min(topK, seen);
    if (shape.length !== 2 || rows !== queries.length || !fits) {
      throw badResponse(
        `the server sent attention of head ${head} in shape [${shape.join(", ")}] for ` +
          `${queries.length} queries up to position ${seen - 1}`,
      );
    }
    counted(keys, topK === undefined ? 0 : data.length, `keys of head ${head}`);
    this.#chunks.add(head, queries, { chunk, columns, data });
  }

  finish(queries: readonly number[], tokens: number): ReadoutResult {
    const { topK } = this.#readout;
    const width = topK ?? tokens;
    const heads = this.#chunks.finish(queries, (chunks, head): Attention => {
      const sent = chunks.reduce((sum, { data }) => sum + data.length, 0);
      const filled = queries.length * width;
      if (chunks.some(({ columns }) => columns > width) || filled > 2 * sent + MAX_FILLED) {
        throw badResponse(
          `the server sent ${sent} weights of head ${head} for ${queries.length} queries, which ` +
            `see ${width} keys`,
        );
      }
      const data = new Float32Array(filled);
      const keys = topK === undefined ? undefined : new Array<number>(filled).fill(NO_KEY);
      let row = 0;
      for (const { chunk, columns, data: weights } of chunks) {
        for (let start = 0; start < weights.length; start += columns) {
          data.set(weights.subarray(start, start + columns), row * width);
          for (let key = 0; keys && key < columns; key++) {
            keys[row * width + key] = chunk.keys[start + key] ?? NO_KEY;
          }
          row++;
        }
      }
      return { queries, shape: [queries.length, width], data, keys };
    });
    return { kind: "attention", heads };
  }
}

const NOTHING: Float32Tensor = { shape: [], data: new Float32Array() };

/** Summaries of attention, one for each layer. */
export class AttentionSummaryReader implements Reader {
  readonly #readout: AttentionSummaryReadout;
  readonly #layers: readonly number[];
  readonly #found = new Map<number, AttentionSummary>();

  constructor(readout: AttentionSummaryReadout, { layers }: ReadoutStarted) {
    this.#readout = readout;
    this.#layers = layers;
    if (readout.layers.length) counted(layers, readout.layers.length, "layers");
  }

  add(chunk: AttentionSummaryChunk): void {
    const { layer } = chunk;
    if (!this.#layers.includes(layer) || this.#found.has(layer)) {
      throw badResponse(`the server sent a summary of layer ${layer} unasked or twice`);
    }
    const heads = chunk.entropy ? size(chunk.entropy.shape) : 0;
    const { offsets, topKeys } = this.#readout;
    const each = (
      name:
        | "previousToken"
        | "currentToken"
        | "firstToken"
        | "induction"
        | "entropy"
        | "distance"
        | "atOffsets"
        | "topKeyMeans",
      ...axes: number[]
    ) => decodeTensor(shaped(chunk[name], [heads, ...axes], `${name} of layer ${layer}`));
    this.#found.set(layer, {
      queries: chunk.queries,
      previousTokenQueries: chunk.previousTokenQueries,
      inductionQueries: chunk.inductionQueries,
      offsetQueries: counted(chunk.offsetQueries, offsets.length, "numbers of queries"),
      previousToken: each("previousToken"),
      currentToken: each("currentToken"),
      firstToken: each("firstToken"),
      induction: each("induction"),
      entropy: each("entropy"),
      distance: each("distance"),
      atOffsets: each("atOffsets", offsets.length),
      topKeys: counted(chunk.topKeys, heads * topKeys, `top keys of layer ${layer}`),
      topKeyMeans: each("topKeyMeans", topKeys),
    });
  }

  finish(queries: readonly number[]): ReadoutResult {
    counted([...this.#found], this.#layers.length, "summaries of layers");
    for (const [layer, summary] of this.#found) {
      if (summary.queries !== queries.length) {
        throw badResponse(
          `the server sent a summary of layer ${layer} over ${summary.queries} queries, not over ` +
            `the ${queries.length} that it announced`,
        );
      }
    }
    return { kind: "attentionSummary", layers: this.#found };
  }
}

/** How much rows add to logits. */
export class LogitAttributionReader implements Reader {
  readonly #sites: readonly { name: string; axes: number }[];
  readonly #constants: readonly number[];
  readonly #chunks: Chunks<string, Tensor>;

  constructor(readout: LogitAttributionReadout, started: ReadoutStarted) {
    this.#sites = readout.sites.map((site) => ({
      name: siteName(site),
      axes: site.hookPoint === HookPoint.Z ? 3 : 2,
    }));
    this.#constants = counted(started.targetConstants, readout.targets.length, "constants");
    this.#chunks = new Chunks(
      "attributions",
      this.#sites.map(({ name }) => name),
    );
  }

  add({ siteIndex, positions, contributions }: LogitAttributionChunk): void {
    const { name, axes } = asked(this.#sites, siteIndex, "attributions of site");
    // How many heads there are, only the server knows.
    const heads = axes === 3 ? [Math.max(1, contributions?.shape[1] ?? 0)] : [];
    const shape = [positions.length, ...heads, this.#constants.length];
    this.#chunks.add(name, positions, shaped(contributions, shape, `attributions of ${name}`));
  }

  finish(positions: readonly number[]): ReadoutResult {
    const sites = this.#chunks.finish(positions, (chunks, site): LogitAttribution => {
      const z = this.#sites.some(({ name, axes }) => name === site && axes === 3);
      const inner = chunks[0]?.shape.slice(1) ?? [...(z ? [0] : []), this.#constants.length];
      if (chunks.some(({ shape }) => shape.slice(1).join() !== inner.join())) {
        throw badResponse(`the server sent attributions of ${site} of several numbers of heads`);
      }
      return {
        positions,
        shape: [positions.length, ...inner],
        data: joined(chunks),
        constants: this.#constants,
      };
    });
    return { kind: "logitAttribution", sites };
  }
}
