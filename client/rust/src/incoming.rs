//! What arrives one after the other: the events of a call, or the items of a list.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

use crate::{Error, Result};

/// The events of a call as they arrive, or the items of a list, page by page.
///
/// It is a [`Stream`]; [`try_next`](Self::try_next) reads it without any other crate. Dropping it
/// cancels the call.
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

impl<T: Send + 'static> Incoming<T> {
    pub(crate) fn events(stream: tonic::Streaming<T>) -> Self {
        Self::new(Events(stream))
    }
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

struct Events<T>(tonic::Streaming<T>);

impl<T> Stream for Events<T> {
    type Item = Result<T>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        let event = Pin::new(&mut self.get_mut().0).poll_next(context);
        event.map(|event| event.map(|event| event.map_err(Error::from)))
    }
}
