//! A replay, put together.

use super::{Collector, Stage, scores::check_scores, sequence::unasked};
use crate::{
    Error, Result,
    v1::{MonitorScore, ReplayMonitorsRequest, Usage, replay_monitors_response::Event},
};

/// What came of a replay.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The server's id of the call.
    pub call_id: String,
    /// The items, in the order of the request.
    pub items: Vec<ReplayedItem>,
    /// What the call consumed.
    pub usage: Usage,
}

/// What monitors scored in one item.
#[derive(Clone, Debug)]
pub struct ReplayedItem {
    /// As the request has it.
    pub key: String,
    /// Of the monitors of the request, in its order; or why the item failed. The scores as of each
    /// token, if they are asked for, become an [`Array`](crate::Array).
    pub result: Result<Vec<MonitorScore>>,
}

pub(crate) struct ReplayCollector {
    monitors: Vec<String>,
    keys: Vec<String>,
    each_token: bool,
    stage: Stage,
    call_id: String,
    items: Vec<Option<Result<Vec<MonitorScore>>>>,
    usage: Usage,
}

impl From<&ReplayMonitorsRequest> for ReplayCollector {
    fn from(request: &ReplayMonitorsRequest) -> Self {
        Self {
            monitors: request.monitors.clone(),
            keys: request.items.iter().map(|item| item.key.clone()).collect(),
            each_token: request.each_token,
            stage: Stage::Opening,
            call_id: String::new(),
            items: vec![None; request.items.len()],
            usage: Usage::default(),
        }
    }
}

impl ReplayCollector {
    fn check(&self, scores: &[MonitorScore]) -> Result<()> {
        if !scores.iter().map(|score| &score.monitor).eq(&self.monitors) {
            return Err(Error::bad_response(format!(
                "the server sent {} scores of an item, which are not those of the {} monitors of \
                 the request in their order",
                scores.len(),
                self.monitors.len()
            )));
        }
        check_scores(scores, self.each_token)
    }
}

impl Collector for ReplayCollector {
    type Event = Event;
    type Collected = Replayed;

    fn add(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Started(started) => {
                self.stage.start()?;
                self.call_id = started.call_id;
            }
            Event::Item(item) => {
                self.stage.go_on()?;
                let failure = item.status.as_ref().filter(|status| status.code != 0);
                let result = match failure {
                    Some(status) => Err(Error::of_item(status, &self.call_id)),
                    None => {
                        self.check(&item.scores)?;
                        Ok(item.scores)
                    }
                };
                match self.items.get_mut(item.item_index as usize) {
                    Some(open @ None) => *open = Some(result),
                    _ => return Err(unasked(&format!("item {}", item.item_index))),
                }
            }
            Event::Finished(finished) => {
                self.stage.finish()?;
                self.usage = finished.usage.unwrap_or_default();
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Replayed> {
        self.stage.check_finished()?;
        let items =
            self.keys.into_iter().zip(self.items).enumerate().map(|(index, (key, item))| {
                let missing =
                    || Error::bad_response(format!("the server finished without item {index}"));
                Ok(ReplayedItem { key, result: item.ok_or_else(missing)? })
            });
        Ok(Replayed {
            items: items.collect::<Result<_>>()?,
            call_id: self.call_id,
            usage: self.usage,
        })
    }
}
