//! Calls, by the names of their methods.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actserve::{
    Client, Error, Fetched, Generated, Incoming, Reading, Readouts,
    v1::{
        self, explanation_service_client::ExplanationServiceClient,
        kept_activations_service_client::KeptActivationsServiceClient,
        model_service_client::ModelServiceClient, weight_service_client::WeightServiceClient,
    },
};
use futures_util::StreamExt;
use prost::Message;
use serde_json::{Value, json};
use tokio::{runtime::Handle, task::JoinSet, time};

use crate::{Question, Result, answers, messages::Messages};

pub async fn unary(client: Client, question: &Question, messages: &Messages) -> Result<Value> {
    macro_rules! call {
        ($request:literal, $response:literal, |$sent:ident| $call:expr) => {{
            let $sent = messages.from_json($request, &question.request)?;
            let response = $call.await.map_err(Error::from)?;
            messages.to_json($response, &response)
        }};
    }
    // Pages by the stubs, since the client has iterators over their items.
    match question.method.as_str() {
        "ListModels" => call!("ListModelsRequest", "ListModelsResponse", |request| async {
            let mut stub = ModelServiceClient::new(client.transport());
            stub.list_models::<v1::ListModelsRequest>(request).await.map(|it| it.into_inner())
        }),
        "ListNlas" => call!("ListNlasRequest", "ListNlasResponse", |request| async {
            let mut stub = ExplanationServiceClient::new(client.transport());
            stub.list_nlas::<v1::ListNlasRequest>(request).await.map(|it| it.into_inner())
        }),
        "ListKeptActivations" => {
            call!("ListKeptActivationsRequest", "ListKeptActivationsResponse", |request| async {
                let mut stub = KeptActivationsServiceClient::new(client.transport());
                let page = stub.list_kept_activations::<v1::ListKeptActivationsRequest>(request);
                page.await.map(|it| it.into_inner())
            })
        }
        "GetModel" => call!("GetModelRequest", "GetModelResponse", |request| {
            client.get_model::<v1::GetModelRequest>(request)
        }),
        _ => Err(format!("{} is no unary method", question.method).into()),
    }
}
