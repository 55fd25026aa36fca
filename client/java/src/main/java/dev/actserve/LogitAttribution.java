package dev.actserve;

/**
 * How much the rows of one site add to logits, of one sequence.
 *
 * @param positions the token position of each row, ascending
 * @param contributions of shape [rows, targets]; of {@code z} [rows, heads, targets]
 * @param targetConstants what the bias of the final norm adds to each target at every position
 */
public record LogitAttribution(
    int[] positions, FloatArray contributions, float[] targetConstants) {}
