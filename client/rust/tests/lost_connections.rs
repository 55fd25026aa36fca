//! What cannot be said in a case of conformance: servers that are none.

use std::time::Duration;

use actserve::{Client, tonic::Code, v1::GetModelRequest};
use tokio::{io::AsyncWriteExt, net::TcpListener};

async fn error_of(said: &'static [u8]) -> actserve::Error {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(said).await;
        }
    });
    let client = Client::builder(address).timeout(Duration::from_secs(2)).build().unwrap();
    let error = client.get_model(GetModelRequest::default()).await.unwrap_err();
    server.abort();
    error
}

#[tokio::test]
async fn a_server_that_hangs_up_is_unavailable() {
    assert_eq!(error_of(b"").await.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_server_of_another_protocol_is_unavailable() {
    let error = error_of(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}

#[tokio::test]
async fn a_replica_that_says_nothing_is_passed_over() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::builder(silent.local_addr().unwrap().to_string())
        .target(other.local_addr().unwrap().to_string())
        .build()
        .unwrap();
    let call = tokio::spawn(async move { client.get_model(GetModelRequest::default()).await });
    let turned_to = tokio::time::timeout(Duration::from_secs(5), other.accept()).await;
    assert!(turned_to.is_ok());
    call.abort();
}

#[test]
fn a_client_outside_of_a_runtime_is_refused() {
    let error = Client::new("localhost:1").unwrap_err();
    assert!(error.message().contains("Tokio"), "{error}");
}
