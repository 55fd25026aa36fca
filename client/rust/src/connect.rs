//! Connections that have to say something before a request is sent on them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tower_service::Service;

/// What a connection ends with if the server has accepted it and says nothing. HTTP/2 makes a text
/// of the error.
pub(crate) const SILENT: &str = "it accepts connections, but does not answer on them";

/// What a client says first, before its settings.
const PREFACE: usize = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// The header of a frame, which begins with three bytes of the length of what follows it.
const FRAME_HEADER: usize = 9;

/// Connects over TCP, and waits for the first byte of the server for as long as for that.
#[derive(Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    patience: Duration,
}

impl Connector {
    pub(crate) fn new(patience: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(patience));
        Self { tcp, patience }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // A server of TLS cannot be silent: nothing is sent before the handshake is over.
        let before = match uri.scheme_str() {
            Some("https") => Before::Anything,
            _ => Before::Preface(PREFACE),
        };
        let connecting = self.tcp.call(uri);
        let patience = self.patience;
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let silence = Some(Box::pin(tokio::time::sleep(patience)));
            Ok(TokioIo::new(Connection { stream, silence, before, held: None }))
        })
    }
}

pub(crate) struct Connection {
    stream: TcpStream,
    /// Ends the connection; `None` once the server has said something.
    silence: Option<Pin<Box<Sleep>>>,
    before: Before,
    /// Who wants to write more.
    held: Option<Waker>,
}

/// What may be written before the server has said something, with the bytes that are left of it.
#[derive(Clone, Copy)]
enum Before {
    Anything,
    Preface(usize),
    Settings(usize),
}

impl Connection {
    /// How many bytes of these may be written now.
    fn may_write(&mut self, bytes: &[u8]) -> usize {
        if let (Before::Preface(0), &[high, middle, low, ..]) = (self.before, bytes) {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            self.before = Before::Settings(FRAME_HEADER + length);
        }
        match self.before {
            _ if self.silence.is_none() => bytes.len(),
            Before::Anything => bytes.len(),
            Before::Preface(left) | Before::Settings(left) => left.min(bytes.len()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Some(silence) = &mut this.silence {
            if read.is_pending() {
                ready!(silence.as_mut().poll(context));
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, SILENT)));
            }
            this.silence = None;
            if let Some(held) = this.held.take() {
                held.wake();
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let most = this.may_write(bytes);
        if most == 0 && !bytes.is_empty() {
            this.held = Some(context.waker().clone());
            return Poll::Pending;
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, &bytes[..most]))?;
        if let Before::Preface(left) | Before::Settings(left) = &mut this.before {
            *left = left.saturating_sub(written);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
