//! A call of Generate, put together.

use std::collections::HashSet;

use super::{
    Collector, Stage,
    asked::Asked,
    check_kept, check_prompt, check_started,
    scores::check_scores,
    sequence::{Chunk, Sequence, reports, unasked},
};
use crate::{
    Error, Readouts, Result,
    v1::{
        Alert, GenerateRequest, InterventionReport, MonitorInterventions, MonitorScore,
        SampleFinished, ScoreDetail, TokenChunk, TokenLogprobs, TokenizedPrompt, Usage,
        generate_response::Event, sample_finished::StoppedBy,
    },
};

/// What was generated.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The server's id of the call.
    pub call_id: String,
    /// The prompt as the model sees it.
    pub prompt: TokenizedPrompt,
    /// The samples, as many as the request asks for.
    pub samples: Vec<Sample>,
    /// What the call consumed.
    pub usage: Usage,
}

/// One sample.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The text of the output.
    pub text: String,
    /// The ids of the generated tokens.
    pub token_ids: Vec<u32>,
    /// Those tokens, each decoded alone.
    pub token_texts: Vec<String>,
    /// Their log probabilities, one for each token; empty unless asked.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended: a [`FinishReason`](crate::v1::FinishReason), or a number that is newer than
    /// this client.
    pub finish_reason: i32,
    /// What stopped it, if something did.
    pub stopped_by: Option<StoppedBy>,
    /// Those that monitors have the call told of, as they were raised.
    pub alerts: Vec<Alert>,
    /// Of the monitors that watched it, as the request asks. The scores as of each token become an
    /// [`Array`](crate::Array).
    pub monitor_scores: Vec<MonitorScore>,
    /// What monitors changed, an entry for each level that came to intervene, in the order in which
    /// they began to.
    pub monitor_interventions: Vec<MonitorInterventions>,
    /// What was read of it, of the prompt and the generated tokens together.
    pub readouts: Readouts,
    /// What each intervention did, in the order of the request.
    pub interventions: Vec<InterventionReport>,
}

pub(crate) struct GenerateCollector {
    asked: Vec<Asked>,
    interventions: usize,
    samples: u32,
    logprobs: bool,
    monitors: Vec<String>,
    score_detail: ScoreDetail,
    stage: Stage,
    call_id: String,
    prompt: TokenizedPrompt,
    /// In the order of their indices; of one that is over, `None` and the sample.
    open: Vec<(Option<Sequence>, Sample)>,
    usage: Usage,
}

impl GenerateCollector {
    pub(crate) fn new(request: &GenerateRequest) -> Result<Self> {
        let sampling = request.sampling.clone().unwrap_or_default();
        Ok(Self {
            asked: Asked::of(&request.readouts)?,
            interventions: request.interventions.len(),
            samples: sampling.samples.unwrap_or(1),
            logprobs: sampling.logprobs.is_some(),
            monitors: request.monitors.clone(),
            score_detail: request.score_detail(),
            stage: Stage::Opening,
            call_id: String::new(),
            prompt: TokenizedPrompt::default(),
            open: vec![],
            usage: Usage::default(),
        })
    }

    fn opened(&mut self, index: u32) -> Result<(&[Asked], &mut Sequence, &mut Sample)> {
        match self.open.get_mut(index as usize) {
            Some((Some(sequence), sample)) => Ok((&self.asked, sequence, sample)),
            _ => Err(unasked(&format!("a part of sample {index}, which is not open,"))),
        }
    }

    fn add_chunk(&mut self, index: u32, chunk: Chunk<'_>) -> Result<()> {
        let (asked, sequence, _) = self.opened(index)?;
        sequence.add(asked, chunk)
    }

    fn add_tokens(&mut self, chunk: TokenChunk) -> Result<()> {
        let (prompt, logprobs) = (self.prompt.ids.len(), self.logprobs);
        let (_, _, sample) = self.opened(chunk.sample_index)?;
        let next = prompt + sample.token_ids.len();
        let count = chunk.ids.len();
        let wanted_logprobs = if logprobs { count } else { 0 };
        if chunk.position as usize != next
            || chunk.texts.len() != count
            || chunk.logprobs.len() != wanted_logprobs
        {
            return Err(Error::bad_response(format!(
                "the server sent {count} tokens, {} texts and {} log probabilities at position {}, \
                 but the next position is {next}",
                chunk.texts.len(),
                chunk.logprobs.len(),
                chunk.position
            )));
        }
        sample.text.push_str(&chunk.text);
        sample.token_ids.extend(chunk.ids);
        sample.token_texts.extend(chunk.texts);
        sample.logprobs.extend(chunk.logprobs);
        Ok(())
    }

    fn close(&mut self, finished: SampleFinished) -> Result<()> {
        let index = finished.sample_index as usize;
        self.opened(finished.sample_index)?;
        check_kept(&finished.kept, finished.sample_index)?;
        let (sequence, sample) = &mut self.open[index];
        let Some(sequence) = sequence.take() else { return Ok(()) };
        // The last generated token is never run.
        let run = self.prompt.ids.len() + sample.token_ids.len().saturating_sub(1);
        sample.readouts = sequence.finish(&self.asked, &finished.positions, &finished.kept, run)?;
        sample.interventions = reports(finished.interventions, self.interventions)?;
        sample.finish_reason = finished.reason;
        sample.stopped_by = finished.stopped_by;
        sample.monitor_scores = finished.monitor_scores;
        sample.monitor_interventions = finished.monitor_interventions;
        self.check_scores(index)
    }

    /// Checks that scores were asked for, and are there of every monitor that the request names.
    fn check_scores(&self, index: usize) -> Result<()> {
        let scores = &self.open[index].1.monitor_scores;
        let asked = self.score_detail != ScoreDetail::Unspecified;
        let scored: HashSet<_> = scores.iter().map(|score| &score.monitor).collect();
        if scored.len() < scores.len() || (!asked && !scores.is_empty()) {
            return Err(unasked("scores of monitors"));
        }
        if asked && let Some(missing) = self.monitors.iter().find(|name| !scored.contains(name)) {
            return Err(Error::bad_response(format!("the server sent no score of {missing}")));
        }
        check_scores(scores, self.score_detail == ScoreDetail::Token)
    }
}

impl Collector for GenerateCollector {
    type Event = Event;
    type Collected = Generated;

    fn add(&mut self, event: Event) -> Result<()> {
        match &event {
            Event::Started(_) => self.stage.start()?,
            Event::Finished(_) => self.stage.finish()?,
            _ => self.stage.go_on()?,
        }
        match event {
            Event::Started(started) => {
                check_started(&self.asked, &started.readouts)?;
                self.call_id = started.call_id;
                self.prompt = started
                    .prompt
                    .ok_or_else(|| Error::bad_response("the server sent no prompt"))?;
                check_prompt(&self.prompt, false)?;
                let sequence = || Some(Sequence::new(&self.asked, &started.readouts, &[]));
                self.open = (0..self.samples).map(|_| (sequence(), Sample::default())).collect();
                Ok(())
            }
            Event::Tokens(chunk) => self.add_tokens(chunk),
            Event::Activations(chunk) => self.add_chunk(chunk.sequence_index, Chunk::Rows(&chunk)),
            Event::Predictions(chunk) => {
                self.add_chunk(chunk.sequence_index, Chunk::Predictions(&chunk))
            }
            Event::Attention(chunk) => {
                self.add_chunk(chunk.sequence_index, Chunk::Attention(&chunk))
            }
            Event::AttentionSummary(chunk) => {
                self.add_chunk(chunk.sequence_index, Chunk::AttentionSummary(&chunk))
            }
            Event::LogitAttribution(chunk) => {
                self.add_chunk(chunk.sequence_index, Chunk::LogitAttribution(&chunk))
            }
            Event::SampleFinished(finished) => self.close(finished),
            Event::Finished(finished) => {
                self.usage = finished.usage.unwrap_or_default();
                Ok(())
            }
            Event::Alert(alert) => {
                self.opened(alert.sample_index)?.2.alerts.push(alert);
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Generated> {
        self.stage.check_finished()?;
        if let Some(index) = self.open.iter().position(|(sequence, _)| sequence.is_some()) {
            return Err(Error::bad_response(format!("the server finished without sample {index}")));
        }
        Ok(Generated {
            call_id: self.call_id,
            prompt: self.prompt,
            samples: self.open.into_iter().map(|(_, sample)| sample).collect(),
            usage: self.usage,
        })
    }
}
