//! Tensors on the wire, and as float32 arrays.

use bytes::Bytes;

use crate::{
    Error, Result,
    v1::{ElementType, Tensor},
};

/// A dense float32 array, its last axis innermost.
///
/// Of rows the shape is `[rows, width]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Array {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Array {
    /// An array of some extents, outermost first. Refuses any number of elements but their product.
    pub fn new(shape: impl Into<Vec<usize>>, data: impl Into<Vec<f32>>) -> Result<Self> {
        let (shape, data) = (shape.into(), data.into());
        if count(&shape) != Some(data.len()) {
            return Err(Error::invalid(
                "TENSOR_SIZE_MISMATCH",
                format!(
                    "{} numbers do not fill an array of shape {shape:?}; give as many as the \
                     product of its extents",
                    data.len()
                ),
            ));
        }
        Ok(Self { shape, data })
    }

    /// The extent of each axis, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Every element, the last axis innermost.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The elements at an index of the outermost axis: one row of `[rows, width]`.
    ///
    /// # Panics
    ///
    /// If there is no such row, as indexing a slice does.
    pub fn row(&self, index: usize) -> &[f32] {
        let rows = self.shape.first().copied().unwrap_or_default();
        assert!(index < rows, "row {index} of {rows} rows");
        let width = self.data.len() / rows;
        &self.data[index * width..][..width]
    }

    /// Every row, as [`row`](Self::row) has it.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        (0..self.shape.first().copied().unwrap_or_default()).map(|index| self.row(index))
    }

    /// The elements alone.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// The same array as one of `ndarray`.
    #[cfg(feature = "ndarray")]
    pub fn to_ndarray(&self) -> ndarray::ArrayD<f32> {
        ndarray::ArrayD::from_shape_vec(self.shape.clone(), self.data.clone())
            .expect("an array has as many elements as its shape says")
    }

    /// An array of `ndarray`, copied.
    #[cfg(feature = "ndarray")]
    pub fn from_ndarray<D: ndarray::Dimension>(array: &ndarray::ArrayRef<f32, D>) -> Self {
        Self { shape: array.shape().to_vec(), data: array.iter().copied().collect() }
    }

    /// Rows that were joined from chunks, each of which was checked.
    pub(crate) fn of_rows(rows: usize, row: &[usize], data: Vec<f32>) -> Self {
        let shape: Vec<_> = std::iter::once(rows).chain(row.iter().copied()).collect();
        debug_assert_eq!(count(&shape), Some(data.len()));
        Self { shape, data }
    }
}

/// The product of the extents; `None` if it overflows.
fn count(shape: &[usize]) -> Option<usize> {
    // A zero anywhere is no elements, however large the others are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent))
}

impl From<&Array> for Tensor {
    /// As it is sent: float32, bit for bit.
    fn from(array: &Array) -> Self {
        f32_tensor(array.shape.iter().map(|&extent| extent as u32).collect(), &array.data)
    }
}

impl From<&[f32]> for Tensor {
    /// A vector, of shape `[width]`.
    fn from(vector: &[f32]) -> Self {
        f32_tensor(vec![vector.len() as u32], vector)
    }
}

fn f32_tensor(shape: Vec<u32>, values: &[f32]) -> Tensor {
    let mut data = Vec::with_capacity(values.len() * 4);
    data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    Tensor { element_type: ElementType::F32.into(), shape, data: Bytes::from(data) }
}

impl TryFrom<&Tensor> for Array {
    type Error = Error;

    /// The numbers of a tensor, exactly. An unknown element type, or bytes that do not match the
    /// shape, is a `BAD_RESPONSE`.
    fn try_from(tensor: &Tensor) -> Result<Self> {
        let shape = shape(tensor)?;
        let mut data = Vec::new();
        append(tensor, &mut data)?;
        Ok(Self { shape, data })
    }
}

/// The shape of a tensor, whose bytes have been found to match it.
pub(crate) fn shape(tensor: &Tensor) -> Result<Vec<usize>> {
    let size = size_of_element(tensor)?;
    let shape: Vec<usize> = tensor.shape.iter().map(|&extent| extent as usize).collect();
    // Nothing is allocated by the shape: it is only compared with the bytes that are there.
    let expected = count(&shape).and_then(|count| count.checked_mul(size));
    if expected != Some(tensor.data.len()) {
        return Err(Error::bad_response(format!(
            "the server sent {} bytes for a tensor of shape {shape:?} with {size} bytes for each \
             element",
            tensor.data.len()
        )));
    }
    Ok(shape)
}

fn size_of_element(tensor: &Tensor) -> Result<usize> {
    match ElementType::try_from(tensor.element_type) {
        Ok(ElementType::F32) => Ok(4),
        Ok(ElementType::F16 | ElementType::Bf16) => Ok(2),
        Ok(ElementType::Unspecified) | Err(_) => Err(Error::bad_response(format!(
            "the server sent element type {}, which this client does not know; upgrade the client",
            tensor.element_type
        ))),
    }
}

/// Appends the numbers of a tensor.
pub(crate) fn append(tensor: &Tensor, values: &mut Vec<f32>) -> Result<()> {
    let words = || tensor.data.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
    match tensor.element_type() {
        ElementType::F32 => values.extend(
            tensor
                .data
                .chunks_exact(4)
                .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])),
        ),
        ElementType::Bf16 => {
            values.extend(words().map(|word| f32::from_bits(u32::from(word) << 16)));
        }
        ElementType::F16 => values.extend(words().map(f32_of_f16)),
        ElementType::Unspecified => {
            size_of_element(tensor)?;
        }
    }
    Ok(())
}

/// IEEE 754 binary16, widened exactly.
fn f32_of_f16(word: u16) -> f32 {
    let sign = u32::from(word & 0x8000) << 16;
    let (exponent, fraction) = (u32::from(word >> 10) & 0x1f, u32::from(word) & 0x3ff);
    match exponent {
        // Zero or subnormal: `fraction` times 2^-24, which float32 has exactly.
        0 => {
            let size = fraction as f32 * f32::from_bits((127 - 24) << 23);
            f32::from_bits(size.to_bits() | sign)
        }
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13),
    }
}

#[cfg(all(test, feature = "ndarray"))]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_ndarray_come_back_as_they_were() {
        let array = ndarray::arr2(&[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        // In another order of memory, too.
        let turned = Array::from_ndarray(&array.t());
        assert_eq!(turned.shape(), [3, 2]);
        assert_eq!(turned.data(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(Array::from_ndarray(&turned.to_ndarray()), turned);
    }
}
