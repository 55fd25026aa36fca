import { create } from "@bufbuild/protobuf";

import { invalid } from "./errors.js";
import { HookPoint, SiteSchema, type Site } from "./gen/actserve/v1/site_pb.js";

/** Hook points as they are written. */
const HOOK_POINTS: ReadonlyMap<string, HookPoint> = new Map(
  Object.entries(HookPoint).flatMap(([name, value]) =>
    typeof value === "number" && value !== HookPoint.UNSPECIFIED
      ? [[name.toLowerCase(), value] as const]
      : [],
  ),
);

const LAYERLESS: ReadonlySet<HookPoint> = new Set([
  HookPoint.EMBEDDING,
  HookPoint.FINAL_NORM,
  HookPoint.LOGITS,
]);

// No leading zeros and no "-0", so that a site is written in one way only.
const SPELLING = /^([a-z_]+)(?:\.(0|-?[1-9][0-9]{0,5}))?$/;

/**
 * The site that is written so: a hook point and, but for `embedding`, `final_norm` and `logits`, a
 * zero-based layer, which counts from the last one when negative: `resid_post.10`, `resid_post.-1`,
 * `final_norm`.
 *
 * @throws {@link ActserveError} `SITE_INVALID` for any other text
 */
export function site(text: string): Site {
  const [, name, layer] = SPELLING.exec(text) ?? [];
  const hookPoint = HOOK_POINTS.get(name ?? "");
  if (hookPoint !== undefined && LAYERLESS.has(hookPoint) === (layer === undefined)) {
    return create(SiteSchema, {
      hookPoint,
      ...(layer === undefined ? {} : { layer: Number(layer) }),
    });
  }
  throw invalid(
    `${JSON.stringify(text)} is not a site; write a hook point in lower case and, but for ` +
      "embedding, final_norm and logits, its layer, as in resid_post.10",
    "SITE_INVALID",
  );
}

/** How a site is written. A hook point that this client does not know is written as its number. */
export function siteName({ hookPoint, layer }: Site): string {
  const [name = String(hookPoint)] =
    [...HOOK_POINTS].find(([, number]) => number === hookPoint) ?? [];
  return layer === undefined ? name : `${name}.${layer}`;
}
