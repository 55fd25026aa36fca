//! Alerts as they are raised, over all the attempts of a watch.

use futures_util::stream;
use http::Extensions;
use tonic::{Request, Streaming, metadata::MetadataMap};

use crate::{
    Error, Incoming, Result,
    answer::Deadline,
    reconnects::Reconnects,
    transport::{Transport, own_deadline},
    v1::{
        Alert, WatchAlertsRequest, WatchAlertsResponse,
        monitor_service_client::MonitorServiceClient, watch_alerts_response::Event,
    },
};

/// An alert as [`Client::watch_alerts`](crate::Client::watch_alerts) tells it.
#[derive(Clone, Debug)]
pub struct WatchedAlert {
    /// The alert.
    pub alert: Alert,
    /// How many alerts, of whatever monitor, are gone between the one before and this one: the
    /// reader came too late for them.
    pub lost_before: u64,
}

/// The alerts of a watch. It has no deadline but that of the request, since it is to last.
pub(crate) fn watched(
    stub: MonitorServiceClient<Transport>,
    request: Request<WatchAlertsRequest>,
) -> Incoming<WatchedAlert> {
    let (metadata, mut extensions, message) = request.into_parts();
    let deadline = own_deadline(&metadata);
    extensions.insert(deadline);
    let reconnects = Reconnects::default();
    let watch = Watch { stub, metadata, extensions, message, deadline, reconnects, attempt: None };
    Incoming::new(stream::try_unfold(watch, |mut watch| async move {
        let alert = watch.next().await?;
        Ok(Some((alert, watch)))
    }))
}

struct Watch {
    stub: MonitorServiceClient<Transport>,
    metadata: MetadataMap,
    extensions: Extensions,
    /// Moves on with each alert.
    message: WatchAlertsRequest,
    deadline: Option<Deadline>,
    reconnects: Reconnects,
    attempt: Option<Attempt>,
}

struct Attempt {
    events: Streaming<WatchAlertsResponse>,
    /// Whether an event has come.
    is_open: bool,
    /// How many alerts are gone since the last one.
    lost: u64,
}

impl Watch {
    async fn next(&mut self) -> Result<WatchedAlert> {
        loop {
            let error = match self.attempt().await {
                Ok(alert) => return Ok(alert),
                Err(error) => error,
            };
            self.attempt = None;
            if !self.reconnects.pause(&error, self.deadline).await {
                return Err(error);
            }
        }
    }

    /// The next alert of this connection, or why it has ended.
    async fn attempt(&mut self) -> Result<WatchedAlert> {
        loop {
            let attempt = match &mut self.attempt {
                Some(attempt) => attempt,
                None => {
                    let request = Request::from_parts(
                        self.metadata.clone(),
                        self.extensions.clone(),
                        self.message.clone(),
                    );
                    // Before its first event the transport makes the call again.
                    let events = self.stub.watch_alerts(request).await?.into_inner();
                    self.attempt.insert(Attempt { events, is_open: false, lost: 0 })
                }
            };
            let Some(response) = attempt.events.message().await? else {
                return Err(Error::cut_short()); // It ends only when the call does.
            };
            if !attempt.is_open {
                attempt.is_open = true;
                self.reconnects.opened();
            }
            match response.event {
                Some(Event::Started(started)) => self.go_on_from(started.resume_token),
                Some(Event::Lost(lost)) => attempt.lost += lost.alerts,
                Some(Event::Alert(alert)) => {
                    let lost_before = std::mem::take(&mut attempt.lost);
                    self.reconnects.good();
                    self.go_on_from(alert.resume_token.clone());
                    return Ok(WatchedAlert { alert, lost_before });
                }
                None => {} // An event of a newer server.
            }
        }
    }

    fn go_on_from(&mut self, resume_token: Vec<u8>) {
        self.message.resume_token = resume_token;
        self.message.from_oldest = false;
    }
}
