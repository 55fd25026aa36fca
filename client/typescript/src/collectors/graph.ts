import { badResponse, cutShort, errorOfWork } from "../errors.js";
import type {
  AttributionEdges,
  AttributionNode,
  WatchAttributionGraphResponse,
} from "../gen/actserve/v1/attribution_graph_service_pb.js";
import type { Tensor } from "../gen/actserve/v1/tensor_pb.js";
import { WorkState, type Work } from "../gen/actserve/v1/work_pb.js";
import type { Collector } from "../stream.js";
import { joined } from "../tensors.js";
import { shaped } from "./checked.js";

/** An attribution graph. */
export interface Graph {
  /** In the order in which they are computed: an edge leads from one to a later one. */
  readonly nodes: readonly AttributionNode[];
  /** Of each edge, the index of the node that it comes from. */
  readonly sources: readonly number[];
  /** Of each edge, the index of the node that it goes to. */
  readonly targets: readonly number[];
  /**
   * Of each edge, what the source adds to the target, of either sign, in the units of
   * `AttributionEdges.weights`.
   */
  readonly weights: Float32Array;
}

/** Collects a graph. */
export class GraphCollector implements Collector<WatchAttributionGraphResponse, Graph> {
  readonly #nodes: AttributionNode[] = [];
  readonly #sources: number[] = [];
  readonly #targets: number[] = [];
  readonly #weights: Tensor[] = [];
  #work: Work | undefined;
  #isFinished = false;

  add({ event }: WatchAttributionGraphResponse): void {
    if (event.case === undefined) return; // An event of a newer server.
    if (this.#isFinished) throw badResponse("the server went on after it had finished");
    switch (event.case) {
      case "progress":
        this.#work = event.value;
        break;
      case "nodes":
        if (this.#sources.length) throw badResponse("the server sent nodes after edges");
        for (const node of event.value.nodes) this.#nodes.push(node);
        break;
      case "edges":
        this.#addEdges(event.value);
        break;
      case "finished":
        this.#isFinished = true;
    }
  }

  finish(): Graph {
    if (!this.#isFinished) throw cutShort();
    if (this.#work?.state !== WorkState.SUCCEEDED) throw errorOfWork(this.#work);
    return {
      nodes: this.#nodes,
      sources: this.#sources,
      targets: this.#targets,
      weights: joined(this.#weights),
    };
  }

  #addEdges({ sources, targets, weights }: AttributionEdges): void {
    this.#weights.push(shaped(weights, [sources.length], "weights of edges"));
    if (targets.length !== sources.length) {
      throw badResponse(
        `the server sent ${sources.length} sources and ${targets.length} targets of edges`,
      );
    }
    for (const [index, target] of targets.entries()) {
      const source = sources[index] ?? 0;
      if (source < target && target < this.#nodes.length) {
        this.#sources.push(source);
        this.#targets.push(target);
        continue;
      }
      throw badResponse(
        `the server sent an edge from node ${source} to node ${target} of ${this.#nodes.length}`,
      );
    }
  }
}
