//! Shorter ways to make the messages that are clumsy to write out.

use crate::{
    Result,
    v1::{
        AddOperation, Conversation, FetchItem, Intervention, KeepReadout, KeptRows, MatrixSource,
        PositionSelector, PredictionReadout, Prompt, Readout, ReplaceOperation, RowReadout, Site,
        TokenIds, Turn, VectorSource, intervention::Operation, kept_rows::Kept, matrix_source,
        prompt, readout::Kind, vector_source,
    },
};

impl From<&str> for Prompt {
    /// Text, tokenized by the model's tokenizer.
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for Prompt {
    /// Text, tokenized by the model's tokenizer.
    fn from(text: String) -> Self {
        Self { source: Some(prompt::Source::Text(text)) }
    }
}

impl From<Vec<u32>> for Prompt {
    /// Token ids, used as they are.
    fn from(ids: Vec<u32>) -> Self {
        Self { source: Some(prompt::Source::TokenIds(TokenIds { ids })) }
    }
}

impl From<Vec<Turn>> for Prompt {
    /// A conversation, rendered by the model's own chat template.
    fn from(turns: Vec<Turn>) -> Self {
        let conversation = Conversation { turns, ..Default::default() };
        Self { source: Some(prompt::Source::Conversation(conversation)) }
    }
}

impl Turn {
    /// What `system`, `user` or `assistant` says.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), ..Default::default() }
    }
}

impl FetchItem {
    /// An item of a prompt alone.
    pub fn of(prompt: impl Into<Prompt>) -> Self {
        Self { prompt: Some(prompt.into()), ..Default::default() }
    }
}

impl Readout {
    /// Reads the rows of sites, as in `Readout::rows("acts", &["resid_post.10"], "last")`.
    pub fn rows(name: impl Into<String>, sites: &[&str], positions: &str) -> Result<Self> {
        let rows = RowReadout {
            sites: self::sites(sites)?,
            positions: Some(positions.parse()?),
            ..Default::default()
        };
        Ok(Self { name: name.into(), kind: Some(Kind::Rows(rows)) })
    }

    /// Reads the `top_k` likeliest next tokens as each site would have them: the logit lens, as in
    /// `Readout::predictions("lens", &["resid_post.10", "final_norm"], "last", 5)`.
    pub fn predictions(
        name: impl Into<String>,
        sites: &[&str],
        positions: &str,
        top_k: u32,
    ) -> Result<Self> {
        let predictions = PredictionReadout {
            sites: self::sites(sites)?,
            positions: Some(positions.parse()?),
            top_k,
            ..Default::default()
        };
        Ok(Self { name: name.into(), kind: Some(Kind::Predictions(predictions)) })
    }

    /// Keeps the rows of sites on the server. They do not travel.
    pub fn keep(name: impl Into<String>, sites: &[&str], positions: &str) -> Result<Self> {
        let keep = KeepReadout {
            sites: self::sites(sites)?,
            positions: Some(positions.parse()?),
            ..Default::default()
        };
        Ok(Self { name: name.into(), kind: Some(Kind::Keep(keep)) })
    }
}

fn sites(names: &[&str]) -> Result<Vec<Site>> {
    names.iter().map(|name| name.parse()).collect()
}

impl Intervention {
    /// Adds `coefficient` times a vector at every position of a site. The vector is as wide as the
    /// rows of the site, and in their units.
    pub fn add(site: &str, vector: &[f32], coefficient: f32) -> Result<Self> {
        let vector = VectorSource { source: Some(vector_source::Source::Tensor(vector.into())) };
        let add = AddOperation {
            vector: Some(vector),
            coefficient: Some(coefficient),
            ..Default::default()
        };
        Ok(Self {
            sites: vec![site.parse()?],
            operation: Some(Operation::Add(add)),
            ..Default::default()
        })
    }

    /// Puts rows that the server has kept by this name in place of those of a site: one for each of
    /// the positions, or one for all.
    pub fn replace(site: &str, kept: impl Into<String>, positions: &str) -> Result<Self> {
        let kept = KeptRows { kept: Some(Kept::Name(kept.into())), ..Default::default() };
        let rows = MatrixSource { source: Some(matrix_source::Source::Kept(kept)) };
        Ok(Self {
            sites: vec![site.parse()?],
            positions: Some(positions.parse::<PositionSelector>()?),
            operation: Some(Operation::Replace(ReplaceOperation { rows: Some(rows) })),
            ..Default::default()
        })
    }
}
