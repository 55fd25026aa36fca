package dev.actserve;

/**
 * Rows of one site, of one sequence.
 *
 * @param positions the token position of each row, ascending; with a reduction, the last one
 *     reduced
 * @param values the rows, of shape [rows, width]
 * @param indices with {@code Projection.send_top}, the direction that each element of the rows
 *     belongs to, row by row; else empty
 */
public record Rows(int[] positions, FloatArray values, int[] indices) {}
