package dev.actserve;

import dev.actserve.v1.Alert;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.GenerateResponse;
import dev.actserve.v1.GenerateResponse.EventCase;
import dev.actserve.v1.GenerateStarted;
import dev.actserve.v1.MonitorScore;
import dev.actserve.v1.SampleFinished;
import dev.actserve.v1.ScoreDetail;
import dev.actserve.v1.TokenChunk;
import dev.actserve.v1.TokenLogprobs;
import dev.actserve.v1.Usage;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;

/** Puts the samples of a generation together. */
final class GenerateCollector implements Collector<GenerateResponse, GenerateResult> {
  /** One sample while it arrives. */
  private static final class Open {
    private final SequenceCollector collector;
    private final List<Integer> tokenIds;
    private final List<String> tokenTexts = new ArrayList<>();
    private final StringBuilder text = new StringBuilder();
    private final List<TokenLogprobs> logprobs = new ArrayList<>();
    private final List<Alert> alerts = new ArrayList<>();

    Open(SequenceCollector collector, List<Integer> promptIds) {
      this.collector = collector;
      tokenIds = new ArrayList<>(promptIds);
    }
  }

  private final GenerateRequest request;
  private final int count;
  private final Map<Integer, Open> open = new HashMap<>();
  private final Map<Integer, GenerateResult.Sample> done = new HashMap<>();
  private GenerateStarted started;
  private Usage usage;

  GenerateCollector(GenerateRequest request) {
    this.request = request;
    count = request.getSampling().hasSamples() ? request.getSampling().getSamples() : 1;
  }

  @Override
  public void checkRequest() {
    SequenceCollector.check(request.getReadoutsList());
  }

  @Override
  public void read(GenerateResponse response) {
    if (usage != null && response.getEventCase() != EventCase.EVENT_NOT_SET) {
      throw ActserveException.badResponse("the server went on after it was finished");
    }
    switch (response.getEventCase()) {
      case STARTED -> start(response.getStarted());
      case TOKENS -> add(response.getTokens());
      case ACTIVATIONS -> {
        var chunk = response.getActivations();
        opened(chunk.getSequenceIndex()).collector.add(chunk);
      }
      case PREDICTIONS -> {
        var chunk = response.getPredictions();
        opened(chunk.getSequenceIndex()).collector.add(chunk);
      }
      case ATTENTION -> {
        var chunk = response.getAttention();
        opened(chunk.getSequenceIndex()).collector.add(chunk);
      }
      case ATTENTION_SUMMARY -> {
        var chunk = response.getAttentionSummary();
        opened(chunk.getSequenceIndex()).collector.add(chunk);
      }
      case LOGIT_ATTRIBUTION -> {
        var chunk = response.getLogitAttribution();
        opened(chunk.getSequenceIndex()).collector.add(chunk);
      }
      case SAMPLE_FINISHED -> close(response.getSampleFinished());
      case FINISHED -> usage = response.getFinished().getUsage();
      case ALERT -> opened(response.getAlert().getSampleIndex()).alerts.add(response.getAlert());
      case EVENT_NOT_SET -> {
        // An event of a newer server; the contract says to skip it.
      }
    }
  }

  private void start(GenerateStarted opened) {
    if (started != null) {
      throw ActserveException.badResponse("the server started the call twice");
    }
    started = opened;
  }

  /** A sample, which nothing opens but its first event. */
  private Open opened(int index) {
    if (started == null || index < 0 || index >= count || done.containsKey(index)) {
      throw ActserveException.badResponse(
          "the server sent an event of sample %s, which is not open",
          Integer.toUnsignedLong(index));
    }
    return open.computeIfAbsent(
        index,
        sample ->
            new Open(
                new SequenceCollector(
                    sample,
                    request.getReadoutsList(),
                    started.getReadoutsList(),
                    IntStream.range(0, request.getReadoutsCount()).boxed().toList()),
                started.getPrompt().getIdsList()));
  }

  private void add(TokenChunk chunk) {
    Open sample = opened(chunk.getSampleIndex());
    int ids = chunk.getIdsCount();
    int logprobs = request.getSampling().hasLogprobs() ? ids : 0;
    if (chunk.getPosition() != sample.tokenIds.size()
        || chunk.getTextsCount() != ids
        || chunk.getLogprobsCount() != logprobs) {
      throw ActserveException.badResponse(
          "the server sent %s token ids, %s texts and %s log probabilities at position %s, but the"
              + " next position is %s",
          ids,
          chunk.getTextsCount(),
          chunk.getLogprobsCount(),
          Integer.toUnsignedLong(chunk.getPosition()),
          sample.tokenIds.size());
    }
    sample.tokenIds.addAll(chunk.getIdsList());
    sample.tokenTexts.addAll(chunk.getTextsList());
    sample.text.append(chunk.getText());
    sample.logprobs.addAll(chunk.getLogprobsList());
  }

  private void close(SampleFinished finished) {
    int index = finished.getSampleIndex();
    Open sample = opened(index);
    SequenceCollector.check(started.getPrompt(), started.hasPrompt(), false);
    SequenceCollector.checked(finished.getInterventionsList(), request.getInterventionsCount());
    checkScores(finished.getMonitorScoresList());
    // The last generated token is never run.
    int tokens = Math.max(started.getPrompt().getIdsCount(), sample.tokenIds.size() - 1);
    Captured captured =
        sample.collector.finish(finished.getPositionsList(), finished.getKeptList(), tokens);
    open.remove(index);
    done.put(
        index,
        new GenerateResult.Sample(
            sample.text.toString(),
            sample.tokenIds.stream().mapToInt(Integer::intValue).toArray(),
            sample.tokenTexts,
            sample.logprobs,
            captured,
            sample.alerts,
            finished));
  }

  /** Throws unless scores were asked for, and are there of every monitor that was. */
  private void checkScores(List<MonitorScore> scores) {
    boolean asked = request.getScoreDetail() != ScoreDetail.SCORE_DETAIL_UNSPECIFIED;
    Set<String> scored = new HashSet<>();
    for (MonitorScore score : scores) {
      if (!asked || !scored.add(score.getMonitor())) {
        throw ActserveException.badResponse(
            "the server sent the score of %s twice or unasked", score.getMonitor());
      }
    }
    if (asked && !scored.containsAll(request.getMonitorsList())) {
      throw ActserveException.badResponse(
          "the server sent scores of %s, and not of all of %s", scored, request.getMonitorsList());
    }
    Scores.check(scores, request.getScoreDetail() == ScoreDetail.SCORE_DETAIL_TOKEN);
  }

  @Override
  public GenerateResult result() {
    if (usage == null) {
      throw ActserveException.cutShort();
    }
    List<GenerateResult.Sample> samples = new ArrayList<>();
    for (int index = 0; index < count; index++) {
      if (!done.containsKey(index)) {
        throw ActserveException.badResponse("the server finished without sample %s", index);
      }
      samples.add(done.get(index));
    }
    return new GenerateResult(started.getCallId(), started.getPrompt(), samples, usage);
  }
}
