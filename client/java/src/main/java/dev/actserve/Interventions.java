package dev.actserve;

import dev.actserve.v1.AddOperation;
import dev.actserve.v1.FeatureChange;
import dev.actserve.v1.FeatureOperation;
import dev.actserve.v1.Intervention;
import dev.actserve.v1.KeptRows;
import dev.actserve.v1.MatrixSource;
import dev.actserve.v1.ReplaceOperation;
import dev.actserve.v1.Site;
import dev.actserve.v1.VectorSource;
import java.util.Arrays;
import java.util.List;

/** Changes made while tokens are computed: the commonest kinds of {@link Intervention}. */
public final class Interventions {
  private Interventions() {}

  /**
   * Adds a vector to the rows of every token.
   *
   * @param site as {@link Sites#parse} takes it
   * @param vector as wide as the rows of the site
   * @param coefficient what the vector is multiplied by
   */
  public static Intervention add(String site, float[] vector, float coefficient) {
    return add(Vectors.sent(vector), coefficient, site);
  }

  /**
   * Adds a vector to the rows of every token.
   *
   * @param vector of {@link Vectors}, as wide as the rows of the sites
   * @param coefficient what the vector is multiplied by
   * @param sites as {@link Sites#parse} takes them
   */
  public static Intervention add(VectorSource vector, float coefficient, String... sites) {
    return add(AddOperation.newBuilder().setVector(vector).setCoefficient(coefficient), sites);
  }

  /**
   * Adds a vector once, and in a sweep as often as {@link dev.actserve.v1.SweepVariant} says.
   *
   * @param vector of {@link Vectors}, as wide as the rows of the sites
   * @param sites as {@link Sites#parse} takes them; none where a sweep says which
   */
  public static Intervention add(VectorSource vector, String... sites) {
    return add(AddOperation.newBuilder().setVector(vector), sites);
  }

  private static Intervention add(AddOperation.Builder add, String... sites) {
    List<Site> at = Arrays.stream(sites).map(Sites::parse).toList();
    return Intervention.newBuilder().addAllSites(at).setAdd(add).build();
  }

  /**
   * Changes features of rows, and keeps of a row what the dictionary does not explain.
   *
   * @param dictionary such as {@code models/smollm2-135m/dictionaries/smollm2-135m}
   * @param changes of {@link Features}, each of a different feature
   * @param sites as {@link Sites#parse} takes them
   */
  public static Intervention features(
      String dictionary, List<FeatureChange> changes, String... sites) {
    List<Site> at = Arrays.stream(sites).map(Sites::parse).toList();
    FeatureOperation features =
        FeatureOperation.newBuilder().setDictionary(dictionary).addAllChanges(changes).build();
    return Intervention.newBuilder().addAllSites(at).setFeatures(features).build();
  }

  /**
   * Puts rows that the server has kept in place of others.
   *
   * @param site as {@link Sites#parse} takes it
   * @param positions as {@link Positions#parse} takes them; as many as there are kept rows, or any
   *     number if there is one
   * @param kept the name of the kept rows
   */
  public static Intervention replace(String site, String positions, String kept) {
    MatrixSource source =
        MatrixSource.newBuilder().setKept(KeptRows.newBuilder().setName(kept)).build();
    return Intervention.newBuilder()
        .addSites(Sites.parse(site))
        .setPositions(Positions.parse(positions))
        .setReplace(ReplaceOperation.newBuilder().setRows(source))
        .build();
  }
}
