//! What a model thinks at the last token of a prompt, in words.
//!
//! `cargo run --example explain [host:port]`

use actserve::{
    Client,
    v1::{ExplainSpec, ExplainTextRequest},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "localhost:50051".into());
    let client = Client::new(address)?;
    // [explain]
    let explained = client
        .explain_text(ExplainTextRequest {
            prompt: Some("The capital of France is".into()),
            positions: Some("last".parse()?),
            spec: Some(ExplainSpec {
                temperature: Some(0.0),
                max_tokens: Some(32),
                score: true,
                ..Default::default()
            }),
            ..Default::default()
        })
        .await?;
    for each in &explained.explanations {
        let cosine = each.score.map_or(f32::NAN, |score| score.cosine);
        println!("{} {cosine:.2}", serde_json::to_string(&each.text)?);
    }
    // [/explain]
    Ok(())
}
