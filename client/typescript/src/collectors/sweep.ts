import { ActserveError, badResponse, cutShort } from "../errors.js";
import type { Usage } from "../gen/actserve/v1/generation_service_pb.js";
import type {
  RunSweepRequest,
  RunSweepResponse,
  SweepCell,
  SweepFinished,
  SweepStarted,
} from "../gen/actserve/v1/sweep_service_pb.js";
import type { Collector } from "../stream.js";
import { asked, counted } from "./checked.js";

/** What came of one prompt under one variant, at one point of its grid. */
export interface SweptCell {
  readonly cell: SweepCell;
  /** Why the cell failed; undefined if it was served. */
  readonly error: ActserveError | undefined;
}

/** All that a sweep gave. */
export interface Swept {
  /** The server's id of the call; of the last one if the connection was lost meanwhile. */
  readonly callId: string;
  /**
   * In the order of the request: by prompt, variant, coefficient, site and position, the last of
   * which varies first. Those that a `resumeToken` of the request stands for are left out.
   */
  readonly cells: readonly SweptCell[];
  /** What the call consumed; the last one if the connection was lost meanwhile. */
  readonly usage: Usage | undefined;
}

/** Collects the cells of a sweep, over all its attempts. */
export class SweepCollector implements Collector<RunSweepResponse, Swept> {
  readonly #request: RunSweepRequest;
  /** Of each prompt, the number of the first cell of each variant; and of cells in all. */
  readonly #first: number[] = [];
  readonly #perPrompt: number;
  readonly #cells = new Map<number, SweptCell>();
  /** How many cells the caller has; known with the first `started`. */
  #skipped: number | undefined;
  #resumeToken: Uint8Array;
  #started: SweepStarted | undefined;
  #finished: SweepFinished | undefined;

  constructor(request: RunSweepRequest) {
    this.#request = request;
    this.#resumeToken = request.resumeToken;
    let cells = 0;
    for (const { coefficients, sites, positions } of request.variants) {
      this.#first.push(cells);
      cells += [coefficients, sites, positions].reduce((all, { length }) => all * (length || 1), 1);
    }
    this.#perPrompt = cells;
  }

  /** How many cells have come. */
  get come(): number {
    return this.#cells.size;
  }

  /** Begins another attempt, which has to have this `resumeToken`. */
  begin(): Uint8Array {
    this.#started = undefined;
    return this.#resumeToken;
  }

  add({ event }: RunSweepResponse): void {
    if (event.case === undefined) return; // An event of a newer server.
    if (this.#finished) throw badResponse("the server went on after it had finished");
    if (event.case === "started") {
      this.#start(event.value);
      return;
    }
    if (!this.#started) throw badResponse("the server did not begin with `started`");
    if (event.case === "cell") this.#add(this.#started, event.value);
    else this.#finished = event.value;
  }

  finish(): Swept {
    if (!this.#started || !this.#finished) throw cutShort();
    const have = (this.#skipped ?? 0) + this.come;
    if (have !== this.#started.cells) {
      throw badResponse(`the server finished with ${have} cells of ${this.#started.cells}`);
    }
    const cells = [...this.#cells].sort(([one], [other]) => one - other).map(([, cell]) => cell);
    return { callId: this.#started.callId, cells, usage: this.#finished.usage };
  }

  #start(started: SweepStarted): void {
    if (this.#started) throw badResponse("the server started twice");
    const { cells, skippedCells } = started;
    const all = this.#perPrompt * this.#request.prompts.length;
    if (cells !== all)
      throw badResponse(`the server runs ${cells} cells, but ${all} were asked for`);
    this.#skipped ??= this.#request.resumeToken.length > 0 ? skippedCells : 0;
    const have = this.#skipped + this.come;
    if (skippedCells !== have) {
      throw badResponse(`the server skips ${skippedCells} cells, but ${have} have come`);
    }
    this.#started = started;
  }

  #add({ callId }: SweepStarted, cell: SweepCell): void {
    const number = this.#number(cell);
    if (this.#cells.has(number)) throw badResponse(`the server sent the cell ${number} twice`);
    const error =
      cell.status && cell.status.code !== 0
        ? ActserveError.fromStatus(cell.status, callId)
        : undefined;
    if (!error) {
      const { answers, scores, variants } = this.#request;
      const { interventions } = asked(variants, cell.variantIndex, "variant");
      counted(cell.answerLogprobs, answers.length, "log probabilities of answers");
      counted(cell.scoreValues, scores.length, "scores");
      counted(cell.interventions, interventions.length, "reports of interventions");
    }
    this.#cells.set(number, { cell, error });
    this.#resumeToken = cell.resumeToken;
  }

  /** How many cells are before this one in the order of the request. */
  #number(cell: SweepCell): number {
    const { promptIndex, variantIndex } = cell;
    asked(this.#request.prompts, promptIndex, "prompt");
    const variant = asked(this.#request.variants, variantIndex, "variant");
    let point = 0;
    for (const [name, index, { length }] of [
      ["coefficients", cell.coefficientIndex, variant.coefficients],
      ["sites", cell.siteIndex, variant.sites],
      ["positions", cell.positionIndex, variant.positions],
    ] as const) {
      if (index === undefined && length === 0) continue;
      if (index === undefined || index >= length) {
        throw badResponse(
          `the server sent a cell of the variant ${variantIndex} at none of its ${length} ${name}`,
        );
      }
      point = point * length + index;
    }
    return promptIndex * this.#perPrompt + asked(this.#first, variantIndex, "variant") + point;
  }
}
