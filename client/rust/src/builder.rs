//! How a client is made: where its servers are, and what each call carries.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use tonic::transport::ClientTlsConfig;

use crate::{
    Client, Error, Result,
    target::{self, Target},
    transport::{Shared, Transport},
    versions::{self, Versions},
};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

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
    pub(crate) fn new(target: String) -> Self {
        Self {
            targets: vec![target],
            token: None,
            allow_plaintext_token: false,
            tls: None,
            timeout: Some(DEFAULT_TIMEOUT),
            model: None,
            headers: vec![],
        }
    }

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
        let alone = self.targets.len() == 1;
        let targets = self.targets.iter();
        let targets = targets
            .map(|target| Target::new(target, self.tls.as_ref(), &user_agent, alone))
            .collect::<Result<_>>()?;
        let headers = self.headers()?;
        self.check_token(&headers)?;
        Ok(Client::over(Transport::new(Shared {
            targets,
            headers,
            model: self.model.as_deref().filter(|model| !model.is_empty()).map(quoted),
            timeout: self.timeout,
            next: AtomicUsize::new(0),
            versions: Arc::new(Versions::default()),
        })))
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
