package dev.actserve;

import java.util.Arrays;

/** A dense array of float32, its last axis innermost. */
public final class FloatArray {
  private final int[] shape;
  private final float[] data;

  FloatArray(float[] data, int... shape) {
    this.shape = shape;
    this.data = data;
  }

  /** The extent of each axis, outermost first. */
  public int[] shape() {
    return shape.clone();
  }

  /** The numbers themselves, not a copy: as many as the product of {@link #shape}. */
  public float[] data() {
    return data;
  }

  /**
   * A copy of what is at an index of the first axis, such as a row of a matrix.
   *
   * @throws IndexOutOfBoundsException if there is no such index
   */
  public float[] row(int index) {
    int rows = shape.length == 0 ? 0 : shape[0];
    java.util.Objects.checkIndex(index, rows);
    int width = data.length / rows;
    return Arrays.copyOfRange(data, index * width, (index + 1) * width);
  }

  @Override
  public String toString() {
    return "float32 " + Arrays.toString(shape);
  }
}
