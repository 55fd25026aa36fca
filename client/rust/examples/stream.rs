//! Text as it is written, an error, and a stub of what has no method.
//!
//! `cargo run --example stream [host:port]`

use actserve::{
    Client,
    v1::{
        GenerateRequest, GetModelRequest, ReadTokenRowsRequest, TokenMatrix, generate_response,
        weight_service_client::WeightServiceClient,
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "localhost:50051".into());
    let client = Client::new(address)?;
    let request = GenerateRequest { prompt: Some("Once upon a time".into()), ..Default::default() };
    // [stream]
    let mut events = client.generate_stream(request).await?;
    while let Some(response) = events.try_next().await? {
        if let Some(generate_response::Event::Tokens(tokens)) = response.event {
            print!("{}", tokens.text);
        }
    }
    // [/stream]
    println!();
    // [errors]
    let answer = client.get_model(GetModelRequest { name: "models/none".into() }).await;
    if let Err(error) = answer {
        match error.reason() {
            "MODEL_NOT_FOUND" => println!("it serves {}", error.metadata()["served"]),
            _ => return Err(error.into()),
        }
    }
    // [/errors]
    // [stubs]
    let mut weights = WeightServiceClient::new(client.transport());
    let mut rows = weights
        .read_token_rows(ReadTokenRowsRequest {
            matrix: TokenMatrix::Unembedding.into(),
            token_ids: vec![0, 1],
            ..Default::default()
        })
        .await
        .map_err(actserve::Error::from)?
        .into_inner();
    // [/stubs]
    while let Some(response) = rows.message().await? {
        println!("{}", if response.event.is_some() { "an event" } else { "one of a newer server" });
    }
    Ok(())
}
