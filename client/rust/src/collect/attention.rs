//! Attention: the chunks of one head, joined to one pattern, and the summary of one layer.

use super::rows::Joined;
use crate::{
    Array, Error, Result,
    readouts::{Attention, AttentionSummary},
    tensor,
    v1::{AttentionChunk, AttentionSummaryChunk, Tensor},
};

const NO_KEY: i32 = -1;

/// So many weights, 64 MiB, may be filled up however few have come.
const FILLED_FREELY: usize = (64 << 20) / size_of::<f32>();

/// The pattern of one head while it arrives.
#[derive(Default)]
pub(super) struct Pattern {
    queries: Joined,
    chunks: Vec<Chunk>,
}

struct Chunk {
    columns: usize,
    weights: Vec<f32>,
    keys: Vec<i32>,
}

impl Pattern {
    pub(super) fn add(&mut self, chunk: &AttentionChunk, top_k: Option<usize>) -> Result<()> {
        let what = format!("attention of head {}", chunk.head);
        self.queries.add_positions(&chunk.queries, &what)?;
        let weights = chunk.weights.clone().unwrap_or_default();
        let shape = tensor::shape(&weights)?;
        // A query sees itself and what is before it, and the weights of all that must be there.
        let seen = chunk.queries.last().map_or(0, |&last| last as usize + 1);
        let columns = match shape[..] {
            [rows, columns] if rows == chunk.queries.len() => columns,
            _ => return Err(misshaped(&what, &shape)),
        };
        let fits = match top_k {
            None => columns >= seen,
            Some(top_k) => (seen.min(top_k)..=top_k).contains(&columns),
        };
        if !fits {
            return Err(misshaped(&what, &shape));
        }
        let count = if top_k.is_some() { chunk.queries.len() * columns } else { 0 };
        if chunk.keys.len() != count {
            return Err(Error::bad_response(format!(
                "the server sent {} keys of {what}, not {count}",
                chunk.keys.len()
            )));
        }
        let mut values = Vec::new();
        tensor::append(&weights, &mut values)?;
        self.chunks.push(Chunk { columns, weights: values, keys: chunk.keys.clone() });
        Ok(())
    }

    /// The pattern over the tokens that were run, if it has the promised queries.
    pub(super) fn finish(
        mut self,
        head: u32,
        promised: &[u32],
        tokens: usize,
        top_k: Option<usize>,
    ) -> Result<Attention> {
        self.queries.check(promised, &format!("queries of head {head}"))?;
        let widest = self.chunks.iter().map(|chunk| chunk.columns).max().unwrap_or_default();
        let width = top_k.unwrap_or(tokens);
        if widest > width {
            return Err(Error::bad_response(format!(
                "the server sent attention of head {head} to {widest} keys, but {tokens} tokens \
                 were run"
            )));
        }
        // What queries do not see is filled up, but few bytes must not become many.
        let sent: usize = self.chunks.iter().map(|chunk| chunk.weights.len()).sum();
        let filled = promised.len().saturating_mul(width);
        if filled > 2 * sent + FILLED_FREELY {
            return Err(Error::bad_response(format!(
                "the server sent {sent} weights of head {head} for {filled}"
            )));
        }
        let (mut weights, mut keys) = (Vec::new(), Vec::new());
        for chunk in &self.chunks {
            // Keys after the last of a chunk are not seen by its queries.
            for row in chunk.weights.chunks(chunk.columns.max(1)) {
                weights.extend_from_slice(row);
                weights.resize(weights.len() + width - row.len(), 0.0);
            }
            for row in chunk.keys.chunks(chunk.columns.max(1)) {
                keys.extend_from_slice(row);
                keys.resize(keys.len() + width - row.len(), NO_KEY);
            }
        }
        let queries = self.queries.take_positions();
        let weights = Array::of_rows(queries.len(), &[width], weights);
        Ok(Attention { queries, weights, keys: top_k.is_some().then_some(keys) })
    }
}

fn misshaped(what: &str, shape: &[usize]) -> Error {
    Error::bad_response(format!("the server sent {what} in shape {shape:?}, which cannot be"))
}

/// The summary of a layer, as large as was asked.
pub(super) fn summary(
    chunk: &AttentionSummaryChunk,
    offsets: usize,
    top_keys: usize,
) -> Result<AttentionSummary> {
    let heads = chunk.entropy.as_ref().map(tensor::shape).transpose()?;
    let Some(&[heads @ 1..=usize::MAX]) = heads.as_deref() else {
        return Err(Error::bad_response(format!(
            "the server sent a summary of no heads of layer {}",
            chunk.layer
        )));
    };
    let array = |tensor: &Option<Tensor>, row: &[usize]| -> Result<Array> {
        let mut joined = Joined::default();
        let what = format!("a summary of layer {}", chunk.layer);
        joined.add(0, tensor.as_ref(), heads, row, &what)?;
        Ok(joined.take(0, heads, row))
    };
    if chunk.offset_queries.len() != offsets || chunk.top_keys.len() != heads * top_keys {
        return Err(Error::bad_response(format!(
            "the server sent a summary of layer {} with {} offsets and {} keys, not {offsets} and \
             {}",
            chunk.layer,
            chunk.offset_queries.len(),
            chunk.top_keys.len(),
            heads * top_keys
        )));
    }
    Ok(AttentionSummary {
        queries: chunk.queries,
        previous_token_queries: chunk.previous_token_queries,
        induction_queries: chunk.induction_queries,
        offset_queries: chunk.offset_queries.clone(),
        previous_token: array(&chunk.previous_token, &[])?,
        current_token: array(&chunk.current_token, &[])?,
        first_token: array(&chunk.first_token, &[])?,
        induction: array(&chunk.induction, &[])?,
        entropy: array(&chunk.entropy, &[])?,
        distance: array(&chunk.distance, &[])?,
        at_offsets: array(&chunk.at_offsets, &[offsets])?,
        top_keys: chunk.top_keys.clone(),
        top_key_means: array(&chunk.top_key_means, &[top_keys])?,
    })
}
