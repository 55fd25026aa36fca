//! A thin client of [actserve](https://github.com/actserve/actserve): fetch activations of language
//! models, steer them, and have them explained in words, over gRPC.
//!
//! ```no_run
//! use actserve::{
//!     Client,
//!     v1::{FetchActivationsRequest, FetchItem, Readout},
//! };
//!
//! # async fn example() -> actserve::Result<()> {
//! let client = Client::new("localhost:50051")?;
//! let fetched = client
//!     .fetch_activations(FetchActivationsRequest {
//!         items: vec![FetchItem::of("The capital of France is")],
//!         readouts: vec![Readout::rows("acts", &["resid_post.15"], "all")?],
//!         ..Default::default()
//!     })
//!     .await?;
//! let rows = fetched.item(0)?.readouts.rows("acts", "resid_post.15")?;
//! assert_eq!(rows.values.shape()[0], rows.positions.len());
//! # Ok(())
//! # }
//! ```
//!
//! - [`Client`] has a method for everything that a server serves. They take and return the messages
//!   of the contract, which [`v1`] has; what a stream brings is put together, whole or not at all.
//! - Sites, positions and prompts are parsed from text: `"resid_post.10".parse::<v1::Site>()`,
//!   `"0,3,-1".parse::<v1::PositionSelector>()`, `v1::Prompt::from("The capital of France is")`.
//! - Rows are [`Array`]s of float32, whatever the element type on the wire.
//! - All errors are [`Error`].
//!
//! # Features
//!
//! - `ndarray`: arrays from and to [`ndarray`](https://docs.rs/ndarray).
//! - `opentelemetry`: the current OpenTelemetry context goes with each call, in `traceparent`.
//!
//! A server that is older than the client is warned of once, by [`tracing`](https://docs.rs/tracing).

#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod alerts;
mod answer;
mod builder;
mod client;
mod collect;
mod connect;
mod crc32c;
mod dictionaries;
mod effects;
mod error;
mod graphs;
mod heads;
mod incoming;
mod messages;
mod names;
mod pages;
mod readouts;
mod reconnects;
mod target;
mod tensor;
#[cfg(feature = "opentelemetry")]
mod trace_context;
mod transport;
mod versions;

pub use alerts::WatchedAlert;
pub use builder::ClientBuilder;
pub use client::Client;
pub use collect::{
    Explained, Fetched, FetchedItem, Generated, Graph, HeadPattern, Item, LabelStatistics,
    Measured, MeasuredHeads, MeasuredPrompt, Reconstructed, Replayed, ReplayedItem, Sample, Swept,
    SweptCell,
};
pub use effects::{LogitEffect, TokenEffect};
pub use error::{Error, Result};
pub use incoming::Incoming;
pub use readouts::{
    Attention, AttentionSummary, LogitAttribution, Predictions, Reading, Readouts, Rows,
};
pub use tensor::Array;
pub use tonic;
pub use transport::Transport;

/// The messages of the contract and the stubs of its services, generated.
///
/// Messages have `FromStr`, `From` and constructors where they would be clumsy to write out; the
/// stubs go on a [`Transport`].
pub mod v1 {
    #![allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
    include!("gen/actserve.v1.rs");
}
