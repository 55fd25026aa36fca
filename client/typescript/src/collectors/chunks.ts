import { badResponse } from "../errors.js";

/** The chunks of one sequence by what they are of, with the positions that they cover. */
export class Chunks<Key, Chunk> {
  readonly #what: string;
  readonly #received: ReadonlyMap<Key, { positions: number[]; chunks: Chunk[] }>;

  constructor(what: string, keys: readonly Key[]) {
    this.#what = what;
    this.#received = new Map(keys.map((key) => [key, { positions: [], chunks: [] }]));
  }

  add(key: Key, positions: readonly number[], chunk: Chunk): void {
    const received = this.#received.get(key);
    if (!received) throw badResponse(`the server sent ${this.#what} of ${String(key)} unasked`);
    for (const position of positions) received.positions.push(position);
    received.chunks.push(chunk);
  }

  /** Joins the chunks of each key, if each has exactly the promised positions, in their order. */
  finish<Whole>(
    promised: readonly number[],
    join: (chunks: readonly Chunk[], key: Key) => Whole,
  ): Map<Key, Whole> {
    const whole = new Map<Key, Whole>();
    for (const [key, { positions, chunks }] of this.#received) {
      if (!isSame(positions, promised)) {
        throw badResponse(
          `the server sent ${this.#what} of ${String(key)} at ${positions.length} positions, which ` +
            `are not the ${promised.length} that it announced, each once and in their order`,
        );
      }
      whole.set(key, join(chunks, key));
    }
    return whole;
  }
}

function isSame(some: readonly number[], others: readonly number[]): boolean {
  return some.length === others.length && some.every((value, index) => value === others[index]);
}
