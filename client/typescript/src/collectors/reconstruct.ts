import { badResponse, cutShort } from "../errors.js";
import type {
  ReconstructActivationsRequest,
  ReconstructActivationsResponse,
  ReconstructedRows,
  ReconstructFinished,
  ReconstructStarted,
} from "../gen/actserve/v1/explanation_service_pb.js";
import type { Usage } from "../gen/actserve/v1/generation_service_pb.js";
import type { Tensor } from "../gen/actserve/v1/tensor_pb.js";
import type { Collector } from "../stream.js";
import { joined, type Float32Tensor } from "../tensors.js";
import { shaped } from "./checked.js";

/** Rows made of texts: `shape` is [texts, width]; each has the L2 norm sqrt(width). */
export interface Reconstructed extends Float32Tensor {
  /** The server's id of the call. */
  readonly callId: string;
  /** Who reconstructs, `models/{model}/nlas/{nla}`. */
  readonly nla: string;
  readonly usage: Usage | undefined;
}

/** Collects reconstructed rows. */
export class ReconstructCollector implements Collector<
  ReconstructActivationsResponse,
  Reconstructed
> {
  readonly #texts: number;
  readonly #blocks: Tensor[] = [];
  #come = 0;
  #started: ReconstructStarted | undefined;
  #finished: ReconstructFinished | undefined;

  constructor(request: ReconstructActivationsRequest) {
    this.#texts = request.texts.length;
  }

  add({ event }: ReconstructActivationsResponse): void {
    if (event.case === undefined) return; // An event of a newer server.
    if (this.#finished) throw badResponse("the server went on after it had finished");
    if (event.case === "started") {
      if (this.#started) throw badResponse("the server started twice");
      if (event.value.rows !== this.#texts) {
        throw badResponse(`the server makes ${event.value.rows} rows of ${this.#texts} texts`);
      }
      this.#started = event.value;
      return;
    }
    if (!this.#started) throw badResponse("the server did not begin with `started`");
    if (event.case === "rows") this.#addRows(this.#started, event.value);
    else this.#finished = event.value;
  }

  finish(): Reconstructed {
    const [started, finished] = [this.#started, this.#finished];
    if (!started || !finished) throw cutShort();
    if (this.#come !== this.#texts) {
      throw badResponse(`the server finished with ${this.#come} rows of ${this.#texts} texts`);
    }
    return {
      callId: started.callId,
      nla: started.nla,
      shape: [this.#texts, started.width],
      data: joined(this.#blocks),
      usage: finished.usage,
    };
  }

  #addRows({ width }: ReconstructStarted, { firstIndex, rows }: ReconstructedRows): void {
    const count = rows?.shape[0] ?? 0;
    if (firstIndex !== this.#come || firstIndex + count > this.#texts) {
      throw badResponse(
        `the server sent ${count} rows from ${firstIndex} on, but ${this.#come} comes next, of ` +
          String(this.#texts),
      );
    }
    this.#blocks.push(shaped(rows, [count, width], "reconstructed rows"));
    this.#come += count;
  }
}
