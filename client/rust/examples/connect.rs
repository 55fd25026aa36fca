//! What a client of servers elsewhere is made of.
//!
//! `ACTSERVE_TOKEN=... cargo run --example connect`

use std::{env, error::Error, fs, time::Duration};

use actserve::{
    Client,
    tonic::transport::{Certificate, ClientTlsConfig, Identity},
    v1::ListModelsRequest,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // [connect]
    let tls = ClientTlsConfig::new() // or .with_native_roots(), the system's authorities
        .ca_certificate(Certificate::from_pem(fs::read("ca.pem")?))
        .identity(Identity::from_pem(fs::read("client.pem")?, fs::read("client-key.pem")?));
    let client = Client::builder("replica-1.example.com:50051")
        .target("replica-2.example.com:50051") // calls go to both in turn
        .tls(tls)
        .token(env::var("ACTSERVE_TOKEN")?)
        .timeout(Duration::from_secs(60)) // 600 seconds unless set
        .build()?;
    // [/connect]
    let mut models = client.list_models(ListModelsRequest::default());
    while let Some(model) = models.try_next().await? {
        println!("{}", model.name);
    }
    Ok(())
}
