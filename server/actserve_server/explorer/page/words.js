/** What the contract's flags and enums are called. */

/** @type {Record<string, [string, string]>} */
export const FLAGS = {
  EXPLANATION_FLAG_EARLY_POSITION: [
    "early position",
    "One of the first 10 tokens, where there is little to say and explanations are unreliable",
  ],
  EXPLANATION_FLAG_NORM_OUTLIER: [
    "unusual norm",
    "The row is much longer or shorter than usual, and unlike what the explainer was trained on",
  ],
  EXPLANATION_FLAG_UNPARSED: [
    "not in form",
    "The text does not have the form that the explainer was trained to write",
  ],
  EXPLANATION_FLAG_FAILED_INJECTION: [
    "explains the placeholder",
    "The text seems to explain the place of the row and not the row",
  ],
  EXPLANATION_FLAG_TRUNCATED: ["cut off", "The text reached the most tokens that it may have"],
};

/** @type {Record<string, string>} */
export const FINISHES = {
  FINISH_REASON_STOP: "ended by itself",
  FINISH_REASON_LENGTH: "reached the most tokens",
  FINISH_REASON_REPETITION: "repeated itself",
  FINISH_REASON_MONITOR: "ended by a monitor",
};

/** How many there are of a thing. @param {number} count @param {string} thing in the singular */
export function counted(count, thing) {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}

/** A value of an enum without its beginning, as words. @param {string | undefined} value @param {string} beginning */
export function plain(value, beginning) {
  return (value ?? "").replace(beginning, "").replaceAll("_", " ").toLowerCase();
}
