/** Ids of requests, so that one that is sent again makes nothing twice. */

const BYTES = 16;

/** One that nobody has. `crypto.randomUUID` is not offered to pages of other machines without TLS. */
export function requestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(BYTES));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
