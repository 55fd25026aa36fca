package dev.actserve;

import dev.actserve.v1.HeadMetrics;
import dev.actserve.v1.MeasureHeadsFinished;
import dev.actserve.v1.MeasureHeadsRequest;
import dev.actserve.v1.MeasureHeadsResponse;
import dev.actserve.v1.MeasureHeadsResponse.EventCase;
import dev.actserve.v1.MeasureHeadsStarted;
import dev.actserve.v1.MeasuredItem;
import dev.actserve.v1.SparsePatternChunk;
import dev.actserve.v1.TokenizedPrompt;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;

/** Puts what is measured of heads together. */
final class HeadsCollector implements Collector<MeasureHeadsResponse, HeadsResult> {
  private final MeasureHeadsRequest request;
  private final HeadsResult.Item[] items;

  /** Of items that are open, by layer and then by head. */
  private final Map<Integer, Map<Integer, Map<Integer, List<SparsePatternChunk>>>> chunks =
      new HashMap<>();

  /** By layer and then by head. */
  private final TreeMap<Integer, TreeMap<Integer, HeadMetrics>> metrics = new TreeMap<>();

  private MeasureHeadsStarted started;
  private MeasureHeadsFinished finished;

  HeadsCollector(MeasureHeadsRequest request) {
    this.request = request;
    items = new HeadsResult.Item[request.getItemsCount()];
  }

  @Override
  public void read(MeasureHeadsResponse response) {
    EventCase event = response.getEventCase();
    if (event == EventCase.EVENT_NOT_SET) {
      return; // An event of a newer server; the contract says to skip it.
    }
    if (finished != null || (started == null) != (event == EventCase.STARTED)) {
      throw ActserveException.badResponse(
          "the server sent an event before the call was started or after it was finished");
    }
    switch (event) {
      case STARTED -> started = response.getStarted();
      case PATTERN -> addPattern(response.getPattern());
      case ITEM_FINISHED -> close(response.getItemFinished());
      case METRICS -> addMetrics(response.getMetrics());
      default -> finished = response.getFinished();
    }
  }

  private boolean isOpen(int item) {
    return item >= 0 && item < items.length && items[item] == null;
  }

  private void addPattern(SparsePatternChunk chunk) {
    int item = chunk.getItemIndex();
    if (!request.hasPatterns() || !isOpen(item)) {
      throw ActserveException.badResponse(
          "the server sent a pattern of item %s unasked", Integer.toUnsignedLong(item));
    }
    chunks
        .computeIfAbsent(item, key -> new TreeMap<>())
        .computeIfAbsent(chunk.getLayer(), key -> new TreeMap<>())
        .computeIfAbsent(chunk.getHead(), key -> new ArrayList<>())
        .add(chunk);
  }

  private void addMetrics(HeadMetrics measured) {
    int tokens = Math.max(measured.getTopQueryTokensCount(), measured.getTopKeyTokensCount());
    if (tokens > Integer.toUnsignedLong(request.getTopTokens())) {
      throw ActserveException.badResponse(
          "the server sent %s tokens of a head, but %s were asked for",
          tokens, Integer.toUnsignedLong(request.getTopTokens()));
    }
    HeadMetrics before =
        metrics
            .computeIfAbsent(measured.getLayer(), key -> new TreeMap<>())
            .put(measured.getHead(), measured);
    if (before != null) {
      throw ActserveException.badResponse(
          "the server sent head %s of layer %s twice", measured.getHead(), measured.getLayer());
    }
  }

  private void close(MeasuredItem closed) {
    int item = closed.getItemIndex();
    if (!isOpen(item)) {
      throw ActserveException.badResponse(
          "the server closed item %s twice or unasked", Integer.toUnsignedLong(item));
    }
    String key = request.getItems(item).getKey();
    Map<Integer, Map<Integer, List<SparsePatternChunk>>> ofItem = chunks.remove(item);
    if (closed.getStatus().getCode() != 0) {
      ActserveException error = ActserveException.of(closed.getStatus(), started.getCallId());
      items[item] =
          new HeadsResult.Item(
              key, TokenizedPrompt.getDefaultInstance(), Map.of(), Optional.of(error));
      return;
    }
    TokenizedPrompt prompt = closed.getPrompt();
    SequenceCollector.check(prompt, closed.hasPrompt(), false);
    Map<Integer, Map<Integer, HeadPattern>> patterns = new TreeMap<>();
    if (ofItem != null) {
      ofItem.forEach(
          (layer, heads) ->
              heads.forEach(
                  (head, several) ->
                      patterns
                          .computeIfAbsent(layer, each -> new TreeMap<>())
                          .put(head, joined(several, prompt.getIdsCount()))));
    }
    items[item] = new HeadsResult.Item(key, prompt, patterns, Optional.empty());
  }

  /** The chunks of one head, if each of their queries can see its key. */
  private static HeadPattern joined(List<SparsePatternChunk> chunks, int tokens) {
    int size = chunks.stream().mapToInt(SparsePatternChunk::getQueriesCount).sum();
    HeadPattern whole = new HeadPattern(new int[size], new int[size], new float[size]);
    int at = 0;
    for (SparsePatternChunk chunk : chunks) {
      int count = chunk.getQueriesCount();
      FloatArray weights = Tensors.decode(chunk.getWeights());
      if (!Arrays.equals(weights.shape(), new int[] {count}) || chunk.getKeysCount() != count) {
        throw ActserveException.badResponse(
            "the server sent %s queries, %s keys and weights in the shape %s of one pattern",
            count, chunk.getKeysCount(), Arrays.toString(weights.shape()));
      }
      for (int index = 0; index < count; index++, at++) {
        int query = chunk.getQueries(index);
        int key = chunk.getKeys(index);
        if (Integer.compareUnsigned(query, tokens) >= 0
            || Integer.compareUnsigned(key, query) > 0) {
          throw ActserveException.badResponse(
              "the server sent a weight of a key that its query cannot see");
        }
        whole.queries()[at] = query;
        whole.keys()[at] = key;
        whole.weights()[at] = weights.data()[index];
      }
    }
    return whole;
  }

  @Override
  public HeadsResult result() {
    if (finished == null) {
      throw ActserveException.cutShort();
    }
    int missing = Arrays.asList(items).indexOf(null);
    if (missing >= 0) {
      throw ActserveException.badResponse("the server finished without item %s", missing);
    }
    checkLayers();
    int count = metrics.values().stream().mapToInt(heads -> heads.lastKey() + 1).max().orElse(0);
    metrics.forEach(
        (layer, heads) -> {
          if (heads.size() != count) {
            throw ActserveException.badResponse(
                "the server finished with %s heads of layer %s, not %s",
                heads.size(), layer, count);
          }
        });
    Arrays.stream(items).forEach(this::checkPatterns);
    return new HeadsResult(
        started.getCallId(),
        List.copyOf(metrics.keySet()),
        metrics.values().stream().map(heads -> List.copyOf(heads.values())).toList(),
        List.of(items),
        finished.getUsage());
  }

  /**
   * Throws unless the layers can be those that were asked for. Which one is the last the caller
   * alone knows, so one that counts from there may be any.
   */
  private void checkLayers() {
    List<Integer> asked = request.getLayersList();
    boolean isSame =
        asked.isEmpty()
            ? !metrics.isEmpty() && metrics.lastKey() == metrics.size() - 1
            : asked.size() == metrics.size()
                && asked.stream().allMatch(layer -> layer < 0 || metrics.containsKey(layer));
    if (!isSame) {
      throw ActserveException.badResponse(
          "the server measured the layers %s, but %s were asked for (none are all)",
          metrics.keySet(), asked);
    }
  }

  private void checkPatterns(HeadsResult.Item item) {
    if (item.error().isPresent()) {
      return;
    }
    item.patterns()
        .forEach(
            (layer, heads) -> {
              if (!metrics.containsKey(layer)
                  || !metrics.get(layer).keySet().containsAll(heads.keySet())) {
                throw ActserveException.badResponse(
                    "the server sent a pattern of layer %s unasked", layer);
              }
            });
  }
}
