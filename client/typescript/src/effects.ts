import { create } from "@bufbuild/protobuf";

import type { Fetched } from "./collected.js";
import {
  FetchActivationsRequestSchema,
  type FetchActivationsRequest,
} from "./gen/actserve/v1/generation_service_pb.js";
import { InterventionSchema, type Intervention } from "./gen/actserve/v1/intervention_pb.js";
import { ElementType } from "./gen/actserve/v1/tensor_pb.js";
import { positions } from "./positions.js";
import { add, feature, prompt } from "./requests.js";
import { site } from "./sites.js";
import { row } from "./tensors.js";

/**
 * Which tokens a feature makes likelier by itself: its direction goes through the final norm and the
 * unembedding, with no layer between (the direct effect; Elhage et al., "A Mathematical Framework for
 * Transformer Circuits", 2021).
 */
export interface LogitEffect {
  /** The index of the feature. */
  readonly feature: number;
  /** The tokens that it raises most, most first. */
  readonly top: readonly TokenEffect[];
  /** The tokens that it lowers most, most first. */
  readonly bottom: readonly TokenEffect[];
}

/** What a feature does to the logit of one token. */
export interface TokenEffect {
  readonly id: number;
  /** The token, decoded alone. */
  readonly text: string;
  /**
   * What one unit of the feature adds to the logit, as at a row whose elements have a mean square of
   * one; at other rows all effects are larger or smaller by one factor.
   */
  readonly effect: number;
}

/** An effect whose token has no text yet. */
export type Effect = Omit<TokenEffect, "text">;

/**
 * How much of a feature makes up the row whose logits are read: enough for the small number that norms
 * add to the square of a row to be nothing beside it.
 */
const DOSE = 10;

const LAST_RESIDUAL = "resid_post.-1";

/**
 * Reads the logits of a row that is zero, and of one that is each feature alone, in place of the last row
 * of the residual stream.
 */
export function effectsRequest(
  dictionary: string,
  features: readonly number[],
): FetchActivationsRequest {
  const clearing = create(InterventionSchema, {
    sites: [site(LAST_RESIDUAL)],
    positions: positions("last"),
    operation: { case: "zero", value: {} },
  });
  const item = (...interventions: Intervention[]) => ({ prompt: prompt([0]), interventions });
  const written = features.map((index) => {
    const adding = add(LAST_RESIDUAL, feature(dictionary, index), DOSE);
    adding.positions = positions("last");
    return item(clearing, adding);
  });
  const value = {
    sites: [LAST_RESIDUAL, "logits"].map(site),
    positions: positions("last"),
    elementType: ElementType.F32,
  };
  return create(FetchActivationsRequestSchema, {
    model: dictionary.split("/dictionaries/")[0] ?? "",
    items: [item(clearing), ...written],
    readouts: [{ name: "row", kind: { case: "rows", value } }],
    failFast: true,
  });
}

/** The `k` tokens that the feature of an item raises most and lowers most. */
export function strongest(
  fetched: Fetched,
  item: number,
  k: number,
): { top: Effect[]; bottom: Effect[] } {
  // Of a row of zeros, logits are not zero where norms have biases.
  const nothing = row(fetched.item(0).rows("row", "logits"), 0);
  const logits = row(fetched.item(item).rows("row", "logits"), 0);
  const written = row(fetched.item(item).rows("row", LAST_RESIDUAL), 0);
  const squares = written.reduce((sum, element) => sum + element * element, 0);
  const scale = Math.sqrt(squares / written.length) / DOSE;
  const effects = Array.from(logits, (logit, id) => ({
    id,
    effect: Math.fround(Math.fround(logit - (nothing[id] ?? 0)) * scale),
  }));
  effects.sort((a, b) => b.effect - a.effect);
  const count = Math.min(Math.max(k, 0), effects.length);
  return {
    top: effects.slice(0, count),
    bottom: effects.slice(effects.length - count).reverse(),
  };
}
