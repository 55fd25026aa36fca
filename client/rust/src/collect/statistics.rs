//! How rows are distributed, by label, put together from its parts.

use super::{
    asked::{Asked, AskedKind},
    sequence::unasked,
};
use crate::{
    Array, Error, Result, tensor,
    v1::{self, ReadoutStarted},
};

/// How the rows of one label at one site are distributed, over all items that did not fail.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelStatistics {
    /// The name of the readout.
    pub readout: String,
    /// The site, as it is written.
    pub site: String,
    /// The label.
    pub label: String,
    /// How many rows there are.
    pub rows: u64,
    /// Their mean, `[width]`.
    pub mean: Array,
    /// The variance of each element, `[width]`, or the covariance matrix, `[width, width]`, about
    /// the mean and divided by the number of rows.
    pub second_moments: Array,
}

pub(super) struct Statistics {
    /// By readout: its name, its sites and whether covariances come, if statistics were asked.
    asked: Vec<Option<(String, Vec<String>, bool)>>,
    parts: Vec<Part>,
}

struct Part {
    /// Readout, site and label.
    of: (u32, u32, String),
    rows: u64,
    mean: Array,
    width: usize,
    second_moments: Vec<f32>,
}

impl Statistics {
    pub(super) fn of(asked: &[Asked]) -> Self {
        let asked = asked.iter().map(|asked| match &asked.kind {
            AskedKind::Statistics { sites, full } => {
                Some((asked.name.clone(), sites.clone(), *full))
            }
            _ => None,
        });
        Self { asked: asked.collect(), parts: vec![] }
    }

    pub(super) fn add(
        &mut self,
        started: &[ReadoutStarted],
        sent: &v1::LabelStatistics,
    ) -> Result<()> {
        let readout = self.asked.get(sent.readout_index as usize).and_then(Option::as_ref);
        let Some((_, sites, full)) =
            readout.filter(|(_, sites, _)| (sent.site_index as usize) < sites.len())
        else {
            return Err(unasked(&format!("statistics of {:?}", sent.label)));
        };
        // One width for each site was checked when the readout was opened.
        let width = started[sent.readout_index as usize].widths[sent.site_index as usize] as usize;
        let what = format!("statistics of {:?} at {}", sent.label, sites[sent.site_index as usize]);
        let full = *full;
        let of = (sent.readout_index, sent.site_index, sent.label.clone());
        let part = match self.parts.iter().position(|part| part.of == of) {
            Some(index) => &mut self.parts[index],
            None => {
                let mean = sent.mean.as_ref().map(Array::try_from).transpose()?.unwrap_or_default();
                if mean.shape() != [width] || sent.rows == 0 {
                    return Err(Error::bad_response(format!(
                        "the server sent {what} of {} rows with a mean of shape {:?}, not {width}",
                        sent.rows,
                        mean.shape()
                    )));
                }
                self.parts.push(Part { of, rows: sent.rows, mean, width, second_moments: vec![] });
                self.parts.last_mut().expect("one was just added")
            }
        };
        let moments = sent.second_moments.clone().unwrap_or_default();
        let shape = tensor::shape(&moments)?;
        let rows_before = part.second_moments.len() / width.max(1);
        let fits = match (full, &shape[..]) {
            (false, [columns]) => part.second_moments.is_empty() && *columns == width,
            (true, [_, columns]) => *columns == width && sent.first_row as usize == rows_before,
            _ => false,
        };
        if !fits || part.rows != sent.rows {
            return Err(Error::bad_response(format!(
                "the server sent {what} with second moments of shape {shape:?} from row {} on, but \
                 {rows_before} rows of width {width} are here",
                sent.first_row
            )));
        }
        tensor::append(&moments, &mut part.second_moments)
    }

    pub(super) fn finish(self) -> Result<Vec<LabelStatistics>> {
        let asked = &self.asked;
        let parts = self.parts.into_iter().map(|part| {
            let (readout, site, label) = part.of;
            let (name, sites, full) =
                asked[readout as usize].as_ref().expect("only what was asked is added");
            let shape = if *full { vec![part.width; 2] } else { vec![part.width] };
            let moments = Array::new(shape, part.second_moments).map_err(|_| {
                Error::bad_response(format!("rows of the covariance of {label:?} are missing"))
            })?;
            Ok(LabelStatistics {
                readout: name.clone(),
                site: sites[site as usize].clone(),
                label,
                rows: part.rows,
                mean: part.mean,
                second_moments: moments,
            })
        });
        parts.collect()
    }
}
