//! What arrives one after the other: the events of a call, or the items of a list.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

use crate::{Error, Result, v1};

/// The events of a call as they arrive, or the items of a list, page by page.
///
/// It is a [`Stream`]; [`try_next`](Self::try_next) reads it without any other crate. Dropping it
/// cancels the call. A stream of events ends with the error `STREAM_CUT_SHORT` if its last event,
/// `finished`, did not come.
pub struct Incoming<T>(Pin<Box<dyn Stream<Item = Result<T>> + Send>>);

impl<T> Incoming<T> {
    /// The next one; `None` at the end.
    pub async fn try_next(&mut self) -> Result<Option<T>> {
        poll_fn(|context| self.0.as_mut().poll_next(context)).await.transpose()
    }

    pub(crate) fn new(stream: impl Stream<Item = Result<T>> + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

pub(crate) fn events<T: Event + Send + Unpin + 'static>(
    stream: tonic::Streaming<T>,
) -> Incoming<T> {
    Incoming::new(Events { stream, finished: false })
}

impl<T> Stream for Incoming<T> {
    type Item = Result<T>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        self.get_mut().0.as_mut().poll_next(context)
    }
}

impl<T> fmt::Debug for Incoming<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Incoming").finish_non_exhaustive()
    }
}

/// A message of a stream that ends with `finished`.
pub(crate) trait Event {
    fn is_last(&self) -> bool;
}

macro_rules! event {
    ($response:ident, $module:ident) => {
        impl Event for v1::$response {
            fn is_last(&self) -> bool {
                matches!(self.event, Some(v1::$module::Event::Finished(_)))
            }
        }
    };
}

event!(FetchActivationsResponse, fetch_activations_response);
event!(GenerateResponse, generate_response);
event!(ReconstructActivationsResponse, reconstruct_activations_response);
event!(RunSweepResponse, run_sweep_response);
event!(MeasureHeadsResponse, measure_heads_response);
event!(WatchAttributionGraphResponse, watch_attribution_graph_response);
event!(ReplayMonitorsResponse, replay_monitors_response);
event!(ExplanationEvent, explanation_event);

macro_rules! explanation {
    ($($response:ident),*) => {
        $(impl Event for v1::$response {
            fn is_last(&self) -> bool {
                self.event.as_ref().is_some_and(Event::is_last)
            }
        })*
    };
}

explanation!(ExplainActivationsResponse, ExplainTextResponse, CompareActivationsResponse);

struct Events<T> {
    stream: tonic::Streaming<T>,
    finished: bool,
}

impl<T: Event + Unpin> Stream for Events<T> {
    type Item = Result<T>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        let this = self.get_mut();
        Pin::new(&mut this.stream).poll_next(context).map(|next| match next {
            Some(Ok(event)) => {
                this.finished |= event.is_last();
                Some(Ok(event))
            }
            Some(Err(status)) => {
                this.finished = true; // The error is the end, and needs no other.
                Some(Err(status.into()))
            }
            None if this.finished => None,
            None => {
                this.finished = true;
                Some(Err(Error::cut_short()))
            }
        })
    }
}
