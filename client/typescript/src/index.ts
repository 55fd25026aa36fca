/**
 * The client, for any transport of connect, in Node.js and in browsers. In Node.js, `connect` of
 * `@actserve/client/node` makes one of an address; messages are in `@actserve/client/v1`.
 *
 * @module
 */
export type { CallOptions, Client as Stub, Transport } from "@connectrpc/connect";

export { Client, type CallDefaults, type ClientOptions, type Init } from "./client.js";
export { EventStream, type Response } from "./stream.js";
export { ActserveError, type ErrorDetails, type StatusCode } from "./errors.js";

export { site, siteName } from "./sites.js";
export { positions } from "./positions.js";
export { decodeTensor, row, tensor, type Float32Tensor } from "./tensors.js";
export {
  above,
  add,
  below,
  changeFeatures,
  feature,
  features,
  keep,
  predictions,
  probe,
  prompt,
  replace,
  rows,
  vector,
  type FeatureChanges,
  type FeatureOptions,
  type PredictionOptions,
  type Turn,
  type Vector,
} from "./requests.js";

export type { WatchedAlert } from "./alerts.js";
export * from "./collected.js";
export type { LogitEffect, TokenEffect } from "./effects.js";
export type { Explained } from "./collectors/explain.js";
export type { Graph } from "./collectors/graph.js";
export type { HeadPattern, MeasuredHeads, MeasuredPrompt } from "./collectors/heads.js";
export type { Reconstructed } from "./collectors/reconstruct.js";
export type { Replayed, ReplayScores } from "./collectors/replay.js";
export type { Swept, SweptCell } from "./collectors/sweep.js";

export { VERSION } from "./version.js";
