//! The client: a method for everything that a server serves.

use std::{collections::hash_map::RandomState, hash::BuildHasher, time::Duration};

use tonic::{Code, IntoRequest, Request};

use crate::{
    ClientBuilder, Error, Explained, Fetched, Generated, Incoming, Reconstructed, Replayed, Result,
    Swept, WatchedAlert,
    alerts::watched,
    collect::{
        Collector, ExplainCollector, FetchCollector, GenerateCollector, ReconstructCollector,
        ReplayCollector, SweepCollector, collect, read,
    },
    incoming::events,
    pages::pages,
    transport::{Transport, pause},
    v1::{
        self, WorkState, explanation_service_client::ExplanationServiceClient,
        generation_service_client::GenerationServiceClient,
        kept_activations_service_client::KeptActivationsServiceClient,
        model_service_client::ModelServiceClient, monitor_service_client::MonitorServiceClient,
        steering_vector_service_client::SteeringVectorServiceClient,
        sweep_service_client::SweepServiceClient,
    },
};

/// How often [`Client::wait_for_monitor`] looks whether a monitor is fitted.
const FIT_POLL: Duration = Duration::from_secs(1);

/// A client of an actserve server, or of several that are replicas.
///
/// It is cheap to clone, and clones share connections, which are made when they are needed and
/// closed with the last clone. Methods take the messages of the contract, or a [`tonic::Request`]
/// with one, which may have a timeout and metadata of its own:
///
/// ```no_run
/// # use std::time::Duration;
/// # use actserve::{Client, tonic::Request, v1::ListModelsRequest};
/// # async fn example() -> actserve::Result<()> {
/// let client = Client::new("localhost:50051")?;
/// let mut models = client.list_models(ListModelsRequest::default());
/// while let Some(model) = models.try_next().await? {
///     println!("{} has {} layers", model.name, model.layer_count);
/// }
/// # Ok(())
/// # }
/// ```
///
/// Dropping a future or a stream cancels its call. What a method returns is whole: an answer that
/// is incomplete or breaks the contract is an error.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
}

impl Client {
    /// A client of one server, `host:port`, without TLS; see [`builder`](Self::builder) for more.
    /// A host alone has the port 50051, and `unix:/path` is a socket.
    pub fn new(target: impl Into<String>) -> Result<Self> {
        Self::builder(target).build()
    }

    /// Makes a client of a target and options.
    pub fn builder(target: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(target.into())
    }

    /// What calls go through, for the generated stubs of what has no method here:
    ///
    /// ```no_run
    /// # use actserve::{Client, v1::{ReadTokenRowsRequest, weight_service_client::WeightServiceClient}};
    /// # async fn example(client: Client) -> actserve::Result<()> {
    /// let mut weights = WeightServiceClient::new(client.transport());
    /// let rows = weights.read_token_rows(ReadTokenRowsRequest::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn transport(&self) -> Transport {
        self.transport.clone()
    }

    pub(crate) fn over(transport: Transport) -> Self {
        Self { transport }
    }

    fn models(&self) -> ModelServiceClient<Transport> {
        ModelServiceClient::new(self.transport())
    }

    fn generation(&self) -> GenerationServiceClient<Transport> {
        GenerationServiceClient::new(self.transport())
    }

    fn kept(&self) -> KeptActivationsServiceClient<Transport> {
        KeptActivationsServiceClient::new(self.transport())
    }

    fn explanation(&self) -> ExplanationServiceClient<Transport> {
        ExplanationServiceClient::new(self.transport())
    }

    fn vectors(&self) -> SteeringVectorServiceClient<Transport> {
        SteeringVectorServiceClient::new(self.transport())
    }

    fn sweeps(&self) -> SweepServiceClient<Transport> {
        SweepServiceClient::new(self.transport())
    }

    fn monitors(&self) -> MonitorServiceClient<Transport> {
        MonitorServiceClient::new(self.transport())
    }
}

/// Models.
impl Client {
    /// The served models, page by page.
    pub fn list_models(
        &self,
        request: impl IntoRequest<v1::ListModelsRequest>,
    ) -> Incoming<v1::Model> {
        let stub = self.models();
        pages(request.into_request(), move |request| {
            let mut stub = stub.clone();
            async move {
                let page = stub.list_models(request).await?.into_inner();
                Ok((page.models, page.next_page_token))
            }
        })
    }

    /// One model.
    pub async fn get_model(
        &self,
        request: impl IntoRequest<v1::GetModelRequest>,
    ) -> Result<v1::GetModelResponse> {
        Ok(self.models().get_model(request).await?.into_inner())
    }

    /// A prompt as the model would see it, without running it.
    pub async fn tokenize(
        &self,
        request: impl IntoRequest<v1::TokenizeRequest>,
    ) -> Result<v1::TokenizeResponse> {
        Ok(self.models().tokenize(request).await?.into_inner())
    }
}

/// Activations and generation.
impl Client {
    /// Reads activations of many prompts, whole.
    pub async fn fetch_activations(
        &self,
        request: impl IntoRequest<v1::FetchActivationsRequest>,
    ) -> Result<Fetched> {
        let request = request.into_request();
        let collector = FetchCollector::new(request.get_ref())?;
        collect(self.fetch_activations_stream(request).await?, |it| it.event, collector).await
    }

    /// The events of reading activations, as they arrive.
    pub async fn fetch_activations_stream(
        &self,
        request: impl IntoRequest<v1::FetchActivationsRequest>,
    ) -> Result<Incoming<v1::FetchActivationsResponse>> {
        Ok(events(self.generation().fetch_activations(request).await?.into_inner()))
    }

    /// Generates, optionally steered and captured, and returns the whole.
    pub async fn generate(
        &self,
        request: impl IntoRequest<v1::GenerateRequest>,
    ) -> Result<Generated> {
        let request = request.into_request();
        let collector = GenerateCollector::new(request.get_ref())?;
        collect(self.generate_stream(request).await?, |it| it.event, collector).await
    }

    /// The events of a generation, as they arrive.
    pub async fn generate_stream(
        &self,
        request: impl IntoRequest<v1::GenerateRequest>,
    ) -> Result<Incoming<v1::GenerateResponse>> {
        Ok(events(self.generation().generate(request).await?.into_inner()))
    }
}

/// Activations that are kept on the server.
impl Client {
    /// Describes kept activations.
    pub async fn get_kept_activations(
        &self,
        request: impl IntoRequest<v1::GetKeptActivationsRequest>,
    ) -> Result<v1::GetKeptActivationsResponse> {
        Ok(self.kept().get_kept_activations(request).await?.into_inner())
    }

    /// What the caller's tenant keeps on the server, page by page.
    pub fn list_kept_activations(
        &self,
        request: impl IntoRequest<v1::ListKeptActivationsRequest>,
    ) -> Incoming<v1::KeptActivations> {
        let stub = self.kept();
        pages(request.into_request(), move |request| {
            let mut stub = stub.clone();
            async move {
                let page = stub.list_kept_activations(request).await?.into_inner();
                Ok((page.kept_activations, page.next_page_token))
            }
        })
    }

    /// Frees kept activations before they expire.
    pub async fn delete_kept_activations(
        &self,
        request: impl IntoRequest<v1::DeleteKeptActivationsRequest>,
    ) -> Result<v1::DeleteKeptActivationsResponse> {
        Ok(self.kept().delete_kept_activations(request).await?.into_inner())
    }
}

/// Explanations.
impl Client {
    /// The natural language autoencoders that are loaded, page by page.
    pub fn list_nlas(&self, request: impl IntoRequest<v1::ListNlasRequest>) -> Incoming<v1::Nla> {
        let stub = self.explanation();
        pages(request.into_request(), move |request| {
            let mut stub = stub.clone();
            async move {
                let page = stub.list_nlas(request).await?.into_inner();
                Ok((page.nlas, page.next_page_token))
            }
        })
    }

    /// One natural language autoencoder.
    pub async fn get_nla(
        &self,
        request: impl IntoRequest<v1::GetNlaRequest>,
    ) -> Result<v1::GetNlaResponse> {
        Ok(self.explanation().get_nla(request).await?.into_inner())
    }

    /// Explains rows, whole.
    pub async fn explain_activations(
        &self,
        request: impl IntoRequest<v1::ExplainActivationsRequest>,
    ) -> Result<Explained> {
        let request = request.into_request();
        let collector = ExplainCollector::from(request.get_ref());
        let events = self.explain_activations_stream(request).await?;
        collect(events, |it| it.event?.event, collector).await
    }

    /// The events of explaining rows, as they arrive.
    pub async fn explain_activations_stream(
        &self,
        request: impl IntoRequest<v1::ExplainActivationsRequest>,
    ) -> Result<Incoming<v1::ExplainActivationsResponse>> {
        Ok(events(self.explanation().explain_activations(request).await?.into_inner()))
    }

    /// Explains the tokens of a prompt, whole.
    pub async fn explain_text(
        &self,
        request: impl IntoRequest<v1::ExplainTextRequest>,
    ) -> Result<Explained> {
        let request = request.into_request();
        let collector = ExplainCollector::from(request.get_ref());
        let events = self.explain_text_stream(request).await?;
        collect(events, |it| it.event?.event, collector).await
    }

    /// The events of explaining a prompt, as they arrive.
    pub async fn explain_text_stream(
        &self,
        request: impl IntoRequest<v1::ExplainTextRequest>,
    ) -> Result<Incoming<v1::ExplainTextResponse>> {
        Ok(events(self.explanation().explain_text(request).await?.into_inner()))
    }

    /// Explains how rows differ from others, whole.
    pub async fn compare_activations(
        &self,
        request: impl IntoRequest<v1::CompareActivationsRequest>,
    ) -> Result<Explained> {
        let request = request.into_request();
        let collector = ExplainCollector::from(request.get_ref());
        let events = self.compare_activations_stream(request).await?;
        collect(events, |it| it.event?.event, collector).await
    }

    /// The events of explaining how rows differ, as they arrive.
    pub async fn compare_activations_stream(
        &self,
        request: impl IntoRequest<v1::CompareActivationsRequest>,
    ) -> Result<Incoming<v1::CompareActivationsResponse>> {
        Ok(events(self.explanation().compare_activations(request).await?.into_inner()))
    }

    /// Turns texts into rows, whole.
    pub async fn reconstruct_activations(
        &self,
        request: impl IntoRequest<v1::ReconstructActivationsRequest>,
    ) -> Result<Reconstructed> {
        let request = request.into_request();
        let collector = ReconstructCollector::from(request.get_ref());
        let events = self.reconstruct_activations_stream(request).await?;
        collect(events, |it| it.event, collector).await
    }

    /// The events of turning texts into rows, as they arrive.
    pub async fn reconstruct_activations_stream(
        &self,
        request: impl IntoRequest<v1::ReconstructActivationsRequest>,
    ) -> Result<Incoming<v1::ReconstructActivationsResponse>> {
        let responses = self.explanation().reconstruct_activations(request).await?;
        Ok(events(responses.into_inner()))
    }

    /// How well texts account for rows.
    pub async fn score_explanations(
        &self,
        request: impl IntoRequest<v1::ScoreExplanationsRequest>,
    ) -> Result<v1::ScoreExplanationsResponse> {
        Ok(self.explanation().score_explanations(request).await?.into_inner())
    }

    /// Measures from rows what scores are relative to.
    pub async fn set_explanation_baseline(
        &self,
        request: impl IntoRequest<v1::SetExplanationBaselineRequest>,
    ) -> Result<v1::SetExplanationBaselineResponse> {
        Ok(self.explanation().set_explanation_baseline(request).await?.into_inner())
    }

    /// Forgets a baseline.
    pub async fn delete_explanation_baseline(
        &self,
        request: impl IntoRequest<v1::DeleteExplanationBaselineRequest>,
    ) -> Result<v1::DeleteExplanationBaselineResponse> {
        Ok(self.explanation().delete_explanation_baseline(request).await?.into_inner())
    }
}

/// Vectors that are stored on the server.
impl Client {
    /// Stores a vector. Without a `request_id` the call has one of its own, by which it makes
    /// nothing twice when it is made again.
    pub async fn create_steering_vector(
        &self,
        request: impl IntoRequest<v1::CreateSteeringVectorRequest>,
    ) -> Result<v1::CreateSteeringVectorResponse> {
        let mut request = request.into_request();
        identify(&mut request.get_mut().request_id);
        Ok(self.vectors().create_steering_vector(request).await?.into_inner())
    }

    /// Makes a vector of examples of two kinds, and stores it. Its `request_id` is as that of
    /// [`create_steering_vector`](Self::create_steering_vector).
    pub async fn make_steering_vector(
        &self,
        request: impl IntoRequest<v1::MakeSteeringVectorRequest>,
    ) -> Result<v1::MakeSteeringVectorResponse> {
        let mut request = request.into_request();
        identify(&mut request.get_mut().request_id);
        Ok(self.vectors().make_steering_vector(request).await?.into_inner())
    }

    /// Computes a vector from stored ones, and stores it. Its `request_id` is as that of
    /// [`create_steering_vector`](Self::create_steering_vector).
    pub async fn combine_steering_vectors(
        &self,
        request: impl IntoRequest<v1::CombineSteeringVectorsRequest>,
    ) -> Result<v1::CombineSteeringVectorsResponse> {
        let mut request = request.into_request();
        identify(&mut request.get_mut().request_id);
        Ok(self.vectors().combine_steering_vectors(request).await?.into_inner())
    }

    /// One vector. Its elements, if they are asked for, become an [`Array`](crate::Array).
    pub async fn get_steering_vector(
        &self,
        request: impl IntoRequest<v1::GetSteeringVectorRequest>,
    ) -> Result<v1::GetSteeringVectorResponse> {
        Ok(self.vectors().get_steering_vector(request).await?.into_inner())
    }

    /// The stored vectors that have some labels, page by page.
    pub fn list_steering_vectors(
        &self,
        request: impl IntoRequest<v1::ListSteeringVectorsRequest>,
    ) -> Incoming<v1::SteeringVector> {
        let stub = self.vectors();
        pages(request.into_request(), move |request| {
            let mut stub = stub.clone();
            async move {
                let page = stub.list_steering_vectors(request).await?.into_inner();
                Ok((page.steering_vectors, page.next_page_token))
            }
        })
    }

    /// Replaces the labels of a vector.
    pub async fn update_steering_vector(
        &self,
        request: impl IntoRequest<v1::UpdateSteeringVectorRequest>,
    ) -> Result<v1::UpdateSteeringVectorResponse> {
        Ok(self.vectors().update_steering_vector(request).await?.into_inner())
    }

    /// Deletes a vector. Runs that use it keep it.
    pub async fn delete_steering_vector(
        &self,
        request: impl IntoRequest<v1::DeleteSteeringVectorRequest>,
    ) -> Result<v1::DeleteSteeringVectorResponse> {
        Ok(self.vectors().delete_steering_vector(request).await?.into_inner())
    }
}

/// Gives a request an id that no other has, unless it has one: 128 bits of the operating system's
/// randomness, by way of the keys of hash maps.
pub(crate) fn identify(request_id: &mut String) {
    if request_id.is_empty() {
        let random = || RandomState::new().hash_one(());
        *request_id = format!("{:016x}{:016x}", random(), random());
    }
}

/// Sweeps.
impl Client {
    /// Runs many prompts under many interventions, and returns what came of each, whole; a cell
    /// that failed has its error in its place.
    ///
    /// Where the connection is lost, the sweep goes on after the last cell that came. A large one
    /// takes long: give it a [`tonic::Request`] with a timeout that fits, which holds for all of
    /// it. Cells that were served are stored for a while, so that an equal sweep later on is
    /// answered with them.
    pub async fn run_sweep(&self, request: impl IntoRequest<v1::RunSweepRequest>) -> Result<Swept> {
        let (metadata, mut extensions, mut message) = request.into_request().into_parts();
        let deadline = self.transport.deadline(&metadata);
        extensions.insert(deadline);
        let mut collector = SweepCollector::from(&message);
        let mut attempts = 0;
        loop {
            let before = collector.come();
            message.resume_token = collector.begin();
            let request =
                Request::from_parts(metadata.clone(), extensions.clone(), message.clone());
            // Before its first event the transport makes the call again.
            let cells = self.run_sweep_stream(request).await?;
            let error = match read(cells, |it| it.event, &mut collector).await {
                Ok(()) => return collector.finish(),
                Err(error) => error,
            };
            attempts = if collector.come() > before { 1 } else { attempts + 1 };
            let lost = error.code() == Code::Unavailable;
            if !lost || !pause(attempts, error.retry_after(), deadline).await {
                return Err(error);
            }
        }
    }

    /// The cells of a sweep, as they are done. Who reads them goes on alone where the connection is
    /// lost: a request with the `resume_token` of the last cell that came has the others.
    pub async fn run_sweep_stream(
        &self,
        request: impl IntoRequest<v1::RunSweepRequest>,
    ) -> Result<Incoming<v1::RunSweepResponse>> {
        Ok(events(self.sweeps().run_sweep(request).await?.into_inner()))
    }
}

/// Monitors.
impl Client {
    /// Stores a monitor. Its `request_id` is as that of
    /// [`create_steering_vector`](Self::create_steering_vector).
    pub async fn create_monitor(
        &self,
        request: impl IntoRequest<v1::CreateMonitorRequest>,
    ) -> Result<v1::CreateMonitorResponse> {
        let mut request = request.into_request();
        identify(&mut request.get_mut().request_id);
        Ok(self.monitors().create_monitor(request).await?.into_inner())
    }

    /// One monitor.
    pub async fn get_monitor(
        &self,
        request: impl IntoRequest<v1::GetMonitorRequest>,
    ) -> Result<v1::GetMonitorResponse> {
        Ok(self.monitors().get_monitor(request).await?.into_inner())
    }

    /// The monitors of a model, page by page.
    pub fn list_monitors(
        &self,
        request: impl IntoRequest<v1::ListMonitorsRequest>,
    ) -> Incoming<v1::Monitor> {
        let stub = self.monitors();
        pages(request.into_request(), move |request| {
            let mut stub = stub.clone();
            async move {
                let page = stub.list_monitors(request).await?.into_inner();
                Ok((page.monitors, page.next_page_token))
            }
        })
    }

    /// Replaces a monitor, or those of its fields that the mask names.
    pub async fn update_monitor(
        &self,
        request: impl IntoRequest<v1::UpdateMonitorRequest>,
    ) -> Result<v1::UpdateMonitorResponse> {
        Ok(self.monitors().update_monitor(request).await?.into_inner())
    }

    /// Deletes a monitor. Its alerts stay.
    pub async fn delete_monitor(
        &self,
        request: impl IntoRequest<v1::DeleteMonitorRequest>,
    ) -> Result<v1::DeleteMonitorResponse> {
        Ok(self.monitors().delete_monitor(request).await?.into_inner())
    }

    /// Begins to make a monitor of labelled examples;
    /// [`wait_for_monitor`](Self::wait_for_monitor) waits for it. Its `request_id` is as that of
    /// [`create_steering_vector`](Self::create_steering_vector).
    pub async fn fit_monitor(
        &self,
        request: impl IntoRequest<v1::FitMonitorRequest>,
    ) -> Result<v1::FitMonitorResponse> {
        let mut request = request.into_request();
        identify(&mut request.get_mut().request_id);
        Ok(self.monitors().fit_monitor(request).await?.into_inner())
    }

    /// A monitor, once [`fit_monitor`](Self::fit_monitor) has made it; or why it has not. It waits
    /// for as long as that takes. The monitor is paused until it is updated.
    pub async fn wait_for_monitor(&self, name: impl Into<String>) -> Result<v1::Monitor> {
        let name = name.into();
        loop {
            let answer = self.get_monitor(v1::GetMonitorRequest { name: name.clone() }).await?;
            let monitor =
                answer.monitor.ok_or_else(|| Error::bad_response("the server sent no monitor"))?;
            let work = monitor.fit.as_ref().and_then(|fit| fit.work.as_ref());
            match work.map_or(WorkState::Unspecified, v1::Work::state) {
                WorkState::Waiting | WorkState::Running => tokio::time::sleep(FIT_POLL).await,
                WorkState::Failed => return Err(Error::of_work(work)),
                _ => return Ok(monitor),
            }
        }
    }

    /// How the scores of a monitor are distributed, and how far they have drifted.
    pub async fn get_monitor_scores(
        &self,
        request: impl IntoRequest<v1::GetMonitorScoresRequest>,
    ) -> Result<v1::GetMonitorScoresResponse> {
        Ok(self.monitors().get_monitor_scores(request).await?.into_inner())
    }

    /// Scores items by monitors, without acting and without alerts, and returns the whole.
    pub async fn replay_monitors(
        &self,
        request: impl IntoRequest<v1::ReplayMonitorsRequest>,
    ) -> Result<Replayed> {
        let request = request.into_request();
        let collector = ReplayCollector::from(request.get_ref());
        collect(self.replay_monitors_stream(request).await?, |it| it.event, collector).await
    }

    /// The scores of items, as they are done.
    pub async fn replay_monitors_stream(
        &self,
        request: impl IntoRequest<v1::ReplayMonitorsRequest>,
    ) -> Result<Incoming<v1::ReplayMonitorsResponse>> {
        Ok(events(self.monitors().replay_monitors(request).await?.into_inner()))
    }
}

/// Alerts.
impl Client {
    /// The alerts of all calls of the caller's tenant, as they are raised.
    ///
    /// Where the connection is lost it goes on after the last alert that came, however long the
    /// server is gone, such as while it starts again; [`tracing`](https://docs.rs/tracing) is told
    /// when it is gone and when it is back. A first connection that cannot be made, and any other
    /// error, ends it; a request with the `resume_token` of the last alert goes on later. It has no
    /// deadline but that of a [`tonic::Request`] with a timeout, and ends when it is dropped.
    pub fn watch_alerts(
        &self,
        request: impl IntoRequest<v1::WatchAlertsRequest>,
    ) -> Incoming<WatchedAlert> {
        watched(self.monitors(), request.into_request())
    }

    /// One alert as it is now.
    pub async fn get_alert(
        &self,
        request: impl IntoRequest<v1::GetAlertRequest>,
    ) -> Result<v1::GetAlertResponse> {
        Ok(self.monitors().get_alert(request).await?.into_inner())
    }

    /// Alerts, the newest first, page by page.
    pub fn list_alerts(
        &self,
        request: impl IntoRequest<v1::ListAlertsRequest>,
    ) -> Incoming<v1::Alert> {
        let stub = self.monitors();
        pages(request.into_request(), move |request| {
            let mut stub = stub.clone();
            async move {
                let page = stub.list_alerts(request).await?.into_inner();
                Ok((page.alerts, page.next_page_token))
            }
        })
    }

    /// Says whether a sample that is paused goes on or stops.
    pub async fn decide_alert(
        &self,
        request: impl IntoRequest<v1::DecideAlertRequest>,
    ) -> Result<v1::DecideAlertResponse> {
        Ok(self.monitors().decide_alert(request).await?.into_inner())
    }

    /// Deletes alerts, all of the caller's tenant or some.
    pub async fn delete_alerts(
        &self,
        request: impl IntoRequest<v1::DeleteAlertsRequest>,
    ) -> Result<v1::DeleteAlertsResponse> {
        Ok(self.monitors().delete_alerts(request).await?.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_gets_an_id_of_its_own_unless_it_has_one() {
        let mut ids = [String::new(), String::new(), "mine".into()];
        ids.iter_mut().for_each(identify);
        assert_ne!(ids[0], ids[1]);
        assert!(ids[..2].iter().all(|id| id.len() == 32), "{ids:?}");
        assert_eq!(ids[2], "mine");
    }
}
