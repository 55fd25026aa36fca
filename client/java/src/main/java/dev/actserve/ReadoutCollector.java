package dev.actserve;

import dev.actserve.v1.ActivationChunk;
import dev.actserve.v1.AttentionChunk;
import dev.actserve.v1.AttentionReadout;
import dev.actserve.v1.AttentionSummaryChunk;
import dev.actserve.v1.AttentionSummaryReadout;
import dev.actserve.v1.HookPoint;
import dev.actserve.v1.LogitAttributionChunk;
import dev.actserve.v1.LogitAttributionReadout;
import dev.actserve.v1.PredictionChunk;
import dev.actserve.v1.PredictionReadout;
import dev.actserve.v1.ReadoutStarted;
import dev.actserve.v1.Reduction;
import dev.actserve.v1.RowReadout;
import dev.actserve.v1.Site;
import dev.actserve.v1.Tensor;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Function;

/**
 * The chunks of one readout of one sequence, checked on arrival and joined once.
 *
 * @param <C> a chunk
 * @param <K> what chunks are of: a site, a head or a layer
 * @param <V> what they make together
 */
abstract class ReadoutCollector<C, K, V> {
  abstract void add(C chunk);

  /**
   * What was read, if it is at exactly the promised positions.
   *
   * @param tokens how many tokens were run
   */
  abstract Map<K, V> finish(int[] promised, int tokens);

  /** The element that an index of the server means. */
  private static <T> T at(List<T> all, int index, String what) {
    if (index < 0 || index >= all.size()) {
      throw ActserveException.badResponse(
          "the server sent %s %s of %s", what, Integer.toUnsignedLong(index), all.size());
    }
    return all.get(index);
  }

  private static List<String> names(List<Site> sites) {
    return sites.stream().map(Sites::format).toList();
  }

  /** A tensor, if it has this shape. */
  private static Tensor shaped(Tensor tensor, String what, long... shape) {
    Tensors.size(tensor);
    if (!Tensors.hasShape(tensor, shape)) {
      throw ActserveException.badResponse(
          "the server sent %s of shape %s, where %s is due",
          what, Tensors.describe(tensor), Arrays.toString(shape));
    }
    return tensor;
  }

  private static void count(int sent, long due, String what) {
    if (sent != due) {
      throw ActserveException.badResponse(
          "the server sent %s %s, where %s are due", sent, what, due);
    }
  }

  private static <C> List<Tensor> tensors(List<C> chunks, Function<C, Tensor> tensor) {
    return chunks.stream().map(tensor).toList();
  }

  private static <C> int[] joined(List<C> chunks, Function<C, List<Integer>> numbers) {
    return chunks.stream()
        .flatMap(chunk -> numbers.apply(chunk).stream())
        .mapToInt(Integer::intValue)
        .toArray();
  }

  /** Rows of sites. */
  static final class OfRows extends ReadoutCollector<ActivationChunk, String, Rows> {
    private final RowReadout asked;
    private final List<String> sites;
    private final List<Integer> widths;
    private final Chunks<String, ActivationChunk> chunks;

    OfRows(RowReadout asked, ReadoutStarted started) {
      this.asked = asked;
      sites = names(asked.getSitesList());
      widths = started.getWidthsList();
      chunks = new Chunks<>("rows", sites);
      checkWidths(asked, started);
    }

    static void checkWidths(RowReadout asked, ReadoutStarted started) {
      count(started.getWidthsCount(), asked.getSitesCount(), "widths of sites");
      for (int width : started.getWidthsList()) {
        if (width < 0) {
          throw ActserveException.badResponse(
              "the server announced rows of width %s", Integer.toUnsignedLong(width));
        }
      }
    }

    @Override
    void add(ActivationChunk chunk) {
      String site = at(sites, chunk.getSiteIndex(), "rows of site");
      int width = widths.get(chunk.getSiteIndex());
      shaped(chunk.getRows(), "rows of " + site, chunk.getPositionsCount(), width);
      if (asked.getProjection().hasSendTop()) {
        count(chunk.getIndicesCount(), Tensors.size(chunk.getRows()), "indices");
      }
      chunks.add(site, chunk.getPositionsList(), chunk);
    }

    @Override
    Map<String, Rows> finish(int[] promised, int tokens) {
      boolean reduced = asked.getReduction() != Reduction.REDUCTION_UNSPECIFIED;
      int[] positions =
          reduced && promised.length > 0 ? new int[] {promised[promised.length - 1]} : promised;
      Map<String, Rows> found = new LinkedHashMap<>();
      for (int index = 0; index < sites.size(); index++) {
        List<ActivationChunk> all = chunks.finish(sites.get(index), positions);
        FloatArray values =
            Tensors.join(
                tensors(all, ActivationChunk::getRows), positions.length, widths.get(index));
        int[] indices =
            asked.getProjection().hasSendTop()
                ? joined(all, ActivationChunk::getIndicesList)
                : new int[0];
        found.put(sites.get(index), new Rows(positions, values, indices));
      }
      return found;
    }
  }

  /** Next-token predictions. */
  static final class OfPredictions extends ReadoutCollector<PredictionChunk, String, Predictions> {
    private final PredictionReadout asked;
    private final List<String> sites;
    private final Chunks<String, PredictionChunk> chunks;

    OfPredictions(PredictionReadout asked) {
      this.asked = asked;
      sites = asked.getSitesCount() == 0 ? List.of("final_norm") : names(asked.getSitesList());
      chunks = new Chunks<>("predictions", sites);
    }

    @Override
    void add(PredictionChunk chunk) {
      String site = at(sites, chunk.getSiteIndex(), "predictions of site");
      long rows = chunk.getPositionsCount();
      count(chunk.getTopIdsCount(), rows * asked.getTopK(), "ids of top tokens");
      count(chunk.getTopTextsCount(), rows * asked.getTopK(), "texts of top tokens");
      if (asked.getTopK() != 0) {
        shaped(chunk.getTopLogprobs(), "top_logprobs", rows, asked.getTopK());
      }
      if (asked.getTokenIdsCount() != 0) {
        shaped(chunk.getTokenLogprobs(), "token_logprobs", rows, asked.getTokenIdsCount());
      }
      if (asked.getNextToken()) {
        shaped(chunk.getNextTokenLogprobs(), "next_token_logprobs", rows);
      }
      chunks.add(site, chunk.getPositionsList(), chunk);
    }

    @Override
    Map<String, Predictions> finish(int[] promised, int tokens) {
      Map<String, Predictions> found = new LinkedHashMap<>();
      for (String site : sites) {
        List<PredictionChunk> all = chunks.finish(site, promised);
        found.put(
            site,
            new Predictions(
                promised,
                joined(all, PredictionChunk::getTopIdsList),
                all.stream().flatMap(chunk -> chunk.getTopTextsList().stream()).toList(),
                join(all, PredictionChunk::getTopLogprobs, promised.length, asked.getTopK()),
                join(
                    all,
                    PredictionChunk::getTokenLogprobs,
                    promised.length,
                    asked.getTokenIdsCount()),
                asked.getNextToken()
                    ? Optional.of(
                        Tensors.join(
                            tensors(all, PredictionChunk::getNextTokenLogprobs), promised.length))
                    : Optional.empty()));
      }
      return found;
    }

    /** What was not asked for has no columns, and no tensor. */
    private static FloatArray join(
        List<PredictionChunk> all,
        Function<PredictionChunk, Tensor> tensor,
        int rows,
        int columns) {
      return Tensors.join(columns == 0 ? List.of() : tensors(all, tensor), rows, columns);
    }
  }

  /** Attention patterns of one layer. */
  static final class OfAttention
      extends ReadoutCollector<AttentionChunk, Integer, AttentionPattern> {
    private static final int NO_KEY = -1;

    private final AttentionReadout asked;
    private final Chunks<Integer, AttentionChunk> chunks;

    OfAttention(AttentionReadout asked) {
      this.asked = asked;
      chunks = new Chunks<>("attention of head", asked.getHeadsList());
    }

    @Override
    void add(AttentionChunk chunk) {
      int columns = columns(chunk);
      String what = "attention of head " + Integer.toUnsignedLong(chunk.getHead());
      shaped(chunk.getWeights(), what, chunk.getQueriesCount(), columns);
      // A query attends to itself and to what is before it; these weights must all be there.
      int needed = 0;
      for (int query : chunk.getQueriesList()) {
        needed = Math.max(needed, query + 1);
      }
      boolean fits =
          asked.hasTopK()
              ? Math.min(asked.getTopK(), needed) <= columns && columns <= asked.getTopK()
              : needed <= columns;
      if (!fits) {
        throw ActserveException.badResponse(
            "the server sent %s to %s keys up to position %s", what, columns, needed - 1);
      }
      if (asked.hasTopK()) {
        count(chunk.getKeysCount(), Tensors.size(chunk.getWeights()), "keys");
        for (int index = 0; index < chunk.getKeysCount(); index++) {
          int key = chunk.getKeys(index);
          if (key < NO_KEY || key > chunk.getQueries(index / columns)) {
            throw ActserveException.badResponse(
                "the server sent %s to key %s, which the query does not see", what, key);
          }
        }
      }
      chunks.add(chunk.getHead(), chunk.getQueriesList(), chunk);
    }

    @Override
    Map<Integer, AttentionPattern> finish(int[] promised, int tokens) {
      Map<Integer, AttentionPattern> found = new LinkedHashMap<>();
      for (int head : chunks.keys()) {
        List<AttentionChunk> all = chunks.finish(head, promised);
        int columns = asked.hasTopK() ? asked.getTopK() : tokens;
        long size = (long) promised.length * columns;
        if (size > Integer.MAX_VALUE - 8) {
          throw ActserveException.badResponse(
              "%s weights are more than a Java array holds; read fewer queries at once", size);
        }
        float[] weights = new float[(int) size];
        int[] keys = new int[asked.hasTopK() ? weights.length : 0];
        Arrays.fill(keys, NO_KEY);
        int row = 0;
        for (AttentionChunk chunk : all) {
          int sent = columns(chunk);
          if (sent > columns) {
            throw ActserveException.badResponse(
                "the server sent attention to %s keys, but ran %s tokens", sent, tokens);
          }
          // Keys after the last one of a chunk are not seen by its queries.
          float[] block = Tensors.decode(chunk.getWeights()).data();
          for (int query = 0; query < chunk.getQueriesCount(); query++, row++) {
            System.arraycopy(block, query * sent, weights, row * columns, sent);
            for (int key = 0; key < sent && asked.hasTopK(); key++) {
              keys[row * columns + key] = chunk.getKeys(query * sent + key);
            }
          }
        }
        FloatArray pattern = new FloatArray(weights, promised.length, columns);
        found.put(head, new AttentionPattern(promised, pattern, keys));
      }
      return found;
    }

    private static int columns(AttentionChunk chunk) {
      return chunk.getWeights().getShapeCount() == 2 ? chunk.getWeights().getShape(1) : -1;
    }
  }

  /** How the heads of some layers attend. */
  static final class OfAttentionSummary
      extends ReadoutCollector<AttentionSummaryChunk, Integer, AttentionSummary> {
    private final AttentionSummaryReadout asked;
    private final List<Integer> layers;
    private final Map<Integer, AttentionSummary> found = new LinkedHashMap<>();

    OfAttentionSummary(AttentionSummaryReadout asked, ReadoutStarted started) {
      this.asked = asked;
      layers = started.getLayersList();
      if (asked.getLayersCount() != 0) {
        count(layers.size(), asked.getLayersCount(), "layers");
      }
    }

    @Override
    void add(AttentionSummaryChunk chunk) {
      int layer = chunk.getLayer();
      if (!layers.contains(layer) || found.containsKey(layer)) {
        throw ActserveException.badResponse(
            "the server sent a summary of layer %s twice or unasked",
            Integer.toUnsignedLong(layer));
      }
      long heads = Tensors.size(chunk.getEntropy());
      long offsets = asked.getOffsetsCount();
      long keys = Integer.toUnsignedLong(asked.getTopKeys());
      count(chunk.getTopKeysCount(), heads * keys, "top_keys");
      count(chunk.getOffsetQueriesCount(), offsets, "offset_queries");
      found.put(
          layer,
          new AttentionSummary(
              AttentionSummary.Counts.of(chunk),
              decoded(chunk.getPreviousToken(), "previous_token", heads),
              decoded(chunk.getCurrentToken(), "current_token", heads),
              decoded(chunk.getFirstToken(), "first_token", heads),
              decoded(chunk.getInduction(), "induction", heads),
              decoded(chunk.getEntropy(), "entropy", heads),
              decoded(chunk.getDistance(), "distance", heads),
              offsets == 0
                  ? new FloatArray(new float[0], (int) heads, 0)
                  : decoded(chunk.getAtOffsets(), "at_offsets", heads, offsets),
              joined(List.of(chunk), AttentionSummaryChunk::getTopKeysList),
              keys == 0
                  ? new FloatArray(new float[0], (int) heads, 0)
                  : decoded(chunk.getTopKeyMeans(), "top_key_means", heads, keys)));
    }

    @Override
    Map<Integer, AttentionSummary> finish(int[] promised, int tokens) {
      for (int layer : layers) {
        if (!found.containsKey(layer)) {
          throw ActserveException.badResponse("the summary of layer %s is missing", layer);
        }
        count(found.get(layer).counts().queries(), promised.length, "queries in a summary");
      }
      return found;
    }

    private static FloatArray decoded(Tensor tensor, String what, long... shape) {
      return Tensors.decode(shaped(tensor, what, shape));
    }
  }

  /** How much rows add to logits. */
  static final class OfLogitAttribution
      extends ReadoutCollector<LogitAttributionChunk, String, LogitAttribution> {
    private final LogitAttributionReadout asked;
    private final List<String> sites;
    private final float[] constants;
    private final Map<String, Integer> heads = new HashMap<>();
    private final Chunks<String, LogitAttributionChunk> chunks;

    OfLogitAttribution(LogitAttributionReadout asked, ReadoutStarted started) {
      this.asked = asked;
      sites = names(asked.getSitesList());
      chunks = new Chunks<>("attributions", sites);
      count(started.getTargetConstantsCount(), asked.getTargetsCount(), "target_constants");
      constants = new float[started.getTargetConstantsCount()];
      for (int index = 0; index < constants.length; index++) {
        constants[index] = started.getTargetConstants(index);
      }
    }

    @Override
    void add(LogitAttributionChunk chunk) {
      String site = at(sites, chunk.getSiteIndex(), "attributions of site");
      Tensor sent = chunk.getContributions();
      long rows = chunk.getPositionsCount();
      if (hasHeads(chunk.getSiteIndex())) {
        // How many there are, only the server knows; they are always as many.
        int told = sent.getShapeCount() == 3 ? sent.getShape(1) : 0;
        int count = heads.merge(site, told, (first, later) -> first);
        shaped(sent, "attributions of " + site, rows, count, asked.getTargetsCount());
      } else {
        shaped(sent, "attributions of " + site, rows, asked.getTargetsCount());
      }
      chunks.add(site, chunk.getPositionsList(), chunk);
    }

    @Override
    Map<String, LogitAttribution> finish(int[] promised, int tokens) {
      Map<String, LogitAttribution> found = new LinkedHashMap<>();
      for (int index = 0; index < sites.size(); index++) {
        String site = sites.get(index);
        int rows = promised.length;
        int targets = asked.getTargetsCount();
        int[] shape =
            hasHeads(index)
                ? new int[] {rows, heads.getOrDefault(site, 0), targets}
                : new int[] {rows, targets};
        List<LogitAttributionChunk> all = chunks.finish(site, promised);
        FloatArray values =
            Tensors.join(tensors(all, LogitAttributionChunk::getContributions), shape);
        found.put(site, new LogitAttribution(promised, values, constants));
      }
      return found;
    }

    private boolean hasHeads(int site) {
      return asked.getSites(site).getHookPoint() == HookPoint.HOOK_POINT_Z;
    }
  }
}
