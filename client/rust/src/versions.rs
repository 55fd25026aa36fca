//! Warns once if the server is older than this client.

use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderMap;

pub(crate) const CLIENT: &str = env!("CARGO_PKG_VERSION");

const HEADER: &str = "x-actserve-version";

#[derive(Default)]
pub(crate) struct Versions {
    warned: AtomicBool,
}

impl Versions {
    /// Looks at the version that a server tells in headers or trailers, if it does.
    pub(crate) fn look(&self, headers: &HeaderMap) {
        let Some(server) = headers.get(HEADER).and_then(|value| value.to_str().ok()) else {
            return;
        };
        let older = minor(server).is_some_and(|server| Some(server) < minor(CLIENT));
        if older && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the server has version {server}, which is older than that of this client, \
                 {CLIENT}; upgrade the server, or expect that it refuses what it does not know"
            );
        }
    }
}

/// The major and minor version.
fn minor(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}
