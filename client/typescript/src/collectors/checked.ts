import { badResponse } from "../errors.js";
import type { Tensor } from "../gen/actserve/v1/tensor_pb.js";
import { decodeTensor, size, type Float32Tensor } from "../tensors.js";

/** The values of a tensor, if it has this shape. One that is empty may be unset. */
export function shaped(
  tensor: Tensor | undefined,
  shape: readonly number[],
  what: string,
): Float32Tensor {
  if (!tensor && size(shape) === 0) return { shape, data: new Float32Array() };
  const values = tensor && decodeTensor(tensor);
  if (values?.shape.join() === shape.join()) return values;
  const sent = values ? `in the shape [${values.shape.join(", ")}]` : "without any numbers";
  throw badResponse(`the server sent ${what} ${sent}, not in [${shape.join(", ")}]`);
}

/** The values, if there are so many. */
export function counted<T>(values: readonly T[], count: number, what: string): readonly T[] {
  if (values.length === count) return values;
  throw badResponse(`the server sent ${values.length} ${what}, not ${count}`);
}

/** What was asked for under an index that the server names. */
export function asked<T>(values: readonly T[], index: number, what: string): T {
  const value = values[index];
  if (value !== undefined) return value;
  throw badResponse(`the server sent ${what} ${index}, but ${values.length} were asked for`);
}
