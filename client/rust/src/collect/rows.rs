//! Rows of one place, joined from the chunks that they came in.

use crate::{Array, Error, Result, tensor, v1::Tensor};

/// What has come of one site or head of one sequence.
#[derive(Default)]
pub(super) struct Joined {
    positions: Vec<u32>,
    columns: Vec<Column>,
}

/// One tensor of each chunk, joined along its rows.
#[derive(Default)]
struct Column {
    row: Option<Vec<usize>>,
    values: Vec<f32>,
}

impl Joined {
    /// Takes the positions of a chunk, which come after those that are here.
    pub(super) fn add_positions(&mut self, positions: &[u32], what: &str) -> Result<()> {
        for &position in positions {
            if self.positions.last().is_some_and(|&last| last >= position) {
                return Err(Error::bad_response(format!(
                    "the server sent {what} of position {position} twice or out of order"
                )));
            }
            self.positions.push(position);
        }
        Ok(())
    }

    /// Takes one tensor of a chunk of `rows` rows. All of a column have rows of one shape.
    pub(super) fn add(
        &mut self,
        column: usize,
        tensor: Option<&Tensor>,
        rows: usize,
        row: &[usize],
        what: &str,
    ) -> Result<()> {
        if self.columns.len() <= column {
            self.columns.resize_with(column + 1, Column::default);
        }
        let column = &mut self.columns[column];
        let expected: Vec<usize> = std::iter::once(rows).chain(row.iter().copied()).collect();
        let shape = match tensor {
            Some(tensor) => tensor::shape(tensor)?,
            // One without elements may be left out.
            None if expected.contains(&0) => expected.clone(),
            None => vec![],
        };
        if shape != expected || column.row.as_ref().is_some_and(|known| known != row) {
            return Err(Error::bad_response(format!(
                "the server sent {what} in shape {shape:?}, not {expected:?}"
            )));
        }
        column.row.get_or_insert_with(|| row.to_vec());
        match tensor {
            Some(tensor) => tensor::append(tensor, &mut column.values),
            None => Ok(()),
        }
    }

    /// The shape of the rows of a column so far, if one has come.
    pub(super) fn row(&self, column: usize) -> Option<&[usize]> {
        self.columns.get(column)?.row.as_deref()
    }

    /// Refuses to go on unless these are the positions that came.
    pub(super) fn check(&self, promised: &[u32], what: &str) -> Result<()> {
        if self.positions == promised {
            return Ok(());
        }
        // Both ascend.
        let missing =
            promised.iter().find(|position| self.positions.binary_search(position).is_err());
        Err(Error::bad_response(match missing {
            Some(position) => format!("{what} of position {position} are missing"),
            None => format!("the server sent {what} of positions that it did not announce"),
        }))
    }

    pub(super) fn take_positions(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.positions)
    }

    /// A column, whole; `row` is the shape of a row where no chunk has come.
    pub(super) fn take(&mut self, column: usize, rows: usize, row: &[usize]) -> Array {
        match self.columns.get_mut(column) {
            Some(Column { row: Some(row), values }) => {
                Array::of_rows(rows, row, std::mem::take(values))
            }
            _ => Array::of_rows(rows, row, vec![]),
        }
    }
}
