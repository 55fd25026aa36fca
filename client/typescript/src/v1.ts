/**
 * The contract: every message, enum and service of `actserve.v1` as generated, served or not.
 *
 * @module
 */
export { StatusSchema, type Status } from "./gen/google/rpc/status_pb.js";

export * from "./gen/actserve/v1/alert_pb.js";
export * from "./gen/actserve/v1/attribution_graph_service_pb.js";
export * from "./gen/actserve/v1/dictionary_service_pb.js";
export * from "./gen/actserve/v1/errors_pb.js";
export * from "./gen/actserve/v1/explanation_service_pb.js";
export * from "./gen/actserve/v1/generation_service_pb.js";
export * from "./gen/actserve/v1/head_service_pb.js";
export * from "./gen/actserve/v1/intervention_pb.js";
export * from "./gen/actserve/v1/kept_activations_service_pb.js";
export * from "./gen/actserve/v1/model_service_pb.js";
export * from "./gen/actserve/v1/monitor_service_pb.js";
export * from "./gen/actserve/v1/positions_pb.js";
export * from "./gen/actserve/v1/probe_pb.js";
export * from "./gen/actserve/v1/prompt_pb.js";
export * from "./gen/actserve/v1/readout_pb.js";
export * from "./gen/actserve/v1/site_pb.js";
export * from "./gen/actserve/v1/source_pb.js";
export * from "./gen/actserve/v1/steering_vector_service_pb.js";
export * from "./gen/actserve/v1/sweep_service_pb.js";
export * from "./gen/actserve/v1/tensor_pb.js";
export * from "./gen/actserve/v1/weight_service_pb.js";
export * from "./gen/actserve/v1/work_pb.js";
