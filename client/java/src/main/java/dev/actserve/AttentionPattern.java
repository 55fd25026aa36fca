package dev.actserve;

/**
 * How much the queries of one head attend to each key, of one sequence.
 *
 * @param queries the token position of each query, ascending
 * @param weights of shape [queries, tokens that were run], or with {@code top_k} of shape [queries,
 *     top_k], largest first
 * @param keys with {@code top_k}, the position of the key of each weight, -1 where a query has
 *     fewer keys; else empty
 */
public record AttentionPattern(int[] queries, FloatArray weights, int[] keys) {}
