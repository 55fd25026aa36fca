package dev.actserve;

import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.InterventionReport;
import dev.actserve.v1.TokenizedPrompt;
import dev.actserve.v1.Usage;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * All that {@link ActserveClient#fetchActivations(FetchActivationsRequest)} has read.
 *
 * @param callId the server's id of the call, also in its logs
 * @param items one for each item of the request, in its order
 * @param statistics of row readouts with statistics: by the name of the readout, by site, by label
 * @param usage what the call consumed
 */
public record FetchResult(
    String callId,
    List<Item> items,
    Map<String, Map<String, Map<String, Statistics>>> statistics,
    Usage usage) {

  /**
   * What was read of one item.
   *
   * @param key as the request has it
   * @param prompt as the model sees it; empty if the item failed
   * @param captured what was read
   * @param interventions what each intervention did: those of the call, then the item's own
   * @param error why the item failed, if it did
   */
  public record Item(
      String key,
      TokenizedPrompt prompt,
      Captured captured,
      List<InterventionReport> interventions,
      Optional<ActserveException> error) {

    /**
     * What was read.
     *
     * @throws ActserveException if the item failed
     */
    @Override
    public Captured captured() {
      if (error.isPresent()) {
        throw error.get();
      }
      return captured;
    }
  }
}
