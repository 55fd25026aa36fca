//! One server: its address, the connection to it, and whether it can be reached.

use std::{
    future::poll_fn,
    net::Ipv4Addr,
    sync::Mutex,
    time::{Duration, Instant},
};

use tonic::{
    Code, ConnectError, Status, TimeoutExpired,
    body::Body,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tower_service::Service;

use crate::{
    Error, Result,
    connect::{Connector, SILENT},
};

const DEFAULT_PORT: u16 = 50051;

/// A server has so long to accept a connection, and as long again to say something on it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The same where there are others to turn to.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(2);

/// For as long as this a target that could not be reached is tried after all others.
const PASSED_OVER: Duration = Duration::from_secs(10);

/// Answers that are not read must not hold up the others of the same connection, so it takes many
/// times what one stream does.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 256 << 20;

/// Rows come in messages of up to 1 MiB, and in fewer and larger frames than the usual 16 KiB.
const FRAME: u32 = 1 << 20;

pub(crate) struct Target {
    address: String,
    channel: Channel,
    unreachable_since: Mutex<Option<Instant>>,
}

pub(crate) enum Failure {
    /// Nothing was sent.
    Unreachable(Status),
    Broken(Status),
}

impl Target {
    /// `user_agent` is put before that of the transport; `alone` is whether there is no other.
    pub(crate) fn new(
        address: &str,
        tls: Option<&ClientTlsConfig>,
        user_agent: &str,
        alone: bool,
    ) -> Result<Self> {
        let invalid = |error: tonic::transport::Error| {
            Error::field_invalid(
                "targets",
                format!("{address:?} cannot be connected to: {}", cause(&error)),
            )
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let uri = match address {
            // TLS has nothing to verify at a socket that is a file.
            _ if is_unix(address) => address.to_owned(),
            _ if !is_target(address) => {
                return Err(Error::field_invalid(
                    "targets",
                    format!("{address:?} is not a target; give host:port"),
                ));
            }
            _ if has_port(address) => format!("{scheme}://{address}"),
            _ => format!("{scheme}://{address}:{DEFAULT_PORT}"),
        };
        let mut endpoint = Endpoint::from_shared(uri)
            .and_then(|endpoint| endpoint.user_agent(user_agent))
            .map_err(invalid)?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            // A server that vanished without closing the connection would never be noticed while a
            // call waits for its first row.
            .http2_keep_alive_interval(Duration::from_secs(60))
            .keep_alive_timeout(Duration::from_secs(20));
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(invalid)?;
        }
        let timeout = if alone { CONNECT_TIMEOUT } else { REPLICA_TIMEOUT };
        Ok(Self {
            address: address.into(),
            channel: if is_unix(address) {
                endpoint.connect_timeout(timeout).connect_lazy()
            } else {
                endpoint.connect_with_connector_lazy(Connector::new(timeout))
            },
            unreachable_since: Mutex::new(None),
        })
    }

    pub(crate) fn was_unreachable(&self) -> bool {
        let since = *self.unreachable_since.lock().expect("nothing panics while it is held");
        since.is_some_and(|since| since.elapsed() < PASSED_OVER)
    }

    pub(crate) async fn send(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Failure> {
        let mut channel = self.channel.clone();
        let sent = async {
            poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request).await
        };
        let answer = sent.await.map_err(|error| {
            if find::<ConnectError>(&error).is_some() || cause(&error) == SILENT {
                Failure::Unreachable(Status::unavailable(format!(
                    "{} cannot be reached: {}; check that the server runs there",
                    self.address,
                    cause(&error)
                )))
            } else {
                Failure::Broken(broken(&error))
            }
        });
        let unreachable = matches!(answer, Err(Failure::Unreachable(_)));
        *self.unreachable_since.lock().expect("nothing panics while it is held") =
            unreachable.then(Instant::now);
        answer
    }
}

/// The status of a connection or stream that broke. A stream that was reset has the code that gRPC
/// gives the reset; of a connection that was lost it is `UNAVAILABLE`.
pub(crate) fn broken(error: &(dyn std::error::Error + 'static)) -> Status {
    if find::<TimeoutExpired>(error).is_some() {
        return Status::deadline_exceeded("the call took longer than its deadline");
    }
    let reset = find::<h2::Error>(error).filter(|error| error.is_reset());
    let code = match reset.and_then(h2::Error::reason) {
        None | Some(h2::Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(h2::Reason::CANCEL) => Code::Cancelled,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(h2::Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        Some(_) => Code::Internal,
    };
    Status::new(code, format!("the connection to the server broke: {}", cause(error)))
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// What an error comes down to, such as a connection that was refused.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}

fn is_unix(address: &str) -> bool {
    address.starts_with("unix:")
}

fn has_port(address: &str) -> bool {
    port(address).is_some()
}

fn port(address: &str) -> Option<&str> {
    let after_host = address.rsplit_once(']').map_or(address, |(_, after)| after);
    after_host.rsplit_once(':').map(|(_, port)| port)
}

/// A host, and a port or none: nothing else that a URL may have.
fn is_target(address: &str) -> bool {
    let is_number =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    !address.is_empty()
        && !address.contains(['/', '@', '?', '#'])
        && port(address).is_none_or(is_number)
}

/// Whether what is sent to a target stays on this machine, as far as its name tells.
pub(crate) fn is_local(address: &str) -> bool {
    let host = match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => address,
    };
    is_unix(address)
        || host.eq_ignore_ascii_case("localhost")
        || host == "[::1]"
        || host.parse().is_ok_and(|ip: Ipv4Addr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn only_loopback_addresses_and_unix_sockets_are_local() {
        for address in
            ["localhost:1", "LOCALHOST", "127.0.0.1:1", "127.9.8.7", "[::1]:1", "[::1]", "unix:/a"]
        {
            assert!(is_local(address), "{address}");
        }
        for address in [
            "localhost.example:1",
            "127.0.0.1.example:1",
            "10.0.0.1:1",
            "[::2]:1",
            "user@localhost:1",
            "0.0.0.0:1",
            "",
        ] {
            assert!(!is_local(address), "{address}");
        }
    }
}
