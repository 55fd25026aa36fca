//! What is measured of attention heads, put together.

use std::collections::BTreeMap;

use super::{Collector, Stage, check_prompt, sequence::unasked};
use crate::{
    Array, Error, Result,
    v1::{
        HeadMetrics, MeasureHeadsRequest, MeasuredItem, SparsePatternChunk, TokenizedPrompt, Usage,
        measure_heads_response::Event,
    },
};

/// What was measured of attention heads.
#[derive(Clone, Debug)]
pub struct MeasuredHeads {
    /// The server's id of the call.
    pub call_id: String,
    /// The layers that were measured, ascending.
    pub layers: Vec<u32>,
    /// What was measured of each head: by layer, as in `layers`, and then by head.
    pub heads: Vec<Vec<HeadMetrics>>,
    /// The items, in the order of the request.
    pub items: Vec<MeasuredPrompt>,
    /// What the call consumed.
    pub usage: Usage,
}

/// One item of a corpus.
#[derive(Clone, Debug)]
pub struct MeasuredPrompt {
    /// As the request has it.
    pub key: String,
    /// The prompt as the model saw it, and its patterns; or why the item failed, so that it counts
    /// in no number.
    pub result: Result<Measured>,
}

/// A prompt that counts in what was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The prompt as the model saw it.
    pub prompt: TokenizedPrompt,
    /// By layer and head, where the request asks for patterns; a head none of whose weights is
    /// large enough has none.
    pub patterns: BTreeMap<(u32, u32), HeadPattern>,
}

/// The largest weights of each query of one head for one item: an entry of each list for each
/// weight, query by query, the largest of a query first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadPattern {
    /// The positions of the queries, ascending.
    pub queries: Vec<u32>,
    /// The positions of the keys.
    pub keys: Vec<u32>,
    /// The attention that the queries give.
    pub weights: Vec<f32>,
}

pub(crate) struct HeadsCollector {
    layers: Vec<i32>,
    keys: Vec<String>,
    has_patterns: bool,
    top_tokens: u32,
    stage: Stage,
    call_id: String,
    /// Of items that are open.
    patterns: BTreeMap<u32, BTreeMap<(u32, u32), HeadPattern>>,
    items: Vec<Option<Result<Measured>>>,
    metrics: BTreeMap<(u32, u32), HeadMetrics>,
    usage: Usage,
}

impl From<&MeasureHeadsRequest> for HeadsCollector {
    fn from(request: &MeasureHeadsRequest) -> Self {
        Self {
            layers: request.layers.clone(),
            keys: request.items.iter().map(|item| item.key.clone()).collect(),
            has_patterns: request.patterns.is_some(),
            top_tokens: request.top_tokens,
            stage: Stage::Opening,
            call_id: String::new(),
            patterns: BTreeMap::new(),
            items: vec![None; request.items.len()],
            metrics: BTreeMap::new(),
            usage: Usage::default(),
        }
    }
}

impl HeadsCollector {
    fn is_open(&self, item: u32) -> bool {
        matches!(self.items.get(item as usize), Some(None))
    }

    fn add_pattern(&mut self, chunk: SparsePatternChunk) -> Result<()> {
        let SparsePatternChunk { item_index, layer, head, queries, keys, weights } = chunk;
        if !self.has_patterns || !self.is_open(item_index) {
            return Err(unasked(&format!("a pattern of item {item_index}")));
        }
        let weights = Array::try_from(&weights.unwrap_or_default())?;
        if weights.shape() != [queries.len()] || keys.len() != queries.len() {
            return Err(Error::bad_response(format!(
                "the server sent {} queries, {} keys and weights in the shape {:?} of one pattern",
                queries.len(),
                keys.len(),
                weights.shape()
            )));
        }
        let pattern =
            self.patterns.entry(item_index).or_default().entry((layer, head)).or_default();
        pattern.queries.extend(queries);
        pattern.keys.extend(keys);
        pattern.weights.extend(weights.data());
        Ok(())
    }

    fn close(&mut self, item: MeasuredItem) -> Result<()> {
        if !self.is_open(item.item_index) {
            return Err(unasked(&format!("item {}", item.item_index)));
        }
        let patterns = self.patterns.remove(&item.item_index).unwrap_or_default();
        let result = match item.status.filter(|status| status.code != 0) {
            Some(status) => Err(Error::of_item(&status, &self.call_id)),
            None => Ok(measured(item.prompt, patterns)?),
        };
        self.items[item.item_index as usize] = Some(result);
        Ok(())
    }

    fn add_metrics(&mut self, metrics: HeadMetrics) -> Result<()> {
        let (layer, head) = (metrics.layer, metrics.head);
        let tokens = metrics.top_query_tokens.len().max(metrics.top_key_tokens.len());
        if tokens > self.top_tokens as usize {
            return Err(Error::bad_response(format!(
                "the server sent {tokens} tokens of a head, but {} were asked for",
                self.top_tokens
            )));
        }
        match self.metrics.insert((layer, head), metrics) {
            None => Ok(()),
            Some(_) => Err(unasked(&format!("head {head} of layer {layer}"))),
        }
    }

    /// The layers that were measured, if they can be those that were asked for. Which one is the
    /// last the caller alone knows, so one that counts from there may be any.
    fn layers(&self) -> Result<Vec<u32>> {
        let mut layers: Vec<u32> = self.metrics.keys().map(|(layer, _)| *layer).collect();
        layers.dedup();
        let is_same = if self.layers.is_empty() {
            layers.last().is_some_and(|last| *last as usize == layers.len() - 1)
        } else {
            let mut known = self.layers.iter().filter_map(|layer| u32::try_from(*layer).ok());
            self.layers.len() == layers.len()
                && known.all(|layer| layers.binary_search(&layer).is_ok())
        };
        if is_same {
            return Ok(layers);
        }
        Err(Error::bad_response(format!(
            "the server measured the layers {layers:?}, but {:?} were asked for (none are all)",
            self.layers
        )))
    }
}

/// A prompt with its patterns, if each of their queries can see its key.
fn measured(
    prompt: Option<TokenizedPrompt>,
    patterns: BTreeMap<(u32, u32), HeadPattern>,
) -> Result<Measured> {
    let prompt = prompt
        .ok_or_else(|| Error::bad_response("the server measured an item and not its prompt"))?;
    check_prompt(&prompt, false)?;
    let mut pairs = patterns.values().flat_map(|pattern| pattern.queries.iter().zip(&pattern.keys));
    if pairs.any(|(query, key)| *query as usize >= prompt.ids.len() || key > query) {
        return Err(Error::bad_response(
            "the server sent a weight of a key that its query cannot see",
        ));
    }
    Ok(Measured { prompt, patterns })
}

impl Collector for HeadsCollector {
    type Event = Event;
    type Collected = MeasuredHeads;

    fn add(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Started(started) => {
                self.stage.start()?;
                self.call_id = started.call_id;
                return Ok(());
            }
            Event::Finished(finished) => {
                self.stage.finish()?;
                self.usage = finished.usage.unwrap_or_default();
                return Ok(());
            }
            _ => self.stage.go_on()?,
        }
        match event {
            Event::Pattern(chunk) => self.add_pattern(chunk),
            Event::ItemFinished(item) => self.close(item),
            Event::Metrics(metrics) => self.add_metrics(metrics),
            Event::Started(_) | Event::Finished(_) => Ok(()),
        }
    }

    fn finish(mut self) -> Result<MeasuredHeads> {
        self.stage.check_finished()?;
        let layers = self.layers()?;
        let count = self.metrics.keys().map(|(_, head)| head + 1).max().unwrap_or_default();
        let items = self.keys.into_iter().zip(self.items).enumerate();
        let items = items.map(|(index, (key, item))| {
            let missing =
                || Error::bad_response(format!("the server finished without item {index}"));
            let result = item.ok_or_else(missing)?;
            let mut patterns = result.iter().flat_map(|measured| measured.patterns.keys());
            match patterns.find(|head| !self.metrics.contains_key(head)) {
                None => Ok(MeasuredPrompt { key, result }),
                Some((layer, head)) => {
                    Err(unasked(&format!("a pattern of head {head} of layer {layer}")))
                }
            }
        });
        let items = items.collect::<Result<_>>()?;
        let mut heads = vec![];
        for layer in &layers {
            let of_layer = (0..count).map(|head| {
                self.metrics.remove(&(*layer, head)).ok_or_else(|| {
                    Error::bad_response(format!(
                        "the server finished without head {head} of layer {layer}"
                    ))
                })
            });
            heads.push(of_layer.collect::<Result<_>>()?);
        }
        Ok(MeasuredHeads { call_id: self.call_id, layers, heads, items, usage: self.usage })
    }
}
