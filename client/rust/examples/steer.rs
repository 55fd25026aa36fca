//! Steers a model by the difference of two rows.
//!
//! `cargo run --example steer [host:port]`

use actserve::{
    Client,
    v1::{
        FetchActivationsRequest, FetchItem, GenerateRequest, Intervention, Readout, SamplingParams,
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "localhost:50051".into());
    let client = Client::new(address)?;
    // [steer]
    let site = "resid_post.15";
    let fetched = client
        .fetch_activations(FetchActivationsRequest {
            items: vec![
                FetchItem::of("I loved it, wonderful!"),
                FetchItem::of("I hated it, terrible!"),
            ],
            readouts: vec![Readout::rows("acts", &[site], "last")?],
            ..Default::default()
        })
        .await?;
    let liked = fetched.item(0)?.readouts.rows("acts", site)?.values.row(0);
    let hated = fetched.item(1)?.readouts.rows("acts", site)?.values.row(0);
    let mood: Vec<f32> = liked.iter().zip(hated).map(|(liked, hated)| liked - hated).collect();

    let plain = GenerateRequest {
        prompt: Some("I think the movie was".into()),
        sampling: Some(SamplingParams {
            temperature: Some(0.0),
            max_tokens: Some(20),
            ..Default::default()
        }),
        ..Default::default()
    };
    let steered = GenerateRequest {
        interventions: vec![Intervention::add(&[site], mood, 2.0)?],
        ..plain.clone()
    };
    for (name, request) in [("plain", plain), ("steered", steered)] {
        let generated = client.generate(request).await?;
        println!("{name}: {}", serde_json::to_string(&generated.samples[0].text)?);
    }
    // [/steer]
    Ok(())
}
