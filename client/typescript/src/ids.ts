/** An id that no other call has. */
export function randomId(): string {
  // Unlike randomUUID, this is there in every context of a browser.
  return hexadecimal(crypto.getRandomValues(new Uint8Array(16)));
}

/** Bytes as a text of twice as many hexadecimal digits. */
export function hexadecimal(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
