//! What a call asks to read: as much of its readouts as its answer is checked against.

use std::collections::HashSet;

use crate::{
    Error, Result,
    v1::{
        HookPoint, Readout, ReadoutStarted, Reduction, SecondMoments, Site, matrix_source::Source,
        readout::Kind,
    },
};

/// One readout.
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) kind: AskedKind,
}

pub(super) enum AskedKind {
    Rows {
        sites: Vec<String>,
        reduced: bool,
        send_top: bool,
        directions: Option<u32>,
    },
    Statistics {
        sites: Vec<String>,
        full: bool,
    },
    Predictions {
        sites: Vec<String>,
        top_k: usize,
        token_ids: usize,
        next_token: bool,
    },
    Attention {
        heads: Vec<u32>,
        top_k: Option<usize>,
    },
    AttentionSummary {
        layers: Vec<i32>,
        offsets: usize,
        top_keys: usize,
    },
    LogitAttribution {
        sites: Vec<String>,
        with_heads: Vec<bool>,
        targets: usize,
    },
    Keep,
    /// Of no kind, or of one that this client does not know.
    Other,
}

impl Asked {
    /// Refuses names and sites that come twice: what is read is found by them.
    pub(super) fn of(readouts: &[Readout]) -> Result<Vec<Self>> {
        let mut names = HashSet::new();
        for (index, readout) in readouts.iter().enumerate() {
            let field = format!("readouts[{index}]");
            if !names.insert(&readout.name) {
                return Err(Error::field_invalid(
                    format!("{field}.name"),
                    format!(
                        "two readouts are called {:?}; give each a name of its own",
                        readout.name
                    ),
                ));
            }
            check_sites(readout, &field)?;
        }
        let asked = readouts.iter().map(|readout| Self {
            name: readout.name.clone(),
            kind: readout.kind.as_ref().map_or(AskedKind::Other, kind),
        });
        Ok(asked.collect())
    }

    /// Whether what the server opens can be this.
    pub(super) fn check(&self, started: &ReadoutStarted) -> Result<()> {
        let (what, told, wanted) = match &self.kind {
            AskedKind::Rows { sites, .. } | AskedKind::Statistics { sites, .. } => {
                ("rows of so many sites", started.widths.len(), sites.len())
            }
            AskedKind::LogitAttribution { targets, .. } => {
                ("an attribution to so many targets", started.target_constants.len(), *targets)
            }
            AskedKind::AttentionSummary { layers, .. } => {
                let mut known = started.layers.clone();
                known.sort_unstable();
                known.dedup();
                // Which layer a negative number means, only the server knows.
                let fit = layers
                    .iter()
                    .zip(&started.layers)
                    .all(|(&asked, &told)| asked < 0 || i64::from(asked) == i64::from(told));
                if known.len() != started.layers.len() || known.is_empty() || !fit {
                    return Err(Error::bad_response(format!(
                        "the server opened a summary of the layers {:?} for those asked, \
                         {layers:?}",
                        started.layers
                    )));
                }
                let wanted = if layers.is_empty() { known.len() } else { layers.len() };
                ("a summary of so many layers", known.len(), wanted)
            }
            _ => return Ok(()),
        };
        if told != wanted {
            return Err(Error::bad_response(format!(
                "the server opened {what}: {told}, but {wanted} were asked for"
            )));
        }
        Ok(())
    }
}

fn check_sites(readout: &Readout, field: &str) -> Result<()> {
    let (kind, sites) = match &readout.kind {
        Some(Kind::Rows(rows)) => ("rows", &rows.sites),
        Some(Kind::Predictions(predictions)) => ("predictions", &predictions.sites),
        Some(Kind::Keep(keep)) => ("keep", &keep.sites),
        Some(Kind::LogitAttribution(attribution)) => ("logit_attribution", &attribution.sites),
        _ => return Ok(()),
    };
    let mut known = HashSet::new();
    match sites.iter().position(|site| !known.insert((site.hook_point, site.layer))) {
        None => Ok(()),
        Some(index) => Err(Error::invalid(
            "SITE_INVALID",
            format!("the readout has the site {} twice; name each once", sites[index]),
        )
        .of_field(format!("{field}.{kind}.sites[{index}]"))),
    }
}

fn kind(kind: &Kind) -> AskedKind {
    match kind {
        Kind::Rows(rows) => {
            let sites = names(&rows.sites);
            if let Some(statistics) = &rows.statistics {
                let full = statistics.second_moments() == SecondMoments::Full;
                return AskedKind::Statistics { sites, full };
            }
            let projection = rows.projection.as_ref();
            let directions = projection.and_then(|it| it.directions.as_ref()?.source.as_ref());
            AskedKind::Rows {
                sites,
                reduced: rows.reduction() != Reduction::Unspecified,
                send_top: projection.is_some_and(|it| it.send_top.is_some()),
                directions: match directions {
                    Some(Source::Tensor(tensor)) => tensor.shape.first().copied(),
                    _ => None,
                },
            }
        }
        Kind::Predictions(predictions) => AskedKind::Predictions {
            sites: if predictions.sites.is_empty() {
                vec!["final_norm".into()]
            } else {
                names(&predictions.sites)
            },
            top_k: predictions.top_k as usize,
            token_ids: predictions.token_ids.len(),
            next_token: predictions.next_token,
        },
        Kind::Attention(attention) => AskedKind::Attention {
            heads: attention.heads.clone(),
            top_k: attention.top_k.map(|top_k| top_k as usize),
        },
        Kind::Keep(_) => AskedKind::Keep,
        Kind::AttentionSummary(summary) => AskedKind::AttentionSummary {
            layers: summary.layers.clone(),
            offsets: summary.offsets.len(),
            top_keys: summary.top_keys as usize,
        },
        Kind::LogitAttribution(attribution) => AskedKind::LogitAttribution {
            sites: names(&attribution.sites),
            with_heads: attribution
                .sites
                .iter()
                .map(|site| site.hook_point() == HookPoint::Z)
                .collect(),
            targets: attribution.targets.len(),
        },
    }
}

fn names(sites: &[Site]) -> Vec<String> {
    sites.iter().map(ToString::to_string).collect()
}
