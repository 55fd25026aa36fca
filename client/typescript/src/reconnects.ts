import { LONGEST_DELAY_MS } from "./calls.js";
import type { ActserveError } from "./errors.js";

/**
 * Pauses of a stream that is to last double from the first up to the slowest: late enough to be no
 * load for a server that is gone, soon enough for an alert.
 */
const FIRST_MS = 250;
const SLOWEST_MS = 15_000;

/** A connection that has held for as long as this was a good one. */
const HELD_MS = 10_000;

/**
 * The attempts at a stream that is to last. Once there was a connection, a server that is gone is
 * looked for as long as it takes.
 */
export class Reconnects {
  /** When the newest connection began; undefined before the first. */
  #connected: number | undefined;
  /** Since when there is none. */
  #gone: number | undefined;
  /** Attempts since a connection was a good one. */
  #failures = 0;
  /** Attempts since there is none. */
  #missed = 0;
  /** Whether it was said that the server is gone. */
  #isTold = false;

  /** A connection has begun. */
  opened(warn: (message: string) => void): void {
    this.#connected = performance.now();
    if (this.#isTold && this.#gone !== undefined) {
      const seconds = ((this.#connected - this.#gone) / 1000).toFixed(1);
      warn(`connected again after ${seconds} seconds; the watch goes on where it was`);
    }
    this.#gone = undefined;
    this.#missed = 0;
    this.#isTold = false;
  }

  /** Something has come by the connection. */
  good(): void {
    this.#failures = 0;
  }

  /** How long to wait before the server is looked for again; undefined if it is not. */
  pauseMs(error: ActserveError): number | undefined {
    // Before its first connection the call was made again already.
    if (error.code !== "UNAVAILABLE" || this.#connected === undefined) return undefined;
    const now = performance.now();
    if (this.#gone === undefined) {
      this.#gone = now;
      if (now - this.#connected > HELD_MS) this.#failures = 0;
    }
    const longest = Math.min(FIRST_MS * 2 ** this.#failures, SLOWEST_MS);
    const told = Math.min(Math.max(error.retryAfterMs ?? 0, 0), LONGEST_DELAY_MS);
    this.#failures++;
    this.#missed++;
    return told + Math.random() * longest;
  }

  /** Says that the server is gone, unless the next attempt is the first. */
  tell(error: ActserveError, warn: (message: string) => void): void {
    if (this.#missed < 2 || this.#isTold) return;
    this.#isTold = true;
    warn(`the watch has no server, and looks for it: ${error.message}`);
  }
}
