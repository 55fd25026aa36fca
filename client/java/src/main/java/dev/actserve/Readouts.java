package dev.actserve;

import dev.actserve.v1.KeepReadout;
import dev.actserve.v1.PositionSelector;
import dev.actserve.v1.PredictionReadout;
import dev.actserve.v1.Projection;
import dev.actserve.v1.Readout;
import dev.actserve.v1.RowReadout;
import dev.actserve.v1.Site;
import java.util.Arrays;
import java.util.List;

/** What to read while tokens are computed: the commonest kinds of {@link Readout}. */
public final class Readouts {
  private Readouts() {}

  /**
   * Rows of sites, in the model's own element type.
   *
   * @param name what the result is found by
   * @param positions as {@link Positions#parse} takes them
   * @param sites as {@link Sites#parse} takes them, at least one
   */
  public static Readout rows(String name, String positions, String... sites) {
    PositionSelector where = Positions.parse(positions);
    RowReadout rows = RowReadout.newBuilder().addAllSites(parse(sites)).setPositions(where).build();
    return Readout.newBuilder().setName(name).setRows(rows).build();
  }

  /**
   * The largest features that a dictionary makes of rows, with their {@link Rows#indices}.
   *
   * @param name what the result is found by
   * @param positions as {@link Positions#parse} takes them
   * @param dictionary such as {@code models/smollm2-135m/dictionaries/smollm2-135m}
   * @param top how many features of each row, the largest first
   * @param sites as {@link Sites#parse} takes them, at least one: any of the dictionary's width,
   *     not its own alone
   */
  public static Readout topFeatures(
      String name, String positions, String dictionary, int top, String... sites) {
    Readout.Builder readout = features(name, positions, dictionary, sites).toBuilder();
    readout.getRowsBuilder().getProjectionBuilder().setSendTop(top);
    return readout.build();
  }

  /**
   * All features that a dictionary makes of rows, without indices.
   *
   * @param name what the result is found by
   * @param positions as {@link Positions#parse} takes them
   * @param dictionary such as {@code models/smollm2-135m/dictionaries/smollm2-135m}
   * @param sites as {@link Sites#parse} takes them, at least one
   */
  public static Readout features(
      String name, String positions, String dictionary, String... sites) {
    Readout.Builder readout = rows(name, positions, sites).toBuilder();
    readout.getRowsBuilder().setProjection(Projection.newBuilder().setDictionary(dictionary));
    return readout.build();
  }

  /**
   * What the model would predict next. At the sites of layers this is a logit lens: their rows pass
   * through the final norm and the unembedding.
   *
   * @param name what the result is found by
   * @param positions as {@link Positions#parse} takes them
   * @param topK how many of the likeliest tokens
   * @param sites as {@link Sites#parse} takes them; {@code final_norm} if there are none
   */
  public static Readout predictions(String name, String positions, int topK, String... sites) {
    PredictionReadout predictions =
        PredictionReadout.newBuilder()
            .addAllSites(parse(sites))
            .setPositions(Positions.parse(positions))
            .setTopK(topK)
            .build();
    return Readout.newBuilder().setName(name).setPredictions(predictions).build();
  }

  /**
   * Rows of sites that stay on the server, to be put into other runs.
   *
   * @param name what the name of the kept rows is found by
   * @param positions as {@link Positions#parse} takes them
   * @param sites as {@link Sites#parse} takes them, at least one
   */
  public static Readout keep(String name, String positions, String... sites) {
    PositionSelector where = Positions.parse(positions);
    KeepReadout keep =
        KeepReadout.newBuilder().addAllSites(parse(sites)).setPositions(where).build();
    return Readout.newBuilder().setName(name).setKeep(keep).build();
  }

  private static List<Site> parse(String... sites) {
    return Arrays.stream(sites).map(Sites::parse).toList();
  }
}
