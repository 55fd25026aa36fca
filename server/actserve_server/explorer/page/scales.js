/**
 * Numbers as colors: one of 12 steps from little to much, or of 13 from below zero over zero to above. The
 * colors, and the ink that is read on them, are those of the classes in scales.css, for light and dark.
 */

export const STEPS = 12;
const SIDE = 6;

/** A scale: how a value is drawn, and what its legend says. */
export class Scale {
  /**
   * @param {number} low what is drawn as the first step, and all below it
   * @param {number} high what is drawn as the last step, and all above it
   * @param {{ diverging?: boolean, logarithmic?: boolean }} [kind]
   */
  constructor(low, high, { diverging = false, logarithmic = false } = {}) {
    this.low = low;
    this.high = high;
    this.diverging = diverging;
    this.logarithmic = logarithmic;
  }

  /**
   * Of nearly all values: the few most extreme ones would else leave one color for the others.
   *
   * @param {Iterable<number | null | undefined>} values
   * @param {{ diverging?: boolean, logarithmic?: boolean }} [kind]
   */
  static of(values, kind = {}) {
    /** @type {number[]} */
    const sorted = [];
    for (const value of values)
      if (value !== null && value !== undefined && Number.isFinite(value)) sorted.push(value);
    sorted.sort((a, b) => a - b);
    if (sorted.length === 0) return new Scale(0, 1, kind);
    const at = (/** @type {number} */ share) =>
      sorted[Math.round(share * (sorted.length - 1))] ?? 0;
    if (kind.diverging) {
      const most = Math.max(Math.abs(at(0.02)), Math.abs(at(0.98))) || 1;
      return new Scale(-most, most, kind);
    }
    const [low, high] = [at(0.02), at(0.98)];
    return new Scale(low, high > low ? high : low + 1, kind);
  }

  /** The class of a value; that of none where there is no number. @param {number | null | undefined} value */
  className(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "none";
    if (this.diverging) {
      const step = Math.round((SIDE * value) / (this.high || 1));
      return `d${Math.min(Math.max(step, -SIDE), SIDE) + SIDE}`;
    }
    return `s${Math.min(Math.max(Math.floor(this.part(value) * STEPS), 0), STEPS - 1)}`;
  }

  /** From 0 to 1, if it is between the ends. @param {number} value */
  part(value) {
    const of = this.logarithmic
      ? (/** @type {number} */ x) => Math.log(Math.max(x, 1e-12))
      : (/** @type {number} */ x) => x;
    const [low, high] = [of(this.low), of(this.high)];
    return high > low ? (of(value) - low) / (high - low) : 0;
  }

  /** The classes of all steps, from low to high. */
  classes() {
    const count = this.diverging ? 2 * SIDE + 1 : STEPS;
    return Array.from({ length: count }, (_, step) => `${this.diverging ? "d" : "s"}${step}`);
  }
}

/** A number as it is read: three figures. @param {number | null | undefined} value */
export function figures(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "none";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1);
  return String(size >= 100 ? Math.round(value) : Number(value.toPrecision(3)));
}

/** A number with two places, and no zero below zero. @param {number} value */
export function fixed(value) {
  if (!Number.isFinite(value)) return "none";
  return (Math.round(100 * value) / 100 || 0).toFixed(2);
}

/** A probability as it is read. @param {number} logprob its natural log */
export function percent(logprob) {
  const part = 100 * Math.exp(logprob);
  if (part > 0 && part < 0.1) return "<0.1%";
  return `${part >= 10 ? Math.round(part) : Number(part.toFixed(1))}%`;
}
