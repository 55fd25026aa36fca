import { badResponse, cutShort } from "../errors.js";
import type {
  ExplainFinished,
  ExplainSpec,
  ExplainStarted,
  Explanation,
  ExplanationEvent,
} from "../gen/actserve/v1/explanation_service_pb.js";
import type { InterventionReport } from "../gen/actserve/v1/intervention_pb.js";
import type { TokenizedPrompt } from "../gen/actserve/v1/prompt_pb.js";
import type { Usage } from "../gen/actserve/v1/generation_service_pb.js";
import type { Collector } from "../stream.js";

/** All explanations of a call. */
export interface Explained {
  /** The server's id of the call. */
  readonly callId: string;
  /** Who explains, `models/{model}/nlas/{nla}`. */
  readonly nla: string;
  /** In the order of row and sample. */
  readonly explanations: readonly Explanation[];
  /** Of a text: the prompt as the model sees it. */
  readonly prompt: TokenizedPrompt | undefined;
  /** Of a text: the token position of each row. */
  readonly positions: readonly number[];
  /** What each intervention did, in the order of the request. */
  readonly interventions: readonly InterventionReport[];
  readonly usage: Usage | undefined;
}

/** Collects explanations. */
export class ExplainCollector implements Collector<{ event?: ExplanationEvent }, Explained> {
  readonly #rows: number | undefined;
  readonly #samples: number;
  readonly #best: boolean;
  readonly #interventions: number;
  readonly #explanations = new Map<string, Explanation>();
  #started: ExplainStarted | undefined;
  #finished: ExplainFinished | undefined;

  /** @param rows how many were sent; undefined for a text, of which the server tells it */
  constructor(spec: ExplainSpec | undefined, rows: number | undefined, interventions = 0) {
    this.#rows = rows;
    this.#samples = spec?.samples ?? 1;
    this.#best = spec?.best ?? false;
    this.#interventions = interventions;
  }

  add(response: { event?: ExplanationEvent }): void {
    const event = response.event?.event;
    if (event?.case === undefined) return; // An event of a newer server.
    if (this.#finished) throw badResponse("the server went on after it had finished");
    if (event.case === "started") {
      this.#start(event.value);
      return;
    }
    if (!this.#started) throw badResponse("the server did not begin with `started`");
    if (event.case === "explanation") this.#explain(this.#started, event.value);
    else if (event.case === "finished") this.#finished = event.value;
  }

  finish(): Explained {
    const [started, finished] = [this.#started, this.#finished];
    if (!started || !finished) throw cutShort();
    const expected = started.rows * (this.#best ? 1 : this.#samples);
    if (this.#explanations.size !== expected) {
      throw badResponse(
        `the server finished with ${this.#explanations.size} explanations of ${expected}`,
      );
    }
    if (finished.interventions.length !== this.#interventions) {
      throw badResponse(
        `the server sent ${finished.interventions.length} reports of interventions, not ` +
          String(this.#interventions),
      );
    }
    return {
      callId: started.callId,
      nla: started.nla,
      explanations: [...this.#explanations.values()].sort(
        (a, b) => a.rowIndex - b.rowIndex || a.sampleIndex - b.sampleIndex,
      ),
      prompt: started.prompt,
      positions: started.positions,
      interventions: finished.interventions,
      usage: finished.usage,
    };
  }

  #start(started: ExplainStarted): void {
    if (this.#started) throw badResponse("the server started twice");
    const rows = this.#rows ?? started.positions.length;
    if (started.rows !== rows) {
      throw badResponse(`the server explains ${started.rows} rows, not ${rows}`);
    }
    this.#started = started;
  }

  #explain({ rows }: ExplainStarted, explanation: Explanation): void {
    const { rowIndex, sampleIndex } = explanation;
    // Of the best there is one for each row, whichever sample it is.
    const key = this.#best ? String(rowIndex) : `${rowIndex} ${sampleIndex}`;
    if (rowIndex >= rows || sampleIndex >= this.#samples || this.#explanations.has(key)) {
      throw badResponse(
        `the server explained row ${rowIndex} in sample ${sampleIndex} unasked or twice`,
      );
    }
    this.#explanations.set(key, explanation);
  }
}
