/** Sites as people write them, `resid_post.10`, and as the contract has them. */

/** @import { Site } from "../contract.d.ts" */

const PREFIX = "HOOK_POINT_";
const WITHOUT_LAYER = new Set(["embedding", "final_norm", "logits"]);

/** @param {string} hookPoint as the contract has it */
export function shortHook(hookPoint) {
  return hookPoint.replace(PREFIX, "").toLowerCase();
}

/** @param {string} hook such as resid_post */
export function hasLayer(hook) {
  return !WITHOUT_LAYER.has(hook);
}

/** @param {string} name such as resid_post.10 @returns {Site} */
export function toSite(name) {
  const [hook = "", layer] = name.split(".");
  const hookPoint = PREFIX + hook.toUpperCase();
  return layer === undefined ? { hookPoint } : { hookPoint, layer: Number(layer) };
}

/** @param {Site | undefined} site */
export function nameOf(site) {
  if (!site?.hookPoint) return "";
  const hook = shortHook(site.hookPoint);
  return hasLayer(hook) ? `${hook}.${site.layer ?? 0}` : hook;
}

/** Whether a text of a link can be the name of a site. @param {string} name */
export function isSite(name) {
  return /^[a-z_]{1,20}(\.\d{1,4})?$/.test(name);
}
