package dev.actserve;

import dev.actserve.v1.MonitorScore;
import dev.actserve.v1.ReplayFinished;
import dev.actserve.v1.ReplayMonitorsRequest;
import dev.actserve.v1.ReplayMonitorsResponse;
import dev.actserve.v1.ReplayMonitorsResponse.EventCase;
import dev.actserve.v1.ReplayStarted;
import dev.actserve.v1.ReplayedItem;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;

/** Puts the items of a replay together. */
final class ReplayCollector implements Collector<ReplayMonitorsResponse, ReplayResult> {
  private final ReplayMonitorsRequest request;
  private final ReplayResult.Item[] items;
  private ReplayStarted started;
  private ReplayFinished finished;

  ReplayCollector(ReplayMonitorsRequest request) {
    this.request = request;
    items = new ReplayResult.Item[request.getItemsCount()];
  }

  @Override
  public void read(ReplayMonitorsResponse response) {
    EventCase event = response.getEventCase();
    if (event == EventCase.EVENT_NOT_SET) {
      return; // An event of a newer server; the contract says to skip it.
    }
    if (finished != null || (started == null) != (event == EventCase.STARTED)) {
      throw ActserveException.badResponse(
          "the server sent an event before the replay was started or after it was finished");
    }
    switch (event) {
      case STARTED -> started = response.getStarted();
      case ITEM -> add(response.getItem());
      default -> finished = response.getFinished();
    }
  }

  private void add(ReplayedItem item) {
    int index = item.getItemIndex();
    if (index < 0 || index >= items.length || items[index] != null) {
      throw ActserveException.badResponse(
          "the server sent item %s, which was not asked for or has come",
          Integer.toUnsignedLong(index));
    }
    String key = request.getItems(index).getKey();
    if (item.getStatus().getCode() != 0) {
      ActserveException error = ActserveException.of(item.getStatus(), started.getCallId());
      items[index] = new ReplayResult.Item(key, List.of(), Optional.of(error));
      return;
    }
    List<MonitorScore> scores = item.getScoresList();
    List<String> scored = scores.stream().map(MonitorScore::getMonitor).toList();
    if (!scored.equals(request.getMonitorsList())) {
      throw ActserveException.badResponse(
          "the server sent scores of %s for item %s, not of %s in that order",
          scored, index, request.getMonitorsList());
    }
    Scores.check(scores, request.getEachToken());
    items[index] = new ReplayResult.Item(key, scores, Optional.empty());
  }

  @Override
  public ReplayResult result() {
    if (finished == null) {
      throw ActserveException.cutShort();
    }
    int missing = Arrays.asList(items).indexOf(null);
    if (missing >= 0) {
      throw ActserveException.badResponse("the server finished without item %s", missing);
    }
    return new ReplayResult(started.getCallId(), List.of(items), finished.getUsage());
  }
}
