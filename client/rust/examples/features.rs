//! Features of a dictionary: read, changed, and what one does to logits by itself.
//!
//! `cargo run --example features [host:port]`

use actserve::{
    Client,
    v1::{
        FeatureChange, FetchActivationsRequest, FetchItem, Intervention, ListDictionariesRequest,
        Readout,
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "localhost:50051".into());
    let client = Client::new(address)?;
    let name = "models/smollm2-135m/dictionaries/smollm2-135m";
    // [sample]
    let mut dictionaries = client.list_dictionaries(ListDictionariesRequest::default());
    while let Some(dictionary) = dictionaries.try_next().await? {
        let explained = dictionary.check.unwrap_or_default().explained;
        println!("{} has {} features, {explained}", dictionary.name, dictionary.features);
    }
    let fetched = client
        .fetch_activations(FetchActivationsRequest {
            items: vec![FetchItem::of("Rain fell on the lake")],
            readouts: vec![Readout::features("top", &["resid_post.20"], "last", name, 5)?],
            ..Default::default()
        })
        .await?;
    let top = fetched.item(0)?.readouts.rows("top", "resid_post.20")?;
    println!("{:?} {:?}", top.indices, top.values.data()); // The five largest, largest first.
    // [/sample]
    // [sample]
    let changes = [FeatureChange::set(2178, 60.0), FeatureChange::scale(7, 0.0)];
    let steer = Intervention::features(&["resid_post.20"], name, changes)?;
    for effect in client.logit_effects(name, &[2178], 5).await? {
        for token in &effect.top {
            println!("{} {}", token.text, token.effect);
        }
    }
    // [/sample]
    println!("{steer:?}");
    Ok(())
}
