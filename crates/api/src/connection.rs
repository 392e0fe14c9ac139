//! One HTTP/1.1 connection, from its first byte to its end.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::app::App;
use crate::seats::Seat;
use crate::stall::Stalling;

/// Largest head of a request, and the buffer of a connection.
const HEAD_BYTES: usize = 64 << 10;

/// A client that takes nothing for so long is gone.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);

/// How far the server's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) enum Phase {
    /// Not begun.
    Open,
    /// Connections end after the request in progress.
    Closing,
    /// Connections end now.
    Cut,
}

/// Serves a connection until it ends, has to leave its seat, or the server ends.
///
/// `head_timeout` is the longest wait for a whole request head, between requests too.
pub(crate) async fn serve(
    stream: TcpStream,
    app: Arc<App>,
    router: Router,
    seat: Seat,
    mut phase: watch::Receiver<Phase>,
    head_timeout: Duration,
) {
    // Each token is a small packet that must not wait for the next.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY: {error}");
    }
    let open = &app.metrics.connections;
    open.fetch_add(1, Ordering::Relaxed);
    let seat = Arc::new(seat);
    let routes = TowerToHyperService::new(router);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let busy = Busy::new(seat.clone());
        let answer = routes.call(request);
        async move {
            let response = answer.await?;
            Ok::<_, Infallible>(response.map(|body| Held { body, _busy: busy }))
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(HEAD_BYTES);
    let mut connection =
        pin!(http.serve_connection(TokioIo::new(Stalling::new(stream, WRITE_PATIENCE)), service));
    loop {
        tokio::select! {
            // First what the client has sent: a request keeps the seat.
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!("a connection ended: {error}");
                }
                break;
            }
            () = seat.must_leave() => break,
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow() == Phase::Cut {
                    break;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
    open.fetch_sub(1, Ordering::Relaxed);
}

/// A request is being answered.
struct Busy(Arc<Seat>);

impl Busy {
    fn new(seat: Arc<Seat>) -> Busy {
        seat.work();
        Busy(seat)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.rest();
    }
}

/// A body whose connection is busy until it is sent.
struct Held {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
