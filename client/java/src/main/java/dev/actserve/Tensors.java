package dev.actserve;

import com.google.protobuf.ByteString;
import com.google.protobuf.UnsafeByteOperations;
import dev.actserve.v1.ElementType;
import dev.actserve.v1.Tensor;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.ShortBuffer;
import java.util.Arrays;
import java.util.List;

/** Tensors on the wire, and as arrays of float32. */
public final class Tensors {
  private Tensors() {}

  /**
   * An array on the wire, as float32.
   *
   * @param data the numbers, the last axis innermost
   * @param shape the extent of each axis; one axis with all the numbers if none is given
   * @throws ActserveException {@code TENSOR_SIZE_MISMATCH} if the shape has another number of them
   */
  public static Tensor encode(float[] data, int... shape) {
    int[] axes = shape.length == 0 ? new int[] {data.length} : shape;
    Tensor.Builder tensor = Tensor.newBuilder().setElementType(ElementType.ELEMENT_TYPE_F32);
    for (int extent : axes) {
      tensor.addShape(extent);
    }
    if (elements(tensor.getShapeList(), data.length) != data.length) {
      throw ActserveException.invalid(
          "TENSOR_SIZE_MISMATCH",
          "",
          "%s numbers do not have the shape %s",
          data.length,
          Arrays.toString(axes));
    }
    ByteBuffer bytes =
        ByteBuffer.allocate(Math.multiplyExact(data.length, Float.BYTES))
            .order(ByteOrder.LITTLE_ENDIAN);
    bytes.asFloatBuffer().put(data);
    return tensor.setData(UnsafeByteOperations.unsafeWrap(bytes)).build();
  }

  /**
   * The numbers of a tensor, exactly: float32 holds every value of the other types.
   *
   * @throws ActserveException {@code BAD_RESPONSE} if the element type is unknown, or the bytes are
   *     not as many as the shape needs
   */
  public static FloatArray decode(Tensor tensor) {
    float[] data = new float[size(tensor)];
    decode(tensor, data, 0);
    return new FloatArray(data, shape(tensor));
  }

  /** The number of elements of a tensor, if its bytes are as many as its shape needs. */
  static int size(Tensor tensor) {
    int width = width(tensor);
    int bytes = tensor.getData().size();
    if (bytes % width != 0 || elements(tensor.getShapeList(), bytes / width) != bytes / width) {
      throw ActserveException.badResponse(
          "the server sent %s bytes for a tensor of shape %s", bytes, describe(tensor));
    }
    return bytes / width;
  }

  /** The shape of a tensor that {@link #size} has checked. */
  static int[] shape(Tensor tensor) {
    int[] shape = new int[tensor.getShapeCount()];
    for (int axis = 0; axis < shape.length; axis++) {
      shape[axis] = tensor.getShape(axis);
      if (shape[axis] < 0) {
        throw ActserveException.badResponse(
            "the server sent a tensor of shape %s, which Java cannot index", describe(tensor));
      }
    }
    return shape;
  }

  static String describe(Tensor tensor) {
    return tensor.getShapeList().stream().map(Integer::toUnsignedLong).toList().toString();
  }

  /** Whether a tensor has this shape. */
  static boolean hasShape(Tensor tensor, long... shape) {
    if (tensor.getShapeCount() != shape.length) {
      return false;
    }
    for (int axis = 0; axis < shape.length; axis++) {
      if (Integer.toUnsignedLong(tensor.getShape(axis)) != shape[axis]) {
        return false;
      }
    }
    return true;
  }

  /** Writes the numbers of a tensor that {@link #size} has checked into an array. */
  static void decode(Tensor tensor, float[] into, int first) {
    ByteString data = tensor.getData();
    ByteBuffer bytes = data.asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
    switch (tensor.getElementType()) {
      case ELEMENT_TYPE_F32 -> bytes.asFloatBuffer().get(into, first, data.size() / Float.BYTES);
      case ELEMENT_TYPE_BF16 -> {
        ShortBuffer halves = bytes.asShortBuffer();
        for (int at = first; halves.hasRemaining(); at++) {
          into[at] = Float.intBitsToFloat(halves.get() << 16);
        }
      }
      case ELEMENT_TYPE_F16 -> {
        ShortBuffer halves = bytes.asShortBuffer();
        for (int at = first; halves.hasRemaining(); at++) {
          into[at] = widen(halves.get());
        }
      }
      default -> width(tensor);
    }
  }

  /**
   * The numbers of tensors that {@link #size} has checked, one after the other.
   *
   * @param shape that of all of them together
   */
  static FloatArray join(List<Tensor> blocks, int... shape) {
    long size = 0;
    for (Tensor block : blocks) {
      size += size(block);
    }
    if (size > Integer.MAX_VALUE - 8) {
      throw ActserveException.badResponse(
          "%s numbers are more than a Java array holds; read fewer positions at once", size);
    }
    float[] data = new float[(int) size];
    int first = 0;
    for (Tensor block : blocks) {
      decode(block, data, first);
      first += size(block);
    }
    return new FloatArray(data, shape);
  }

  private static int width(Tensor tensor) {
    return switch (tensor.getElementType()) {
      case ELEMENT_TYPE_F32 -> Float.BYTES;
      case ELEMENT_TYPE_F16, ELEMENT_TYPE_BF16 -> Short.BYTES;
      default ->
          throw ActserveException.badResponse(
              "the server sent element type %s, which this client does not know; upgrade the"
                  + " client",
              tensor.getElementTypeValue());
    };
  }

  /** The product of a shape, or -1 if it is more than `most`, so that it never overflows. */
  private static long elements(List<Integer> shape, long most) {
    if (shape.contains(0)) {
      return 0;
    }
    long product = 1;
    for (int extent : shape) {
      // At most 2^31 times 2^32.
      product *= Integer.toUnsignedLong(extent);
      if (product > most) {
        return -1;
      }
    }
    return product;
  }

  /** An IEEE 754 binary16 as binary32. */
  private static float widen(short half) {
    int sign = (half & 0x8000) << 16;
    int exponent = (half >> 10) & 0x1f;
    int fraction = half & 0x3ff;
    if (exponent == 0x1f) {
      return Float.intBitsToFloat(sign | 0x7f800000 | fraction << 13);
    }
    if (exponent == 0) {
      // Zero and subnormals, which are multiples of 2^-24.
      float size = fraction * 0x1p-24f;
      return sign == 0 ? size : -size;
    }
    return Float.intBitsToFloat(sign | exponent - 15 + 127 << 23 | fraction << 13);
  }
}
