//! A sweep, put together over all its attempts.

use std::collections::BTreeMap;

use super::{Collector, Stage, sequence::unasked};
use crate::{
    Error, Result,
    v1::{RunSweepRequest, SweepCell, SweepStarted, Usage, run_sweep_response::Event},
};

/// What came of a sweep.
#[derive(Clone, Debug)]
pub struct Swept {
    /// The server's id of the call; of the last one if the connection was lost meanwhile.
    pub call_id: String,
    /// The cells, in the order of the request: by prompt, variant, coefficient, site and position,
    /// the last of which varies first. Those that a `resume_token` of the request stands for are
    /// left out.
    pub cells: Vec<SweptCell>,
    /// What the call consumed; the last one if the connection was lost meanwhile.
    pub usage: Usage,
}

/// What came of one prompt under one variant, at one point of its grid.
#[derive(Clone, Debug)]
pub struct SweptCell {
    /// Where in the request it is, and what came of it.
    pub cell: SweepCell,
    /// Why the cell failed; `None` if it was served.
    pub error: Option<Error>,
}

/// What the cells of a sweep are checked against.
struct Variant {
    /// How many cells of the same prompt are before those of this variant.
    first: u64,
    coefficients: usize,
    sites: usize,
    positions: usize,
    interventions: usize,
}

pub(crate) struct SweepCollector {
    prompts: usize,
    variants: Vec<Variant>,
    /// Cells of each prompt.
    per_prompt: u64,
    answers: usize,
    scores: usize,
    resume_token: Vec<u8>,
    /// How many cells the caller has; known with the first `started`.
    skipped: Option<u64>,
    stage: Stage,
    started: SweepStarted,
    /// By their place in the order of the request.
    cells: BTreeMap<u64, SweptCell>,
    usage: Usage,
}

impl From<&RunSweepRequest> for SweepCollector {
    fn from(request: &RunSweepRequest) -> Self {
        let mut per_prompt = 0;
        let mut variants = vec![];
        for variant in &request.variants {
            let variant = Variant {
                first: per_prompt,
                coefficients: variant.coefficients.len(),
                sites: variant.sites.len(),
                positions: variant.positions.len(),
                interventions: variant.interventions.len(),
            };
            let points = variant.lists().map(|(_, size)| size.max(1) as u64);
            per_prompt += points.iter().product::<u64>();
            variants.push(variant);
        }
        Self {
            prompts: request.prompts.len(),
            variants,
            per_prompt,
            answers: request.answers.len(),
            scores: request.scores.len(),
            resume_token: request.resume_token.clone(),
            skipped: request.resume_token.is_empty().then_some(0),
            stage: Stage::Opening,
            started: SweepStarted::default(),
            cells: BTreeMap::new(),
            usage: Usage::default(),
        }
    }
}

impl Variant {
    fn lists(&self) -> [(&'static str, usize); 3] {
        [("coefficients", self.coefficients), ("sites", self.sites), ("positions", self.positions)]
    }

    /// How many cells of the same prompt are before this one.
    fn place(&self, cell: &SweepCell) -> Result<u64> {
        let indices = [cell.coefficient_index, cell.site_index, cell.position_index];
        let mut point = 0;
        for ((list, size), index) in self.lists().into_iter().zip(indices) {
            match index {
                None if size == 0 => {}
                Some(index) if (index as usize) < size => {
                    point = point * size as u64 + u64::from(index);
                }
                _ => {
                    return Err(Error::bad_response(format!(
                        "the server sent a cell of variant {} that is at none of its {size} {list}",
                        cell.variant_index
                    )));
                }
            }
        }
        Ok(self.first + point)
    }
}

impl SweepCollector {
    /// How many cells have come.
    pub(crate) fn come(&self) -> usize {
        self.cells.len()
    }

    /// Begins an attempt, which has to have this `resume_token`.
    pub(crate) fn begin(&mut self) -> Vec<u8> {
        self.stage = Stage::Opening;
        self.resume_token.clone()
    }

    fn start(&mut self, started: SweepStarted) -> Result<()> {
        let asked = self.prompts as u64 * self.per_prompt;
        let (cells, skipped) = (u64::from(started.cells), u64::from(started.skipped_cells));
        let have = *self.skipped.get_or_insert(skipped) + self.cells.len() as u64;
        if cells != asked || skipped != have {
            return Err(Error::bad_response(format!(
                "the server runs {cells} cells and skips {skipped}, but {asked} were asked for and \
                 {have} have come"
            )));
        }
        self.started = started;
        Ok(())
    }

    fn add_cell(&mut self, cell: SweepCell) -> Result<()> {
        let (prompt, variant) = (cell.prompt_index, cell.variant_index);
        let variant = self
            .variants
            .get(variant as usize)
            .filter(|_| (prompt as usize) < self.prompts)
            .ok_or_else(|| unasked(&format!("a cell of prompt {prompt} and variant {variant}")))?;
        let place = u64::from(prompt) * self.per_prompt + variant.place(&cell)?;
        if self.cells.contains_key(&place) {
            return Err(unasked(&format!("the cell {place}")));
        }
        let failure = cell.status.as_ref().filter(|status| status.code != 0);
        let error = failure.map(|status| Error::of_item(status, &self.started.call_id));
        if error.is_none() {
            let sent =
                [cell.answer_logprobs.len(), cell.score_values.len(), cell.interventions.len()];
            let asked = [self.answers, self.scores, variant.interventions];
            if sent != asked {
                return Err(Error::bad_response(format!(
                    "the server sent a cell with {sent:?} answers, scores and reports, but {asked:?} \
                     were asked for"
                )));
            }
        }
        self.resume_token.clone_from(&cell.resume_token);
        self.cells.insert(place, SweptCell { cell, error });
        Ok(())
    }
}

impl Collector for SweepCollector {
    type Event = Event;
    type Collected = Swept;

    fn add(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Started(started) => {
                self.stage.start()?;
                self.start(started)
            }
            Event::Cell(cell) => {
                self.stage.go_on()?;
                self.add_cell(cell)
            }
            Event::Finished(finished) => {
                self.stage.finish()?;
                self.usage = finished.usage.unwrap_or_default();
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Swept> {
        self.stage.check_finished()?;
        let have = self.skipped.unwrap_or_default() + self.cells.len() as u64;
        if have != u64::from(self.started.cells) {
            return Err(Error::bad_response(format!(
                "the server finished with {have} cells of {}",
                self.started.cells
            )));
        }
        Ok(Swept {
            call_id: self.started.call_id,
            cells: self.cells.into_values().collect(),
            usage: self.usage,
        })
    }
}
