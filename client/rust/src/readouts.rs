//! What the readouts of a call have read of one sequence, found by the names that the call gave.

use crate::{Array, Error, Result};

/// What was read of one item or sample, by the name of the readout.
#[derive(Clone, Debug, Default)]
pub struct Readouts(pub(crate) Vec<(String, Reading)>);

/// What one readout has read of a sequence. Sites are written as [`Display`](std::fmt::Display)
/// writes those of the request, and come in its order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reading {
    /// Rows, by site.
    Rows(Vec<(String, Rows)>),
    /// Predictions, by site.
    Predictions(Vec<(String, Predictions)>),
    /// Attention patterns, by head.
    Attention(Vec<(u32, Attention)>),
    /// Means over queries of how heads attend, by zero-based layer.
    AttentionSummary(Vec<(u32, AttentionSummary)>),
    /// What rows add to logits, by site.
    LogitAttribution(Vec<(String, LogitAttribution)>),
    /// The name of rows that were kept on the server.
    Kept(String),
}

/// Rows of one site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The token position of each row, ascending; with a reduction, the last one reduced.
    pub positions: Vec<u32>,
    /// Of shape `[rows, width]`.
    pub values: Array,
    /// Where `send_top` was asked: the direction that each of `values` belongs to, row by row.
    pub indices: Option<Vec<u32>>,
}

/// Predictions of the next token, from one site. [`top`](Self::top) has the likeliest of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predictions {
    /// The token position of each row, ascending.
    pub positions: Vec<u32>,
    /// The ids of the likeliest tokens, `top_k` for each row, likeliest first.
    pub top_ids: Vec<u32>,
    /// Those tokens, each decoded alone.
    pub top_texts: Vec<String>,
    /// Their natural log probabilities, `[rows, top_k]`; unset unless `top_k` was asked.
    pub top_logprobs: Option<Array>,
    /// Of the `token_ids` of the request, `[rows, token_ids]`; unset unless asked.
    pub token_logprobs: Option<Array>,
    /// Of the prompt token that comes next, `[rows]`: NaN where there is none; unset unless asked.
    pub next_token_logprobs: Option<Array>,
}

/// How one head attends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attention {
    /// The token position of each query, ascending.
    pub queries: Vec<u32>,
    /// Weights, `[queries, keys]` with a key for each token that was run; with `top_k`,
    /// `[queries, top_k]`, largest first.
    pub weights: Array,
    /// With `top_k`: the position of the key of each weight, row by row; -1 where there is none.
    pub keys: Option<Vec<i32>>,
}

/// How the heads of one layer attend, in means over queries, as
/// [`AttentionSummaryChunk`](crate::v1::AttentionSummaryChunk) defines them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionSummary {
    /// All selected queries.
    pub queries: u32,
    /// Those that have a previous token.
    pub previous_token_queries: u32,
    /// Those whose token is at an earlier position as well.
    pub induction_queries: u32,
    /// For each of the offsets, those at that position or later.
    pub offset_queries: Vec<u32>,
    /// The attention to the token before, `[heads]`.
    pub previous_token: Array,
    /// The attention to the query's own token, `[heads]`.
    pub current_token: Array,
    /// The attention to the first token, `[heads]`.
    pub first_token: Array,
    /// The attention to tokens after an earlier occurrence of the query's token, `[heads]`.
    pub induction: Array,
    /// The entropy of the weights in nats, `[heads]`.
    pub entropy: Array,
    /// The mean distance in tokens, `[heads]`.
    pub distance: Array,
    /// The attention at each of the offsets, `[heads, offsets]`.
    pub at_offsets: Array,
    /// The positions of the keys that receive the most, head by head; -1 where there are fewer.
    pub top_keys: Vec<i32>,
    /// What they receive, `[heads, top_keys]`.
    pub top_key_means: Array,
}

/// What rows of one site add to logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitAttribution {
    /// The token position of each row, ascending.
    pub positions: Vec<u32>,
    /// `[rows, targets]`; of z `[rows, heads, targets]`.
    pub contributions: Array,
    /// What the bias of the final norm adds to each of the targets.
    pub target_constants: Vec<f32>,
}

impl Predictions {
    /// The likeliest tokens of one row, likeliest first: ids, texts and log probabilities.
    ///
    /// # Panics
    ///
    /// If there is no such row, as indexing a slice does.
    pub fn top(&self, row: usize) -> impl Iterator<Item = (u32, &str, f32)> {
        let logprobs = self.top_logprobs.as_ref().map_or(&[][..], |logprobs| logprobs.row(row));
        let first = row * logprobs.len();
        let ids = self.top_ids[first..].iter().copied();
        let texts = self.top_texts[first..].iter().map(String::as_str);
        ids.zip(texts).zip(logprobs).map(|((id, text), &logprob)| (id, text, logprob))
    }
}

impl Readouts {
    /// The rows that a readout has read at a site, as in `rows("acts", "resid_post.10")`.
    pub fn rows(&self, name: &str, site: &str) -> Result<&Rows> {
        let found = self.find(name, |reading| match reading {
            Reading::Rows(sites) => at(sites, site),
            _ => None,
        });
        found.ok_or_else(|| self.missing("rows", name, site))
    }

    /// The predictions of a readout at a site.
    pub fn predictions(&self, name: &str, site: &str) -> Result<&Predictions> {
        let found = self.find(name, |reading| match reading {
            Reading::Predictions(sites) => at(sites, site),
            _ => None,
        });
        found.ok_or_else(|| self.missing("predictions", name, site))
    }

    /// The pattern of a head.
    pub fn attention(&self, name: &str, head: u32) -> Result<&Attention> {
        let found = self.find(name, |reading| match reading {
            Reading::Attention(heads) => at(heads, &head),
            _ => None,
        });
        found.ok_or_else(|| self.missing("attention", name, &format!("head {head}")))
    }

    /// The summary of a zero-based layer.
    pub fn attention_summary(&self, name: &str, layer: u32) -> Result<&AttentionSummary> {
        let found = self.find(name, |reading| match reading {
            Reading::AttentionSummary(layers) => at(layers, &layer),
            _ => None,
        });
        found.ok_or_else(|| self.missing("attention summary", name, &format!("layer {layer}")))
    }

    /// What rows of a site add to logits.
    pub fn logit_attribution(&self, name: &str, site: &str) -> Result<&LogitAttribution> {
        let found = self.find(name, |reading| match reading {
            Reading::LogitAttribution(sites) => at(sites, site),
            _ => None,
        });
        found.ok_or_else(|| self.missing("logit attribution", name, site))
    }

    /// The name of the rows that a readout has kept on the server.
    pub fn kept(&self, name: &str) -> Result<&str> {
        let found = self.find(name, |reading| match reading {
            Reading::Kept(kept) => Some(kept.as_str()),
            _ => None,
        });
        found.ok_or_else(|| self.missing("kept rows", name, "any site"))
    }

    /// Everything that was read, in the order of the request.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Reading)> {
        self.0.iter().map(|(name, reading)| (name.as_str(), reading))
    }

    fn find<'a, T: ?Sized>(
        &'a self,
        name: &str,
        pick: impl Fn(&'a Reading) -> Option<&'a T>,
    ) -> Option<&'a T> {
        self.0.iter().find(|(each, _)| each == name).and_then(|(_, reading)| pick(reading))
    }

    fn missing(&self, what: &str, name: &str, place: &str) -> Error {
        let names: Vec<_> = self.0.iter().map(|(name, _)| name).collect();
        Error::invalid(
            "FIELD_INVALID",
            format!(
                "no readout called {name:?} has {what} of {place}; name one as the request does, \
                 which has {names:?}"
            ),
        )
    }
}

fn at<'a, K: PartialEq<Q>, Q: ?Sized, T>(places: &'a [(K, T)], key: &Q) -> Option<&'a T> {
    places.iter().find(|(each, _)| each == key).map(|(_, found)| found)
}
