//! The length of the residual stream at each token of a prompt.
//!
//! `cargo run --example fetch [host:port]`

use actserve::{
    Client,
    v1::{FetchActivationsRequest, FetchItem, Readout},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "localhost:50051".into());
    // [sample]
    let client = Client::new(address)?;
    let fetched = client
        .fetch_activations(FetchActivationsRequest {
            items: vec![FetchItem::of("The capital of France is")],
            readouts: vec![Readout::rows("acts", &["resid_post.15"], "all")?],
            ..Default::default()
        })
        .await?;
    let item = fetched.item(0)?;
    let rows = item.readouts.rows("acts", "resid_post.15")?; // float32 [tokens, width]
    for (position, row) in rows.positions.iter().zip(rows.values.rows()) {
        let token = &item.prompt.texts[*position as usize];
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        println!("{position} {} {norm:.3}", serde_json::to_string(token)?);
    }
    // [/sample]
    Ok(())
}
