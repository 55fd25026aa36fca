//! Attribution graphs, as drivers answer them.

use actserve::{
    Graph,
    v1::{AttributionNode, attribution_node::Kind},
};
use serde_json::{Value, json};

use crate::answers::vector;

pub fn traced(graph: &Graph) -> Value {
    let told: Vec<_> = graph.nodes.iter().map(kind).collect();
    let nodes =
        graph.nodes.iter().zip(&told).map(
            |(node, (kind, of, _))| json!({"kind": kind, "of": of, "position": node.position}),
        );
    let influences: Vec<_> = graph.nodes.iter().map(|node| node.influence).collect();
    let activations: Vec<_> = told.iter().map(|(_, _, value)| *value).collect();
    json!({
        "nodes": nodes.collect::<Vec<_>>(),
        "influences": vector(&influences),
        "activations": vector(&activations),
        "sources": graph.sources,
        "targets": graph.targets,
        "weights": vector(&graph.weights),
    })
}

/// What a node is, of what, and its activation or probability.
fn kind(node: &AttributionNode) -> (&str, Vec<u32>, f32) {
    match &node.kind {
        Some(Kind::Embedding(it)) => ("embedding", vec![it.token_id], 0.0),
        Some(Kind::Neuron(it)) => ("neuron", vec![it.layer, it.neuron], it.activation),
        Some(Kind::Feature(it)) => {
            ("feature", vec![it.dictionary_index, it.feature_index], it.activation)
        }
        Some(Kind::ReconstructionError(it)) => ("error", vec![it.dictionary_index], 0.0),
        Some(Kind::Logit(it)) => ("logit", vec![it.token_id], it.probability),
        None => ("unknown", vec![], 0.0),
    }
}
