package dev.actserve;

import dev.actserve.v1.ExplainStarted;
import dev.actserve.v1.Explanation;
import dev.actserve.v1.InterventionReport;
import dev.actserve.v1.Usage;
import java.util.List;

/**
 * Explanations of rows.
 *
 * @param started the server's id of the call, the NLA that explains, where the rows come from, and
 *     of a text its tokens and which of them are explained
 * @param explanations by row, then by sample
 * @param interventions what each intervention did, in the order of the request
 * @param usage what the call consumed
 */
public record ExplainResult(
    ExplainStarted started,
    List<Explanation> explanations,
    List<InterventionReport> interventions,
    Usage usage) {}
