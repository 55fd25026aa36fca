import { ActserveError, badResponse, cutShort } from "../errors.js";
import type { MonitorScore, Usage } from "../gen/actserve/v1/generation_service_pb.js";
import type {
  ReplayFinished,
  ReplayMonitorsRequest,
  ReplayMonitorsResponse,
  ReplayStarted,
  ReplayedItem,
} from "../gen/actserve/v1/monitor_service_pb.js";
import type { Collector } from "../stream.js";
import { asked, counted } from "./checked.js";
import { checkedScores } from "./scores.js";

/** What monitors scored in one item. */
export interface ReplayScores {
  /** As the request has it. */
  readonly key: string;
  /** Why the item failed; undefined if it was scored. */
  readonly error: ActserveError | undefined;
  /**
   * Of the monitors of the request, in its order; empty if the item failed. `decodeTensor` reads the
   * scores as of each token, if they were asked for.
   */
  readonly scores: readonly MonitorScore[];
}

/** All that a replay gave. */
export interface Replayed {
  /** The server's id of the call. */
  readonly callId: string;
  /** One for each item of the request, in its order. */
  readonly replayed: readonly ReplayScores[];
  readonly usage: Usage | undefined;
}

/** Collects the items of a replay. */
export class ReplayCollector implements Collector<ReplayMonitorsResponse, Replayed> {
  readonly #request: ReplayMonitorsRequest;
  readonly #items = new Map<number, ReplayScores>();
  #started: ReplayStarted | undefined;
  #finished: ReplayFinished | undefined;

  constructor(request: ReplayMonitorsRequest) {
    this.#request = request;
  }

  add({ event }: ReplayMonitorsResponse): void {
    if (event.case === undefined) return; // An event of a newer server.
    if (this.#finished) throw badResponse("the server went on after it had finished");
    if (event.case === "started") {
      if (this.#started) throw badResponse("the server started twice");
      this.#started = event.value;
      return;
    }
    if (!this.#started) throw badResponse("the server did not begin with `started`");
    if (event.case === "item") this.#add(this.#started, event.value);
    else this.#finished = event.value;
  }

  finish(): Replayed {
    if (!this.#started || !this.#finished) throw cutShort();
    const replayed = this.#request.items.map((_, index) => {
      const item = this.#items.get(index);
      if (!item) throw badResponse(`the server finished without item ${index}`);
      return item;
    });
    return { callId: this.#started.callId, replayed, usage: this.#finished.usage };
  }

  #add({ callId }: ReplayStarted, { itemIndex, status, scores }: ReplayedItem): void {
    const { items, monitors, eachToken } = this.#request;
    const { key } = asked(items, itemIndex, "item");
    if (this.#items.has(itemIndex)) throw badResponse(`the server sent item ${itemIndex} twice`);
    if (status && status.code !== 0) {
      const error = ActserveError.fromStatus(status, callId);
      this.#items.set(itemIndex, { key, error, scores: [] });
      return;
    }
    counted(scores, monitors.length, `scores of item ${itemIndex}`);
    for (const [index, { monitor }] of scores.entries()) {
      if (monitor === monitors[index]) continue;
      throw badResponse(
        `the server sent the score of ${monitor} in place of that of ${String(monitors[index])}`,
      );
    }
    this.#items.set(itemIndex, {
      key,
      error: undefined,
      scores: checkedScores(scores, eachToken),
    });
  }
}
