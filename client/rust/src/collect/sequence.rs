//! What is read of one item or sample, while it arrives and when it is whole.

use super::{
    asked::{Asked, AskedKind},
    attention::{self, Pattern},
    rows::Joined,
};
use crate::{
    Error, Result,
    readouts::{AttentionSummary, LogitAttribution, Predictions, Reading, Readouts, Rows},
    v1::{
        ActivationChunk, AttentionChunk, AttentionSummaryChunk, InterventionReport, KeptReadout,
        LogitAttributionChunk, PredictionChunk, ReadoutPositions, ReadoutStarted,
    },
};

/// The columns of predictions.
const TOP: usize = 0;
const TOKENS: usize = 1;
const NEXT: usize = 2;

/// A part of a sequence.
pub(super) enum Chunk<'a> {
    Rows(&'a ActivationChunk),
    Predictions(&'a PredictionChunk),
    Attention(&'a AttentionChunk),
    AttentionSummary(&'a AttentionSummaryChunk),
    LogitAttribution(&'a LogitAttributionChunk),
}

/// Everything of one sequence so far, by readout; `None` of those that do not read it.
pub(super) struct Sequence(Vec<Option<Arriving>>);

enum Arriving {
    Rows {
        widths: Vec<u32>,
        sites: Vec<(Joined, Vec<u32>)>,
    },
    Predictions(Vec<(Joined, Vec<u32>, Vec<String>)>),
    Attention(Vec<Pattern>),
    AttentionSummary(Vec<(u32, Option<AttentionSummary>)>),
    LogitAttribution {
        constants: Vec<f32>,
        sites: Vec<Joined>,
    },
    /// Nothing of it travels.
    Silent,
}

impl Sequence {
    /// `only` are the readouts that read it; all when empty.
    pub(super) fn new(asked: &[Asked], started: &[ReadoutStarted], only: &[u32]) -> Self {
        let reads =
            |index: usize| only.is_empty() || only.iter().any(|&each| each as usize == index);
        let arriving = asked.iter().zip(started).enumerate().map(|(index, (asked, started))| {
            reads(index).then(|| Arriving::new(&asked.kind, started))
        });
        Self(arriving.collect())
    }

    pub(super) fn add(&mut self, asked: &[Asked], chunk: Chunk<'_>) -> Result<()> {
        let index = match &chunk {
            Chunk::Rows(chunk) => chunk.readout_index,
            Chunk::Predictions(chunk) => chunk.readout_index,
            Chunk::Attention(chunk) => chunk.readout_index,
            Chunk::AttentionSummary(chunk) => chunk.readout_index,
            Chunk::LogitAttribution(chunk) => chunk.readout_index,
        } as usize;
        let kind = asked.get(index).map(|asked| &asked.kind);
        let arriving = self.0.get_mut(index).and_then(Option::as_mut);
        match (chunk, kind, arriving) {
            (
                Chunk::Rows(chunk),
                Some(AskedKind::Rows { send_top, directions, .. }),
                Some(Arriving::Rows { widths, sites }),
            ) => {
                let site = at(sites, chunk.site_index)?;
                let width = widths[chunk.site_index as usize];
                add_rows(site, chunk, width, *send_top, *directions)
            }
            (
                Chunk::Predictions(chunk),
                Some(AskedKind::Predictions { top_k, token_ids, next_token, .. }),
                Some(Arriving::Predictions(sites)),
            ) => {
                let site = at(sites, chunk.site_index)?;
                add_predictions(site, chunk, *top_k, *token_ids, *next_token)
            }
            (
                Chunk::Attention(chunk),
                Some(AskedKind::Attention { heads, top_k }),
                Some(Arriving::Attention(patterns)),
            ) => match heads.iter().position(|&head| head == chunk.head) {
                Some(index) => patterns[index].add(chunk, *top_k),
                None => Err(unasked(&format!("attention of head {}", chunk.head))),
            },
            (
                Chunk::AttentionSummary(chunk),
                Some(AskedKind::AttentionSummary { offsets, top_keys, .. }),
                Some(Arriving::AttentionSummary(layers)),
            ) => match layers.iter_mut().find(|(layer, _)| *layer == chunk.layer) {
                Some((_, found @ None)) => {
                    *found = Some(attention::summary(chunk, *offsets, *top_keys)?);
                    Ok(())
                }
                _ => Err(unasked(&format!("a summary of layer {}", chunk.layer))),
            },
            (
                Chunk::LogitAttribution(chunk),
                Some(AskedKind::LogitAttribution { with_heads, targets, .. }),
                Some(Arriving::LogitAttribution { sites, .. }),
            ) => {
                let site = at(sites, chunk.site_index)?;
                add_attributions(site, chunk, with_heads[chunk.site_index as usize], *targets)
            }
            _ => Err(unasked(&format!("an answer to readout {index}"))),
        }
    }

    /// All of it, if it is what the server has announced: where each readout has read of the tokens
    /// that were run, and what it has kept.
    pub(super) fn finish(
        self,
        asked: &[Asked],
        positions: &[ReadoutPositions],
        kept: &[KeptReadout],
        tokens: usize,
    ) -> Result<Readouts> {
        let promised = self.promised(positions, tokens)?;
        let mut kept = self.kept(asked, kept, &promised)?;
        let mut readouts = Vec::new();
        for (index, (arriving, asked)) in self.0.into_iter().zip(asked).enumerate() {
            let (Some(arriving), Some(promised)) = (arriving, promised[index]) else { continue };
            if let Some(reading) = arriving.finish(&asked.kind, promised, tokens)? {
                readouts.push((asked.name.clone(), reading));
            } else if let Some(name) = kept[index].take() {
                readouts.push((asked.name.clone(), Reading::Kept(name)));
            }
        }
        Ok(Readouts(readouts))
    }

    /// Where each readout has read, by readout.
    fn promised<'a>(
        &self,
        told: &'a [ReadoutPositions],
        tokens: usize,
    ) -> Result<Vec<Option<&'a [u32]>>> {
        let mut promised: Vec<Option<&[u32]>> = vec![None; self.0.len()];
        for each in told {
            if !each.positions.is_sorted_by(|before, after| before < after) {
                return Err(Error::bad_response(format!(
                    "the server announced positions that do not ascend, {:?}...",
                    &each.positions[..each.positions.len().min(10)]
                )));
            }
            if each.positions.last().is_some_and(|&last| last as usize >= tokens) {
                return Err(Error::bad_response(format!(
                    "the server announced a position beyond the {tokens} tokens that were run"
                )));
            }
            for &index in &each.readout_indices {
                let reads = self.0.get(index as usize).is_some_and(Option::is_some);
                if !reads || promised[index as usize].replace(&each.positions).is_some() {
                    return Err(unasked(&format!("positions of readout {index}")));
                }
            }
        }
        for (index, arriving) in self.0.iter().enumerate() {
            if arriving.is_some() && promised[index].is_none() {
                return Err(Error::bad_response(format!(
                    "the server did not announce where readout {index} reads"
                )));
            }
        }
        Ok(promised)
    }

    /// The names of what was kept, by readout.
    fn kept(
        &self,
        asked: &[Asked],
        told: &[KeptReadout],
        promised: &[Option<&[u32]>],
    ) -> Result<Vec<Option<String>>> {
        let mut names = vec![None; self.0.len()];
        for each in told {
            let index = each.readout_index as usize;
            let keeps = matches!(asked.get(index), Some(Asked { kind: AskedKind::Keep, .. }))
                && self.0.get(index).is_some_and(Option::is_some);
            if !keeps || each.name.is_empty() || names[index].replace(each.name.clone()).is_some() {
                return Err(unasked("names of kept rows"));
            }
        }
        for (index, asked) in asked.iter().enumerate() {
            // Where nothing was read there is nothing to keep.
            let reads = promised.get(index).copied().flatten().is_some_and(|it| !it.is_empty());
            if matches!(asked.kind, AskedKind::Keep) && reads && names[index].is_none() {
                return Err(Error::bad_response(format!(
                    "the server did not keep the rows of readout {index}"
                )));
            }
        }
        Ok(names)
    }
}

impl Arriving {
    fn new(asked: &AskedKind, started: &ReadoutStarted) -> Self {
        match asked {
            AskedKind::Rows { sites, .. } => Self::Rows {
                widths: started.widths.clone(),
                sites: sites.iter().map(|_| Default::default()).collect(),
            },
            AskedKind::Predictions { sites, .. } => {
                Self::Predictions(sites.iter().map(|_| Default::default()).collect())
            }
            AskedKind::Attention { heads, .. } => {
                Self::Attention(heads.iter().map(|_| Default::default()).collect())
            }
            AskedKind::AttentionSummary { .. } => {
                Self::AttentionSummary(started.layers.iter().map(|&layer| (layer, None)).collect())
            }
            AskedKind::LogitAttribution { sites, .. } => Self::LogitAttribution {
                constants: started.target_constants.clone(),
                sites: sites.iter().map(|_| Default::default()).collect(),
            },
            AskedKind::Statistics { .. } | AskedKind::Keep | AskedKind::Other => Self::Silent,
        }
    }

    /// What has been read, if it is at the promised positions; `None` if nothing travels.
    fn finish(self, asked: &AskedKind, promised: &[u32], tokens: usize) -> Result<Option<Reading>> {
        Ok(Some(match (self, asked) {
            (
                Self::Rows { widths, sites },
                AskedKind::Rows { sites: names, reduced, send_top, .. },
            ) => {
                let last = promised.len().saturating_sub(1);
                let promised = if *reduced { &promised[last..] } else { promised };
                let each = names.iter().zip(sites).zip(widths);
                let rows = each.map(|((name, (mut joined, indices)), width)| {
                    joined.check(promised, &format!("rows of {name}"))?;
                    let values = joined.take(0, promised.len(), &[width as usize]);
                    let indices = send_top.then_some(indices);
                    Ok((name.clone(), Rows { positions: joined.take_positions(), values, indices }))
                });
                Reading::Rows(rows.collect::<Result<_>>()?)
            }
            (
                Self::Predictions(sites),
                AskedKind::Predictions { sites: names, top_k, token_ids, next_token },
            ) => {
                let rows = promised.len();
                let each = names.iter().zip(sites);
                let predictions = each.map(|(name, (mut joined, top_ids, top_texts))| {
                    joined.check(promised, &format!("predictions of {name}"))?;
                    let predictions = Predictions {
                        top_ids,
                        top_texts,
                        top_logprobs: (*top_k > 0).then(|| joined.take(TOP, rows, &[*top_k])),
                        token_logprobs: (*token_ids > 0)
                            .then(|| joined.take(TOKENS, rows, &[*token_ids])),
                        next_token_logprobs: next_token.then(|| joined.take(NEXT, rows, &[])),
                        positions: joined.take_positions(),
                    };
                    Ok((name.clone(), predictions))
                });
                Reading::Predictions(predictions.collect::<Result<_>>()?)
            }
            (Self::Attention(patterns), AskedKind::Attention { heads, top_k }) => {
                let each = heads.iter().zip(patterns);
                let patterns = each.map(|(&head, pattern)| {
                    Ok((head, pattern.finish(head, promised, tokens, *top_k)?))
                });
                Reading::Attention(patterns.collect::<Result<_>>()?)
            }
            (Self::AttentionSummary(layers), _) => {
                let layers = layers.into_iter().map(|(layer, summary)| match summary {
                    Some(summary) if summary.queries as usize == promised.len() => {
                        Ok((layer, summary))
                    }
                    Some(summary) => Err(Error::bad_response(format!(
                        "the server sent a summary of layer {layer} over {} queries, not {}",
                        summary.queries,
                        promised.len()
                    ))),
                    None => {
                        Err(Error::bad_response(format!("the summary of layer {layer} is missing")))
                    }
                });
                Reading::AttentionSummary(layers.collect::<Result<_>>()?)
            }
            (
                Self::LogitAttribution { constants, sites },
                AskedKind::LogitAttribution { sites: names, targets, with_heads },
            ) => {
                let each = names.iter().zip(sites).zip(with_heads);
                let attributions = each.map(|((name, mut joined), &with_heads)| {
                    joined.check(promised, &format!("attributions of {name}"))?;
                    // How many heads there are is not known where no row has come.
                    let row: &[usize] = if with_heads { &[0, *targets] } else { &[*targets] };
                    let contributions = joined.take(0, promised.len(), row);
                    let attribution = LogitAttribution {
                        positions: joined.take_positions(),
                        contributions,
                        target_constants: constants.clone(),
                    };
                    Ok((name.clone(), attribution))
                });
                Reading::LogitAttribution(attributions.collect::<Result<_>>()?)
            }
            _ => return Ok(None),
        }))
    }
}

fn add_rows(
    (joined, indices): &mut (Joined, Vec<u32>),
    chunk: &ActivationChunk,
    width: u32,
    send_top: bool,
    directions: Option<u32>,
) -> Result<()> {
    joined.add_positions(&chunk.positions, "rows")?;
    let rows = chunk.positions.len();
    joined.add(0, chunk.rows.as_ref(), rows, &[width as usize], "rows")?;
    if !send_top {
        return Ok(());
    }
    let known = |index: &u32| directions.is_none_or(|directions| *index < directions);
    if Some(chunk.indices.len()) != rows.checked_mul(width as usize)
        || !chunk.indices.iter().all(known)
    {
        return Err(Error::bad_response(format!(
            "the server sent {} indices for {rows} rows of {width} components, or one of a \
             direction that there is not",
            chunk.indices.len()
        )));
    }
    indices.extend_from_slice(&chunk.indices);
    Ok(())
}

fn add_predictions(
    (joined, top_ids, top_texts): &mut (Joined, Vec<u32>, Vec<String>),
    chunk: &PredictionChunk,
    top_k: usize,
    token_ids: usize,
    next_token: bool,
) -> Result<()> {
    joined.add_positions(&chunk.positions, "predictions")?;
    let rows = chunk.positions.len();
    let tops = rows.checked_mul(top_k);
    if Some(chunk.top_ids.len()) != tops || Some(chunk.top_texts.len()) != tops {
        return Err(Error::bad_response(format!(
            "the server sent {} ids and {} texts of the likeliest tokens, not {top_k} for each of \
             {rows} rows",
            chunk.top_ids.len(),
            chunk.top_texts.len()
        )));
    }
    top_ids.extend_from_slice(&chunk.top_ids);
    top_texts.extend_from_slice(&chunk.top_texts);
    if top_k > 0 {
        joined.add(TOP, chunk.top_logprobs.as_ref(), rows, &[top_k], "top_logprobs")?;
    }
    if token_ids > 0 {
        joined.add(TOKENS, chunk.token_logprobs.as_ref(), rows, &[token_ids], "token_logprobs")?;
    }
    if next_token {
        joined.add(NEXT, chunk.next_token_logprobs.as_ref(), rows, &[], "next_token_logprobs")?;
    }
    Ok(())
}

fn add_attributions(
    joined: &mut Joined,
    chunk: &LogitAttributionChunk,
    with_heads: bool,
    targets: usize,
) -> Result<()> {
    joined.add_positions(&chunk.positions, "attributions")?;
    let rows = chunk.positions.len();
    let row = if with_heads {
        // How many heads there are, the server knows; they are always as many.
        let told = chunk.contributions.as_ref().and_then(|tensor| tensor.shape.get(1));
        let known = joined.row(0).map(|row| row[0]);
        vec![known.or(told.map(|&heads| heads as usize)).unwrap_or_default(), targets]
    } else {
        vec![targets]
    };
    joined.add(0, chunk.contributions.as_ref(), rows, &row, "attributions")
}

/// What each intervention did, if there is one report for each that was asked.
pub(super) fn reports(
    told: Vec<InterventionReport>,
    asked: usize,
) -> Result<Vec<InterventionReport>> {
    if told.len() != asked {
        return Err(Error::bad_response(format!(
            "the server reported on {} interventions, but {asked} were asked for",
            told.len()
        )));
    }
    Ok(told)
}

fn at<T>(sites: &mut [T], index: u32) -> Result<&mut T> {
    let count = sites.len();
    sites
        .get_mut(index as usize)
        .ok_or_else(|| unasked(&format!("an answer of site {index} of {count}")))
}

pub(super) fn unasked(what: &str) -> Error {
    Error::bad_response(format!("the server sent {what} that was not asked for, or came before"))
}
