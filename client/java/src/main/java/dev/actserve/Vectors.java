package dev.actserve;

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
}
