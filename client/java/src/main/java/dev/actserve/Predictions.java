package dev.actserve;

import java.util.List;
import java.util.Optional;

/**
 * What the model would predict at one site, of one sequence. Log probabilities are natural ones.
 *
 * @param positions the token position of each row, ascending
 * @param topIds the ids of the likeliest tokens, {@code top_k} for each row, likeliest first
 * @param topTexts these tokens, each decoded alone
 * @param topLogprobs their log probabilities, of shape [rows, top_k]
 * @param tokenLogprobs those of {@code PredictionReadout.token_ids}, of shape [rows, token_ids]
 * @param nextTokenLogprobs that of the prompt token that does come next, of shape [rows]; only if
 *     {@code PredictionReadout.next_token} asked for it
 */
public record Predictions(
    int[] positions,
    int[] topIds,
    List<String> topTexts,
    FloatArray topLogprobs,
    FloatArray tokenLogprobs,
    Optional<FloatArray> nextTokenLogprobs) {

  /** The likeliest tokens of a row, likeliest first. */
  public List<String> topTexts(int row) {
    int count = positions.length == 0 ? 0 : topTexts.size() / positions.length;
    return topTexts.subList(row * count, (row + 1) * count);
  }
}
