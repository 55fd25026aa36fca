package dev.actserve;

import dev.actserve.v1.AttributionEdges;
import dev.actserve.v1.AttributionNode;
import dev.actserve.v1.WatchAttributionGraphResponse;
import dev.actserve.v1.Work;
import dev.actserve.v1.WorkState;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** Puts a graph together. */
final class GraphCollector implements Collector<WatchAttributionGraphResponse, GraphResult> {
  private final List<AttributionNode> nodes = new ArrayList<>();
  private final List<AttributionEdges> edges = new ArrayList<>();
  private Work work = Work.getDefaultInstance();
  private boolean isFinished;

  @Override
  public void read(WatchAttributionGraphResponse response) {
    if (isFinished) {
      throw ActserveException.badResponse("the server went on after it had finished");
    }
    switch (response.getEventCase()) {
      case PROGRESS -> work = response.getProgress();
      case NODES -> {
        if (!edges.isEmpty()) {
          throw ActserveException.badResponse("the server sent nodes after edges");
        }
        nodes.addAll(response.getNodes().getNodesList());
      }
      case EDGES -> add(response.getEdges());
      case FINISHED -> isFinished = true;
      case EVENT_NOT_SET -> {
        // An event of a newer server; the contract says to skip it.
      }
    }
  }

  private void add(AttributionEdges told) {
    int count = told.getSourcesCount();
    int[] shape = Tensors.decode(told.getWeights()).shape();
    if (!Arrays.equals(shape, new int[] {count}) || told.getTargetsCount() != count) {
      throw ActserveException.badResponse(
          "the server sent %s sources, %s targets and weights in the shape %s of edges",
          count, told.getTargetsCount(), Arrays.toString(shape));
    }
    for (int index = 0; index < count; index++) {
      int source = told.getSources(index);
      int target = told.getTargets(index);
      if (Integer.compareUnsigned(source, target) >= 0
          || Integer.compareUnsigned(target, nodes.size()) >= 0) {
        throw ActserveException.badResponse(
            "the server sent an edge from node %s to node %s of %s",
            Integer.toUnsignedLong(source), Integer.toUnsignedLong(target), nodes.size());
      }
    }
    edges.add(told);
  }

  @Override
  public GraphResult result() {
    if (!isFinished) {
      throw ActserveException.cutShort();
    }
    if (work.getState() != WorkState.WORK_STATE_SUCCEEDED) {
      throw ActserveException.of(work);
    }
    int count = edges.stream().mapToInt(AttributionEdges::getSourcesCount).sum();
    float[] weights = new float[count];
    int at = 0;
    for (AttributionEdges each : edges) {
      float[] told = Tensors.decode(each.getWeights()).data();
      System.arraycopy(told, 0, weights, at, told.length);
      at += told.length;
    }
    return new GraphResult(
        List.copyOf(nodes),
        edges.stream().flatMap(each -> each.getSourcesList().stream()).mapToInt(i -> i).toArray(),
        edges.stream().flatMap(each -> each.getTargetsList().stream()).mapToInt(i -> i).toArray(),
        weights);
  }
}
