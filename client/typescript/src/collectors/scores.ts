import { badResponse } from "../errors.js";
import type { MonitorScore } from "../gen/actserve/v1/generation_service_pb.js";
import { counted, shaped } from "./checked.js";

/**
 * The scores, if they have of each token that counts the score as of it, where that was asked for, and
 * nothing of tokens otherwise.
 */
export function checkedScores(scores: readonly MonitorScore[], eachToken: boolean) {
  for (const { monitor, tokens, positions, tokenScores } of scores) {
    const count = eachToken ? tokens : 0;
    counted(positions, count, `positions with the score of ${monitor}`);
    for (const [index, position] of positions.entries()) {
      if (index > 0 && position <= (positions[index - 1] ?? 0)) {
        throw badResponse(`the server sent positions with the score of ${monitor} out of order`);
      }
    }
    shaped(tokenScores, [count], `scores of tokens of ${monitor}`);
  }
  return scores;
}
