package dev.actserve;

import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchItem;
import dev.actserve.v1.LabelStatistics;
import dev.actserve.v1.PositionLabel;
import dev.actserve.v1.Readout;
import dev.actserve.v1.ReadoutPositions;
import dev.actserve.v1.ReadoutStarted;
import dev.actserve.v1.RowReadout;
import dev.actserve.v1.SecondMoments;
import dev.actserve.v1.Tensor;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Puts the statistics of labels together; a covariance matrix may come in several messages. */
final class StatisticsCollector {
  private record Key(int readout, int site, String label) {}

  private final List<Readout> readouts;
  private final Set<String> labels = new HashSet<>();
  private final Set<Key> expected = new HashSet<>();
  private final Map<Key, Sums> sums = new LinkedHashMap<>();

  StatisticsCollector(FetchActivationsRequest request) {
    readouts = request.getReadoutsList();
    for (var item : request.getItemsList()) {
      if (!item.getLabel().isEmpty() || item.getPositionLabelsCount() == 0) {
        labels.add(item.getLabel());
      }
      item.getPositionLabelsList().stream().map(PositionLabel::getLabel).forEach(labels::add);
    }
  }

  /**
   * Has statistics of an item that succeeded come. Which positions its labels of positions select,
   * only the server knows; so only those of the whole item are sure to have rows.
   */
  void expect(FetchItem item, List<ReadoutPositions> read) {
    if (item.getLabel().isEmpty() && item.getPositionLabelsCount() != 0) {
      return;
    }
    for (ReadoutPositions each : read) {
      for (int readout : each.getReadoutIndicesList()) {
        if (each.getPositionsCount() != 0 && readouts.get(readout).getRows().hasStatistics()) {
          expected.add(new Key(readout, 0, item.getLabel()));
        }
      }
    }
  }

  /**
   * Takes one message.
   *
   * @param started what the server has announced for each readout
   */
  void add(LabelStatistics sent, List<ReadoutStarted> started) {
    int readout = sent.getReadoutIndex();
    int site = sent.getSiteIndex();
    boolean known = readout >= 0 && readout < readouts.size() && readout < started.size();
    RowReadout asked = known ? readouts.get(readout).getRows() : RowReadout.getDefaultInstance();
    check(
        asked.hasStatistics()
            && site >= 0
            && site < asked.getSitesCount()
            && site < started.get(readout).getWidthsCount()
            && labels.contains(sent.getLabel()),
        sent.getLabel(),
        "unasked");
    Key key = new Key(readout, site, sent.getLabel());
    if (sent.hasMean()) {
      boolean full = asked.getStatistics().getSecondMoments() == SecondMoments.SECOND_MOMENTS_FULL;
      Sums first = new Sums(sent, started.get(readout).getWidths(site), full);
      check(sums.put(key, first) == null, sent.getLabel(), "twice");
    }
    check(sums.containsKey(key), sent.getLabel(), "without their mean");
    sums.get(key).add(sent);
  }

  /** By the name of the readout, by site, by label. */
  Map<String, Map<String, Map<String, Statistics>>> result() {
    Map<String, Map<String, Map<String, Statistics>>> found = new LinkedHashMap<>();
    for (int readout = 0; readout < readouts.size(); readout++) {
      RowReadout asked = readouts.get(readout).getRows();
      if (asked.hasStatistics()) {
        Map<String, Map<String, Statistics>> bySite = new LinkedHashMap<>();
        asked.getSitesList().forEach(site -> bySite.put(Sites.format(site), new LinkedHashMap<>()));
        found.put(readouts.get(readout).getName(), bySite);
      }
    }
    expected.forEach(key -> check(sums.containsKey(key), key.label, "not at all"));
    sums.forEach(
        (key, each) -> {
          Readout readout = readouts.get(key.readout);
          String site = Sites.format(readout.getRows().getSites(key.site));
          found.get(readout.getName()).get(site).put(key.label, each.finish());
          for (int other = 0; other < readout.getRows().getSitesCount(); other++) {
            boolean there = sums.containsKey(new Key(key.readout, other, key.label));
            check(there, key.label, "at some sites only");
          }
        });
    return found;
  }

  /** What has come of one label at one site. */
  private static final class Sums {
    private final String label;
    private final long rows;
    private final FloatArray mean;
    private final boolean full;
    private final List<Tensor> secondMoments = new ArrayList<>();
    private int received;

    Sums(LabelStatistics first, int width, boolean full) {
      label = first.getLabel();
      rows = first.getRows();
      mean = Tensors.decode(first.getMean());
      this.full = full;
      check(rows > 0, label, "of no rows, or of more than Java can count");
      check(Tensors.hasShape(first.getMean(), width), label, "of another width");
    }

    void add(LabelStatistics sent) {
      Tensor moments = sent.getSecondMoments();
      int width = width();
      int count = !full ? 1 : moments.getShapeCount() == 2 ? moments.getShape(0) : -1;
      Tensors.size(moments);
      check(
          full
              ? Tensors.hasShape(moments, count, width) && count <= width - received
              : Tensors.hasShape(moments, width) && received == 0,
          label,
          "with second moments of another shape");
      check(
          sent.getRows() == rows && sent.getFirstRow() == received,
          label,
          "of which a part is missing");
      secondMoments.add(moments);
      received += count;
    }

    Statistics finish() {
      int width = width();
      check(received == (full ? width : 1), label, "of which a part is missing");
      int[] shape = full ? new int[] {width, width} : new int[] {width};
      return new Statistics(rows, mean, Tensors.join(secondMoments, shape));
    }

    private int width() {
      return mean.data().length;
    }
  }

  private static void check(boolean good, String label, String what) {
    if (!good) {
      throw ActserveException.badResponse("the server sent statistics of \"%s\" %s", label, what);
    }
  }
}
