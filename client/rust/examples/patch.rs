//! Puts a row of one prompt into the run of another, without the row travelling.
//!
//! `cargo run --example patch [host:port]`

use actserve::{
    Client,
    v1::{
        DeleteKeptActivationsRequest, FetchActivationsRequest, FetchItem, Intervention,
        PredictionReadout, Readout, readout::Kind,
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "localhost:50051".into());
    let client = Client::new(address)?;
    // [patch]
    let site = "resid_post.15";
    let france = client
        .fetch_activations(FetchActivationsRequest {
            items: vec![FetchItem::of("The capital of France is")],
            readouts: vec![Readout::keep("row", &[site], "-1")?],
            ..Default::default()
        })
        .await?;
    let kept = france.item(0)?.readouts.kept("row")?;

    let next = PredictionReadout {
        sites: vec!["final_norm".parse()?],
        positions: Some("last".parse()?),
        top_k: 3,
        ..Default::default()
    };
    let italy = client
        .fetch_activations(FetchActivationsRequest {
            items: vec![FetchItem::of("The capital of Italy is")],
            readouts: vec![Readout { name: "next".into(), kind: Some(Kind::Predictions(next)) }],
            interventions: vec![Intervention::replace(site, kept, "-1")?],
            ..Default::default()
        })
        .await?;
    let next = italy.item(0)?.readouts.predictions("next", "final_norm")?;
    for (token, logprob) in
        next.top_texts.iter().zip(next.top_logprobs.iter().flat_map(|it| it.data()))
    {
        println!("{} {logprob:.3}", serde_json::to_string(token)?);
    }
    client.delete_kept_activations(DeleteKeptActivationsRequest { name: kept.into() }).await?;
    // [/patch]
    Ok(())
}
