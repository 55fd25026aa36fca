import { create } from "@bufbuild/protobuf";

import { badResponse, invalid } from "../errors.js";
import { ReadoutSchema, type Readout } from "../gen/actserve/v1/readout_pb.js";
import { ElementType, TensorSchema, type Tensor } from "../gen/actserve/v1/tensor_pb.js";
import { siteName } from "../sites.js";
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

/** Refuses readouts and sites that could not be told apart in the answer. */
export function checkReadouts(readouts: readonly Readout[]): void {
  const names = new Set<string>();
  for (const [index, { name, kind }] of readouts.entries()) {
    if (names.has(name)) {
      throw invalid(
        `there are two readouts with the name ${JSON.stringify(name)}; give each its own`,
        "FIELD_INVALID",
        `readouts[${index}].name`,
      );
    }
    names.add(name);
    if (!kind.value || !("sites" in kind.value)) continue;
    const sites = new Set<string>();
    for (const [at, site] of kind.value.sites.map(siteName).entries()) {
      if (sites.has(site)) {
        throw invalid(
          `the readout ${JSON.stringify(name)} reads ${site} twice; name each site once`,
          "SITE_INVALID",
          `readouts[${index}].${ReadoutSchema.field[kind.case].name}.sites[${at}]`,
        );
      }
      sites.add(site);
    }
  }
}
