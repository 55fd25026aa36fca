import { invalid } from "./errors.js";

/** Headers, if these can be some. */
export function checkedHeaders(headers: HeadersInit | undefined): Headers {
  try {
    return new Headers(headers);
  } catch (thrown) {
    const reason = thrown instanceof Error ? thrown.message : String(thrown);
    throw invalid(`these are no headers: ${reason}`, "FIELD_INVALID", "headers");
  }
}

/** A deadline. */
export function checkedTimeout(timeoutMs: number): number {
  if (timeoutMs > 0) return timeoutMs;
  throw invalid(
    `timeoutMs is ${timeoutMs}; give milliseconds above zero, or Infinity for no deadline`,
    "FIELD_INVALID",
    "timeoutMs",
  );
}

/** Whether all that is sent to a URL stays on this machine. */
export function isLocal({ hostname }: URL): boolean {
  return /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])$/.test(hostname);
}
