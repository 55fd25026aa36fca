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
 * @throws {@link ActserveError} `TENSOR_SIZE_MISMATCH` if the shape holds another number of elements
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
  const { elementType, shape, data } = tensor;
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
  return { shape, data: elementType === ElementType.F32 ? floats(data) : widened(tensor) };
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

/** The arrays one after the other, in a new one unless there is only one. */
export function joined(blocks: readonly Float32Array[]): Float32Array {
  const [first] = blocks;
  if (first && blocks.length === 1) return first;
  const whole = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let end = 0;
  for (const block of blocks) {
    whole.set(block, end);
    end += block.length;
  }
  return whole;
}

/** How many elements a shape has. */
export function size(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

function floats(data: Uint8Array): Float32Array {
  if (LITTLE_ENDIAN && data.byteOffset % 4 === 0) {
    return new Float32Array(data.buffer, data.byteOffset, data.length / 4);
  }
  const copy = data.slice();
  if (!LITTLE_ENDIAN) swapWords(copy);
  return new Float32Array(copy.buffer);
}

function swapWords(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; at += 4) bytes.subarray(at, at + 4).reverse();
}

/** Of two bytes an element. By their bits, since a number in JavaScript may lose those of a NaN. */
function widened({ elementType, data }: Tensor): Float32Array {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const bits = new Uint32Array(data.length / 2);
  for (let index = 0; index < bits.length; index++) {
    const half = view.getUint16(2 * index, true);
    bits[index] = elementType === ElementType.BF16 ? half << 16 : fromHalf(half);
  }
  return new Float32Array(bits.buffer);
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
