//! Interventions, made by the client's helpers.

use actserve::v1::{self, Intervention, Probe, VectorSource};
use serde::Deserialize;
use serde_json::Value;

use crate::{Question, Result, answers::floats, messages::Messages};

/// Where an intervention acts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    site: String,
    direction: Value,
    bias: Option<f32>,
    above: Option<f32>,
    below: Option<f32>,
    aggregator: Option<Value>,
}

pub fn add(question: &Question, messages: &Messages) -> Result<Value> {
    let sites: Vec<_> = question.sites.iter().map(String::as_str).collect();
    let mut add = Intervention::add(&sites, vector(&question.vector)?, question.coefficient)?;
    if let Some(when) = &question.when {
        add.when = Some(condition(when, messages)?);
    }
    messages.json_of("Intervention", &add)
}

/// One to send along, the name of a stored one, or a feature of a dictionary.
fn vector(asked: &Value) -> Result<VectorSource> {
    if let (Some(dictionary), Some(index)) = (asked["dictionary"].as_str(), asked["index"].as_u64())
    {
        return Ok(VectorSource::feature(dictionary, index.try_into()?));
    }
    match asked.as_str() {
        Some(name) => Ok(name.into()),
        None => Ok(floats(asked["data"].as_str().ok_or("a vector has no data")?)?.into()),
    }
}

fn condition(asked: &Condition, messages: &Messages) -> Result<v1::Condition> {
    let mut probe = Probe::linear(&asked.site, vector(&asked.direction)?)?;
    probe.bias = asked.bias;
    let mut condition = match (asked.above, asked.below) {
        (Some(above), below) => v1::Condition { below, ..probe.above(above) },
        (None, Some(below)) => probe.below(below),
        (None, None) => return Err("a condition has no bound".into()),
    };
    if let Some(aggregator) = &asked.aggregator {
        condition.aggregator = Some(messages.message_of("ScoreAggregator", aggregator)?);
    }
    Ok(condition)
}
