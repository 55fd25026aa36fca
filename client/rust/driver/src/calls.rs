//! Calls, by the names of their methods.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actserve::{
    Client, Error, Incoming, Reading,
    v1::{
        self, explanation_service_client::ExplanationServiceClient,
        kept_activations_service_client::KeptActivationsServiceClient,
        model_service_client::ModelServiceClient,
    },
};
use prost::Message;
use serde_json::{Value, json};
use tokio::{runtime::Handle, task::JoinSet, time};

use crate::{Question, Result, answers, graphs, heads, messages::Messages};

/// The request of a question, of the type that is named.
macro_rules! request {
    ($question:ident, $messages:ident, $request:ident) => {
        $messages.message_of::<v1::$request>(stringify!($request), &$question.request)?
    };
}

pub async fn unary(client: Client, question: &Question, messages: &Messages) -> Result<Value> {
    macro_rules! call {
        ($method:ident, $request:ident, $response:ident) => {{
            let response = client.$method(request!(question, messages, $request)).await?;
            messages.json_of(stringify!($response), &response)
        }};
    }
    // By the stub, since the client has an iterator over items in place of pages.
    macro_rules! page {
        ($stub:ident, $method:ident, $request:ident, $response:ident) => {{
            let page = $stub::new(client.transport())
                .$method(request!(question, messages, $request))
                .await
                .map_err(Error::from)?;
            messages.json_of(stringify!($response), &page.into_inner())
        }};
    }
    match question.method.as_str() {
        "ListModels" => {
            page!(ModelServiceClient, list_models, ListModelsRequest, ListModelsResponse)
        }
        "ListNlas" => page!(ExplanationServiceClient, list_nlas, ListNlasRequest, ListNlasResponse),
        "ListKeptActivations" => page!(
            KeptActivationsServiceClient,
            list_kept_activations,
            ListKeptActivationsRequest,
            ListKeptActivationsResponse
        ),
        "GetModel" => call!(get_model, GetModelRequest, GetModelResponse),
        "Tokenize" => call!(tokenize, TokenizeRequest, TokenizeResponse),
        "GetKeptActivations" => {
            call!(get_kept_activations, GetKeptActivationsRequest, GetKeptActivationsResponse)
        }
        "DeleteKeptActivations" => call!(
            delete_kept_activations,
            DeleteKeptActivationsRequest,
            DeleteKeptActivationsResponse
        ),
        "GetNla" => call!(get_nla, GetNlaRequest, GetNlaResponse),
        "ScoreExplanations" => {
            call!(score_explanations, ScoreExplanationsRequest, ScoreExplanationsResponse)
        }
        "SetExplanationBaseline" => call!(
            set_explanation_baseline,
            SetExplanationBaselineRequest,
            SetExplanationBaselineResponse
        ),
        "DeleteExplanationBaseline" => call!(
            delete_explanation_baseline,
            DeleteExplanationBaselineRequest,
            DeleteExplanationBaselineResponse
        ),
        "CreateSteeringVector" => {
            call!(create_steering_vector, CreateSteeringVectorRequest, CreateSteeringVectorResponse)
        }
        "MakeSteeringVector" => {
            call!(make_steering_vector, MakeSteeringVectorRequest, MakeSteeringVectorResponse)
        }
        "CombineSteeringVectors" => call!(
            combine_steering_vectors,
            CombineSteeringVectorsRequest,
            CombineSteeringVectorsResponse
        ),
        "GetSteeringVector" => {
            call!(get_steering_vector, GetSteeringVectorRequest, GetSteeringVectorResponse)
        }
        "UpdateSteeringVector" => {
            call!(update_steering_vector, UpdateSteeringVectorRequest, UpdateSteeringVectorResponse)
        }
        "DeleteSteeringVector" => {
            call!(delete_steering_vector, DeleteSteeringVectorRequest, DeleteSteeringVectorResponse)
        }
        "GetDictionary" => call!(get_dictionary, GetDictionaryRequest, GetDictionaryResponse),
        "DeleteDictionary" => {
            call!(delete_dictionary, DeleteDictionaryRequest, DeleteDictionaryResponse)
        }
        "SetFeatureLabels" => {
            call!(set_feature_labels, SetFeatureLabelsRequest, SetFeatureLabelsResponse)
        }
        "CreateAttributionGraph" => call!(
            create_attribution_graph,
            CreateAttributionGraphRequest,
            CreateAttributionGraphResponse
        ),
        "GetAttributionGraph" => {
            call!(get_attribution_graph, GetAttributionGraphRequest, GetAttributionGraphResponse)
        }
        "DeleteAttributionGraph" => call!(
            delete_attribution_graph,
            DeleteAttributionGraphRequest,
            DeleteAttributionGraphResponse
        ),
        "CreateMonitor" => {
            call!(create_monitor, CreateMonitorRequest, CreateMonitorResponse)
        }
        "GetMonitor" => {
            call!(get_monitor, GetMonitorRequest, GetMonitorResponse)
        }
        "UpdateMonitor" => {
            call!(update_monitor, UpdateMonitorRequest, UpdateMonitorResponse)
        }
        "DeleteMonitor" => {
            call!(delete_monitor, DeleteMonitorRequest, DeleteMonitorResponse)
        }
        "FitMonitor" => {
            call!(fit_monitor, FitMonitorRequest, FitMonitorResponse)
        }
        "GetMonitorScores" => {
            call!(get_monitor_scores, GetMonitorScoresRequest, GetMonitorScoresResponse)
        }
        "GetAlert" => {
            call!(get_alert, GetAlertRequest, GetAlertResponse)
        }
        "DecideAlert" => {
            call!(decide_alert, DecideAlertRequest, DecideAlertResponse)
        }
        "DeleteAlerts" => {
            call!(delete_alerts, DeleteAlertsRequest, DeleteAlertsResponse)
        }
        other => Err(no_method(other)),
    }
}

pub async fn list(client: Client, question: &Question, messages: &Messages) -> Result<Value> {
    macro_rules! named {
        ($list:ident, $request:ident) => {{
            let mut items = client.$list(request!(question, messages, $request));
            let mut names = vec![];
            while question.take.is_none_or(|take| names.len() < take) {
                let Some(item) = items.try_next().await? else { break };
                names.push(item.name);
            }
            Ok(json!({"names": names}))
        }};
    }
    match question.method.as_str() {
        "ListModels" => named!(list_models, ListModelsRequest),
        "ListNlas" => named!(list_nlas, ListNlasRequest),
        "ListKeptActivations" => {
            named!(list_kept_activations, ListKeptActivationsRequest)
        }
        "ListSteeringVectors" => {
            named!(list_steering_vectors, ListSteeringVectorsRequest)
        }
        "ListDictionaries" => named!(list_dictionaries, ListDictionariesRequest),
        "ListAttributionGraphs" => {
            named!(list_attribution_graphs, ListAttributionGraphsRequest)
        }
        "ListMonitors" => named!(list_monitors, ListMonitorsRequest),
        "ListAlerts" => named!(list_alerts, ListAlertsRequest),
        other => Err(no_method(other)),
    }
}

pub async fn stream(client: Client, question: &Question, messages: &Messages) -> Result<Value> {
    macro_rules! events {
        ($open:ident, $request:ident, $response:ident) => {{
            let open = client.$open(request!(question, messages, $request));
            events(open, question, messages, stringify!($response)).await
        }};
    }
    match question.method.as_str() {
        "FetchActivations" => {
            events!(fetch_activations_stream, FetchActivationsRequest, FetchActivationsResponse)
        }
        "Generate" => events!(generate_stream, GenerateRequest, GenerateResponse),
        "ExplainActivations" => events!(
            explain_activations_stream,
            ExplainActivationsRequest,
            ExplainActivationsResponse
        ),
        "ExplainText" => events!(explain_text_stream, ExplainTextRequest, ExplainTextResponse),
        "CompareActivations" => events!(
            compare_activations_stream,
            CompareActivationsRequest,
            CompareActivationsResponse
        ),
        "ReconstructActivations" => {
            events!(
                reconstruct_activations_stream,
                ReconstructActivationsRequest,
                ReconstructActivationsResponse
            )
        }
        "MeasureHeads" => {
            events!(measure_heads_stream, MeasureHeadsRequest, MeasureHeadsResponse)
        }
        "WatchAttributionGraph" => events!(
            watch_attribution_graph_stream,
            WatchAttributionGraphRequest,
            WatchAttributionGraphResponse
        ),
        "RunSweep" => events!(run_sweep_stream, RunSweepRequest, RunSweepResponse),
        "ReplayMonitors" => {
            events!(replay_monitors_stream, ReplayMonitorsRequest, ReplayMonitorsResponse)
        }
        other => Err(no_method(other)),
    }
}

/// Begins a graph, and waits for it.
pub async fn graph(client: Client, question: &Question, messages: &Messages) -> Result<Value> {
    let request = request!(question, messages, CreateAttributionGraphRequest);
    let begun = client.create_attribution_graph(request).await?.attribution_graph;
    let graph = client.wait_for_attribution_graph(begun.unwrap_or_default().name).await?;
    Ok(graphs::traced(&graph))
}

async fn events<T: Message>(
    open: impl Future<Output = actserve::Result<Incoming<T>>>,
    question: &Question,
    messages: &Messages,
    response: &str,
) -> Result<Value> {
    let mut told = vec![];
    let read = async {
        let mut events = open.await?;
        while let Some(event) = events.try_next().await? {
            told.push(messages.event(response, &event).expect("the contract has the response"));
            if question.cancel_after == Some(told.len()) {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let failure = match cancelled_after(question.cancel_after_s, read).await {
        Some(Ok(true)) => None,
        Some(Ok(false)) | None => Some(answers::cancelled()),
        Some(Err(error)) => Some(answers::error(&error)),
    };
    let mut answer = json!({"result": {"events": told}});
    if let Some(failure) = failure {
        answer["error"] = failure;
    }
    Ok(answer)
}

pub async fn collect(client: Client, question: &Question, messages: &Messages) -> Result<Value> {
    macro_rules! collected {
        ($collect:ident, $request:ident, $answer:path) => {{
            let call = client.$collect(request!(question, messages, $request));
            match cancelled_after(question.cancel_after_s, call).await {
                Some(collected) => Ok(json!({"result": $answer(&collected?)})),
                None => Ok(json!({"error": answers::cancelled()})),
            }
        }};
    }
    match question.method.as_str() {
        "FetchActivations" => {
            collected!(fetch_activations, FetchActivationsRequest, answers::fetched)
        }
        "Generate" => collected!(generate, GenerateRequest, answers::generated),
        "ExplainActivations" => {
            collected!(explain_activations, ExplainActivationsRequest, answers::explained)
        }
        "ExplainText" => collected!(explain_text, ExplainTextRequest, answers::explained),
        "CompareActivations" => {
            collected!(compare_activations, CompareActivationsRequest, answers::explained)
        }
        "ReconstructActivations" => {
            collected!(
                reconstruct_activations,
                ReconstructActivationsRequest,
                answers::reconstructed
            )
        }
        "MeasureHeads" => collected!(measure_heads, MeasureHeadsRequest, heads::measured),
        "WatchAttributionGraph" => {
            collected!(watch_attribution_graph, WatchAttributionGraphRequest, graphs::traced)
        }
        "RunSweep" => collected!(run_sweep, RunSweepRequest, answers::swept),
        "ReplayMonitors" => {
            collected!(replay_monitors, ReplayMonitorsRequest, answers::replayed)
        }
        other => Err(no_method(other)),
    }
}

/// Tells alerts until there are enough of them.
pub async fn watch(client: Client, question: &Question, messages: &Messages) -> Result<Value> {
    let mut alerts = client.watch_alerts(request!(question, messages, WatchAlertsRequest));
    let mut told: Vec<Value> = vec![];
    while question.take.is_none_or(|take| told.len() < take) {
        match alerts.try_next().await {
            Ok(Some(each)) => {
                told.push(json!({"name": each.alert.name, "lost_before": each.lost_before}));
            }
            Ok(None) => break,
            Err(error) => {
                let error = answers::error(&error);
                return Ok(json!({"result": {"alerts": told}, "error": error}));
            }
        }
    }
    Ok(json!({"result": {"alerts": told}}))
}

/// What comes of work that is dropped after so many seconds; `None` if it was.
async fn cancelled_after<T>(seconds: Option<f64>, work: impl Future<Output = T>) -> Option<T> {
    match seconds {
        Some(seconds) => time::timeout(Duration::from_secs_f64(seconds), work).await.ok(),
        None => Some(work.await),
    }
}

pub async fn streams(question: &Question, messages: &Messages) -> Result<Value> {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let client = crate::client(&question.client)?;
    let mut streams = JoinSet::new();
    for number in 1..=question.count {
        let cancel = question.cancel_every > 0 && number % question.cancel_every == 0;
        let client = client.clone();
        match question.method.as_str() {
            "FetchActivations" => {
                let request = request!(question, messages, FetchActivationsRequest);
                streams.spawn(async move {
                    read(client.fetch_activations_stream(request).await?, cancel).await
                });
            }
            "Generate" => {
                let request = request!(question, messages, GenerateRequest);
                streams.spawn(
                    async move { read(client.generate_stream(request).await?, cancel).await },
                );
            }
            other => return Err(no_method(other)),
        }
    }
    drop(client);
    let (mut finished, mut cancelled) = (0, 0);
    while let Some(outcome) = streams.join_next().await {
        if outcome?? { finished += 1 } else { cancelled += 1 }
    }
    // What has ended needs a moment to be gone.
    for _ in 0..100 {
        if tasks() <= before {
            break;
        }
        time::sleep(Duration::from_millis(50)).await;
    }
    let leaked = tasks().saturating_sub(before);
    Ok(json!({"finished": finished, "cancelled": cancelled, "leaked": leaked}))
}

/// Whether a stream was read to its end.
async fn read<T: Debug>(mut events: Incoming<T>, cancel: bool) -> actserve::Result<bool> {
    while events.try_next().await?.is_some() {
        if cancel {
            return Ok(false);
        }
    }
    Ok(true)
}

pub async fn measure(client: Client, question: &Question, messages: &Messages) -> Result<Value> {
    let request = request!(question, messages, FetchActivationsRequest);
    let (calls, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(question.seconds);
    let mut callers = JoinSet::new();
    for _ in 0..question.concurrency {
        let (client, request) = (client.clone(), request.clone());
        let (calls, bytes) = (calls.clone(), bytes.clone());
        callers.spawn(async move {
            while Instant::now() < end {
                let fetched = client.fetch_activations(request.clone()).await?;
                calls.fetch_add(1, Ordering::Relaxed);
                bytes.fetch_add(size(&fetched)?, Ordering::Relaxed);
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(outcome) = callers.join_next().await {
        outcome??;
    }
    Ok(json!({
        "calls": calls.load(Ordering::Relaxed),
        "bytes": bytes.load(Ordering::Relaxed),
        "seconds": began.elapsed().as_secs_f64(),
    }))
}

fn size(fetched: &actserve::Fetched) -> actserve::Result<u64> {
    let mut bytes = 0;
    for index in 0..fetched.items.len() {
        for (_, reading) in fetched.item(index)?.readouts.iter() {
            if let Reading::Rows(sites) = reading {
                bytes += sites.iter().map(|(_, rows)| rows.values.data().len()).sum::<usize>() * 4;
            }
        }
    }
    Ok(bytes as u64)
}

fn no_method(name: &str) -> Box<dyn std::error::Error + Send + Sync> {
    format!("there is no such method for this operation: {name}").into()
}
