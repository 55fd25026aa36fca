package dev.actserve;

/**
 * The largest weights of each query of one head for one item: an entry of each array for each
 * weight, query by query, the largest of a query first.
 *
 * @param queries the positions of the queries, ascending
 * @param keys the positions of the keys
 * @param weights the attention that the queries give
 */
public record HeadPattern(int[] queries, int[] keys, float[] weights) {}
