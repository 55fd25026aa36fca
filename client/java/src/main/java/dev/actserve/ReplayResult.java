package dev.actserve;

import dev.actserve.v1.MonitorScore;
import dev.actserve.v1.ReplayMonitorsRequest;
import dev.actserve.v1.Usage;
import java.util.List;
import java.util.Optional;

/**
 * All that {@link ActserveClient#replayMonitors(ReplayMonitorsRequest)} gave.
 *
 * @param callId the server's id of the call, also in its logs
 * @param items in the order of the request
 * @param usage what the call consumed
 */
public record ReplayResult(String callId, List<Item> items, Usage usage) {

  /**
   * What monitors scored in one item.
   *
   * @param key as the request has it
   * @param scores of the monitors of the request, in its order; {@link Tensors#decode} reads the
   *     scores as of each token, if they were asked for
   * @param error why the item failed, if it did
   */
  public record Item(String key, List<MonitorScore> scores, Optional<ActserveException> error) {

    /**
     * What monitors scored.
     *
     * @throws ActserveException if the item failed
     */
    @Override
    public List<MonitorScore> scores() {
      if (error.isPresent()) {
        throw error.get();
      }
      return scores;
    }
  }
}
