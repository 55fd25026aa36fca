//! The body of an answer: looked into up to its first message, and over at the deadline.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, body::Body, metadata::MetadataMap};

use crate::{error, target, versions::Versions};

const DETAILS: &str = "grpc-status-details-bin";

/// Before each message come a byte of flags and four of its length.
const PREFIX: usize = 5;

/// No message is larger (tonic refuses one that is), so this much is enough to have seen.
const LARGEST: usize = 4 << 20;

/// When a call has to be over.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    /// What was given, for the message.
    pub(crate) timeout: Duration,
}

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Option<Self> {
        // One so far away that no clock has it is none.
        Some(Self { at: Instant::now().checked_add(timeout)?, timeout })
    }

    pub(crate) fn status(&self) -> Status {
        Status::deadline_exceeded(format!(
            "the call took longer than {} s; give it a longer timeout",
            self.timeout.as_secs_f64()
        ))
    }
}

/// What a call that has not ended answers, from its first byte on.
pub(crate) struct Answer {
    body: Body,
    /// What was read to look for the first message.
    read: VecDeque<Frame<Bytes>>,
    /// Of a call that is answered by one message: the bytes of it that are still to come.
    left: Option<usize>,
    unary: bool,
    deadline: Option<(Deadline, Pin<Box<Sleep>>)>,
    versions: Arc<Versions>,
}

impl Answer {
    pub(crate) fn new(
        body: Body,
        unary: bool,
        deadline: Option<Deadline>,
        versions: Arc<Versions>,
    ) -> Self {
        let deadline = deadline.map(|it| (it, Box::pin(tokio::time::sleep_until(it.at))));
        Self { body, read: VecDeque::new(), left: None, unary, deadline, versions }
    }

    /// Reads until the first message is here whole. Fails if the call fails before.
    pub(crate) async fn first_message(&mut self) -> Result<(), Status> {
        let mut read = VecDeque::new();
        let (mut prefix, mut bytes) = (Vec::with_capacity(PREFIX), 0_usize);
        while let Some(frame) = self.frame().await.transpose()? {
            if let Some(data) = frame.data_ref() {
                bytes += data.len();
                prefix.extend(data.iter().take(PREFIX - prefix.len()));
            } else if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map)
                && status.code() != Code::Ok
            {
                return Err(status);
            }
            read.push_back(frame);
            if let Some(mut length) = prefix.get(1..PREFIX)
                && let length = length.get_u32() as usize
                && bytes - PREFIX >= LARGEST.min(length)
            {
                self.left = self.unary.then_some(PREFIX + length);
                // The only message of a unary call counts no sooner than its status, so that is
                // read too, unless more comes than the one message.
                if !self.unary || bytes - PREFIX > length {
                    break;
                }
            }
        }
        self.read = read;
        Ok(())
    }

    /// Refuses what comes after the one message of a unary call.
    fn count(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Status> {
        if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
            *left = left.checked_sub(data.len()).ok_or_else(|| {
                error::bad_status("the server answered more than one message to a unary call")
            })?;
        }
        Ok(frame)
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let Some((deadline, over)) = &mut this.deadline
            && over.as_mut().poll(context).is_ready()
        {
            let status = deadline.status();
            this.deadline = None;
            this.read.clear();
            // Resets the stream, so that the server stops.
            this.body = Body::empty();
            return Poll::Ready(Some(Err(status)));
        }
        if let Some(frame) = this.read.pop_front() {
            return Poll::Ready(Some(this.count(frame)));
        }
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(frame)) => Ok(frame),
            Some(Err(status)) => Err(target::broken(&status)),
            None => return Poll::Ready(None),
        };
        let frame = frame.and_then(|mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                readable(trailers);
                this.versions.look(trailers);
            }
            this.count(frame)
        });
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.body.is_end_stream()
    }
}

/// Takes details away that are not base64: the status counts, and tonic would panic at them.
pub(crate) fn readable(headers: &mut HeaderMap) {
    let Some(details) = headers.get(DETAILS) else { return };
    let alone = HeaderMap::from_iter([(HeaderName::from_static(DETAILS), details.clone())]);
    let alone = MetadataMap::from_headers(alone);
    if alone.get_bin(DETAILS).is_none_or(|details| details.to_bytes().is_err()) {
        headers.remove(DETAILS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_details_that_are_base64_are_left() {
        for (details, is_left) in
            [("AAEC", true), ("AAE", true), ("AAE=", true), ("no base64", false)]
        {
            let value = details.parse().unwrap();
            let mut headers = HeaderMap::from_iter([(HeaderName::from_static(DETAILS), value)]);
            readable(&mut headers);
            assert_eq!(headers.contains_key(DETAILS), is_left, "{details}");
            let _ = Status::from_header_map(&headers);
        }
    }
}
