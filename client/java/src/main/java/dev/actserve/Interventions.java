package dev.actserve;

import dev.actserve.v1.AddOperation;
import dev.actserve.v1.Intervention;
import dev.actserve.v1.KeptRows;
import dev.actserve.v1.MatrixSource;
import dev.actserve.v1.ReplaceOperation;
import dev.actserve.v1.VectorSource;

/** Changes made while tokens are computed: the commonest two kinds of {@link Intervention}. */
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
    VectorSource source = VectorSource.newBuilder().setTensor(Tensors.encode(vector)).build();
    return Intervention.newBuilder()
        .addSites(Sites.parse(site))
        .setAdd(AddOperation.newBuilder().setVector(source).setCoefficient(coefficient))
        .build();
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
