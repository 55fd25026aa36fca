import { create } from "@bufbuild/protobuf";

import { badResponse, invalid } from "./errors.js";
import { ElementType, TensorSchema, type Tensor } from "./gen/actserve/v1/tensor_pb.js";

/** Float32 numbers with a shape: C-contiguous, the last axis the fastest. */
export interface Float32Tensor {
  /** The extent of each axis, outermost first. */
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

const BYTES: ReadonlyMap<ElementType, number> = new Map([
  [ElementType.F32, 4],
  [ElementType.F16, 2],
  [ElementType.BF16, 2],
]);

const LITTLE_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/**
 * A tensor of the contract, of element type F32, from numbers in the order of their axes.
 *
 * @param shape one axis when left out: a vector
 * @throws {@link ActserveError} `TENSOR_SIZE_MISMATCH` if the shape has another number of elements
 */
export function tensor(values: Iterable<number>, shape?: readonly number[]): Tensor {
  // A copy; of the bits where they are float32 already, which keeps those of a NaN.
  const data = values instanceof Float32Array ? values.slice() : Float32Array.from(values);
  const axes = shape ?? [data.length];
  if (size(axes) !== data.length) {
    throw invalid(
      `there are ${data.length} numbers for the shape [${axes.join(", ")}], which has ` +
        `${size(axes)}; give as many numbers as the shape has`,
      "TENSOR_SIZE_MISMATCH",
    );
  }
  const bytes = new Uint8Array(data.buffer);
  if (!LITTLE_ENDIAN) swapWords(bytes);
  return create(TensorSchema, { elementType: ElementType.F32, shape: [...axes], data: bytes });
}

/**
 * The float32 values of a tensor, exactly: every f16 and bf16 value is a float32 value.
 *
 * The array shares memory with an f32 tensor where its bytes are aligned.
 *
 * @throws {@link ActserveError} `BAD_RESPONSE` if the element type is unknown, or if there are not
 * as many bytes as the shape needs
 */
export function decodeTensor(tensor: Tensor): Float32Tensor {
  checkTensor(tensor);
  return { shape: tensor.shape, data: joined([tensor]) };
}

/** Throws `BAD_RESPONSE` unless a tensor can be decoded. */
export function checkTensor({ elementType, shape, data }: Tensor): void {
  const bytes = BYTES.get(elementType);
  if (bytes === undefined) {
    throw badResponse(
      `the server sent element type ${elementType}, which this client does not know; upgrade the ` +
        "client",
    );
  }
  if (size(shape) * bytes !== data.length) {
    throw badResponse(
      `the server sent ${data.length} bytes for a tensor of shape [${shape.join(", ")}], which has ` +
        `${size(shape) * bytes}`,
    );
  }
}

/** The values of checked tensors, one after the other; a view of a single one where it can be. */
export function joined(tensors: readonly Tensor[]): Float32Array {
  const [first] = tensors;
  if (first && tensors.length === 1 && isFloats(first)) {
    return new Float32Array(first.data.buffer, first.data.byteOffset, first.data.length / 4);
  }
  const whole = new Float32Array(tensors.reduce((sum, { shape }) => sum + size(shape), 0));
  const bits = new Uint32Array(whole.buffer);
  let end = 0;
  for (const tensor of tensors) {
    const start = end;
    end += size(tensor.shape);
    decode(tensor, bits.subarray(start, end));
  }
  return whole;
}

/** One row of a matrix, such as {@link Rows}; it shares memory with it. */
export function row({ shape, data }: Float32Tensor, index: number): Float32Array {
  const [rows = 0] = shape;
  if (shape.length !== 2 || !(index >= 0 && index < rows)) {
    throw new RangeError(`there is no row ${index} in the shape [${shape.join(", ")}]`);
  }
  const width = data.length / rows;
  return data.subarray(index * width, (index + 1) * width);
}

/** How many elements a shape has. */
export function size(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

function isFloats({ elementType, data }: Tensor): boolean {
  return elementType === ElementType.F32 && LITTLE_ENDIAN && data.byteOffset % 4 === 0;
}

/** Writes float32 values by their bits, since a number in JavaScript may lose those of a NaN. */
function decode({ elementType, data }: Tensor, bits: Uint32Array): void {
  if (elementType === ElementType.F32) {
    const bytes = new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength);
    bytes.set(data);
    if (!LITTLE_ENDIAN) swapWords(bytes);
    return;
  }
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const widen = elementType === ElementType.BF16 ? fromBfloat : fromHalf;
  for (let index = 0; index < bits.length; index++) {
    bits[index] = widen(view.getUint16(2 * index, true));
  }
}

function swapWords(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; at += 4) bytes.subarray(at, at + 4).reverse();
}

/** The bits of a binary32 of the same value as a bfloat16. */
function fromBfloat(half: number): number {
  return half << 16;
}

/** The bits of a binary32 of the same value as a binary16. */
function fromHalf(half: number): number {
  const sign = (half & 0x8000) << 16;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0x1f) return sign | 0x7f800000 | (fraction << 13); // Infinite, or no number.
  if (exponent !== 0) return sign | ((exponent + 112) << 23) | (fraction << 13);
  if (fraction === 0) return sign;
  const shift = Math.clz32(fraction) - 21; // Subnormal, which no binary16 is as a binary32.
  return sign | ((113 - shift) << 23) | (((fraction << shift) & 0x3ff) << 13);
}
