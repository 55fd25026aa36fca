//! What features do to logits by themselves.

use std::collections::BTreeMap;

use crate::{
    Client, Error, Item, Result,
    v1::{
        ElementType, FetchActivationsRequest, FetchItem, Intervention, Readout, TokenizeRequest,
        VectorSource, ZeroOperation, intervention::Operation, readout::Kind,
    },
};

/// How much of a feature makes up the row whose logits are read: enough for the small number that
/// norms add to the square of a row to be nothing beside it.
const DOSE: f32 = 10.0;

const LAST_RESIDUAL: &str = "resid_post.-1";

/// Which tokens a feature makes likelier by itself: its direction goes through the final norm and
/// the unembedding, with no layer between (the direct effect; Elhage et al., "A Mathematical
/// Framework for Transformer Circuits", 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct LogitEffect {
    /// The index of the feature.
    pub feature: u32,
    /// The tokens that it raises most, most first.
    pub top: Vec<TokenEffect>,
    /// The tokens that it lowers most, most first.
    pub bottom: Vec<TokenEffect>,
}

/// What a feature does to the logit of one token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEffect {
    /// The token's.
    pub id: u32,
    /// The token, decoded alone.
    pub text: String,
    /// What one unit of the feature adds to the logit, as at a row whose elements have a mean
    /// square of one; at other rows all effects are larger or smaller by one factor.
    pub effect: f32,
}

impl Client {
    /// The `k` tokens that each of some features raises most, and the `k` that it lowers most.
    ///
    /// The dictionary, `models/{model}/dictionaries/{dictionary}`, writes to the residual stream.
    /// Features may be as many as a call has items, less one.
    pub async fn logit_effects(
        &self,
        dictionary: &str,
        features: &[u32],
        k: usize,
    ) -> Result<Vec<LogitEffect>> {
        let request = request(dictionary, features)?;
        let model = request.model.clone();
        let fetched = self.fetch_activations(request).await?;
        let nothing = fetched.item(0)?;
        let mut effects = vec![];
        for (index, &feature) in features.iter().enumerate() {
            let (top, bottom) = strongest(fetched.item(index + 1)?, nothing, k)?;
            effects.push(LogitEffect { feature, top, bottom });
        }
        self.name_tokens(model, &mut effects).await?;
        Ok(effects)
    }

    /// Writes the texts of the tokens of effects.
    async fn name_tokens(&self, model: String, effects: &mut [LogitEffect]) -> Result<()> {
        let mut tokens: Vec<_> = effects
            .iter_mut()
            .flat_map(|effect| effect.top.iter_mut().chain(&mut effect.bottom))
            .collect();
        let mut texts: BTreeMap<u32, String> =
            tokens.iter().map(|token| (token.id, String::new())).collect();
        if texts.is_empty() {
            return Ok(());
        }
        let ids: Vec<u32> = texts.keys().copied().collect();
        let request = TokenizeRequest { model, prompt: Some(ids.into()) };
        let found = self.tokenize(request).await?.prompt.unwrap_or_default().texts;
        if found.len() != texts.len() {
            return Err(Error::bad_response(format!(
                "the server sent {} texts of {} tokens",
                found.len(),
                texts.len()
            )));
        }
        texts.values_mut().zip(found).for_each(|(text, found)| *text = found);
        tokens.iter_mut().for_each(|token| token.text.clone_from(&texts[&token.id]));
        Ok(())
    }
}

/// Reads the logits of a row that is zero, and of one that is each feature alone, in place of the
/// last row of the residual stream.
fn request(dictionary: &str, features: &[u32]) -> Result<FetchActivationsRequest> {
    let clear = Intervention {
        sites: vec![LAST_RESIDUAL.parse()?],
        positions: Some("last".parse()?),
        operation: Some(Operation::Zero(ZeroOperation {})),
        ..Default::default()
    };
    let item = |interventions| FetchItem { interventions, ..FetchItem::of(vec![0]) };
    let mut items = vec![item(vec![clear.clone()])];
    for &feature in features {
        let vector = VectorSource::feature(dictionary, feature);
        let mut add = Intervention::add(&[LAST_RESIDUAL], vector, DOSE)?;
        add.positions = Some("last".parse()?);
        items.push(item(vec![clear.clone(), add]));
    }
    let mut readout = Readout::rows("row", &[LAST_RESIDUAL, "logits"], "last")?;
    if let Some(Kind::Rows(rows)) = &mut readout.kind {
        rows.set_element_type(ElementType::F32);
    }
    let model = dictionary.split_once("/dictionaries/").map_or("", |(model, _)| model);
    Ok(FetchActivationsRequest {
        model: model.into(),
        items,
        readouts: vec![readout],
        fail_fast: true,
        ..Default::default()
    })
}

/// The `k` tokens that the feature of an item raises most and lowers most. Of nothing, logits are
/// not zero where norms have biases.
fn strongest(
    item: &Item,
    nothing: &Item,
    k: usize,
) -> Result<(Vec<TokenEffect>, Vec<TokenEffect>)> {
    let data = |item: &'_ Item, site| {
        item.readouts.rows("row", site).map(|rows| rows.values.data().to_vec())
    };
    let (logits, nothing) = (data(item, "logits")?, data(nothing, "logits")?);
    let written = data(item, LAST_RESIDUAL)?;
    let squares: f64 = written.iter().map(|&element| f64::from(element).powi(2)).sum();
    let scale = (squares / written.len() as f64).sqrt() / f64::from(DOSE);
    let mut effects: Vec<_> = logits
        .iter()
        .zip(nothing)
        .map(|(logit, nothing)| (f64::from(logit - nothing) * scale) as f32)
        .enumerate()
        .collect();
    effects.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let told =
        |&(id, effect): &(usize, f32)| TokenEffect { id: id as u32, text: String::new(), effect };
    let top = effects.iter().take(k).map(told).collect();
    let bottom = effects.iter().rev().take(k).map(told).collect();
    Ok((top, bottom))
}
