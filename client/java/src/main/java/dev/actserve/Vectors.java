package dev.actserve;

import dev.actserve.v1.DictionaryFeature;
import dev.actserve.v1.VectorSource;

/** Vectors, wherever a message takes one. */
public final class Vectors {
  private Vectors() {}

  /** A vector that goes along with the request, as float32. */
  public static VectorSource sent(float... vector) {
    return VectorSource.newBuilder().setTensor(Tensors.encode(vector)).build();
  }

  /**
   * A vector that the server has stored.
   *
   * @param name such as {@code models/smollm2-135m/steeringVectors/joy}
   */
  public static VectorSource stored(String name) {
    return VectorSource.newBuilder().setSteeringVector(name).build();
  }

  /**
   * What a feature of a dictionary writes, a row of its decoder.
   *
   * @param dictionary such as {@code models/smollm2-135m/dictionaries/smollm2-135m}
   * @param index which of its features, from zero
   */
  public static VectorSource feature(String dictionary, int index) {
    return VectorSource.newBuilder()
        .setFeature(DictionaryFeature.newBuilder().setDictionary(dictionary).setIndex(index))
        .build();
  }
}
