//! Shorter ways to make the messages that are clumsy to write out.

use crate::{
    Result,
    v1::{
        AddOperation, Condition, Conversation, DictionaryFeature, FeatureChange, FeatureOperation,
        FetchItem, Intervention, KeepReadout, KeptRows, MatrixSource, PositionSelector,
        PredictionReadout, Probe, Projection, Prompt, Readout, ReplaceOperation, RowReadout, Site,
        TokenIds, Turn, VectorSource, feature_change::Change, intervention::Operation,
        kept_rows::Kept, matrix_source, prompt, readout::Kind, vector_source,
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

    /// Reads the features that a dictionary, `models/{model}/dictionaries/{dictionary}`, makes of the
    /// rows of sites: the `top` largest of each row, with their indices, or with `None` all of them.
    /// A dictionary reads any site of its width, not its own alone.
    pub fn features(
        name: impl Into<String>,
        sites: &[&str],
        positions: &str,
        dictionary: impl Into<String>,
        top: impl Into<Option<u32>>,
    ) -> Result<Self> {
        let projection = Projection {
            dictionary: dictionary.into(),
            send_top: top.into(),
            ..Default::default()
        };
        let rows = RowReadout {
            sites: self::sites(sites)?,
            positions: Some(positions.parse()?),
            projection: Some(projection),
            ..Default::default()
        };
        Ok(Self { name: name.into(), kind: Some(Kind::Rows(rows)) })
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

impl From<&[f32]> for VectorSource {
    /// A vector that goes along with the request, as float32.
    fn from(values: &[f32]) -> Self {
        Self { source: Some(vector_source::Source::Tensor(values.into())) }
    }
}

impl From<Vec<f32>> for VectorSource {
    /// A vector that goes along with the request, as float32.
    fn from(values: Vec<f32>) -> Self {
        values.as_slice().into()
    }
}

impl From<&str> for VectorSource {
    /// A vector that the server has stored, by its name:
    /// `models/{model}/steeringVectors/{steering_vector}`.
    fn from(name: &str) -> Self {
        name.to_owned().into()
    }
}

impl From<String> for VectorSource {
    /// A vector that the server has stored, by its name:
    /// `models/{model}/steeringVectors/{steering_vector}`.
    fn from(name: String) -> Self {
        Self { source: Some(vector_source::Source::SteeringVector(name)) }
    }
}

impl VectorSource {
    /// What a feature of a dictionary, `models/{model}/dictionaries/{dictionary}`, writes: a row of
    /// its decoder.
    pub fn feature(dictionary: impl Into<String>, index: u32) -> Self {
        let feature = DictionaryFeature {
            dictionary: dictionary.into(),
            index: Some(index),
            site_index: None,
        };
        Self { source: Some(vector_source::Source::Feature(feature)) }
    }
}

impl FeatureChange {
    /// Gives a feature a value, whatever it was.
    pub fn set(index: u32, value: f32) -> Self {
        Self { index: Some(index), change: Some(Change::Value(value)) }
    }

    /// Adds to a feature, also where it is zero.
    pub fn add(index: u32, addition: f32) -> Self {
        Self { index: Some(index), change: Some(Change::Addition(addition)) }
    }

    /// Multiplies a feature: zero ablates it, and one changes nothing.
    pub fn scale(index: u32, factor: f32) -> Self {
        Self { index: Some(index), change: Some(Change::Factor(factor)) }
    }
}

impl Probe {
    /// A linear probe: scores the rows of a site by how far they lie along a direction.
    ///
    /// ```
    /// # use actserve::v1::{Intervention, Probe};
    /// # fn example() -> actserve::Result<()> {
    /// let joy = "models/smollm2-135m/steeringVectors/joy";
    /// let mut add = Intervention::add(&["resid_post.15"], joy, 2.0)?;
    /// add.when = Some(Probe::linear("resid_post.8", joy)?.above(0.5));
    /// # Ok(())
    /// # }
    /// # example().unwrap();
    /// ```
    pub fn linear(site: &str, direction: impl Into<VectorSource>) -> Result<Self> {
        Ok(Self { site: Some(site.parse()?), direction: Some(direction.into()), bias: None })
    }

    /// Makes an intervention act where this probe is above a bound, as its field `when`.
    pub fn above(self, bound: f32) -> Condition {
        Condition { probe: Some(self), above: Some(bound), ..Default::default() }
    }

    /// Makes an intervention act where this probe is below a bound, as its field `when`.
    pub fn below(self, bound: f32) -> Condition {
        Condition { probe: Some(self), below: Some(bound), ..Default::default() }
    }
}

impl Intervention {
    /// Adds `coefficient` times a vector at every position of sites. The vector is sent along,
    /// as wide as the rows of the sites and in their units, or a stored one by its name.
    ///
    /// With `None` it is added once, and in a sweep as often as
    /// [`SweepVariant`](crate::v1::SweepVariant) says, which may name the sites too.
    pub fn add(
        sites: &[&str],
        vector: impl Into<VectorSource>,
        coefficient: impl Into<Option<f32>>,
    ) -> Result<Self> {
        let add = AddOperation {
            vector: Some(vector.into()),
            coefficient: coefficient.into(),
            ..Default::default()
        };
        Ok(Self {
            sites: self::sites(sites)?,
            operation: Some(Operation::Add(add)),
            ..Default::default()
        })
    }

    /// Changes features of the rows of sites, each at most once, and keeps of a row what the
    /// dictionary, `models/{model}/dictionaries/{dictionary}`, does not explain.
    pub fn features(
        sites: &[&str],
        dictionary: impl Into<String>,
        changes: impl Into<Vec<FeatureChange>>,
    ) -> Result<Self> {
        let features = FeatureOperation { dictionary: dictionary.into(), changes: changes.into() };
        Ok(Self {
            sites: self::sites(sites)?,
            operation: Some(Operation::Features(features)),
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
