package dev.actserve;

import dev.actserve.v1.ExplainFinished;
import dev.actserve.v1.ExplainSpec;
import dev.actserve.v1.ExplainStarted;
import dev.actserve.v1.Explanation;
import dev.actserve.v1.ExplanationEvent;
import dev.actserve.v1.ExplanationEvent.EventCase;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Function;

/**
 * Puts explanations together.
 *
 * @param <R> the response that an event comes in
 */
final class ExplainCollector<R> implements Collector<R, ExplainResult> {
  private record Key(int row, int sample) {}

  private final Function<R, ExplanationEvent> event;
  private final long rows;
  private final int samples;
  private final boolean best;
  private final int interventions;
  private final Map<Key, Explanation> explanations =
      new TreeMap<>(Comparator.comparingInt(Key::row).thenComparingInt(Key::sample));
  private ExplainStarted started;
  private ExplainFinished finished;

  /**
   * @param rows how many rows were sent; -1 where only the server knows
   */
  ExplainCollector(
      Function<R, ExplanationEvent> event, ExplainSpec spec, long rows, int interventions) {
    this.event = event;
    this.rows = rows;
    this.interventions = interventions;
    samples = spec.hasSamples() ? spec.getSamples() : 1;
    best = spec.getBest();
  }

  @Override
  public void read(R response) {
    ExplanationEvent sent = event.apply(response);
    if (finished != null && sent.getEventCase() != EventCase.EVENT_NOT_SET) {
      throw ActserveException.badResponse("the server went on after it was finished");
    }
    switch (sent.getEventCase()) {
      case STARTED -> start(sent.getStarted());
      case EXPLANATION -> add(sent.getExplanation());
      case FINISHED -> finished = sent.getFinished();
      case PARTIAL, EVENT_NOT_SET -> {
        // Of the text of a partial nothing is left to tell; what is not set is of a newer server.
      }
    }
  }

  private void start(ExplainStarted opened) {
    long due = rows < 0 ? opened.getPositionsCount() : rows;
    if (started != null || Integer.toUnsignedLong(opened.getRows()) != due) {
      throw ActserveException.badResponse(
          "the server explains %s rows, where %s are due, or started twice",
          Integer.toUnsignedLong(opened.getRows()), due);
    }
    started = opened;
  }

  private void add(Explanation explanation) {
    int row = explanation.getRowIndex();
    int sample = explanation.getSampleIndex();
    if (started == null
        || row < 0
        || row >= started.getRows()
        || sample < 0
        || sample >= samples
        || explanations.put(new Key(row, sample), explanation) != null) {
      throw ActserveException.badResponse(
          "the server explained row %s and sample %s twice or unasked",
          Integer.toUnsignedLong(row), Integer.toUnsignedLong(sample));
    }
  }

  @Override
  public ExplainResult result() {
    if (finished == null) {
      throw ActserveException.cutShort();
    }
    if (started == null) {
      throw ActserveException.badResponse("the server finished without saying what it explains");
    }
    int each = best ? 1 : samples;
    long distinct = explanations.keySet().stream().map(Key::row).distinct().count();
    if (distinct != started.getRows() || explanations.size() != distinct * each) {
      throw ActserveException.badResponse(
          "the server finished with %s explanations of %s rows, where %s of each of %s are due",
          explanations.size(), distinct, each, started.getRows());
    }
    return new ExplainResult(
        started,
        new ArrayList<>(explanations.values()),
        SequenceCollector.checked(finished.getInterventionsList(), interventions),
        finished.getUsage());
  }
}
