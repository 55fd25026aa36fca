package actserve

import (
	"encoding/binary"
	"math"
	"math/bits"
	"unsafe"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// Tensor is a dense array of float32, the last axis contiguous. The zero Tensor is none.
type Tensor struct {
	// Shape is the extent of each axis, outermost first.
	Shape []int
	// Data are the elements, as many as the product of Shape.
	Data []float32
}

// Row returns the i-th part along the first axis, of which it shares the memory.
func (t Tensor) Row(i int) []float32 {
	width := len(t.Data) / t.Shape[0]
	return t.Data[i*width : (i+1)*width : (i+1)*width]
}

// elementSizes are the bytes of one element.
var elementSizes = map[actservev1.ElementType]uint64{
	actservev1.ElementType_ELEMENT_TYPE_F32:  4,
	actservev1.ElementType_ELEMENT_TYPE_F16:  2,
	actservev1.ElementType_ELEMENT_TYPE_BF16: 2,
}

// EncodeTensor returns elements in the form in which they are sent, as f32. The error is
// INVALID_ARGUMENT, TENSOR_SIZE_MISMATCH if they are not as many as the shape has.
func EncodeTensor(data []float32, shape ...int) (*actservev1.Tensor, error) {
	extents := make([]uint32, len(shape))
	for i, extent := range shape {
		if extent < 0 || extent > math.MaxUint32 {
			return nil, invalid("TENSOR_SIZE_MISMATCH", "", "an axis of shape %v is %d; give 0 or more",
				shape, extent)
		}
		extents[i] = uint32(extent)
	}
	if count, ok := product(extents); !ok || count != uint64(len(data)) {
		return nil, invalid("TENSOR_SIZE_MISMATCH", "", "%d elements do not fill shape %v; give as many "+
			"as the product of its axes", len(data), shape)
	}
	sent := make([]byte, 0, 4*len(data))
	for _, element := range data {
		sent = binary.LittleEndian.AppendUint32(sent, math.Float32bits(element))
	}
	return &actservev1.Tensor{
		ElementType: actservev1.ElementType_ELEMENT_TYPE_F32, Shape: extents, Data: sent,
	}, nil
}

// DecodeTensor returns the elements of a tensor as float32, which is exact. The error is INTERNAL,
// BAD_RESPONSE if the element type is unknown or the bytes do not match the shape.
func DecodeTensor(tensor *actservev1.Tensor) (Tensor, error) {
	shape, err := checkedShape(tensor)
	if err != nil {
		return Tensor{}, err
	}
	return joined([]*actservev1.Tensor{tensor}, shape...), nil
}

// checkedShape returns the shape of a tensor, if its bytes match it.
func checkedShape(tensor *actservev1.Tensor) ([]int, error) {
	size, ok := elementSizes[tensor.GetElementType()]
	if !ok {
		return nil, badResponse("sent element type %d, which this client does not know; upgrade the client",
			tensor.GetElementType())
	}
	if count, ok := product(tensor.GetShape()); !ok || len(tensor.GetData())%int(size) != 0 ||
		count != uint64(len(tensor.GetData()))/size {
		return nil, badResponse("sent %d bytes for a tensor of shape %v with %d bytes an element",
			len(tensor.GetData()), tensor.GetShape(), size)
	}
	shape := make([]int, len(tensor.GetShape()))
	for i, extent := range tensor.GetShape() {
		shape[i] = int(extent)
	}
	return shape, nil
}

// product multiplies extents; ok is false if 64 bits do not hold it.
func product(extents []uint32) (count uint64, ok bool) {
	count, ok = 1, true
	for _, extent := range extents {
		if extent == 0 {
			return 0, true
		}
		high, low := bits.Mul64(count, uint64(extent))
		count, ok = low, ok && high == 0
	}
	return count, ok
}

// joined decodes tensors whose bytes were checked, one after the other, into one of this shape.
func joined(parts []*actservev1.Tensor, shape ...int) Tensor {
	count := 0
	for _, part := range parts {
		count += len(part.GetData()) / int(elementSizes[part.GetElementType()])
	}
	data := make([]float32, count)
	rest := data
	for _, part := range parts {
		rest = rest[decode(rest, part):]
	}
	return Tensor{Shape: shape, Data: data}
}

// isLittleEndian says whether this processor keeps numbers as tensors do.
var isLittleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// decode writes the elements of a tensor whose bytes were checked, and returns their number.
func decode(to []float32, tensor *actservev1.Tensor) int {
	from := tensor.GetData()
	switch tensor.GetElementType() {
	case actservev1.ElementType_ELEMENT_TYPE_F32:
		to = to[:len(from)/4]
		if isLittleEndian && len(to) > 0 {
			// Most of what collecting takes, were it done one by one.
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&to[0])), 4*len(to)), from)
			break
		}
		for i := range to {
			to[i] = math.Float32frombits(binary.LittleEndian.Uint32(from[4*i:]))
		}
	case actservev1.ElementType_ELEMENT_TYPE_BF16:
		to = to[:len(from)/2]
		for i := range to {
			to[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(from[2*i:])) << 16)
		}
	case actservev1.ElementType_ELEMENT_TYPE_F16:
		to = to[:len(from)/2]
		for i := range to {
			to[i] = fromFloat16(binary.LittleEndian.Uint16(from[2*i:]))
		}
	}
	return len(to)
}

// fromFloat16 returns the value of an IEEE 754 binary16.
func fromFloat16(half uint16) float32 {
	sign, exponent, mantissa := uint32(half>>15)<<31, uint32(half>>10)&0x1f, uint32(half)&0x3ff
	switch exponent {
	case 0: // Zero, or a multiple of the smallest subnormal number.
		return math.Float32frombits(sign | math.Float32bits(float32(mantissa)*0x1p-24))
	case 0x1f: // Infinite, or no number.
		return math.Float32frombits(sign | 0xff<<23 | mantissa<<13)
	default:
		return math.Float32frombits(sign | (exponent-15+127)<<23 | mantissa<<13)
	}
}
