//! The attempts at a call that is to last, such as a watch.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tonic::Code;

use crate::{Error, answer::Deadline, transport::LONGEST_DELAY};

/// Pauses double from the first up to the slowest: late enough to be no load for a server that is
/// gone, soon enough for an alert.
const FIRST: Duration = Duration::from_millis(250);
const SLOWEST: Duration = Duration::from_secs(15);

/// A connection that has held for as long as this was a good one.
const HELD: Duration = Duration::from_secs(10);

/// Once there was a connection, a server that is gone is looked for as long as it takes.
#[derive(Default)]
pub(crate) struct Reconnects {
    /// When the newest connection began; none before the first.
    connected: Option<Instant>,
    /// Since when there is none.
    gone: Option<Instant>,
    /// Attempts since a connection was a good one.
    failures: u32,
    /// Whether it was said that the server is gone.
    told: bool,
}

impl Reconnects {
    /// A connection has begun.
    pub(crate) fn opened(&mut self) {
        let now = Instant::now();
        if let (true, Some(gone)) = (self.told, self.gone) {
            let seconds = (now - gone).as_secs_f32();
            tracing::warn!(
                "connected again after {seconds:.1} seconds; the watch goes on where it was"
            );
        }
        (self.connected, self.gone, self.told) = (Some(now), None, false);
    }

    /// Something has come by the connection.
    pub(crate) fn good(&mut self) {
        self.failures = 0;
    }

    /// Waits before the server is looked for again; returns false, at once, if it is not.
    pub(crate) async fn pause(&mut self, error: &Error, deadline: Option<Deadline>) -> bool {
        // Before its first connection the call was made again already.
        let Some(connected) = self.connected.filter(|_| error.code() == Code::Unavailable) else {
            return false;
        };
        let now = Instant::now();
        let looked_for = self.gone.is_some();
        if !looked_for {
            self.gone = Some(now);
            if now - connected > HELD {
                self.failures = 0;
            }
        }
        let told = error.retry_after().unwrap_or_default().min(LONGEST_DELAY);
        let next = now + told + self.longest().mul_f64(fastrand::f64());
        self.failures = self.failures.saturating_add(1);
        if deadline.is_some_and(|deadline| next >= deadline.at) {
            return false;
        }
        if looked_for && !self.told {
            tracing::warn!("the watch has no server, and looks for it: {error}");
            self.told = true;
        }
        sleep_until(next).await;
        true
    }

    /// How long the next pause is at most.
    fn longest(&self) -> Duration {
        (FIRST * (1 << self.failures.min(16))).min(SLOWEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_quarter_of_a_minute() {
        let longest = |failures| Reconnects { failures, ..Default::default() }.longest();
        assert_eq!([0, 1, 2].map(longest), [250, 500, 1000].map(Duration::from_millis));
        assert_eq!([6, 40, u32::MAX].map(longest), [SLOWEST; 3]);
    }
}
