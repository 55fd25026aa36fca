//! A call of FetchActivations, put together.

use std::collections::BTreeMap;

use super::{
    Collector, Stage,
    asked::Asked,
    check_kept, check_prompt, check_started,
    sequence::{Chunk, Sequence, reports, unasked},
    statistics::{LabelStatistics, Statistics, label_of_all},
};
use crate::{
    Error, Readouts, Result,
    v1::{
        FetchActivationsRequest, FetchItem, InterventionReport, ItemFinished, ItemStarted,
        ReadoutStarted, TokenizedPrompt, Usage, fetch_activations_response::Event,
    },
};

/// What was fetched.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The server's id of the call.
    pub call_id: String,
    /// The items, in the order of the request.
    pub items: Vec<FetchedItem>,
    /// Where statistics of rows were asked, one for each readout, site and label that has rows.
    pub statistics: Vec<LabelStatistics>,
    /// What the call consumed.
    pub usage: Usage,
}

/// One item, or why there is none.
#[derive(Clone, Debug)]
pub struct FetchedItem {
    /// As the request has it.
    pub key: String,
    /// What was read of it. It is an error only where the request does not set `fail_fast`.
    pub result: Result<Item>,
}

/// What was read of one item.
#[derive(Clone, Debug)]
pub struct Item {
    /// The prompt as the model sees it.
    pub prompt: TokenizedPrompt,
    /// What was read of it.
    pub readouts: Readouts,
    /// What each intervention did: those of the call, then the item's own.
    pub interventions: Vec<InterventionReport>,
}

impl Fetched {
    /// The item of an index, or the error that it has ended with.
    ///
    /// # Panics
    ///
    /// If the request has no such item.
    pub fn item(&self, index: usize) -> Result<&Item> {
        self.items[index].result.as_ref().map_err(Clone::clone)
    }

    /// How the rows of a label are distributed, of the readout and site that are named.
    pub fn statistics(&self, name: &str, site: &str, label: &str) -> Result<&LabelStatistics> {
        let wanted = (name, site, label);
        let of = |each: &&LabelStatistics| {
            (each.readout.as_str(), each.site.as_str(), each.label.as_str()) == wanted
        };
        self.statistics.iter().find(of).ok_or_else(|| {
            Error::invalid(
                "FIELD_INVALID",
                format!("there are no statistics of {name:?} at {site} of the label {label:?}"),
            )
        })
    }
}

pub(crate) struct FetchCollector {
    asked: Vec<Asked>,
    items: Vec<AskedItem>,
    fail_fast: bool,
    ids_only: bool,
    stage: Stage,
    call_id: String,
    started: Vec<ReadoutStarted>,
    open: BTreeMap<u32, (ItemStarted, Sequence)>,
    done: BTreeMap<u32, Result<Item>>,
    statistics: Statistics,
    usage: Usage,
}

struct AskedItem {
    key: String,
    readouts: Vec<u32>,
    /// What all its rows count towards, if there is such a label.
    label: Option<String>,
    interventions: usize,
}

impl AskedItem {
    fn of(item: &FetchItem, interventions: usize) -> Self {
        Self {
            key: item.key.clone(),
            readouts: item.readout_indices.clone(),
            label: label_of_all(item).map(str::to_owned),
            interventions: interventions + item.interventions.len(),
        }
    }
}

impl FetchCollector {
    pub(crate) fn new(request: &FetchActivationsRequest) -> Result<Self> {
        let asked = Asked::of(&request.readouts)?;
        let items = request.items.iter();
        let items = items.map(|item| AskedItem::of(item, request.interventions.len()));
        Ok(Self {
            statistics: Statistics::of(&asked, &request.items),
            asked,
            items: items.collect(),
            fail_fast: request.fail_fast,
            ids_only: request.ids_only,
            stage: Stage::Opening,
            call_id: String::new(),
            started: vec![],
            open: BTreeMap::new(),
            done: BTreeMap::new(),
            usage: Usage::default(),
        })
    }

    fn item(&self, index: u32) -> Result<&AskedItem> {
        self.items
            .get(index as usize)
            .filter(|_| !self.done.contains_key(&index))
            .ok_or_else(|| unasked(&format!("an event of item {index}")))
    }

    fn open(&mut self, started: ItemStarted) -> Result<()> {
        let index = started.item_index;
        check_started(&self.asked, &self.started)?;
        if let Some(prompt) = &started.prompt {
            check_prompt(prompt, self.ids_only)?;
        }
        check_kept(&started.kept, index)?;
        let sequence = Sequence::new(&self.asked, &self.started, &self.item(index)?.readouts);
        match self.open.insert(index, (started, sequence)) {
            Some(_) => Err(unasked(&format!("a second start of item {index}"))),
            None => Ok(()),
        }
    }

    fn add_chunk(&mut self, index: u32, chunk: Chunk<'_>) -> Result<()> {
        match self.open.get_mut(&index) {
            Some((_, sequence)) => sequence.add(&self.asked, chunk),
            None => Err(unasked(&format!("a part of item {index}, which is not open,"))),
        }
    }

    fn close(&mut self, finished: ItemFinished) -> Result<()> {
        let index = finished.item_index;
        let AskedItem { label, interventions, .. } = self.item(index)?;
        let (label, interventions) = (label.clone(), *interventions);
        check_kept(&finished.kept, index)?;
        let opened = self.open.remove(&index);
        let failed = finished.status.as_ref().filter(|status| status.code != 0);
        let result = match (failed, opened) {
            (Some(status), _) if self.fail_fast => {
                return Err(Error::of_item(status, &self.call_id));
            }
            (Some(status), _) => Err(Error::of_item(status, &self.call_id)),
            (None, Some((started, sequence))) => {
                let prompt = started.prompt.ok_or_else(|| {
                    Error::bad_response(format!("the server sent no prompt of item {index}"))
                })?;
                let readouts = sequence.finish(
                    &self.asked,
                    &started.positions,
                    &finished.kept,
                    prompt.ids.len(),
                )?;
                if let Some(label) = label {
                    self.statistics.expect(&started.positions, &label);
                }
                let interventions = reports(finished.interventions, interventions)?;
                Ok(Item { prompt, readouts, interventions })
            }
            (None, None) => return Err(unasked(&format!("the end of item {index}"))),
        };
        self.done.insert(index, result);
        Ok(())
    }
}

impl Collector for FetchCollector {
    type Event = Event;
    type Collected = Fetched;

    fn add(&mut self, event: Event) -> Result<()> {
        match &event {
            Event::Started(_) => self.stage.start()?,
            Event::Finished(_) => self.stage.finish()?,
            _ => self.stage.go_on()?,
        }
        match event {
            Event::Started(started) => {
                self.call_id = started.call_id;
                self.started = started.readouts;
                Ok(())
            }
            Event::ItemStarted(started) => self.open(started),
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
            Event::ItemFinished(finished) => self.close(finished),
            Event::Statistics(statistics) => {
                check_started(&self.asked, &self.started)?;
                self.statistics.add(&self.started, &statistics)
            }
            Event::Finished(finished) => {
                self.usage = finished.usage.unwrap_or_default();
                Ok(())
            }
        }
    }

    fn finish(mut self) -> Result<Fetched> {
        self.stage.check_finished()?;
        let items = self.items.into_iter().zip(0..).map(|(item, index)| {
            let result = self.done.remove(&index).ok_or_else(|| {
                Error::bad_response(format!("the server finished without item {index}"))
            })?;
            Ok(FetchedItem { key: item.key, result })
        });
        Ok(Fetched {
            items: items.collect::<Result<_>>()?,
            call_id: self.call_id,
            statistics: self.statistics.finish()?,
            usage: self.usage,
        })
    }
}
