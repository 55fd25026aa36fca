//! What the client gives, as drivers answer it.

use actserve::{
    Array, Error, Explained, Fetched, Generated, LabelStatistics, Reading, Readouts, Reconstructed,
    Replayed, Sample, Swept,
    v1::{
        AlertLevel, FinishReason, MonitorInterventions, MonitorScore, sample_finished::StoppedBy,
    },
};
use serde_json::{Map, Value, json};

use crate::Result;

pub fn error(error: &Error) -> Value {
    json!({
        "code": code(error.code()),
        "reason": error.reason(),
        "message": error.message(),
        "field": error.field(),
        "metadata": error.metadata(),
        "retry_after_s": error.retry_after().map(|delay| delay.as_secs_f64()),
        "request_id": error.request_id(),
    })
}

/// What a caller of Rust who has cancelled does not see: nobody waits for its end.
pub fn cancelled() -> Value {
    json!({
        "code": "CANCELLED", "reason": "", "message": "cancelled", "field": "", "metadata": {},
        "retry_after_s": null, "request_id": "",
    })
}

/// `InvalidArgument` is written INVALID_ARGUMENT.
fn code(code: actserve::tonic::Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}

pub fn array(array: &Array) -> Value {
    shaped(array.shape(), array.data())
}

/// An array of one axis.
pub fn vector(values: &[f32]) -> Value {
    shaped(&[values.len()], values)
}

pub fn shaped(shape: &[usize], data: &[f32]) -> Value {
    let bytes: Vec<_> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
    json!({"shape": shape, "data": hex(&bytes)})
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The float32 values of hexadecimal digits.
pub fn floats(text: &str) -> Result<Vec<f32>> {
    let word = |at| Ok(f32::from_bits(u32::from_str_radix(&text[8 * at..][..8], 16)?.swap_bytes()));
    (0..text.len() / 8).map(word).collect()
}

pub fn fetched(fetched: &Fetched) -> Value {
    let sequences = fetched.items.iter().enumerate().map(|(index, item)| match &item.result {
        Ok(found) => json!({
            "index": index, "key": item.key, "token_ids": found.prompt.ids,
            "readouts": readouts(&found.readouts),
        }),
        Err(failure) => json!({"index": index, "key": item.key, "error": error(failure)}),
    });
    let mut answer =
        json!({"call_id": fetched.call_id, "sequences": sequences.collect::<Vec<_>>()});
    for each in &fetched.statistics {
        let LabelStatistics { readout, site, label, .. } = each;
        answer["statistics"][readout][site][label] = json!({
            "rows": each.rows,
            "mean": array(&each.mean),
            "second_moments": array(&each.second_moments),
        });
    }
    answer
}

pub fn generated(generated: &Generated) -> Value {
    let sequences = generated.samples.iter().enumerate().map(|(index, sample)| {
        let ids: Vec<_> = generated.prompt.ids.iter().chain(&sample.token_ids).collect();
        let mut answer = json!({
            "index": index, "token_ids": ids, "text": sample.text,
            "finish_reason": finish_reason(sample.finish_reason),
            "readouts": readouts(&sample.readouts),
        });
        watched(sample, &mut answer);
        answer
    });
    json!({"call_id": generated.call_id, "sequences": sequences.collect::<Vec<_>>()})
}

/// What monitors say of a sample.
fn watched(sample: &Sample, answer: &mut Value) {
    if let Some(StoppedBy::Monitor(monitor)) = &sample.stopped_by {
        answer["monitor"] = json!(monitor);
    }
    if !sample.alerts.is_empty() {
        let alerts = sample.alerts.iter().map(|alert| {
            json!({
                "monitor": alert.monitor, "level": level(alert.level), "score": alert.score,
                "position": alert.position,
            })
        });
        answer["alerts"] = alerts.collect();
    }
    if !sample.monitor_scores.is_empty() {
        answer["monitor_scores"] = sample.monitor_scores.iter().map(score).collect();
    }
    if !sample.monitor_interventions.is_empty() {
        answer["monitor_interventions"] =
            sample.monitor_interventions.iter().map(changed).collect();
    }
}

fn changed(changed: &MonitorInterventions) -> Value {
    let reports = changed.interventions.iter().map(|report| {
        json!({
            "rows": report.rows, "changed_rows": report.changed_rows,
            "reused_rows": report.reused_rows, "mean_relative_change": report.mean_relative_change,
        })
    });
    json!({
        "monitor": changed.monitor, "level": level(changed.level),
        "first_position": changed.first_position, "interventions": reports.collect::<Vec<_>>(),
    })
}

fn score(score: &MonitorScore) -> Value {
    let mut answer = json!({});
    if let Some(scores) = &score.token_scores {
        answer = array(&Array::try_from(scores).expect("the client has checked them"));
        answer["positions"] = json!(score.positions);
    }
    answer["monitor"] = json!(score.monitor);
    answer["tokens"] = json!(score.tokens);
    answer["score"] = json!(score.score);
    answer["highest_score"] = json!(score.highest_score);
    answer["highest_position"] = json!(score.highest_position);
    answer["level"] = level(score.level);
    answer
}

/// The name of a level; null for none.
fn level(value: i32) -> Value {
    match AlertLevel::try_from(value) {
        Ok(AlertLevel::Unspecified) => Value::Null,
        Ok(level) => level.as_str_name().replace("ALERT_LEVEL_", "").into(),
        Err(_) => value.to_string().into(),
    }
}

pub fn replayed(replayed: &Replayed) -> Value {
    let items = replayed.items.iter().enumerate().map(|(index, item)| match &item.result {
        Ok(scores) => json!({
            "index": index, "key": item.key, "scores": scores.iter().map(score).collect::<Vec<_>>(),
        }),
        Err(failure) => json!({"index": index, "key": item.key, "error": error(failure)}),
    });
    json!({"call_id": replayed.call_id, "items": items.collect::<Vec<_>>()})
}

fn finish_reason(value: i32) -> String {
    match FinishReason::try_from(value) {
        Ok(reason) => reason.as_str_name().replace("FINISH_REASON_", ""),
        Err(_) => value.to_string(),
    }
}

pub fn explained(explained: &Explained) -> Value {
    let explanations = explained
        .explanations
        .iter()
        .map(|each| json!({"row": each.row_index, "sample": each.sample_index, "text": each.text}));
    json!({
        "call_id": explained.call_id, "nla": explained.nla,
        "explanations": explanations.collect::<Vec<_>>(),
    })
}

pub fn reconstructed(reconstructed: &Reconstructed) -> Value {
    let mut answer = array(&reconstructed.rows);
    answer["call_id"] = reconstructed.call_id.clone().into();
    answer
}

pub fn swept(swept: &Swept) -> Value {
    let cells = swept.cells.iter().map(|each| {
        let cell = &each.cell;
        let at = json!([
            cell.prompt_index,
            cell.variant_index,
            cell.coefficient_index,
            cell.site_index,
            cell.position_index,
        ]);
        match &each.error {
            Some(failure) => json!({"at": at, "error": error(failure)}),
            None => json!({
                "at": at,
                "text": cell.text,
                "finish_reason": (cell.finish_reason != 0).then(|| finish_reason(cell.finish_reason)),
                "answer_logprobs": cell.answer_logprobs,
                "score_values": cell.score_values,
                "perplexity": cell.perplexity,
                "repetition": cell.repetition,
                "stored": cell.stored,
            }),
        }
    });
    json!({"call_id": swept.call_id, "cells": cells.collect::<Vec<_>>()})
}

fn readouts(readouts: &Readouts) -> Value {
    let named = readouts.iter().map(|(name, found)| (name.to_owned(), reading(found)));
    named.collect::<Map<_, _>>().into()
}

fn reading(reading: &Reading) -> Value {
    match reading {
        Reading::Rows(sites) => by_key("rows", sites, |rows| {
            let mut answer = array(&rows.values);
            answer["positions"] = json!(rows.positions);
            if let Some(indices) = &rows.indices {
                answer["indices"] = json!(indices);
            }
            answer
        }),
        Reading::Predictions(sites) => by_key("predictions", sites, |predictions| {
            let mut answer = json!({
                "positions": predictions.positions,
                "top_ids": predictions.top_ids,
                "top_texts": predictions.top_texts,
            });
            for (name, values) in [
                ("top_logprobs", &predictions.top_logprobs),
                ("token_logprobs", &predictions.token_logprobs),
                ("next_token_logprobs", &predictions.next_token_logprobs),
            ] {
                if let Some(values) = values {
                    answer[name] = array(values);
                }
            }
            answer
        }),
        Reading::Attention(heads) => by_key("attention", heads, |attention| {
            let mut answer = array(&attention.weights);
            answer["queries"] = json!(attention.queries);
            if let Some(keys) = &attention.keys {
                answer["keys"] = json!(keys);
            }
            answer
        }),
        Reading::AttentionSummary(layers) => by_key("attention_summary", layers, |summary| {
            json!({
                "queries": summary.queries,
                "previous_token": array(&summary.previous_token),
            })
        }),
        Reading::LogitAttribution(sites) => by_key("logit_attribution", sites, |attribution| {
            let mut answer = array(&attribution.contributions);
            answer["positions"] = json!(attribution.positions);
            answer
        }),
        Reading::Kept(name) => json!({"kept": name}),
        _ => Value::Null,
    }
}

fn by_key<K: ToString, T>(kind: &str, places: &[(K, T)], answer: impl Fn(&T) -> Value) -> Value {
    let places: Map<_, _> =
        places.iter().map(|(key, found)| (key.to_string(), answer(found))).collect();
    json!({kind: places})
}
