/** Tensors of the contract, which JSON has in base64, as numbers. */

/** @import { Tensor } from "../contract.d.ts" */

/**
 * The elements of a tensor, outermost axis first.
 *
 * @param {Tensor | undefined} tensor
 * @returns {Float32Array}
 */
export function decoded(tensor) {
  const bytes = bytesOf(tensor?.data ?? "");
  switch (tensor?.elementType) {
    case "ELEMENT_TYPE_F32":
      return new Float32Array(bytes.buffer, 0, bytes.length / 4);
    case "ELEMENT_TYPE_BF16": {
      const halves = new Uint16Array(bytes.buffer, 0, bytes.length / 2);
      return new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
    }
    case "ELEMENT_TYPE_F16":
      return Float32Array.from(new Uint16Array(bytes.buffer, 0, bytes.length / 2), half);
    default:
      if (bytes.length === 0) return new Float32Array();
      throw new Error(
        `the server sent a tensor of the unknown type ${String(tensor?.elementType)}`,
      );
  }
}

/**
 * Numbers as a tensor of a shape.
 *
 * @param {Float32Array} values
 * @param {number[]} shape
 * @returns {Tensor}
 */
export function encoded(values, shape) {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return { elementType: "ELEMENT_TYPE_F32", shape, data: btoa(text) };
}

/** @param {ArrayLike<number>} row */
export function norm(row) {
  let sum = 0;
  for (let at = 0; at < row.length; at += 1) sum += (row[at] ?? 0) ** 2;
  return Math.sqrt(sum);
}

/** @param {string} text */
function bytesOf(text) {
  const decodedText = atob(text);
  const bytes = new Uint8Array(decodedText.length);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = decodedText.charCodeAt(at);
  return bytes;
}

/** IEEE 754 binary16. @param {number} bits */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
