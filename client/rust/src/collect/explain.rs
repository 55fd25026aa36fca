//! Calls that explain and reconstruct, put together.

use std::collections::BTreeMap;

use super::{
    Collector, Stage, check_prompt,
    rows::Joined,
    sequence::{reports, unasked},
};
use crate::{
    Array, Error, Result,
    v1::{
        CompareActivationsRequest, ExplainActivationsRequest, ExplainSpec, ExplainStarted,
        ExplainTextRequest, Explanation, InterventionReport, ReconstructActivationsRequest, Tensor,
        TokenizedPrompt, Usage, explanation_event::Event, reconstruct_activations_response,
    },
};

/// What was explained.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The server's id of the call.
    pub call_id: String,
    /// The autoencoder that explains.
    pub nla: String,
    /// The prompt as the model sees it; of a text alone.
    pub prompt: Option<TokenizedPrompt>,
    /// The explanations, in the order of row and sample.
    pub explanations: Vec<Explanation>,
    /// What each intervention did, in the order of the request.
    pub interventions: Vec<InterventionReport>,
    /// What the call consumed.
    pub usage: Usage,
}

/// What was reconstructed.
#[derive(Clone, Debug)]
pub struct Reconstructed {
    /// The server's id of the call.
    pub call_id: String,
    /// The autoencoder that reconstructs.
    pub nla: String,
    /// A row for each text, `[texts, width]`, of L2 norm sqrt(width): only its direction has a
    /// meaning.
    pub rows: Array,
    /// What the call consumed.
    pub usage: Usage,
}

pub(crate) struct ExplainCollector {
    /// `None` where the server decides.
    rows: Option<u32>,
    samples: u32,
    best: bool,
    interventions: usize,
    stage: Stage,
    started: ExplainStarted,
    explanations: BTreeMap<(u32, u32), Explanation>,
    reports: Vec<InterventionReport>,
    usage: Usage,
}

impl ExplainCollector {
    fn new(rows: Option<u32>, interventions: usize, spec: Option<&ExplainSpec>) -> Self {
        Self {
            rows,
            samples: spec.and_then(|spec| spec.samples).unwrap_or(1),
            best: spec.is_some_and(|spec| spec.best),
            interventions,
            stage: Stage::Opening,
            started: ExplainStarted::default(),
            explanations: BTreeMap::new(),
            reports: vec![],
            usage: Usage::default(),
        }
    }

    fn open(&self, row: u32, sample: u32) -> Result<()> {
        let is_open = row < self.started.rows
            && sample < self.samples
            && !self.explanations.contains_key(&(row, sample));
        if is_open {
            Ok(())
        } else {
            Err(unasked(&format!("a text of row {row} and sample {sample}")))
        }
    }
}

impl From<&ExplainActivationsRequest> for ExplainCollector {
    fn from(request: &ExplainActivationsRequest) -> Self {
        Self::new(Some(rows(&request.activations)), 0, request.spec.as_ref())
    }
}

impl From<&CompareActivationsRequest> for ExplainCollector {
    fn from(request: &CompareActivationsRequest) -> Self {
        Self::new(Some(rows(&request.activations)), 0, request.spec.as_ref())
    }
}

impl From<&ExplainTextRequest> for ExplainCollector {
    fn from(request: &ExplainTextRequest) -> Self {
        Self::new(None, request.interventions.len(), request.spec.as_ref())
    }
}

fn rows(tensor: &Option<Tensor>) -> u32 {
    tensor.as_ref().and_then(|tensor| tensor.shape.first()).copied().unwrap_or_default()
}

impl Collector for ExplainCollector {
    type Event = Event;
    type Collected = Explained;

    fn add(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Started(started) => {
                self.stage.start()?;
                if let Some(prompt) = &started.prompt {
                    check_prompt(prompt, false)?;
                }
                let of_text = self.rows.is_none();
                if self.rows.is_some_and(|rows| rows != started.rows)
                    || (of_text && started.positions.len() != started.rows as usize)
                {
                    return Err(Error::bad_response(format!(
                        "the server explains {} rows at {} positions, not those asked",
                        started.rows,
                        started.positions.len()
                    )));
                }
                self.started = started;
                Ok(())
            }
            Event::Partial(partial) => {
                self.stage.go_on()?;
                self.open(partial.row_index, partial.sample_index)
            }
            Event::Explanation(explanation) => {
                self.stage.go_on()?;
                let (row, sample) = (explanation.row_index, explanation.sample_index);
                self.open(row, sample)?;
                if self.best && self.explanations.range((row, 0)..=(row, u32::MAX)).next().is_some()
                {
                    return Err(unasked(&format!("a second explanation of row {row} as the best")));
                }
                self.explanations.insert((row, sample), explanation);
                Ok(())
            }
            Event::Finished(finished) => {
                self.stage.finish()?;
                self.reports = reports(finished.interventions, self.interventions)?;
                self.usage = finished.usage.unwrap_or_default();
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Explained> {
        self.stage.check_finished()?;
        let each = if self.best { 1 } else { u64::from(self.samples) };
        let wanted = u64::from(self.started.rows) * each;
        // Each is of a row and sample that may be, and of one once.
        if self.explanations.len() as u64 != wanted {
            return Err(Error::bad_response(format!(
                "the server finished with {} explanations, but {wanted} were asked for",
                self.explanations.len()
            )));
        }
        Ok(Explained {
            call_id: self.started.call_id,
            nla: self.started.nla,
            prompt: self.started.prompt,
            explanations: self.explanations.into_values().collect(),
            interventions: self.reports,
            usage: self.usage,
        })
    }
}

pub(crate) struct ReconstructCollector {
    texts: usize,
    stage: Stage,
    call_id: String,
    nla: String,
    width: usize,
    received: usize,
    rows: Joined,
    usage: Usage,
}

impl From<&ReconstructActivationsRequest> for ReconstructCollector {
    fn from(request: &ReconstructActivationsRequest) -> Self {
        Self {
            texts: request.texts.len(),
            stage: Stage::Opening,
            call_id: String::new(),
            nla: String::new(),
            width: 0,
            received: 0,
            rows: Joined::default(),
            usage: Usage::default(),
        }
    }
}

impl Collector for ReconstructCollector {
    type Event = reconstruct_activations_response::Event;
    type Collected = Reconstructed;

    fn add(&mut self, event: Self::Event) -> Result<()> {
        use reconstruct_activations_response::Event;
        match event {
            Event::Started(started) => {
                self.stage.start()?;
                if started.rows as usize != self.texts {
                    return Err(Error::bad_response(format!(
                        "the server opened {} rows for {} texts",
                        started.rows, self.texts
                    )));
                }
                self.call_id = started.call_id;
                self.nla = started.nla;
                self.width = started.width as usize;
                Ok(())
            }
            Event::Rows(sent) => {
                self.stage.go_on()?;
                let rows = rows(&sent.rows) as usize;
                if sent.first_index as usize != self.received || rows > self.texts - self.received {
                    return Err(unasked(&format!("{rows} rows from text {} on", sent.first_index)));
                }
                self.received += rows;
                self.rows.add(0, sent.rows.as_ref(), rows, &[self.width], "rows")
            }
            Event::Finished(finished) => {
                self.stage.finish()?;
                self.usage = finished.usage.unwrap_or_default();
                Ok(())
            }
        }
    }

    fn finish(mut self) -> Result<Reconstructed> {
        self.stage.check_finished()?;
        if self.received != self.texts {
            return Err(Error::bad_response(format!(
                "the server finished with {} rows for {} texts",
                self.received, self.texts
            )));
        }
        Ok(Reconstructed {
            call_id: self.call_id,
            nla: self.nla,
            rows: self.rows.take(0, self.texts, &[self.width]),
            usage: self.usage,
        })
    }
}
