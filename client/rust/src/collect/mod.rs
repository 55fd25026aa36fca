//! Streams put together: an answer is whole, or it is an error.

mod asked;
mod attention;
mod explain;
mod fetch;
mod generate;
mod graph;
mod heads;
mod replay;
mod rows;
mod scores;
mod sequence;
mod statistics;
mod sweep;

pub use explain::{Explained, Reconstructed};
pub use fetch::{Fetched, FetchedItem, Item};
pub use generate::{Generated, Sample};
pub use graph::Graph;
pub use heads::{HeadPattern, Measured, MeasuredHeads, MeasuredPrompt};
pub use replay::{Replayed, ReplayedItem};
pub use statistics::LabelStatistics;
pub use sweep::{Swept, SweptCell};

pub(crate) use explain::{ExplainCollector, ReconstructCollector};
pub(crate) use fetch::FetchCollector;
pub(crate) use generate::GenerateCollector;
pub(crate) use graph::GraphCollector;
pub(crate) use heads::HeadsCollector;
pub(crate) use replay::ReplayCollector;
pub(crate) use sweep::SweepCollector;

use asked::Asked;

use crate::{
    Error, Incoming, Result,
    v1::{KeptReadout, ReadoutStarted, TokenizedPrompt},
};

/// Puts the events of one call together.
pub(crate) trait Collector {
    type Event;
    type Collected;

    fn add(&mut self, event: Self::Event) -> Result<()>;

    /// The whole, if it is that.
    fn finish(self) -> Result<Self::Collected>;
}

/// Puts a stream together; `event` takes the event out of each response.
pub(crate) async fn collect<R, C: Collector>(
    responses: Incoming<R>,
    event: impl Fn(R) -> Option<C::Event>,
    mut collector: C,
) -> Result<C::Collected> {
    read(responses, event, &mut collector).await?;
    collector.finish()
}

/// Reads a stream to its end.
pub(crate) async fn read<R, C: Collector>(
    mut responses: Incoming<R>,
    event: impl Fn(R) -> Option<C::Event>,
    collector: &mut C,
) -> Result<()> {
    while let Some(response) = responses.try_next().await? {
        // An event of a newer server is none here, and skipped, as the contract says.
        if let Some(event) = event(response) {
            collector.add(event)?;
        }
    }
    Ok(())
}

/// How far a stream has come.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Opening,
    Open,
    Finished,
}

impl Stage {
    /// `started`, which comes first and once.
    fn start(&mut self) -> Result<()> {
        self.step(Self::Opening, Self::Open)
    }

    /// Anything between `started` and `finished`.
    fn go_on(&mut self) -> Result<()> {
        self.step(Self::Open, Self::Open)
    }

    /// `finished`, which comes last.
    fn finish(&mut self) -> Result<()> {
        self.step(Self::Open, Self::Finished)
    }

    fn step(&mut self, from: Self, to: Self) -> Result<()> {
        if *self != from {
            return Err(Error::bad_response(
                "the server sent an event before the first or after the last",
            ));
        }
        *self = to;
        Ok(())
    }

    fn check_finished(self) -> Result<()> {
        if self == Self::Finished { Ok(()) } else { Err(Error::cut_short()) }
    }
}

fn check_started(asked: &[Asked], started: &[ReadoutStarted]) -> Result<()> {
    if started.len() != asked.len() {
        return Err(Error::bad_response(format!(
            "the server opened {} readouts, but {} were asked for",
            started.len(),
            asked.len()
        )));
    }
    asked.iter().zip(started).try_for_each(|(asked, started)| asked.check(started))
}

/// Kept names of a sequence are announced before it runs, and told again at its end.
fn check_kept(kept: &[KeptReadout], sequence: u32) -> Result<()> {
    match kept.iter().find(|each| each.sequence_index != sequence) {
        None => Ok(()),
        Some(other) => Err(Error::bad_response(format!(
            "the server sent a kept name of sequence {} with sequence {sequence}",
            other.sequence_index
        ))),
    }
}

/// `ids_only` is whether the request wanted no texts.
fn check_prompt(prompt: &TokenizedPrompt, ids_only: bool) -> Result<()> {
    let count = prompt.ids.len();
    let (texts, sources) = (prompt.texts.len(), prompt.sources.len());
    if (texts != count && !(ids_only && texts == 0)) || (sources != count && sources != 0) {
        return Err(Error::bad_response(format!(
            "the server sent {texts} texts and {sources} sources for {count} tokens"
        )));
    }
    Ok(())
}
