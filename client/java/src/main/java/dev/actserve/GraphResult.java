package dev.actserve;

import dev.actserve.v1.AttributionNode;
import java.util.List;

/**
 * An attribution graph.
 *
 * @param nodes in the order in which they are computed: an edge leads from one to a later one
 * @param sources of each edge, the index of the node that it comes from
 * @param targets of each edge, the index of the node that it goes to
 * @param weights of each edge, what the source adds to the target, of either sign, in the units of
 *     {@link dev.actserve.v1.AttributionEdges}
 */
public record GraphResult(
    List<AttributionNode> nodes, int[] sources, int[] targets, float[] weights) {}
