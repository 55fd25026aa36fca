package dev.actserve;

import dev.actserve.v1.Condition;
import dev.actserve.v1.Probe;
import dev.actserve.v1.VectorSource;

/** Scores of rows, and where an {@link dev.actserve.v1.Intervention} acts by them. */
public final class Probes {
  private Probes() {}

  /**
   * A linear probe: how far the rows of a site lie along a direction.
   *
   * @param site as {@link Sites#parse} takes it
   * @param direction of {@link Vectors}, as wide as the rows of the site
   */
  public static Probe linear(String site, VectorSource direction) {
    return Probe.newBuilder().setSite(Sites.parse(site)).setDirection(direction).build();
  }

  /** The condition that a probe is above a bound, for {@code Intervention.Builder.setWhen}. */
  public static Condition above(Probe probe, float bound) {
    return Condition.newBuilder().setProbe(probe).setAbove(bound).build();
  }

  /** The condition that a probe is below a bound, for {@code Intervention.Builder.setWhen}. */
  public static Condition below(Probe probe, float bound) {
    return Condition.newBuilder().setProbe(probe).setBelow(bound).build();
  }
}
