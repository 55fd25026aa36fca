package dev.actserve;

import dev.actserve.v1.Usage;

/**
 * Rows that were reconstructed from texts.
 *
 * @param callId the server's id of the call, also in its logs
 * @param nla the NLA that reconstructs
 * @param rows a row for each text, of shape [texts, width] and each of L2 norm sqrt(width): only
 *     its direction has a meaning
 * @param usage what the call consumed
 */
public record ReconstructResult(String callId, String nla, FloatArray rows, Usage usage) {}
