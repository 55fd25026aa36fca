//! Errors: one type for all that can go wrong, filled from the details that the server attaches.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt, pb};

use crate::v1::Work;

/// `ErrorInfo.domain` of every reason that belongs to actserve.
const DOMAIN: &str = "actserve.dev";

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A call that was refused or failed, or a value that this client refuses before it sends anything.
///
/// ```
/// # use actserve::{tonic::Code, v1::Site};
/// let error = "resid_pots.1".parse::<Site>().unwrap_err();
/// assert_eq!(error.code(), Code::InvalidArgument);
/// assert_eq!(error.reason(), "SITE_INVALID");
/// ```
#[derive(Clone)]
pub struct Error(Box<Parts>);

#[derive(Clone)]
struct Parts {
    code: Code,
    reason: String,
    message: String,
    field: String,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
    request_id: String,
}

impl Error {
    /// The gRPC code, which says what can be done about it.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// A stable name for programs, such as `LAYER_OUT_OF_RANGE`: one of
    /// [`ErrorReason`](crate::v1::ErrorReason) without its prefix, `BAD_RESPONSE` where the server
    /// broke the contract, or `STREAM_CUT_SHORT` where it ended before it had finished. Empty where
    /// there is none, such as when no server answers.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// What is wrong and what to do, in words.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The field of the request that is to blame, such as `readouts[0].rows.sites[0]`; empty where
    /// none is.
    pub fn field(&self) -> &str {
        &self.0.field
    }

    /// The values of the message by name, for programs.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// After how long the server suggests to try again, if it does.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The server's id of the call, also in its logs; empty where it told none.
    pub fn request_id(&self) -> &str {
        &self.0.request_id
    }

    pub(crate) fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            code,
            reason: reason.into(),
            message: message.into(),
            field: String::new(),
            metadata: BTreeMap::new(),
            retry_after: None,
            request_id: String::new(),
        }))
    }

    pub(crate) fn invalid(reason: &str, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, reason, message)
    }

    /// A value of the caller that is refused before anything is sent.
    pub(crate) fn field_invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid("FIELD_INVALID", message).of_field(field)
    }

    pub(crate) fn of_field(mut self, field: impl Into<String>) -> Self {
        self.0.field = field.into();
        self
    }

    /// An answer that breaks the contract and is withheld.
    pub(crate) fn bad_response(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, "BAD_RESPONSE", message)
    }

    pub(crate) fn cut_short() -> Self {
        Self::new(
            Code::Unavailable,
            "STREAM_CUT_SHORT",
            "the stream ended before the server said that it had finished, so the answer may be \
             incomplete; try again",
        )
    }

    /// Why work has failed.
    pub(crate) fn of_work(work: Option<&Work>) -> Self {
        let error = work.and_then(|work| work.error.as_ref()).filter(|status| status.code != 0);
        match error {
            Some(status) => Self::of_item(status, ""),
            None => Self::bad_response("the server failed at its work and says not why"),
        }
    }

    /// The error of an item, which has the id of its call unless it tells one.
    pub(crate) fn of_item(status: &pb::Status, call_id: &str) -> Self {
        let code = Code::from(status.code);
        let mut error =
            Self::new(code, "", message_of(code, &status.message)).with_details(&status.details);
        if error.0.request_id.is_empty() {
            error.0.request_id = call_id.into();
        }
        error
    }

    fn with_details(mut self, details: &[prost_types::Any]) -> Self {
        let parts = &mut *self.0;
        for packed in details {
            // Details that cannot be read hide nothing: those that can still count.
            if let Some(info) = unpack::<pb::ErrorInfo>(packed, "google.rpc.ErrorInfo") {
                if info.domain == DOMAIN {
                    parts.reason = info.reason;
                    parts.metadata = info.metadata.into_iter().collect();
                }
            } else if let Some(bad) = unpack::<pb::BadRequest>(packed, "google.rpc.BadRequest") {
                let mut named = bad.field_violations.into_iter();
                if let Some(violation) = named.find(|each| !each.field.is_empty()) {
                    parts.field = violation.field;
                    if !violation.description.is_empty() {
                        parts.message = violation.description;
                    }
                }
            } else if let Some(retry) = unpack::<pb::RetryInfo>(packed, "google.rpc.RetryInfo") {
                // A negative one is to try again at once.
                parts.retry_after =
                    retry.retry_delay.map(|delay| delay.try_into().unwrap_or_default());
            } else if let Some(call) = unpack::<pb::RequestInfo>(packed, "google.rpc.RequestInfo") {
                parts.request_id = call.request_id;
            }
        }
        self
    }
}

/// An answer that breaks the contract, found below the stubs.
pub(crate) fn bad_status(message: &str) -> Status {
    let details = ErrorDetails::with_error_info("BAD_RESPONSE", DOMAIN, HashMap::new());
    Status::with_error_details(Code::Internal, message, details)
}

fn unpack<M: Message + Default>(packed: &prost_types::Any, name: &str) -> Option<M> {
    let (_, packed_name) = packed.type_url.rsplit_once('/')?;
    (packed_name == name).then(|| M::decode(&*packed.value).ok())?
}

fn message_of(code: Code, message: &str) -> String {
    if message.is_empty() { code.description().to_owned() } else { message.to_owned() }
}

impl From<Status> for Error {
    /// The error of a call of the [raw stubs](crate::Client::transport).
    fn from(status: Status) -> Self {
        let details = pb::Status::decode(status.details()).unwrap_or_default().details;
        let message = message_of(status.code(), status.message());
        Self::new(status.code(), "", message).with_details(&details)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { code, reason, message, field, .. } = &*self.0;
        write!(formatter, "{message} (")?;
        if reason.is_empty() {
            write!(formatter, "{code:?}")?;
        } else {
            formatter.write_str(reason)?;
        }
        if !field.is_empty() {
            write!(formatter, ", {field}")?;
        }
        formatter.write_str(")")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { code, reason, message, field, metadata, retry_after, request_id } = &*self.0;
        formatter
            .debug_struct("Error")
            .field("code", code)
            .field("reason", reason)
            .field("message", message)
            .field("field", field)
            .field("metadata", metadata)
            .field("retry_after", retry_after)
            .field("request_id", request_id)
            .finish()
    }
}

impl std::error::Error for Error {}
