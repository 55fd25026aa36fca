/** The model that is served, and what can be named in it: what forms offer. */

import { hasLayer, shortHook } from "./sites.js";

/** @import { Dictionary, FeatureLabel, Model, Monitor, Nla, SteeringVector } from "../contract.d.ts" */
/** @import { Calls } from "./connect.js" */

/** Of a list of names; the rest is left out. */
const MAX_LISTED = 2000;
const PAGE = 500;

export class Served {
  /** @param {Model} model @param {Nla[]} nlas */
  constructor(model, nlas) {
    this.model = model;
    this.nlas = nlas;
    this.name = model.name;
    this.id = shortName(model.name);
    this.layers = model.layerCount ?? 0;
    this.features = new Set(
      (model.features ?? []).map((name) => name.replace("FEATURE_", "").toLowerCase()),
    );
  }

  /**
   * The first model of the server, with its NLAs.
   *
   * @param {Calls} calls
   * @param {AbortSignal} [signal]
   */
  static async find(calls, signal) {
    const { models } = /** @type {{ models?: Model[] }} */ (
      await calls.ask("ModelService/ListModels", {}, signal)
    );
    const [model] = models ?? [];
    if (!model) throw new Error("the server serves no model");
    const { nlas } = /** @type {{ nlas?: Nla[] }} */ (
      await calls.ask("ExplanationService/ListNlas", { parent: model.name }, signal)
    );
    return new Served(model, nlas ?? []);
  }

  /** Hook points that are served, such as resid_post, those with layers alone. @param {{ changeable?: boolean }} [only] */
  hooks({ changeable = false } = {}) {
    return (this.model.hookPoints ?? [])
      .filter((support) => !support.unservedReason && !(changeable && support.unchangeableReason))
      .map((support) => shortHook(support.hookPoint))
      .filter(hasLayer);
  }

  /** Query heads of a layer. */
  get heads() {
    return (
      this.model.hookPoints?.find((support) => shortHook(support.hookPoint) === "q")?.heads ?? 0
    );
  }

  /** Where streams are read off that run through all layers: resid_post.0 and so on. */
  get stream() {
    return Array.from({ length: this.layers }, (_, layer) => `resid_post.${layer}`);
  }

  /** What explains rows in words. */
  get verbalizers() {
    return this.nlas.filter((nla) => nla.verbalizes && !nla.answersQuestions);
  }
}

/** The last part of a name, which is the id that people know. @param {string} name */
export function shortName(name) {
  return name.startsWith("models/") && name.split("/").length <= 2
    ? name.slice(7)
    : (name.split("/").pop() ?? name);
}

/** @param {Calls} calls @param {string} model @param {AbortSignal} [signal] @returns {Promise<SteeringVector[]>} */
export function vectors(calls, model, signal) {
  return listed(
    calls,
    "SteeringVectorService/ListSteeringVectors",
    "steeringVectors",
    { model },
    signal,
  );
}

/** @param {Calls} calls @param {string} model @param {AbortSignal} [signal] @returns {Promise<Monitor[]>} */
export function monitors(calls, model, signal) {
  return listed(calls, "MonitorService/ListMonitors", "monitors", { model }, signal);
}

/** @param {Calls} calls @param {string} model @param {AbortSignal} [signal] @returns {Promise<Dictionary[]>} */
export function dictionaries(calls, model, signal) {
  return listed(calls, "DictionaryService/ListDictionaries", "dictionaries", { model }, signal);
}

/** What features of a dictionary stand for, by index. @param {Calls} calls @param {string} dictionary @param {AbortSignal} [signal] */
export async function featureLabels(calls, dictionary, signal) {
  /** @type {FeatureLabel[]} */
  const labels = await listed(
    calls,
    "DictionaryService/ListFeatureLabels",
    "labels",
    { dictionary },
    signal,
  );
  return new Map(labels.map(({ index = 0, label = "" }) => [index, label]));
}

/**
 * All pages of a list.
 *
 * @template Item
 * @param {Calls} calls
 * @param {string} method
 * @param {string} field
 * @param {object} of
 * @param {AbortSignal | undefined} signal
 */
async function listed(calls, method, field, of, signal) {
  /** @type {Item[]} */
  const items = [];
  let pageToken = "";
  do {
    const page = /** @type {Record<string, unknown>} */ (
      await calls.ask(method, { ...of, pageSize: PAGE, pageToken }, signal)
    );
    items.push(.../** @type {Item[]} */ (page[field] ?? []));
    pageToken = /** @type {string} */ (page.nextPageToken ?? "");
  } while (pageToken && items.length < MAX_LISTED);
  return items;
}
