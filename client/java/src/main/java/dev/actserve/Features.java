package dev.actserve;

import dev.actserve.v1.FeatureChange;

/** What becomes of features of a dictionary, for {@link Interventions#features}. */
public final class Features {
  private Features() {}

  /** A feature gets a value, whatever it was. */
  public static FeatureChange set(int index, float value) {
    return FeatureChange.newBuilder().setIndex(index).setValue(value).build();
  }

  /** Something is added to a feature, also where it is zero. */
  public static FeatureChange add(int index, float addition) {
    return FeatureChange.newBuilder().setIndex(index).setAddition(addition).build();
  }

  /** A feature is multiplied: zero ablates it, and one changes nothing. */
  public static FeatureChange scale(int index, float factor) {
    return FeatureChange.newBuilder().setIndex(index).setFactor(factor).build();
  }
}
