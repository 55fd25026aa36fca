package dev.actserve;

import java.util.Map;
import java.util.NoSuchElementException;

/**
 * Everything that was read of one sequence, by the name of its readout in the request. Sites are
 * written as {@link Sites#format} writes those of the request.
 *
 * @param rows of row readouts, by site
 * @param predictions of prediction readouts, by site
 * @param attention of attention readouts, by head
 * @param attentionSummaries of attention summaries, by layer
 * @param logitAttributions of logit attributions, by site
 * @param kept of keep readouts: the name of the rows that the server keeps
 */
public record Captured(
    Map<String, Map<String, Rows>> rows,
    Map<String, Map<String, Predictions>> predictions,
    Map<String, Map<Integer, AttentionPattern>> attention,
    Map<String, Map<Integer, AttentionSummary>> attentionSummaries,
    Map<String, Map<String, LogitAttribution>> logitAttributions,
    Map<String, String> kept) {

  /**
   * The rows of a readout at a site.
   *
   * @throws NoSuchElementException if none were read there
   */
  public Rows rows(String readout, String site) {
    return find(find(rows, readout), site);
  }

  /**
   * The predictions of a readout at a site.
   *
   * @throws NoSuchElementException if none were read there
   */
  public Predictions predictions(String readout, String site) {
    return find(find(predictions, readout), site);
  }

  /**
   * The attention of a head.
   *
   * @throws NoSuchElementException if it was not read
   */
  public AttentionPattern attention(String readout, int head) {
    return find(find(attention, readout), head);
  }

  /**
   * How the heads of a layer attend.
   *
   * @throws NoSuchElementException if it was not read
   */
  public AttentionSummary attentionSummary(String readout, int layer) {
    return find(find(attentionSummaries, readout), layer);
  }

  /**
   * How much the rows of a site add to logits.
   *
   * @throws NoSuchElementException if it was not read
   */
  public LogitAttribution logitAttribution(String readout, String site) {
    return find(find(logitAttributions, readout), site);
  }

  /**
   * The name of the rows that the server keeps for a readout.
   *
   * @throws NoSuchElementException if none are kept, such as where no position was selected
   */
  public String kept(String readout) {
    return find(kept, readout);
  }

  private static <K, V> V find(Map<K, V> found, K key) {
    V value = found.get(key);
    if (value == null) {
      throw new NoSuchElementException(key + " was not read; there are " + found.keySet());
    }
    return value;
  }
}
