//! What attention heads do over a corpus, and what a prediction comes from.
//!
//! `cargo run --example circuits [host:port]`

use actserve::{
    Client,
    v1::{AttributionSettings, CreateAttributionGraphRequest, FetchItem, MeasureHeadsRequest},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "localhost:50051".into());
    let client = Client::new(address)?;
    // [sample]
    let measured = client
        .measure_heads(MeasureHeadsRequest {
            items: vec![FetchItem::of("one two three one two three")],
            ..Default::default()
        })
        .await?;
    for head in measured.heads.iter().flatten() {
        println!("{}.{} {} {}", head.layer, head.head, head.induction, head.previous_token);
    }
    // [/sample]
    // [sample]
    let begun = client
        .create_attribution_graph(CreateAttributionGraphRequest {
            prompt: Some("The capital of France is".into()),
            settings: Some(AttributionSettings {
                max_feature_nodes: Some(300),
                ..Default::default()
            }),
            ..Default::default()
        })
        .await?;
    let name = begun.attribution_graph.unwrap_or_default().name;
    let graph = client.wait_for_attribution_graph(name).await?;
    for ((source, target), weight) in graph.sources.iter().zip(&graph.targets).zip(&graph.weights) {
        println!("{:?}", (&graph.nodes[*source as usize], &graph.nodes[*target as usize], weight));
    }
    // [/sample]
    Ok(())
}
