//! What every call goes through: headers, its deadline, several targets, and trying again.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, request::Parts};
use http_body_util::{BodyExt, Full};
use tonic::{Code, Status, body::Body, metadata::MetadataMap};
use tower_service::Service;

use crate::{
    Error,
    answer::{Answer, Deadline, readable},
    target::{Failure, Target},
    versions::Versions,
};

/// The methods that may be called twice, as the contract says.
const HARMLESS: &[&str] = include!("gen/harmless.rs");

/// The methods that answer with one message.
const UNARY: &[&str] = include!("gen/unary.rs");

/// Of all calls the only one that is of no model.
const LIST_MODELS: &str = "/actserve.v1.ModelService/ListModels";

static MODEL: HeaderName = HeaderName::from_static("x-actserve-model");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// At most so long is the random pause before the second, third and fourth attempt.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(750), Duration::from_millis(2250)];

/// A server may tell a call to wait for as long as this.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Carries the calls of a [`Client`](crate::Client): the service to put under generated stubs.
///
/// A call through it has the client's headers and deadline, goes to one of its targets and is tried
/// again as those of the client itself. A `tonic::Request` may have a timeout and metadata of its
/// own, which win. A call answers when its first message is here, or its end.
#[derive(Clone)]
pub struct Transport(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) targets: Vec<Target>,
    pub(crate) headers: HeaderMap,
    pub(crate) model: Option<HeaderValue>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) next: AtomicUsize,
    pub(crate) versions: Arc<Versions>,
}

impl Transport {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// When a call with this metadata has to be over that begins now. A request that has it, or that
    /// it has none, among its extensions keeps to it, however late it is sent.
    pub(crate) fn deadline(&self, metadata: &MetadataMap) -> Option<Deadline> {
        self.0.deadline(metadata.as_ref())
    }
}

/// As [`Transport::deadline`], of a call that has only the deadline that its metadata says.
pub(crate) fn own_deadline(metadata: &MetadataMap) -> Option<Deadline> {
    let timeout = metadata.as_ref().get(TIMEOUT)?;
    duration_of(timeout).and_then(Deadline::after)
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        let (mut parts, body) = request.into_parts();
        shared.add_headers(&mut parts);
        Box::pin(async move {
            // Calls send one message, which has to be there for the next attempt too.
            let body = body.collect().await?.to_bytes();
            shared.call(parts, body).await
        })
    }
}

impl Shared {
    fn add_headers(&self, parts: &mut Parts) {
        let model = self.model.as_ref().filter(|_| parts.uri.path() != LIST_MODELS);
        let headers = self.headers.iter().chain(model.map(|model| (&MODEL, model)));
        for (name, value) in headers {
            parts.headers.entry(name).or_insert_with(|| value.clone());
        }
        #[cfg(feature = "opentelemetry")]
        crate::trace_context::add(&mut parts.headers);
    }

    /// Makes the call, and again where that is harmless and can help.
    async fn call(&self, parts: Parts, body: Bytes) -> Result<Response<Body>, Status> {
        let deadline = match parts.extensions.get::<Option<Deadline>>() {
            Some(own) => *own,
            None => self.deadline(&parts.headers),
        };
        let harmless = HARMLESS.contains(&parts.uri.path());
        let mut attempts = 1;
        loop {
            let attempt = self.attempt(&parts, &body, deadline);
            let status = match within(deadline, attempt).await {
                Err(status) if harmless && status.code() == Code::Unavailable => status,
                answer => return answer,
            };
            let told = Error::from(status.clone()).retry_after();
            if !pause(attempts, told, deadline).await {
                return Err(status);
            }
            attempts += 1;
        }
    }

    fn deadline(&self, headers: &HeaderMap) -> Option<Deadline> {
        let timeout = match headers.get(TIMEOUT) {
            Some(own) => duration_of(own),
            None => self.timeout,
        };
        timeout.and_then(Deadline::after)
    }

    /// One attempt, up to the first message. Fails if the call fails before.
    async fn attempt(
        &self,
        parts: &Parts,
        body: &Bytes,
        deadline: Option<Deadline>,
    ) -> Result<Response<Body>, Status> {
        let mut parts = parts.clone();
        if let Some(deadline) = deadline {
            parts.headers.insert(TIMEOUT, header_of(deadline));
        }
        let unary = UNARY.contains(&parts.uri.path());
        let (mut head, body) = self.send(&parts, body).await?.into_parts();
        readable(&mut head.headers);
        self.versions.look(&head.headers);
        if let Some(status) = failure_of(&head) {
            return Err(status);
        }
        let mut answer = Answer::new(body, unary, deadline, self.versions.clone());
        answer.first_message().await?;
        Ok(Response::from_parts(head, Body::new(answer)))
    }

    /// Sends to the targets in turn, and to the next one where one cannot be reached.
    async fn send(&self, parts: &Parts, body: &Bytes) -> Result<Response<Body>, Status> {
        let count = self.targets.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut targets: Vec<_> =
            (0..count).map(|index| &self.targets[first.wrapping_add(index) % count]).collect();
        targets.sort_by_key(|target| target.was_unreachable());
        let mut failure = Status::unavailable("the client has no target");
        for target in targets {
            let body = Body::new(Full::new(body.clone()));
            match target.send(Request::from_parts(parts.clone(), body)).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Unreachable(status)) => failure = status,
                Err(Failure::Broken(status)) => return Err(status),
            }
        }
        Err(failure)
    }
}

/// Waits after so many attempts for the next one; returns false, at once, if there is none.
/// `told` is how long the server asks to wait.
pub(crate) async fn pause(
    attempts: usize,
    told: Option<Duration>,
    deadline: Option<Deadline>,
) -> bool {
    let told = told.unwrap_or_default();
    // Before anything is added to it: a server may tell more than a clock can hold.
    let Some(most) = PAUSES.get(attempts - 1).filter(|_| told <= LONGEST_DELAY) else {
        return false;
    };
    let next = tokio::time::Instant::now() + told + most.mul_f64(fastrand::f64());
    if deadline.is_some_and(|deadline| next >= deadline.at) {
        return false;
    }
    tokio::time::sleep_until(next).await;
    true
}

async fn within<T>(
    deadline: Option<Deadline>,
    attempt: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.at, attempt)
            .await
            .unwrap_or_else(|_| Err(deadline.status())),
        None => attempt.await,
    }
}

/// The status of an answer that has ended with its head, or is no answer of gRPC.
fn failure_of(head: &http::response::Parts) -> Option<Status> {
    match Status::from_header_map(&head.headers) {
        Some(status) => (status.code() != Code::Ok).then_some(status),
        // What stands in front of a server has answered, and tonic tells the other codes.
        None => matches!(head.status.as_u16(), 429 | 502 | 503 | 504)
            .then(|| Status::unavailable(format!("HTTP status {}", head.status))),
    }
}

/// The time left, in milliseconds that are rounded up: the caller's own clock ends the call.
fn header_of(deadline: Deadline) -> HeaderValue {
    let left = deadline.at.saturating_duration_since(tokio::time::Instant::now());
    let milliseconds = left.as_millis() + 1;
    // gRPC allows eight digits.
    let text = match milliseconds {
        0..=99_999_999 => format!("{milliseconds}m"),
        _ => format!("{}S", (milliseconds / 1000 + 1).min(99_999_999)),
    };
    HeaderValue::try_from(text).expect("digits and a letter are a header")
}

fn duration_of(header: &HeaderValue) -> Option<Duration> {
    let text = header.to_str().ok()?;
    let unit = text.chars().next_back()?;
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(number.checked_mul(3600)?)),
        'M' => Some(Duration::from_secs(number.checked_mul(60)?)),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_a_request_are_read_in_every_unit() {
        for (text, duration) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("2M", Some(Duration::from_secs(120))),
            ("2S", Some(Duration::from_secs(2))),
            ("2m", Some(Duration::from_millis(2))),
            ("2u", Some(Duration::from_micros(2))),
            ("2n", Some(Duration::from_nanos(2))),
            ("2", None),
            ("", None),
            ("m", None),
            ("-2m", None),
        ] {
            assert_eq!(duration_of(&HeaderValue::from_static(text)), duration, "{text}");
        }
    }

    #[tokio::test]
    async fn a_long_deadline_fits_in_eight_digits() {
        let deadline = Deadline::after(Duration::from_secs(1 << 30)).unwrap();
        let header = header_of(deadline);
        assert!(header.len() <= 9 && duration_of(&header).is_some(), "{header:?}");
    }
}
