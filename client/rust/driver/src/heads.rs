//! What was measured of heads, as drivers answer it.

use actserve::{
    HeadPattern, Measured, MeasuredHeads,
    v1::{HeadMetrics, TokenWeight},
};
use serde_json::{Map, Value, json};

use crate::answers::{error, shaped, vector};

type Mean = fn(&HeadMetrics) -> f32;

const MEANS: [(&str, Mean); 8] = [
    ("previous_token", |it| it.previous_token),
    ("current_token", |it| it.current_token),
    ("first_token", |it| it.first_token),
    ("induction", |it| it.induction),
    ("duplicate_token", |it| it.duplicate_token),
    ("entropy", |it| it.entropy),
    ("distance", |it| it.distance),
    ("distance_variance", |it| it.distance_variance),
];

pub fn measured(found: &MeasuredHeads) -> Value {
    let every: Vec<_> = found.heads.iter().flatten().collect();
    let shape = [found.layers.len(), every.len() / found.layers.len()];
    let means = MEANS.iter().map(|(name, mean)| {
        let values: Vec<_> = every.iter().map(|each| mean(each)).collect();
        ((*name).to_owned(), shaped(&shape, &values))
    });
    let items = found.items.iter().enumerate().map(|(index, item)| match &item.result {
        Err(failure) => json!({"index": index, "key": item.key, "error": error(failure)}),
        Ok(Measured { prompt, patterns }) => {
            let patterns = patterns
                .iter()
                .map(|((layer, head), pattern)| (format!("{layer}.{head}"), weights(pattern)));
            json!({
                "index": index, "key": item.key, "token_ids": prompt.ids,
                "patterns": patterns.collect::<Map<_, _>>(),
            })
        }
    });
    json!({
        "call_id": found.call_id,
        "layers": found.layers,
        "queries": every.first().map(|each| each.queries),
        "means": means.collect::<Map<_, _>>(),
        "query_tokens": every.iter().map(|it| tokens(&it.top_query_tokens)).collect::<Vec<_>>(),
        "key_tokens": every.iter().map(|it| tokens(&it.top_key_tokens)).collect::<Vec<_>>(),
        "items": items.collect::<Vec<_>>(),
    })
}

fn weights(pattern: &HeadPattern) -> Value {
    let mut told = vector(&pattern.weights);
    told["queries"] = pattern.queries.clone().into();
    told["keys"] = pattern.keys.clone().into();
    told
}

fn tokens(all: &[TokenWeight]) -> Value {
    let mut told = vector(&all.iter().map(|each| each.weight).collect::<Vec<_>>());
    told["ids"] = all.iter().map(|each| each.token_id).collect();
    told["texts"] = all.iter().map(|each| each.text.as_str()).collect();
    told
}
