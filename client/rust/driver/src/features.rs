//! Dictionaries and their features.

use std::collections::BTreeMap;

use actserve::{
    Client, TokenEffect,
    v1::{
        BeginUploadRequest, Dictionary, DictionaryKind, DictionaryMatrix, ElementType,
        FeatureChange, Intervention, MatrixRole, Readout, ReluActivation, dictionary::Activation,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Question, Result,
    answers::{floats, vector},
    messages::Messages,
};

/// By feature.
pub type Numbers = BTreeMap<u32, f32>;

/// One of a dictionary, its elements as float32.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    role: String,
    shape: Vec<u32>,
    data: String,
}

pub fn changed(question: &Question, messages: &Messages) -> Result<Value> {
    type Change = fn(u32, f32) -> FeatureChange;
    let kinds: [(&Numbers, Change); 3] = [
        (&question.values, FeatureChange::set),
        (&question.additions, FeatureChange::add),
        (&question.factors, FeatureChange::scale),
    ];
    let changes: Vec<_> = kinds
        .iter()
        .flat_map(|(of, change)| of.iter().map(|(&index, &number)| change(index, number)))
        .collect();
    let changed = Intervention::features(&sites(question), &*question.dictionary, changes)?;
    messages.json_of("Intervention", &changed)
}

pub fn readout(question: &Question, messages: &Messages) -> Result<Value> {
    let readout = Readout::features(
        &*question.name,
        &sites(question),
        &question.positions,
        &*question.dictionary,
        question.top,
    )?;
    messages.json_of("Readout", &readout)
}

fn sites(question: &Question) -> Vec<&str> {
    question.sites.iter().map(String::as_str).collect()
}

pub async fn effects(client: Client, question: &Question) -> Result<Value> {
    let found = client.logit_effects(&question.dictionary, &question.features, question.k).await?;
    let mut told = vec![];
    for each in &found {
        let (top, bottom) = (tokens(&each.top), tokens(&each.bottom));
        told.push(json!({"feature": each.feature, "top": top, "bottom": bottom}));
    }
    Ok(json!({"effects": told}))
}

fn tokens(effects: &[TokenEffect]) -> Vec<Value> {
    let told = effects.iter().map(|each| {
        let mut effect = vector(&[each.effect]);
        effect["id"] = each.id.into();
        effect["text"] = each.text.as_str().into();
        effect
    });
    told.collect()
}

/// The name of a sparse autoencoder that was uploaded.
pub async fn upload(client: Client, question: &Question) -> Result<Value> {
    let mut request = BeginUploadRequest {
        model: format!("models/{}", question.client.model.as_deref().unwrap_or_default()),
        dictionary_id: question.name.clone(),
        dictionary: Some(Dictionary {
            kind: DictionaryKind::SparseAutoencoder.into(),
            site: Some(question.site.parse()?),
            features: question.matrices[0].shape[0],
            activation: Some(Activation::Relu(ReluActivation {})),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut contents = vec![];
    for matrix in &question.matrices {
        let role = MatrixRole::from_str_name(&format!("MATRIX_ROLE_{}", matrix.role));
        request.matrices.push(DictionaryMatrix {
            role: role.ok_or("a matrix has no such role")?.into(),
            element_type: ElementType::F32.into(),
            shape: matrix.shape.clone(),
            ..Default::default()
        });
        let values = floats(&matrix.data)?;
        contents.push(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    }
    let contents: Vec<_> = contents.iter().map(Vec::as_slice).collect();
    let made = client.upload_dictionary(request, &contents).await?;
    Ok(json!({"name": made.name}))
}
