package dev.actserve;

import dev.actserve.v1.HeadMetrics;
import dev.actserve.v1.MeasureHeadsRequest;
import dev.actserve.v1.TokenizedPrompt;
import dev.actserve.v1.Usage;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * What {@link ActserveClient#measureHeads(MeasureHeadsRequest)} has measured.
 *
 * @param callId the server's id of the call, also in its logs
 * @param layers the layers that were measured, ascending
 * @param heads what was measured of each head: by layer, as in {@code layers}, and then by head
 * @param items in the order of the request
 * @param usage what the call consumed
 */
public record HeadsResult(
    String callId,
    List<Integer> layers,
    List<List<HeadMetrics>> heads,
    List<Item> items,
    Usage usage) {

  /**
   * One item of a corpus.
   *
   * @param key as the request has it
   * @param prompt as the model sees it; empty if the item failed
   * @param patterns by layer and then by head, where the request asks for patterns; a head none of
   *     whose weights is large enough has none
   * @param error why the item failed, so that it counts in no number, if it did
   */
  public record Item(
      String key,
      TokenizedPrompt prompt,
      Map<Integer, Map<Integer, HeadPattern>> patterns,
      Optional<ActserveException> error) {

    /**
     * The patterns.
     *
     * @throws ActserveException if the item failed
     */
    @Override
    public Map<Integer, Map<Integer, HeadPattern>> patterns() {
      if (error.isPresent()) {
        throw error.get();
      }
      return patterns;
    }
  }
}
