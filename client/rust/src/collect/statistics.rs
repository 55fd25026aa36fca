//! How rows are distributed, by label, put together from its parts.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use super::{
    asked::{Asked, AskedKind},
    sequence::unasked,
};
use crate::{
    Array, Error, Result, tensor,
    v1::{self, FetchItem, ReadoutPositions, ReadoutStarted},
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
    /// The labels of the request.
    labels: BTreeSet<String>,
    /// Readouts and labels that have rows.
    expected: BTreeSet<(u32, String)>,
    /// By readout, site and label.
    parts: BTreeMap<(u32, u32, String), Part>,
}

struct Part {
    rows: u64,
    mean: Array,
    width: usize,
    second_moments: Vec<f32>,
}

/// What all rows of an item count towards: its label, the empty one where it has no label at all,
/// and `None` where only some of its positions have labels.
pub(super) fn label_of_all(item: &FetchItem) -> Option<&str> {
    let has_one = !item.label.is_empty() || item.position_labels.is_empty();
    has_one.then_some(&item.label)
}

impl Statistics {
    pub(super) fn of(asked: &[Asked], items: &[FetchItem]) -> Self {
        let asked = asked.iter().map(|asked| match &asked.kind {
            AskedKind::Statistics { sites, full } => {
                Some((asked.name.clone(), sites.clone(), *full))
            }
            _ => None,
        });
        let labels = items.iter().flat_map(|item| {
            let of_positions = item.position_labels.iter().map(|each| &each.label);
            of_positions.map(String::as_str).chain(label_of_all(item))
        });
        Self {
            asked: asked.collect(),
            labels: labels.map(str::to_owned).collect(),
            expected: BTreeSet::new(),
            parts: BTreeMap::new(),
        }
    }

    /// An item of a label has succeeded, whose readouts have read at these positions.
    pub(super) fn expect(&mut self, positions: &[ReadoutPositions], label: &str) {
        let read = positions.iter().filter(|each| !each.positions.is_empty());
        for &index in read.flat_map(|each| &each.readout_indices) {
            if self.asked[index as usize].is_some() {
                self.expected.insert((index, label.to_owned()));
            }
        }
    }

    pub(super) fn add(
        &mut self,
        started: &[ReadoutStarted],
        sent: &v1::LabelStatistics,
    ) -> Result<()> {
        let readout = self.asked.get(sent.readout_index as usize).and_then(Option::as_ref);
        let Some((_, sites, full)) = readout.filter(|(_, sites, _)| {
            (sent.site_index as usize) < sites.len() && self.labels.contains(&sent.label)
        }) else {
            return Err(unasked(&format!("statistics of {:?}", sent.label)));
        };
        // One width for each site was checked when the readout was opened.
        let width = started[sent.readout_index as usize].widths[sent.site_index as usize] as usize;
        let what = format!("statistics of {:?} at {}", sent.label, sites[sent.site_index as usize]);
        let full = *full;
        let of = (sent.readout_index, sent.site_index, sent.label.clone());
        let part = match self.parts.entry(of) {
            Entry::Occupied(part) => part.into_mut(),
            Entry::Vacant(place) => {
                let mean = sent.mean.as_ref().map(Array::try_from).transpose()?.unwrap_or_default();
                if mean.shape() != [width] || sent.rows == 0 {
                    return Err(Error::bad_response(format!(
                        "the server sent {what} of {} rows with a mean of shape {:?}, not {width}",
                        sent.rows,
                        mean.shape()
                    )));
                }
                place.insert(Part { rows: sent.rows, mean, width, second_moments: vec![] })
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
        for (readout, label) in self.expected {
            let sites = asked[readout as usize].as_ref().map_or(0, |(_, sites, _)| sites.len());
            for site in 0..sites as u32 {
                if !self.parts.contains_key(&(readout, site, label.clone())) {
                    return Err(Error::bad_response(format!(
                        "the statistics of {label:?} at site {site} of readout {readout} are missing"
                    )));
                }
            }
        }
        let parts = self.parts.into_iter().map(|((readout, site, label), part)| {
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
