/** A generation as it is written. */

/** @import { Alert, GenerateEvent, InterventionReport, MonitorScore, TokenizedPrompt } from "../contract.d.ts" */
/** @import { Explorer } from "./explorer.js" */

/**
 * @typedef {object} Generated
 * @property {TokenizedPrompt} prompt
 * @property {string[]} texts of the tokens
 * @property {string} text
 * @property {string} reason why it ended
 * @property {InterventionReport[]} reports
 * @property {MonitorScore[]} scores
 */

/**
 * Generates one sample.
 *
 * @param {Explorer} explorer
 * @param {object} request without the model
 * @param {AbortSignal} signal
 * @param {{ started?: (prompt: TokenizedPrompt, callId: string) => void, wrote: (text: string) => void, alerted?: (alert: Alert) => void }} told
 * @returns {Promise<Generated>}
 */
export async function generated(explorer, request, signal, told) {
  /** @type {Generated} */
  const made = { prompt: {}, texts: [], text: "", reason: "", reports: [], scores: [] };
  /** @type {AsyncGenerator<GenerateEvent>} */
  const events = explorer.calls.stream(
    "GenerationService/Generate",
    { model: explorer.model, ...request },
    signal,
  );
  for await (const { started, tokens, alert, sampleFinished } of events) {
    if (started) {
      made.prompt = started.prompt ?? {};
      told.started?.(made.prompt, started.callId ?? "");
    }
    if (tokens) {
      made.texts.push(...(tokens.texts ?? []));
      made.text += tokens.text ?? "";
      told.wrote(tokens.text ?? "");
    }
    if (alert) told.alerted?.(alert);
    if (sampleFinished) {
      made.reason = sampleFinished.reason ?? "";
      made.reports = sampleFinished.interventions ?? [];
      made.scores = sampleFinished.monitorScores ?? [];
    }
  }
  return made;
}
