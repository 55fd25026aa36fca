//! The client: how it is made, and a method for everything that a server serves.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use futures_util::{TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use tonic::{IntoRequest, Request, transport::ClientTlsConfig};

use crate::{
    Error, Explained, Fetched, Generated, Incoming, Reconstructed, Result,
    collect::{ExplainCollector, FetchCollector, GenerateCollector, ReconstructCollector, collect},
    target::{self, Target},
    transport::{Shared, Transport},
    v1::{
        self, explanation_service_client::ExplanationServiceClient,
        generation_service_client::GenerationServiceClient,
        kept_activations_service_client::KeptActivationsServiceClient,
        model_service_client::ModelServiceClient,
    },
    versions::{self, Versions},
};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

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

/// Makes a [`Client`].
#[derive(Clone)]
#[must_use]
pub struct ClientBuilder {
    targets: Vec<String>,
    token: Option<String>,
    allow_plaintext_token: bool,
    tls: Option<ClientTlsConfig>,
    timeout: Option<Duration>,
    model: Option<String>,
    headers: Vec<(String, String)>,
}

impl ClientBuilder {
    /// One more target: a replica of the others. Calls go to them in turn, and one that cannot be
    /// reached is passed over.
    pub fn target(mut self, target: impl Into<String>) -> Self {
        self.targets.push(target.into());
        self
    }

    /// A bearer token. Without TLS it goes to loopback addresses and unix sockets only.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sends the token to other hosts without TLS too, where the way is safe, such as a tunnel.
    pub fn allow_plaintext_token(mut self, allow: bool) -> Self {
        self.allow_plaintext_token = allow;
        self
    }

    /// Connects with TLS: the authorities to trust, and the client's own certificate if it has one.
    pub fn tls(mut self, tls: ClientTlsConfig) -> Self {
        self.tls = Some(tls);
        self
    }

    /// For how long a call may take, with all its attempts: 600 seconds unless set, and for ever
    /// with `None`.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// The model whose name goes in the header `x-actserve-model`, `smollm2-135m` or
    /// `models/smollm2-135m`, by which a proxy can choose among servers.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// One more header of each call.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The client. It does not connect before its first call, but has to be made within a Tokio
    /// runtime.
    pub fn build(self) -> Result<Client> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::invalid(
                "FIELD_INVALID",
                "there is no Tokio runtime here; make the client in an async function",
            ));
        }
        let user_agent = format!("actserve-rust/{}", versions::CLIENT);
        let targets = self.targets.iter();
        let targets = targets
            .map(|target| Target::new(target, self.tls.as_ref(), &user_agent))
            .collect::<Result<_>>()?;
        let headers = self.headers()?;
        self.check_token(&headers)?;
        Ok(Client {
            transport: Transport::new(Shared {
                targets,
                headers,
                model: self.model.as_deref().filter(|model| !model.is_empty()).map(quoted),
                timeout: self.timeout,
                next: AtomicUsize::new(0),
                versions: Arc::new(Versions::default()),
            }),
        })
    }

    fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let key = HeaderName::try_from(name).map_err(|_| {
                Error::field_invalid(
                    "metadata",
                    format!("{name:?} cannot be the name of a header; use letters, digits and -"),
                )
            })?;
            let value = HeaderValue::try_from(value).map_err(|_| {
                Error::field_invalid(
                    "metadata",
                    format!("the value of the header {name:?} is not printable ASCII; encode it"),
                )
            })?;
            headers.append(key, value);
        }
        if let Some(token) = &self.token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .ok()
                .filter(|_| token.bytes().all(|byte| byte.is_ascii_graphic()))
                .ok_or_else(|| {
                    Error::field_invalid(
                        "token",
                        "the token has characters that are not printable ASCII; take away what is \
                         around it, such as a line break",
                    )
                })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(headers)
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<()> {
        if self.tls.is_some() || self.allow_plaintext_token || !headers.contains_key(AUTHORIZATION)
        {
            return Ok(());
        }
        match self.targets.iter().find(|target| !target::is_local(target)) {
            None => Ok(()),
            Some(target) => Err(Error::field_invalid(
                "token",
                format!(
                    "the token would go to {target} in plaintext, where everyone on the way can \
                     read it; use TLS, or allow_plaintext_token(true) where the way is safe, such \
                     as a tunnel"
                ),
            )),
        }
    }
}

impl fmt::Debug for ClientBuilder {
    /// Without the token and headers, which may be secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientBuilder")
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

/// The resource name of a model, as a header can hold it.
fn quoted(model: &str) -> HeaderValue {
    let id = model.strip_prefix("models/").unwrap_or(model);
    let mut text = String::from("models/");
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    HeaderValue::try_from(text).expect("quoted text is ASCII")
}

impl Client {
    /// A client of one server, `host:port`, without TLS; see [`builder`](Self::builder) for more.
    /// A host alone has the port 50051, and `unix:/path` is a socket.
    pub fn new(target: impl Into<String>) -> Result<Self> {
        Self::builder(target).build()
    }

    /// Makes a client of a target and options.
    pub fn builder(target: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            targets: vec![target.into()],
            token: None,
            allow_plaintext_token: false,
            tls: None,
            timeout: Some(DEFAULT_TIMEOUT),
            model: None,
            headers: vec![],
        }
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
        let collector = FetchCollector::new(request.get_ref());
        collect(self.fetch_activations_stream(request).await?, |it| it.event, collector).await
    }

    /// The events of reading activations, as they arrive.
    pub async fn fetch_activations_stream(
        &self,
        request: impl IntoRequest<v1::FetchActivationsRequest>,
    ) -> Result<Incoming<v1::FetchActivationsResponse>> {
        Ok(Incoming::events(self.generation().fetch_activations(request).await?.into_inner()))
    }

    /// Generates, optionally steered and captured, and returns the whole.
    pub async fn generate(
        &self,
        request: impl IntoRequest<v1::GenerateRequest>,
    ) -> Result<Generated> {
        let request = request.into_request();
        let collector = GenerateCollector::new(request.get_ref());
        collect(self.generate_stream(request).await?, |it| it.event, collector).await
    }

    /// The events of a generation, as they arrive.
    pub async fn generate_stream(
        &self,
        request: impl IntoRequest<v1::GenerateRequest>,
    ) -> Result<Incoming<v1::GenerateResponse>> {
        Ok(Incoming::events(self.generation().generate(request).await?.into_inner()))
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
        Ok(Incoming::events(self.explanation().explain_activations(request).await?.into_inner()))
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
        Ok(Incoming::events(self.explanation().explain_text(request).await?.into_inner()))
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
        Ok(Incoming::events(self.explanation().compare_activations(request).await?.into_inner()))
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
        let events = self.explanation().reconstruct_activations(request).await?;
        Ok(Incoming::events(events.into_inner()))
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

/// A request for one page of a list.
trait PageRequest: Clone + Send + 'static {
    fn page_token(&mut self) -> &mut String;
}

macro_rules! page_requests {
    ($($request:ident),*) => {$(
        impl PageRequest for v1::$request {
            fn page_token(&mut self) -> &mut String {
                &mut self.page_token
            }
        }
    )*};
}

page_requests!(ListModelsRequest, ListKeptActivationsRequest, ListNlasRequest);

/// The items of all pages, from that of the request on. The next page is asked for when all items
/// of one have been taken.
fn pages<R, T, Answer>(
    request: Request<R>,
    page: impl Fn(Request<R>) -> Answer + Send + 'static,
) -> Incoming<T>
where
    R: PageRequest,
    T: Send + 'static,
    Answer: Future<Output = Result<(Vec<T>, String)>> + Send + 'static,
{
    let (metadata, extensions, message) = request.into_parts();
    let ask =
        move |message: R| page(Request::from_parts(metadata.clone(), extensions.clone(), message));
    let pages = stream::try_unfold(Some(message), move |message| {
        let answer = message.clone().map(&ask);
        async move {
            let (Some(mut message), Some(answer)) = (message, answer) else { return Ok(None) };
            let (items, next) = answer.await?;
            let before = std::mem::replace(message.page_token(), next);
            if *message.page_token() == before && !before.is_empty() {
                return Err(Error::bad_response("the server sent a page whose next is itself"));
            }
            let is_last = message.page_token().is_empty();
            let items = stream::iter(items.into_iter().map(Ok));
            Ok(Some((items, (!is_last).then_some(message))))
        }
    });
    Incoming::new(pages.try_flatten())
}
