package dev.actserve;

import com.google.protobuf.ByteString;
import dev.actserve.v1.RunSweepRequest;
import dev.actserve.v1.RunSweepResponse;
import dev.actserve.v1.RunSweepResponse.EventCase;
import dev.actserve.v1.SweepCell;
import dev.actserve.v1.SweepFinished;
import dev.actserve.v1.SweepStarted;
import dev.actserve.v1.SweepVariant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;

/** Puts the cells of a sweep together, over all its attempts. */
final class SweepCollector
    implements Collector<RunSweepResponse, SweepResult>, Retries.Resumable<RunSweepRequest> {
  private final RunSweepRequest request;

  /** Of each variant, how many cells of the same prompt are before its own. */
  private final List<Long> first = new ArrayList<>();

  private final long perPrompt;
  private final Map<Long, SweepResult.Cell> cells = new TreeMap<>();
  private ByteString resumeToken;

  /** How many cells the caller has; known with the first `started`, and -1 before. */
  private long skipped;

  private SweepStarted started;
  private SweepFinished finished;

  SweepCollector(RunSweepRequest request) {
    this.request = request;
    resumeToken = request.getResumeToken();
    skipped = resumeToken.isEmpty() ? 0 : -1;
    long before = 0;
    for (SweepVariant variant : request.getVariantsList()) {
      first.add(before);
      long points = Math.max(1, variant.getCoefficientsCount());
      points *= Math.max(1, variant.getSitesCount());
      points *= Math.max(1, variant.getPositionsCount());
      before += points;
    }
    perPrompt = before;
  }

  @Override
  public boolean isWhole() {
    return finished != null;
  }

  @Override
  public RunSweepRequest resume() {
    started = null;
    return request.toBuilder().setResumeToken(resumeToken).build();
  }

  @Override
  public void read(RunSweepResponse response) {
    if (finished != null && response.getEventCase() != EventCase.EVENT_NOT_SET) {
      throw ActserveException.badResponse("the server went on after it was finished");
    }
    switch (response.getEventCase()) {
      case STARTED -> start(response.getStarted());
      case CELL -> add(response.getCell());
      case FINISHED -> finish(response.getFinished());
      case EVENT_NOT_SET -> {
        // An event of a newer server; the contract says to skip it.
      }
    }
  }

  private void start(SweepStarted opened) {
    long asked = perPrompt * request.getPromptsCount();
    long all = Integer.toUnsignedLong(opened.getCells());
    long skips = Integer.toUnsignedLong(opened.getSkippedCells());
    if (skipped < 0) {
      skipped = skips;
    }
    long have = skipped + cells.size();
    if (started != null || all != asked || skips != have) {
      throw ActserveException.badResponse(
          "the server runs %s cells and skips %s, where %s were asked for and %s have come, or"
              + " started twice",
          all, skips, asked, have);
    }
    started = opened;
  }

  private void finish(SweepFinished closed) {
    long have = skipped + cells.size();
    if (started == null || have != Integer.toUnsignedLong(started.getCells())) {
      throw ActserveException.badResponse(
          "the server finished with %s cells of %s", have, perPrompt * request.getPromptsCount());
    }
    finished = closed;
  }

  private void add(SweepCell cell) {
    long place = place(cell);
    Optional<ActserveException> error = Optional.empty();
    if (cell.getStatus().getCode() != 0) {
      error = Optional.of(ActserveException.of(cell.getStatus(), started.getCallId()));
    } else {
      int answers = request.getAnswersCount();
      int scores = request.getScoresCount();
      if (cell.getAnswerLogprobsCount() != answers || cell.getScoreValuesCount() != scores) {
        throw ActserveException.badResponse(
            "the server sent %s answers and %s scores of a cell, not %s and %s",
            cell.getAnswerLogprobsCount(), cell.getScoreValuesCount(), answers, scores);
      }
      SweepVariant variant = request.getVariants(cell.getVariantIndex());
      SequenceCollector.checked(cell.getInterventionsList(), variant.getInterventionsCount());
    }
    if (cells.put(place, new SweepResult.Cell(cell, error)) != null) {
      throw ActserveException.badResponse("the server sent cell %s twice", place);
    }
    resumeToken = cell.getResumeToken();
  }

  /** How many cells are before this one in the order of the request. */
  private long place(SweepCell cell) {
    int prompt = cell.getPromptIndex();
    int variant = cell.getVariantIndex();
    if (started == null
        || prompt < 0
        || prompt >= request.getPromptsCount()
        || variant < 0
        || variant >= first.size()) {
      throw ActserveException.badResponse(
          "the server sent a cell of prompt %s and variant %s unasked, or before it started",
          Integer.toUnsignedLong(prompt), Integer.toUnsignedLong(variant));
    }
    SweepVariant grid = request.getVariants(variant);
    long point = 0;
    point =
        next(
            point,
            cell.hasCoefficientIndex(),
            cell.getCoefficientIndex(),
            grid.getCoefficientsCount());
    point = next(point, cell.hasSiteIndex(), cell.getSiteIndex(), grid.getSitesCount());
    point = next(point, cell.hasPositionIndex(), cell.getPositionIndex(), grid.getPositionsCount());
    return prompt * perPrompt + first.get(variant) + point;
  }

  /** The place at an index of one more list. */
  private static long next(long point, boolean has, int index, int size) {
    if (!has && size == 0) {
      return point;
    }
    if (!has || index < 0 || index >= size) {
      throw ActserveException.badResponse(
          "the server sent a cell that is at none of the %s elements of a list of its variant",
          size);
    }
    return point * size + index;
  }

  @Override
  public SweepResult result() {
    if (finished == null) {
      throw ActserveException.cutShort();
    }
    return new SweepResult(
        started.getCallId(), new ArrayList<>(cells.values()), finished.getUsage());
  }
}
