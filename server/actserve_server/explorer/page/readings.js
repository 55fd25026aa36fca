/** What is read of one prompt: its tokens, and a number for each. */

import { CallError } from "./connect.js";
import { toSite } from "./sites.js";
import { decoded, encoded, norm } from "./tensors.js";

/** @import { AttentionChunk, AttentionSummaryChunk, Dictionary, ExplainEvent, Explanation, FetchEvent, MonitorScore, Prompt, ReplayEvent, Status, SteeringVector, Tensor, TokenizedPrompt } from "../contract.d.ts" */
/** @import { Explorer } from "./explorer.js" */

/**
 * @typedef {object} Reading
 * @property {TokenizedPrompt} prompt
 * @property {(number | null)[]} values one for each token
 */

/** Nats in the tail of a text; a token without a value is told by null. @param {number} count */
function empty(count) {
  return /** @type {(number | null)[]} */ (Array.from({ length: count }, () => null));
}

/**
 * Fetches readouts of one prompt.
 *
 * @param {Explorer} explorer
 * @param {Prompt} prompt
 * @param {object[]} readouts
 * @param {AbortSignal} signal
 * @param {(event: FetchEvent) => void} each
 * @returns {Promise<TokenizedPrompt>}
 */
export async function fetched(explorer, prompt, readouts, signal, each) {
  const request = { model: explorer.model, items: [{ prompt }], readouts, failFast: true };
  /** @type {TokenizedPrompt} */
  let tokens = {};
  /** @type {AsyncGenerator<FetchEvent>} */
  const events = explorer.calls.stream("GenerationService/FetchActivations", request, signal);
  for await (const event of events) {
    if (event.itemStarted) tokens = event.itemStarted.prompt ?? {};
    if (event.itemFinished) check(event.itemFinished.status);
    each(event);
  }
  return tokens;
}

/** Raises what a status of an item says. @param {Status | undefined} status */
export function check(status) {
  if (!status?.code) return;
  const reason = status.details?.find((detail) => detail.reason)?.reason ?? "";
  throw new CallError(`code ${status.code}`, status.message ?? "", reason);
}

/**
 * The norm of each row of a site.
 *
 * @param {Explorer} explorer @param {Prompt} prompt @param {string} site @param {AbortSignal} signal
 * @returns {Promise<Reading>}
 */
export async function norms(explorer, prompt, site, signal) {
  /** @type {Map<number, number>} */
  const found = new Map();
  const tokens = await fetched(
    explorer,
    prompt,
    [{ rows: { sites: [toSite(site)] } }],
    signal,
    ({ activations }) => {
      const positions = activations?.positions ?? [];
      const rows = decoded(activations?.rows);
      const width = rows.length / (positions.length || 1);
      positions.forEach((position, at) =>
        found.set(position, norm(rows.subarray(at * width, (at + 1) * width))),
      );
    },
  );
  return {
    prompt: tokens,
    values: (tokens.ids ?? []).map((_, position) => found.get(position) ?? null),
  };
}

/**
 * How unlikely each token was to the model, in nats: the negative log of its probability.
 *
 * @param {Explorer} explorer @param {Prompt} prompt @param {AbortSignal} signal
 * @returns {Promise<Reading>}
 */
export async function surprises(explorer, prompt, signal) {
  /** @type {Map<number, number>} */
  const found = new Map();
  const tokens = await fetched(
    explorer,
    prompt,
    [{ predictions: { nextToken: true } }],
    signal,
    ({ predictions }) => {
      const logprobs = decoded(predictions?.nextTokenLogprobs);
      // A prediction is of the token after its position.
      predictions?.positions?.forEach((position, at) =>
        found.set(position + 1, -(logprobs[at] ?? NaN)),
      );
    },
  );
  return {
    prompt: tokens,
    values: (tokens.ids ?? []).map((_, position) => found.get(position) ?? null),
  };
}

/**
 * The component of each row of a site along a stored vector, whose row is that of the site, or its only one.
 *
 * @param {Explorer} explorer @param {Prompt} prompt @param {string} name @param {string} site @param {AbortSignal} signal
 * @returns {Promise<Reading>}
 */
export async function components(explorer, prompt, name, site, signal) {
  const { steeringVector, elements } =
    /** @type {{ steeringVector: SteeringVector, elements: Tensor }} */ (
      await explorer.calls.ask(
        "SteeringVectorService/GetSteeringVector",
        { name, withElements: true },
        signal,
      )
    );
  const sites = steeringVector.rows ?? [];
  const wanted = toSite(site);
  const same = sites.findIndex(
    (row) =>
      row.site?.hookPoint === wanted.hookPoint && (row.site?.layer ?? 0) === (wanted.layer ?? 0),
  );
  if (same < 0 && sites.length > 1) throw new Error(`${name} has no row for ${site}`);
  const all = decoded(elements);
  const width = all.length / Math.max(sites.length, 1);
  const row = all.slice(Math.max(same, 0) * width, (Math.max(same, 0) + 1) * width);
  const length = norm(row);
  const direction = encoded(
    row.map((value) => value / length),
    [1, width],
  );
  /** @type {Map<number, number>} */
  const found = new Map();
  const rows = { sites: [wanted], projection: { directions: { tensor: direction } } };
  const tokens = await fetched(explorer, prompt, [{ rows }], signal, ({ activations }) => {
    const numbers = decoded(activations?.rows);
    activations?.positions?.forEach((position, at) => found.set(position, numbers[at] ?? NaN));
  });
  return {
    prompt: tokens,
    values: (tokens.ids ?? []).map((_, position) => found.get(position) ?? null),
  };
}

/**
 * What a monitor scores as of each token.
 *
 * @param {Explorer} explorer @param {Prompt} prompt @param {string} monitor @param {AbortSignal} signal
 * @returns {Promise<Reading>}
 */
export async function monitorScores(explorer, prompt, monitor, signal) {
  const tokens = await tokenized(explorer, prompt, signal);
  const values = empty(tokens.ids?.length ?? 0);
  const request = { monitors: [monitor], items: [{ prompt }], eachToken: true };
  /** @type {AsyncGenerator<ReplayEvent>} */
  const events = explorer.calls.stream("MonitorService/ReplayMonitors", request, signal);
  for await (const { item } of events) {
    check(item?.status);
    for (const [position, score] of tokenScores(item?.scores?.[0])) values[position] = score;
  }
  return { prompt: tokens, values };
}

/** @param {MonitorScore | undefined} score @returns {[number, number][]} positions and scores */
export function tokenScores(score) {
  const scores = decoded(score?.tokenScores);
  return (score?.positions ?? []).map((position, at) => [position, scores[at] ?? NaN]);
}

/**
 * A prompt as the model sees it.
 *
 * @param {Explorer} explorer @param {Prompt} prompt @param {AbortSignal} signal
 * @returns {Promise<TokenizedPrompt>}
 */
export async function tokenized(explorer, prompt, signal) {
  const { prompt: tokens } = /** @type {{ prompt?: TokenizedPrompt }} */ (
    await explorer.calls.ask("ModelService/Tokenize", { model: explorer.model, prompt }, signal)
  );
  return tokens ?? {};
}

/**
 * Explanations of tokens as they come.
 *
 * @param {Explorer} explorer
 * @param {Prompt} prompt
 * @param {{ nla: string, positions?: number[], score: boolean, signal: AbortSignal }} how
 * @param {{ started?: (prompt: TokenizedPrompt) => void, partial?: (text: string) => void, explained: (explanation: Explanation) => void }} told
 */
export async function explained(explorer, prompt, { nla, positions, score, signal }, told) {
  const request = {
    model: explorer.model,
    nla,
    prompt,
    ...(positions && { positions: { list: { positions } } }),
    spec: { score, partial: told.partial !== undefined, temperature: 0, seed: "0" },
  };
  /** @type {AsyncGenerator<ExplainEvent>} */
  const events = explorer.calls.stream("ExplanationService/ExplainText", request, signal);
  for await (const { event } of events) {
    if (event?.started?.prompt) told.started?.(event.started.prompt);
    if (event?.partial) told.partial?.(event.partial.text ?? "");
    if (event?.explanation) told.explained(event.explanation);
  }
}

/** The measure of an explanation: the variance that it explains, or the cosine where there is no baseline. @param {Explanation} explanation */
export function worth(explanation) {
  return explanation.score?.varianceExplained ?? explanation.score?.cosine ?? null;
}

/**
 * The likeliest next tokens by site, at some positions.
 *
 * @param {Explorer} explorer @param {Prompt} prompt @param {string[]} sites @param {number[]} positions @param {AbortSignal} signal
 * @returns {Promise<Guess[][][]>} [sites][positions][likeliest first]
 */
export async function lens(explorer, prompt, sites, positions, signal) {
  const topK = 5;
  /** @type {Guess[][][]} */
  const found = sites.map(() => positions.map(() => []));
  const readout = {
    predictions: { sites: sites.map(toSite), positions: { list: { positions } }, topK },
  };
  await fetched(explorer, prompt, [readout], signal, ({ predictions }) => {
    if (!predictions) return;
    const logprobs = decoded(predictions.topLogprobs);
    predictions.positions?.forEach((position, row) => {
      const texts = predictions.topTexts?.slice(row * topK, (row + 1) * topK) ?? [];
      const column = positions.indexOf(position);
      const site = found[predictions.siteIndex ?? 0];
      if (site)
        site[column] = texts.map((text, at) => ({
          text,
          logprob: logprobs[row * topK + at] ?? NaN,
        }));
    });
  });
  return found;
}

/** @typedef {{ text: string, logprob: number }} Guess */

/**
 * The active features of one position, largest first.
 *
 * @param {Explorer} explorer @param {Prompt} prompt @param {Dictionary} dictionary @param {number} position @param {number} most @param {AbortSignal} signal
 * @returns {Promise<{ feature: number, value: number }[]>}
 */
export async function topFeatures(explorer, prompt, dictionary, position, most, signal) {
  const rows = {
    sites: [dictionary.site],
    positions: { list: { positions: [position] } },
    projection: { dictionary: dictionary.name, sendTop: most },
  };
  /** @type {{ feature: number, value: number }[]} */
  const found = [];
  await fetched(explorer, prompt, [{ rows }], signal, ({ activations }) => {
    const values = decoded(activations?.rows);
    activations?.indices?.forEach((feature, at) =>
      found.push({ feature, value: values[at] ?? NaN }),
    );
  });
  return found.filter(({ value }) => value > 0);
}

/**
 * How all heads attend, in means over queries.
 *
 * @param {Explorer} explorer
 * @param {Prompt} prompt
 * @param {{ positions?: object, topKeys?: number }} queries
 * @param {AbortSignal} signal
 * @returns {Promise<{ prompt: TokenizedPrompt, layers: AttentionSummaryChunk[] }>}
 */
export async function attentionSummary(explorer, prompt, { positions, topKeys }, signal) {
  /** @type {AttentionSummaryChunk[]} */
  const layers = [];
  const readout = {
    attentionSummary: { ...(positions && { queries: positions }), ...(topKeys && { topKeys }) },
  };
  const tokens = await fetched(
    explorer,
    prompt,
    [readout],
    signal,
    ({ attentionSummary: chunk }) => {
      if (chunk) layers[chunk.layer ?? 0] = chunk;
    },
  );
  return { prompt: tokens, layers };
}

/**
 * How much some queries of a head attend to each key.
 *
 * @param {Explorer} explorer @param {Prompt} prompt @param {{ layer: number, head: number, queries?: number[] }} which @param {AbortSignal} signal
 * @returns {Promise<Map<number, Float32Array>>} the weights by query
 */
export async function attentionPattern(explorer, prompt, { layer, head, queries }, signal) {
  /** @type {Map<number, Float32Array>} */
  const found = new Map();
  const attention = {
    layer,
    heads: [head],
    ...(queries && { queries: { list: { positions: queries } } }),
  };
  await fetched(explorer, prompt, [{ attention }], signal, ({ attention: chunk }) => {
    for (const [query, weights] of patternRows(chunk)) found.set(query, weights);
  });
  return found;
}

/** @param {AttentionChunk | undefined} chunk @returns {[number, Float32Array][]} */
function patternRows(chunk) {
  const weights = decoded(chunk?.weights);
  const queries = chunk?.queries ?? [];
  const keys = weights.length / (queries.length || 1);
  return queries.map((query, row) => [query, weights.subarray(row * keys, (row + 1) * keys)]);
}
