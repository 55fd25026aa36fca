package dev.actserve;

import dev.actserve.v1.ActivationChunk;
import dev.actserve.v1.AttentionChunk;
import dev.actserve.v1.AttentionSummaryChunk;
import dev.actserve.v1.InterventionReport;
import dev.actserve.v1.KeptReadout;
import dev.actserve.v1.LogitAttributionChunk;
import dev.actserve.v1.PredictionChunk;
import dev.actserve.v1.Readout;
import dev.actserve.v1.Readout.KindCase;
import dev.actserve.v1.ReadoutPositions;
import dev.actserve.v1.ReadoutStarted;
import dev.actserve.v1.Site;
import dev.actserve.v1.TokenizedPrompt;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** What is read of one item or sample, while it arrives and when it is complete. */
final class SequenceCollector {
  private final int sequence;
  private final List<Readout> readouts;
  private final List<Integer> reading;
  private final Map<Integer, ReadoutCollector.OfRows> rows = new HashMap<>();
  private final Map<Integer, ReadoutCollector.OfPredictions> predictions = new HashMap<>();
  private final Map<Integer, ReadoutCollector.OfAttention> attention = new HashMap<>();
  private final Map<Integer, ReadoutCollector.OfAttentionSummary> summaries = new HashMap<>();
  private final Map<Integer, ReadoutCollector.OfLogitAttribution> attributions = new HashMap<>();

  /**
   * @param sequence which item or sample it is
   * @param reading indices of the readouts that read this sequence
   */
  SequenceCollector(
      int sequence, List<Readout> readouts, List<ReadoutStarted> started, List<Integer> reading) {
    this.sequence = sequence;
    this.readouts = readouts;
    this.reading = reading;
    if (started.size() != readouts.size()) {
      throw ActserveException.badResponse(
          "the server opened %s readouts, not the %s that were asked for",
          started.size(), readouts.size());
    }
    for (int index : reading) {
      Readout readout = readouts.get(index);
      ReadoutStarted opened = started.get(index);
      switch (readout.getKindCase()) {
        case ROWS -> {
          if (!readout.getRows().hasStatistics()) {
            rows.put(index, new ReadoutCollector.OfRows(readout.getRows(), opened));
          }
        }
        case PREDICTIONS ->
            predictions.put(index, new ReadoutCollector.OfPredictions(readout.getPredictions()));
        case ATTENTION ->
            attention.put(index, new ReadoutCollector.OfAttention(readout.getAttention()));
        case ATTENTION_SUMMARY ->
            summaries.put(
                index,
                new ReadoutCollector.OfAttentionSummary(readout.getAttentionSummary(), opened));
        case LOGIT_ATTRIBUTION ->
            attributions.put(
                index,
                new ReadoutCollector.OfLogitAttribution(readout.getLogitAttribution(), opened));
        default -> {}
      }
    }
  }

  /** Refuses readouts of which a result could not be told from another's. */
  static void check(List<Readout> readouts) {
    Set<String> names = new HashSet<>();
    for (int index = 0; index < readouts.size(); index++) {
      Readout readout = readouts.get(index);
      if (!names.add(readout.getName())) {
        throw ActserveException.invalid(
            "FIELD_INVALID",
            "readouts[%s].name".formatted(index),
            "two readouts are called \"%s\"; results are found by the name, so give each its own",
            readout.getName());
      }
      switch (readout.getKindCase()) {
        case ROWS -> check(readout.getRows().getSitesList(), index, "rows");
        case PREDICTIONS -> check(readout.getPredictions().getSitesList(), index, "predictions");
        case KEEP -> check(readout.getKeep().getSitesList(), index, "keep");
        case LOGIT_ATTRIBUTION ->
            check(readout.getLogitAttribution().getSitesList(), index, "logit_attribution");
        default -> {}
      }
    }
  }

  private static void check(List<Site> sites, int readout, String kind) {
    Set<Site> seen = new HashSet<>();
    for (int index = 0; index < sites.size(); index++) {
      if (!seen.add(sites.get(index))) {
        throw ActserveException.invalid(
            "SITE_INVALID",
            "readouts[%s].%s.sites[%s]".formatted(readout, kind, index),
            "%s is read twice by one readout; name it once",
            Sites.format(sites.get(index)));
      }
    }
  }

  /** Refuses a prompt that is missing or not whole. */
  static void check(TokenizedPrompt prompt, boolean there, boolean idsOnly) {
    int ids = prompt.getIdsCount();
    int texts = prompt.getTextsCount();
    int sources = prompt.getSourcesCount();
    boolean fits = texts == ids || idsOnly && texts == 0;
    if (!there || !fits || sources != 0 && sources != ids) {
      throw ActserveException.badResponse(
          "the server sent no prompt, or %s texts and %s sources for one of %s tokens",
          texts, sources, ids);
    }
  }

  static List<InterventionReport> checked(List<InterventionReport> reports, int asked) {
    if (reports.size() != asked) {
      throw ActserveException.badResponse(
          "the server reported on %s interventions, not the %s asked", reports.size(), asked);
    }
    return reports;
  }

  void add(ActivationChunk chunk) {
    of(rows, chunk.getReadoutIndex(), "rows").add(chunk);
  }

  void add(PredictionChunk chunk) {
    of(predictions, chunk.getReadoutIndex(), "predictions").add(chunk);
  }

  void add(AttentionChunk chunk) {
    of(attention, chunk.getReadoutIndex(), "attention").add(chunk);
  }

  void add(AttentionSummaryChunk chunk) {
    of(summaries, chunk.getReadoutIndex(), "a summary of attention").add(chunk);
  }

  void add(LogitAttributionChunk chunk) {
    of(attributions, chunk.getReadoutIndex(), "attributions").add(chunk);
  }

  private static <T> T of(Map<Integer, T> collectors, int index, String what) {
    T collector = collectors.get(index);
    if (collector == null) {
      throw ActserveException.badResponse(
          "the server sent %s of readout %s unasked", what, Integer.toUnsignedLong(index));
    }
    return collector;
  }

  /**
   * All that was read, if it is whole.
   *
   * @param told where the server has read
   * @param keptNames what it has kept
   * @param tokens how many tokens were run
   */
  Captured finish(List<ReadoutPositions> told, List<KeptReadout> keptNames, int tokens) {
    Map<Integer, int[]> promised = promised(told, tokens);
    return new Captured(
        finish(rows, promised, tokens),
        finish(predictions, promised, tokens),
        finish(attention, promised, tokens),
        finish(summaries, promised, tokens),
        finish(attributions, promised, tokens),
        kept(keptNames, promised));
  }

  private <K, V> Map<String, Map<K, V>> finish(
      Map<Integer, ? extends ReadoutCollector<?, K, V>> collectors,
      Map<Integer, int[]> promised,
      int tokens) {
    Map<String, Map<K, V>> found = new LinkedHashMap<>();
    for (int index : reading) {
      ReadoutCollector<?, K, V> collector = collectors.get(index);
      if (collector != null) {
        Map<K, V> whole = collector.finish(positions(promised, index), tokens);
        found.put(readouts.get(index).getName(), whole);
      }
    }
    return found;
  }

  /** Where each readout has read. */
  private Map<Integer, int[]> promised(List<ReadoutPositions> told, int tokens) {
    Map<Integer, int[]> promised = new HashMap<>();
    for (ReadoutPositions each : told) {
      int[] positions = each.getPositionsList().stream().mapToInt(Integer::intValue).toArray();
      int last = -1;
      for (int position : positions) {
        if (position <= last || position >= tokens) {
          throw ActserveException.badResponse(
              "the server told position %s after %s, where %s tokens were run",
              Integer.toUnsignedLong(position), last, tokens);
        }
        last = position;
      }
      for (int index : each.getReadoutIndicesList()) {
        if (!reading.contains(index) || promised.put(index, positions) != null) {
          throw ActserveException.badResponse(
              "the server told positions of readout %s twice or unasked",
              Integer.toUnsignedLong(index));
        }
      }
    }
    return promised;
  }

  private static int[] positions(Map<Integer, int[]> promised, int index) {
    int[] positions = promised.get(index);
    if (positions == null) {
      throw ActserveException.badResponse(
          "the server did not tell where readout %s has read", index);
    }
    return positions;
  }

  private Map<String, String> kept(List<KeptReadout> told, Map<Integer, int[]> promised) {
    Map<Integer, String> names = new HashMap<>();
    for (KeptReadout each : told) {
      if (each.getSequenceIndex() != sequence
          || each.getName().isEmpty()
          || names.put(each.getReadoutIndex(), each.getName()) != null) {
        throw ActserveException.badResponse(
            "the server kept rows without a name, twice, or of another sequence");
      }
    }
    Map<String, String> kept = new LinkedHashMap<>();
    for (int index : reading) {
      // Where nothing was read there is nothing to keep.
      if (readouts.get(index).getKindCase() == KindCase.KEEP
          && positions(promised, index).length > 0) {
        String name = names.remove(index);
        if (name == null) {
          throw ActserveException.badResponse(
              "the server did not keep the rows of readout %s", index);
        }
        kept.put(readouts.get(index).getName(), name);
      }
    }
    if (!names.isEmpty()) {
      throw ActserveException.badResponse("the server kept rows unasked");
    }
    return kept;
  }
}
