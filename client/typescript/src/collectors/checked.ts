import { create } from "@bufbuild/protobuf";

import { badResponse } from "../errors.js";
import { ElementType, TensorSchema, type Tensor } from "../gen/actserve/v1/tensor_pb.js";
import { checkTensor, size } from "../tensors.js";

/** The tensor, if it can be decoded and has this shape. One that is empty may be unset. */
export function shaped(tensor: Tensor | undefined, shape: readonly number[], what: string): Tensor {
  if (!tensor && size(shape) === 0) {
    return create(TensorSchema, { elementType: ElementType.F32, shape: [...shape] });
  }
  if (tensor) checkTensor(tensor);
  if (tensor?.shape.join() === shape.join()) return tensor;
  const sent = tensor ? `in the shape [${tensor.shape.join(", ")}]` : "without any numbers";
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
