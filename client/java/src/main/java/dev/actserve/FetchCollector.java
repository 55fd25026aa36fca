package dev.actserve;

import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchActivationsResponse;
import dev.actserve.v1.FetchActivationsResponse.EventCase;
import dev.actserve.v1.FetchItem;
import dev.actserve.v1.FetchStarted;
import dev.actserve.v1.ItemFinished;
import dev.actserve.v1.ItemStarted;
import dev.actserve.v1.LabelStatistics;
import dev.actserve.v1.TokenizedPrompt;
import dev.actserve.v1.Usage;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.IntStream;

/** Puts the items of a fetch together. */
final class FetchCollector implements Collector<FetchActivationsResponse, FetchResult> {
  private record Open(ItemStarted started, SequenceCollector collector) {}

  private static final Captured NOTHING =
      new Captured(Map.of(), Map.of(), Map.of(), Map.of(), Map.of(), Map.of());

  private final FetchActivationsRequest request;
  private final StatisticsCollector statistics;
  private final Map<Integer, Open> open = new HashMap<>();
  private final Map<Integer, FetchResult.Item> done = new HashMap<>();
  private FetchStarted started;
  private Usage usage;

  FetchCollector(FetchActivationsRequest request) {
    this.request = request;
    statistics = new StatisticsCollector(request);
  }

  @Override
  public void checkRequest() {
    SequenceCollector.check(request.getReadoutsList());
  }

  @Override
  public void read(FetchActivationsResponse response) {
    if (usage != null && response.getEventCase() != EventCase.EVENT_NOT_SET) {
      throw ActserveException.badResponse("the server went on after it was finished");
    }
    switch (response.getEventCase()) {
      case STARTED -> start(response.getStarted());
      case ITEM_STARTED -> open(response.getItemStarted());
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
      case ITEM_FINISHED -> close(response.getItemFinished());
      case STATISTICS -> addStatistics(response.getStatistics());
      case FINISHED -> usage = response.getFinished().getUsage();
      case EVENT_NOT_SET -> {
        // An event of a newer server; the contract says to skip it.
      }
    }
  }

  private void start(FetchStarted opened) {
    if (started != null) {
      throw ActserveException.badResponse("the server started the call twice");
    }
    started = opened;
  }

  private void open(ItemStarted item) {
    int index = item.getItemIndex();
    if (started == null || open.containsKey(index) || done.containsKey(index)) {
      throw ActserveException.badResponse(
          "the server opened item %s out of turn", Integer.toUnsignedLong(index));
    }
    FetchItem asked = item(index);
    List<Integer> reading =
        asked.getReadoutIndicesCount() == 0
            ? IntStream.range(0, request.getReadoutsCount()).boxed().toList()
            : asked.getReadoutIndicesList();
    SequenceCollector collector =
        new SequenceCollector(index, request.getReadoutsList(), started.getReadoutsList(), reading);
    open.put(index, new Open(item, collector));
  }

  private FetchItem item(int index) {
    if (index < 0 || index >= request.getItemsCount()) {
      throw ActserveException.badResponse(
          "the server sent an event of item %s of %s",
          Integer.toUnsignedLong(index), request.getItemsCount());
    }
    return request.getItems(index);
  }

  private Open opened(int index) {
    Open item = open.get(index);
    if (item == null) {
      throw ActserveException.badResponse(
          "the server sent an event of item %s, which is not open", Integer.toUnsignedLong(index));
    }
    return item;
  }

  private void addStatistics(LabelStatistics sent) {
    if (started == null) {
      throw ActserveException.badResponse("the server sent statistics before it started");
    }
    statistics.add(sent, started.getReadoutsList());
  }

  private void close(ItemFinished item) {
    int index = item.getItemIndex();
    FetchItem asked = item(index);
    if (item.getStatus().getCode() == 0) {
      Open opened = opened(index);
      TokenizedPrompt prompt = opened.started.getPrompt();
      SequenceCollector.check(prompt, opened.started.hasPrompt(), request.getIdsOnly());
      int interventions = request.getInterventionsCount() + asked.getInterventionsCount();
      Captured captured =
          opened.collector.finish(
              opened.started.getPositionsList(), item.getKeptList(), prompt.getIdsCount());
      statistics.expect(asked, opened.started.getPositionsList());
      done.put(
          index,
          new FetchResult.Item(
              asked.getKey(),
              prompt,
              captured,
              SequenceCollector.checked(item.getInterventionsList(), interventions),
              Optional.empty()));
      open.remove(index);
      return;
    }
    ActserveException error =
        ActserveException.of(item.getStatus(), started == null ? "" : started.getCallId());
    if (request.getFailFast()) {
      throw error;
    }
    open.remove(index);
    FetchResult.Item failed =
        new FetchResult.Item(
            asked.getKey(),
            TokenizedPrompt.getDefaultInstance(),
            NOTHING,
            List.of(),
            Optional.of(error));
    if (done.put(index, failed) != null) {
      throw ActserveException.badResponse("the server finished item %s twice", index);
    }
  }

  @Override
  public FetchResult result() {
    if (usage == null) {
      throw ActserveException.cutShort();
    }
    if (started == null) {
      throw ActserveException.badResponse("the server finished without having started");
    }
    List<FetchResult.Item> items = new ArrayList<>();
    for (int index = 0; index < request.getItemsCount(); index++) {
      if (!done.containsKey(index)) {
        throw ActserveException.badResponse("the server finished without item %s", index);
      }
      items.add(done.get(index));
    }
    return new FetchResult(started.getCallId(), items, statistics.result(), usage);
  }
}
