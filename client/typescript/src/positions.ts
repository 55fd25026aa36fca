import { create, type MessageInitShape } from "@bufbuild/protobuf";

import { invalid } from "./errors.js";
import { PositionSelectorSchema, type PositionSelector } from "./gen/actserve/v1/positions_pb.js";

type Selection = NonNullable<MessageInitShape<typeof PositionSelectorSchema>["selection"]>;

const NUMBER = "0|-?[1-9][0-9]*";
const LIST = new RegExp(`^(?:${NUMBER})(?:,(?:${NUMBER}))*$`);
const RANGE = new RegExp(`^(${NUMBER})?:(${NUMBER})?$`);

/**
 * The positions that are written so. Negative ones count from the end of the prompt.
 *
 * - `all`, `last` (of the prompt), `prompt`, `generated`;
 * - `3`, `-1` or `0,3,-1`: exactly these;
 * - `2:8`, `:-1` or `2:`: a range without its end, as in Python;
 * - `text:France`: the prompt tokens of that text, wherever it occurs.
 *
 * @throws {@link ActserveError} `POSITION_OUT_OF_RANGE` for any other text
 */
export function positions(text: string): PositionSelector {
  return create(PositionSelectorSchema, { selection: selection(text) });
}

function selection(text: string): Selection {
  if (text === "all" || text === "last" || text === "prompt" || text === "generated") {
    return { case: text, value: {} };
  }
  if (text.startsWith("text:") && text !== "text:") {
    return { case: "text", value: { text: text.slice("text:".length) } };
  }
  if (LIST.test(text)) {
    return { case: "list", value: { positions: text.split(",").map((each) => int32(each, text)) } };
  }
  const range = RANGE.exec(text);
  if (range) {
    const [, start, end] = range;
    return {
      case: "span",
      value: {
        ...(start === undefined ? {} : { start: int32(start, text) }),
        ...(end === undefined ? {} : { end: int32(end, text) }),
      },
    };
  }
  throw refused(text);
}

function int32(digits: string, text: string): number {
  const value = Number(digits);
  if (value !== (value | 0)) throw refused(text);
  return value;
}

function refused(text: string): Error {
  return invalid(
    `${JSON.stringify(text)} are not positions; write all, last, prompt, generated, numbers such ` +
      "as 0,3,-1, a range such as 2:8, or text:France",
    "POSITION_OUT_OF_RANGE",
  );
}
