import { Fetched, Item } from "../collected.js";
import { ActserveError, badResponse, cutShort } from "../errors.js";
import type {
  FetchActivationsRequest,
  FetchActivationsResponse,
  FetchFinished,
  FetchStarted,
  ItemFinished,
  ItemStarted,
} from "../gen/actserve/v1/generation_service_pb.js";
import type { Collector } from "../stream.js";
import { asked, checkReadouts } from "./checked.js";
import { SequenceCollector, tokenized, type Chunk } from "./sequence.js";
import { StatisticsCollector } from "./statistics.js";

/** Collects what is read of the items of a fetch. */
export class FetchCollector implements Collector<FetchActivationsResponse, Fetched> {
  readonly #request: FetchActivationsRequest;
  readonly #open = new Map<number, { started: ItemStarted; read: SequenceCollector }>();
  readonly #items = new Map<number, Item>();
  #started: FetchStarted | undefined;
  #statistics: StatisticsCollector | undefined;
  #finished: FetchFinished | undefined;

  constructor(request: FetchActivationsRequest) {
    checkReadouts(request.readouts);
    this.#request = request;
  }

  add({ event }: FetchActivationsResponse): void {
    if (event.case === undefined) return; // An event of a newer server.
    if (this.#finished) throw badResponse("the server went on after it had finished");
    if (event.case === "started") {
      this.#start(event.value);
      return;
    }
    if (!this.#started) throw badResponse("the server did not begin with `started`");
    switch (event.case) {
      case "itemStarted":
        this.#openItem(this.#started, event.value);
        break;
      case "itemFinished":
        this.#close(this.#started, event.value);
        break;
      case "statistics":
        this.#statistics?.add(event.value);
        break;
      case "finished":
        this.#finished = event.value;
        break;
      default:
        this.#opened(event).add(event);
    }
  }

  finish(): Fetched {
    if (!this.#started || !this.#finished || !this.#statistics) throw cutShort();
    const items = this.#request.items.map((_, index) => {
      const item = this.#items.get(index);
      if (!item) throw badResponse(`the server finished without the item ${index}`);
      return item;
    });
    return new Fetched({
      callId: this.#started.callId,
      items,
      statistics: this.#statistics.finish(),
      usage: this.#finished.usage,
    });
  }

  #start(started: FetchStarted): void {
    if (this.#started) throw badResponse("the server started twice");
    this.#statistics = new StatisticsCollector(this.#request, started.readouts);
    this.#started = started;
  }

  #openItem({ readouts }: FetchStarted, started: ItemStarted): void {
    const { itemIndex } = started;
    const item = asked(this.#request.items, itemIndex, "item");
    if (this.#open.has(itemIndex) || this.#items.has(itemIndex)) {
      throw badResponse(`the server opened the item ${itemIndex} twice`);
    }
    const read = new SequenceCollector(
      itemIndex,
      this.#request.readouts,
      readouts,
      item.readoutIndices,
    );
    this.#open.set(itemIndex, { started, read });
  }

  #opened({ value }: Chunk): SequenceCollector {
    const open = this.#open.get(value.sequenceIndex);
    if (!open)
      throw badResponse(`the server sent rows of ${value.sequenceIndex}, which is not open`);
    return open.read;
  }

  #close({ callId }: FetchStarted, finished: ItemFinished): void {
    const { itemIndex, status } = finished;
    const item = asked(this.#request.items, itemIndex, "item");
    if (this.#items.has(itemIndex)) {
      throw badResponse(`the server closed the item ${itemIndex} twice`);
    }
    const open = this.#open.get(itemIndex);
    this.#open.delete(itemIndex);
    if (status && status.code !== 0) {
      const error = ActserveError.fromStatus(status, callId);
      if (this.#request.failFast) throw error;
      this.#items.set(itemIndex, new Item(itemIndex, item.key, error));
      return;
    }
    if (!open) throw badResponse(`the server closed the item ${itemIndex}, which is not open`);
    const prompt = tokenized(open.started.prompt, this.#request.idsOnly);
    const readouts = open.read.finish(
      finished,
      open.started.positions,
      prompt.ids.length,
      this.#request.interventions.length + item.interventions.length,
    );
    this.#statistics?.expect(item, open.started.positions);
    const { ids: tokenIds, texts: tokens } = prompt;
    const { interventions } = finished;
    const fields = { prompt, tokenIds, tokens, readouts, interventions };
    this.#items.set(itemIndex, new Item(itemIndex, item.key, fields));
  }
}
