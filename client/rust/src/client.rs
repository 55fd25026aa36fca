//! The client: a method for everything that a server serves.

use tonic::IntoRequest;

use crate::{
    ClientBuilder, Explained, Fetched, Generated, Incoming, Reconstructed, Result,
    collect::{ExplainCollector, FetchCollector, GenerateCollector, ReconstructCollector, collect},
    incoming::events,
    pages::pages,
    transport::Transport,
    v1::{
        self, explanation_service_client::ExplanationServiceClient,
        generation_service_client::GenerationServiceClient,
        kept_activations_service_client::KeptActivationsServiceClient,
        model_service_client::ModelServiceClient,
    },
};

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
