import { fromBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";

import {
  BadRequestSchema,
  ErrorInfoSchema,
  RequestInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";
import type { Work } from "./gen/actserve/v1/work_pb.js";
import type { Status } from "./gen/google/rpc/status_pb.js";

const CODES = [
  "OK",
  "CANCELLED",
  "UNKNOWN",
  "INVALID_ARGUMENT",
  "DEADLINE_EXCEEDED",
  "NOT_FOUND",
  "ALREADY_EXISTS",
  "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED",
  "FAILED_PRECONDITION",
  "ABORTED",
  "OUT_OF_RANGE",
  "UNIMPLEMENTED",
  "INTERNAL",
  "UNAVAILABLE",
  "DATA_LOSS",
  "UNAUTHENTICATED",
] as const;

/** The name of a gRPC status code. */
export type StatusCode = (typeof CODES)[number];

/** `ErrorInfo.domain` of the reasons of actserve. */
const DOMAIN = "actserve.dev";

/** What a server may tell of an error beside its code and message. */
export interface ErrorDetails {
  /**
   * A name for programs: one of `ErrorReason` without its prefix, such as `SITE_INVALID`; or, of
   * the client itself, `STREAM_CUT_SHORT` (the answer is not whole) or `BAD_RESPONSE` (the server
   * broke the contract). Empty if the failure is not the service's own.
   */
  readonly reason: string;
  /** The field of the request that is to blame, such as `interventions[2].add.vector`; or empty. */
  readonly field: string;
  /** The values of the message, for programs. */
  readonly metadata: Readonly<Record<string, string>>;
  /** After how many milliseconds trying again helps; undefined if the server does not say. */
  readonly retryAfterMs: number | undefined;
  /** The server's id of the call, which is also in its logs; or empty. */
  readonly requestId: string;
}

/** A call, or an item of one, that was refused or failed; the only error of this client. */
export class ActserveError extends Error implements ErrorDetails {
  override readonly name = "ActserveError";
  /** The gRPC status code. */
  readonly code: StatusCode;
  readonly reason: string;
  readonly field: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly retryAfterMs: number | undefined;
  readonly requestId: string;

  constructor(
    message: string,
    code: StatusCode,
    details: Partial<ErrorDetails> = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.code = code;
    this.reason = details.reason ?? "";
    this.field = details.field ?? "";
    this.metadata = details.metadata ?? {};
    this.retryAfterMs = details.retryAfterMs;
    this.requestId = details.requestId ?? "";
  }

  /** The error that stands for anything thrown, such as a `ConnectError`. */
  static from(thrown: unknown): ActserveError {
    if (thrown instanceof ActserveError) return thrown;
    const error = ConnectError.from(thrown);
    const packed = error.details.filter((detail) => "type" in detail);
    // What the server told is all in the error; the cause is that of a connection.
    const options = error.cause === undefined ? undefined : { cause: error.cause };
    return build(error.code, error.rawMessage, packed, "", options);
  }

  /** The error of a status with its details, such as that of an item of the call with this id. */
  static fromStatus(status: Status, callId = ""): ActserveError {
    const packed = status.details.map(({ typeUrl, value }) => ({
      type: typeUrl.slice(typeUrl.lastIndexOf("/") + 1),
      value,
    }));
    return build(status.code, status.message, packed, callId);
  }
}

interface Packed {
  readonly type: string;
  readonly value: Uint8Array;
}

function build(
  number: number,
  said: string,
  packed: readonly Packed[],
  callId: string,
  options?: ErrorOptions,
): ActserveError {
  const info = unpack(packed, ErrorInfoSchema).find(({ domain }) => domain === DOMAIN);
  const violation = unpack(packed, BadRequestSchema)
    .flatMap(({ fieldViolations }) => fieldViolations)
    .find(({ field }) => field !== "");
  const delay = unpack(packed, RetryInfoSchema)[0]?.retryDelay;
  const code = CODES[number] ?? "UNKNOWN";
  // The status begins with the field, which is told apart here.
  const [message = code] = [violation?.description, said].filter(Boolean);
  return new ActserveError(
    message,
    code,
    {
      reason: info?.reason ?? "",
      field: violation?.field ?? "",
      metadata: { ...info?.metadata },
      retryAfterMs: delay && Math.max(0, Number(delay.seconds) * 1e3 + delay.nanos / 1e6),
      requestId: unpack(packed, RequestInfoSchema)[0]?.requestId ?? callId,
    },
    options,
  );
}

function unpack<Desc extends DescMessage>(
  packed: readonly Packed[],
  schema: Desc,
): MessageShape<Desc>[] {
  return packed
    .filter(({ type }) => type === schema.typeName)
    .flatMap(({ value }) => {
      try {
        return [fromBinary(schema, value)];
      } catch {
        return []; // A detail that cannot be read is no reason to hide the status.
      }
    });
}

/** What the client itself refuses, before anything is sent. */
export function invalid(message: string, reason: string, field = ""): ActserveError {
  return new ActserveError(message, "INVALID_ARGUMENT", { reason, field });
}

/** The server broke the contract; its answer is withheld. */
export function badResponse(message: string): ActserveError {
  return new ActserveError(message, "INTERNAL", { reason: "BAD_RESPONSE" });
}

/** Why work has failed. */
export function errorOfWork(work: Work | undefined): ActserveError {
  if (work?.error?.code) return ActserveError.fromStatus(work.error);
  return badResponse("the server failed at its work and does not say why");
}

/** The stream ended, and its answer is not whole. */
export function cutShort(): ActserveError {
  return new ActserveError(
    "the stream ended before the server said that it was finished, so the answer may not be " +
      "whole; try again",
    "UNAVAILABLE",
    { reason: "STREAM_CUT_SHORT" },
  );
}
