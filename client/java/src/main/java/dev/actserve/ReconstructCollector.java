package dev.actserve;

import dev.actserve.v1.ReconstructActivationsRequest;
import dev.actserve.v1.ReconstructActivationsResponse;
import dev.actserve.v1.ReconstructActivationsResponse.EventCase;
import dev.actserve.v1.ReconstructStarted;
import dev.actserve.v1.ReconstructedRows;
import dev.actserve.v1.Tensor;
import dev.actserve.v1.Usage;
import java.util.ArrayList;
import java.util.List;

/** Puts reconstructed rows together. */
final class ReconstructCollector
    implements Collector<ReconstructActivationsResponse, ReconstructResult> {
  private final int texts;
  private final List<Tensor> blocks = new ArrayList<>();
  private int received;
  private ReconstructStarted started;
  private Usage usage;

  ReconstructCollector(ReconstructActivationsRequest request) {
    texts = request.getTextsCount();
  }

  @Override
  public void read(ReconstructActivationsResponse response) {
    if (usage != null && response.getEventCase() != EventCase.EVENT_NOT_SET) {
      throw ActserveException.badResponse("the server went on after it was finished");
    }
    switch (response.getEventCase()) {
      case STARTED -> start(response.getStarted());
      case ROWS -> add(response.getRows());
      case FINISHED -> usage = response.getFinished().getUsage();
      case EVENT_NOT_SET -> {
        // An event of a newer server; the contract says to skip it.
      }
    }
  }

  private void start(ReconstructStarted opened) {
    if (started != null || opened.getRows() != texts || opened.getWidth() <= 0) {
      throw ActserveException.badResponse(
          "the server opened %s rows of width %s for %s texts, or opened them twice",
          Integer.toUnsignedLong(opened.getRows()),
          Integer.toUnsignedLong(opened.getWidth()),
          texts);
    }
    started = opened;
  }

  private void add(ReconstructedRows sent) {
    Tensor rows = sent.getRows();
    Tensors.size(rows);
    int count = rows.getShapeCount() == 2 ? rows.getShape(0) : -1;
    if (started == null
        || sent.getFirstIndex() != received
        || count < 0
        || count > texts - received
        || !Tensors.hasShape(rows, count, started.getWidth())) {
      throw ActserveException.badResponse(
          "the server sent rows in shape %s from index %s on, but %s from index %s on are due",
          Tensors.describe(rows),
          Integer.toUnsignedLong(sent.getFirstIndex()),
          texts - received,
          received);
    }
    blocks.add(rows);
    received += count;
  }

  @Override
  public ReconstructResult result() {
    if (usage == null) {
      throw ActserveException.cutShort();
    }
    if (started == null || received != texts) {
      throw ActserveException.badResponse(
          "the server finished after %s rows of %s", received, texts);
    }
    FloatArray rows = Tensors.join(blocks, texts, started.getWidth());
    return new ReconstructResult(started.getCallId(), started.getNla(), rows, usage);
  }
}
