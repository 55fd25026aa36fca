package dev.actserve;

/**
 * How the rows of one label at one site are distributed.
 *
 * @param rows how many rows there are
 * @param mean of shape [width]
 * @param secondMoments the variance of each element, of shape [width]; or the covariance matrix, of
 *     shape [width, width]
 */
public record Statistics(long rows, FloatArray mean, FloatArray secondMoments) {}
