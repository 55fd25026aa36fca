import type { ReadoutResult } from "../collected.js";
import { badResponse } from "../errors.js";
import type {
  FetchActivationsResponse,
  GenerateResponse,
} from "../gen/actserve/v1/generation_service_pb.js";
import type { InterventionReport } from "../gen/actserve/v1/intervention_pb.js";
import type { TokenizedPrompt } from "../gen/actserve/v1/prompt_pb.js";
import type {
  KeptReadout,
  Readout,
  ReadoutPositions,
  ReadoutStarted,
} from "../gen/actserve/v1/readout_pb.js";
import { asked, counted } from "./checked.js";
import {
  AttentionReader,
  AttentionSummaryReader,
  LogitAttributionReader,
  PredictionReader,
  readerOf,
  RowReader,
  type Reader,
} from "./readouts.js";

type Event = (FetchActivationsResponse | GenerateResponse)["event"];

/** What is read of a sequence, as it comes. */
export type Chunk = Extract<
  Event,
  {
    case: "activations" | "predictions" | "attention" | "attentionSummary" | "logitAttribution";
  }
>;

/** How a sequence ends: what `ItemFinished` and `SampleFinished` have in common. */
export interface Closed {
  readonly interventions: readonly InterventionReport[];
  readonly kept: readonly KeptReadout[];
}

/** Collects what is read of one sequence, by some of the readouts of its call. */
export class SequenceCollector {
  readonly #index: number;
  readonly #readouts: readonly Readout[];
  readonly #indices: ReadonlySet<number>;
  readonly #readers: ReadonlyMap<number, Reader>;

  /**
   * @param index of the item or sample
   * @param indices the readouts that read it; all when empty
   */
  constructor(
    index: number,
    readouts: readonly Readout[],
    started: readonly ReadoutStarted[],
    indices: readonly number[] = [],
  ) {
    counted(started, readouts.length, "readouts");
    this.#index = index;
    this.#readouts = readouts;
    this.#indices = new Set(indices.length ? indices : readouts.keys());
    const readers = new Map<number, Reader>();
    for (const index of this.#indices) {
      const reader = readerOf(asked(readouts, index, "readout"), asked(started, index, "readout"));
      if (reader) readers.set(index, reader);
    }
    this.#readers = readers;
  }

  add(event: Chunk): void {
    switch (event.case) {
      case "activations":
        this.#reader(event.value, RowReader).add(event.value);
        break;
      case "predictions":
        this.#reader(event.value, PredictionReader).add(event.value);
        break;
      case "attention":
        this.#reader(event.value, AttentionReader).add(event.value);
        break;
      case "attentionSummary":
        this.#reader(event.value, AttentionSummaryReader).add(event.value);
        break;
      case "logitAttribution":
        this.#reader(event.value, LogitAttributionReader).add(event.value);
        break;
    }
  }

  /**
   * All that was read, by the names of the readouts, if it is whole.
   *
   * @param told where the readouts have read
   * @param tokens how many tokens were run
   * @param interventions how many were asked for
   */
  finish(
    closed: Closed,
    told: readonly ReadoutPositions[],
    tokens: number,
    interventions: number,
  ): Map<string, ReadoutResult> {
    counted(closed.interventions, interventions, "reports of interventions");
    const positions = this.#positions(told, tokens);
    const kept = this.#kept(closed.kept);
    const results = new Map<string, ReadoutResult>();
    for (const index of this.#indices) {
      const { name, kind } = asked(this.#readouts, index, "readout");
      const read = positions.get(index);
      if (read === undefined) {
        throw badResponse(`the server did not tell where the readout ${index} has read`);
      }
      if (kind.case === "keep") {
        if (read.length > 0 !== kept.has(index)) {
          throw badResponse(`the server kept rows of the readout ${index} unasked, or did not`);
        }
        results.set(name, { kind: "kept", name: kept.get(index) });
      } else {
        const result = this.#readers.get(index)?.finish(read, tokens);
        if (result) results.set(name, result);
      }
    }
    return results;
  }

  #reader<R extends Reader>(
    { readoutIndex }: { readonly readoutIndex: number },
    kind: abstract new (...given: never[]) => R,
  ): R {
    const reader = this.#readers.get(readoutIndex);
    if (reader instanceof kind) return reader;
    throw badResponse(`the server sent what the readout ${readoutIndex} did not ask for`);
  }

  #positions(told: readonly ReadoutPositions[], tokens: number): Map<number, readonly number[]> {
    const positions = new Map<number, readonly number[]>();
    for (const each of told) {
      let last = -1;
      for (const position of each.positions) {
        if (position <= last || position >= tokens) {
          throw badResponse(
            `the server announced position ${position} after ${last}, of ${tokens} tokens that ran`,
          );
        }
        last = position;
      }
      for (const index of each.readoutIndices) {
        if (!this.#indices.has(index) || positions.has(index)) {
          throw badResponse(`the server announced positions of the readout ${index} unasked`);
        }
        positions.set(index, each.positions);
      }
    }
    return positions;
  }

  #kept(told: readonly KeptReadout[]): Map<number, string> {
    const kept = new Map<number, string>();
    for (const { sequenceIndex, readoutIndex, name } of told) {
      const wanted =
        sequenceIndex === this.#index &&
        this.#indices.has(readoutIndex) &&
        this.#readouts[readoutIndex]?.kind.case === "keep";
      if (!wanted || kept.has(readoutIndex) || !name) {
        throw badResponse(`the server kept rows of the readout ${readoutIndex} unasked`);
      }
      kept.set(readoutIndex, name);
    }
    return kept;
  }
}

/** The prompt that the server tells, if its lists belong together. */
export function tokenized(prompt: TokenizedPrompt | undefined, idsOnly = false): TokenizedPrompt {
  if (!prompt) throw badResponse("the server did not send the prompt as the model sees it");
  const { ids, texts, sources } = prompt;
  // Prompts of token ids have no sources.
  if (!idsOnly || texts.length) counted(texts, ids.length, "texts of tokens");
  if (sources.length) counted(sources, ids.length, "sources of tokens");
  return prompt;
}
