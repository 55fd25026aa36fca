package dev.actserve;

import dev.actserve.v1.AttentionSummaryChunk;

/**
 * How the heads of one layer attend, in means over the selected queries of one sequence. A mean
 * over no query is NaN.
 *
 * @param counts over how many queries each mean is
 * @param previousToken the weight of the token before the query, of shape [heads]
 * @param currentToken the weight of the query's own token, of shape [heads]
 * @param firstToken the weight of the first token, of shape [heads]
 * @param induction the weights of tokens that follow an earlier occurrence of the query's token, of
 *     shape [heads]
 * @param entropy in nats, of shape [heads]
 * @param distance in tokens, of shape [heads]
 * @param atOffsets the weight of the token so far before the query, of shape [heads, offsets]
 * @param topKeys the positions of the keys that receive the most attention, head by head, largest
 *     first; -1 where fewer keys receive any
 * @param topKeyMeans their weights, of shape [heads, top_keys]
 */
public record AttentionSummary(
    Counts counts,
    FloatArray previousToken,
    FloatArray currentToken,
    FloatArray firstToken,
    FloatArray induction,
    FloatArray entropy,
    FloatArray distance,
    FloatArray atOffsets,
    int[] topKeys,
    FloatArray topKeyMeans) {

  /**
   * Over how many queries the means are.
   *
   * @param queries all selected ones
   * @param previousToken those that have a previous token
   * @param induction those whose token is at an earlier position as well
   * @param offsets for each offset, those at that position or later
   */
  public record Counts(int queries, int previousToken, int induction, int[] offsets) {
    static Counts of(AttentionSummaryChunk chunk) {
      return new Counts(
          chunk.getQueries(),
          chunk.getPreviousTokenQueries(),
          chunk.getInductionQueries(),
          chunk.getOffsetQueriesList().stream().mapToInt(Integer::intValue).toArray());
    }
  }
}
