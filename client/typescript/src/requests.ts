import { create } from "@bufbuild/protobuf";

import {
  ConditionSchema,
  InterventionSchema,
  type Condition,
  type Intervention,
} from "./gen/actserve/v1/intervention_pb.js";
import { ProbeSchema, type Probe } from "./gen/actserve/v1/probe_pb.js";
import { PromptSchema, type Prompt } from "./gen/actserve/v1/prompt_pb.js";
import { ReadoutSchema, type Readout } from "./gen/actserve/v1/readout_pb.js";
import { VectorSourceSchema, type VectorSource } from "./gen/actserve/v1/source_pb.js";
import { positions } from "./positions.js";
import { site } from "./sites.js";
import { tensor } from "./tensors.js";

/** One turn of a conversation, as chat templates name them. */
export interface Turn {
  /** `system`, `user`, `assistant` or `tool`. */
  readonly role: string;
  readonly content: string;
}

/** A prompt: a text, token ids, or the turns of a conversation. */
export function prompt(source: string | readonly number[] | readonly Turn[]): Prompt {
  if (typeof source === "string") {
    return create(PromptSchema, { source: { case: "text", value: source } });
  }
  if (areIds(source)) {
    return create(PromptSchema, { source: { case: "tokenIds", value: { ids: [...source] } } });
  }
  const turns = source.map(({ role, content }) => ({ role, content }));
  return create(PromptSchema, { source: { case: "conversation", value: { turns } } });
}

function areIds(source: readonly number[] | readonly Turn[]): source is readonly number[] {
  return source.every((each) => typeof each === "number");
}

/**
 * A readout of rows, found in the answer by its name.
 *
 * @param sites as {@link site} takes them
 * @param where as {@link positions} takes them; all when left out
 */
export function rows(name: string, sites: string | readonly string[], where?: string): Readout {
  return create(ReadoutSchema, { name, kind: { case: "rows", value: places(sites, where) } });
}

/** Which features to read. */
export interface FeatureOptions {
  /** As {@link positions} takes them; all when unset. */
  readonly positions?: string | undefined;
  /** How many of the largest features of each row to send, with their `indices`; all when unset. */
  readonly top?: number | undefined;
}

/**
 * A readout of what a dictionary makes of rows: their features.
 *
 * @param sites as {@link site} takes them: any of the dictionary's width, not its own alone
 * @param dictionary its name, `models/{model}/dictionaries/{dictionary}`
 */
export function features(
  name: string,
  sites: string | readonly string[],
  dictionary: string,
  options: FeatureOptions = {},
): Readout {
  const { positions: where, top } = options;
  const projection = { dictionary, ...(top === undefined ? {} : { sendTop: top }) };
  const value = { ...places(sites, where), projection };
  return create(ReadoutSchema, { name, kind: { case: "rows", value } });
}

/**
 * A readout whose rows stay on the server, under a name that comes with the answer. Others can then
 * {@link replace} their rows by them.
 *
 * @param sites as {@link site} takes them
 * @param where as {@link positions} takes them; all when left out
 */
export function keep(name: string, sites: string | readonly string[], where?: string): Readout {
  return create(ReadoutSchema, { name, kind: { case: "keep", value: places(sites, where) } });
}

/** What predictions to read; nothing but what is asked for here comes. */
export interface PredictionOptions {
  /** As {@link site} takes them: resid_post of layers, or `final_norm`, which it is when unset. */
  readonly sites?: string | readonly string[] | undefined;
  /** As {@link positions} takes them; all when unset. */
  readonly positions?: string | undefined;
  /** How many of the likeliest tokens. */
  readonly topK?: number | undefined;
  /** Tokens whose log probability to read. */
  readonly tokenIds?: readonly number[] | undefined;
  /** Whether to read the log probability of the prompt token that does come next. */
  readonly nextToken?: boolean | undefined;
}

/**
 * A readout of what the model predicts as the next token; at layers before the last, a logit lens.
 */
export function predictions(name: string, options: PredictionOptions): Readout {
  const { sites = [], positions: where, topK = 0, tokenIds = [], nextToken = false } = options;
  const value = { ...places(sites, where), topK, tokenIds: [...tokenIds], nextToken };
  return create(ReadoutSchema, { name, kind: { case: "predictions", value } });
}

/**
 * What a vector is made of: numbers to send along, as float32; the name of a stored one,
 * `models/{model}/steeringVectors/{steering_vector}`; or a message, such as {@link feature} makes.
 */
export type Vector = Iterable<number> | string | VectorSource;

/** The vector of what it is made of. */
export function vector(source: Vector): VectorSource {
  if (typeof source === "object" && "$typeName" in source) return source;
  return create(VectorSourceSchema, {
    source:
      typeof source === "string"
        ? { case: "steeringVector", value: source }
        : { case: "tensor", value: tensor(source) },
  });
}

/**
 * What a feature of a dictionary writes, a row of its decoder: a vector.
 *
 * @param dictionary its name, `models/{model}/dictionaries/{dictionary}`
 */
export function feature(dictionary: string, index: number): VectorSource {
  return create(VectorSourceSchema, {
    source: { case: "feature", value: { dictionary, index } },
  });
}

/** What becomes of features, by index; each is named in one of the three. */
export interface FeatureChanges {
  /** What a feature is set to, whatever it was. */
  readonly values?: Readonly<Record<number, number>> | undefined;
  /** What is added to a feature, also where it is zero. */
  readonly additions?: Readonly<Record<number, number>> | undefined;
  /** What a feature is multiplied by: zero ablates it, and one changes nothing. */
  readonly factors?: Readonly<Record<number, number>> | undefined;
}

/**
 * Changes features of the rows of sites, and keeps of a row what the dictionary does not explain.
 *
 * @param at as {@link site} takes them
 * @param dictionary its name, `models/{model}/dictionaries/{dictionary}`
 */
export function changeFeatures(
  at: string | readonly string[],
  dictionary: string,
  changes: FeatureChanges,
): Intervention {
  const kinds = { value: changes.values, addition: changes.additions, factor: changes.factors };
  return create(InterventionSchema, {
    ...places(at, undefined),
    operation: {
      case: "features",
      value: {
        dictionary,
        changes: (["value", "addition", "factor"] as const).flatMap((kind) =>
          Object.entries(kinds[kind] ?? {}).map(([index, value]) => ({
            index: Number(index),
            change: { case: kind, value },
          })),
        ),
      },
    },
  });
}

/**
 * Adds `coefficient` times a vector to the rows of sites, at every position.
 *
 * @param at as {@link site} takes them; none in a sweep that has a list of them
 * @param what as {@link vector} takes it, as wide as the rows of the sites
 * @param coefficient one when left out; a sweep that has a list of them wants it left out
 */
export function add(
  at: string | readonly string[],
  what: Vector,
  coefficient?: number,
): Intervention {
  return create(InterventionSchema, {
    ...places(at, undefined),
    operation: {
      case: "add",
      value: { vector: vector(what), ...(coefficient === undefined ? {} : { coefficient }) },
    },
  });
}

/**
 * A linear probe: how far the rows of a site lie along a direction.
 *
 * @param direction as {@link vector} takes it
 */
export function probe(at: string, direction: Vector): Probe {
  return create(ProbeSchema, { site: site(at), direction: vector(direction) });
}

/** The condition that a probe is above a bound, for `Intervention.when`. */
export function above(what: Probe, bound: number): Condition {
  return create(ConditionSchema, { probe: what, above: bound });
}

/** The condition that a probe is below a bound, for `Intervention.when`. */
export function below(what: Probe, bound: number): Condition {
  return create(ConditionSchema, { probe: what, below: bound });
}

/**
 * Puts rows that were kept before in place of those of a site.
 *
 * @param kept the name of the rows, `keptActivations/...`
 * @param where as {@link positions} takes them: as many as rows were kept, or any if it was one
 */
export function replace(at: string, kept: string, where?: string): Intervention {
  return create(InterventionSchema, {
    ...places(at, where),
    operation: {
      case: "replace",
      value: {
        rows: { source: { case: "kept", value: { kept: { case: "name", value: kept } } } },
      },
    },
  });
}

function places(sites: string | readonly string[], where: string | undefined) {
  const several = typeof sites === "string" ? [sites] : sites;
  return {
    sites: several.map(site),
    ...(where === undefined ? {} : { positions: positions(where) }),
  };
}
