//! The thread that serves the API, and its end.
//!
//! When the VM ends, somebody may still be waiting to hear how his checkpoint went (`checkpoint --stop`): the server
//! stays for at most [`LINGER`] until he has been told.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream, unix};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::socket::{BoundSocket, SocketError};
use super::{CONNECTIONS_MAX, routes};
use crate::control::Control;

/// How long the server waits at its end for clients who want to know how their operation ended.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// How long requests in flight may take at the end.
const GRACE: Duration = Duration::from_millis(500);
/// How often the end looks whether all have been told.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A running API server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the API of the VM behind `control` on `socket`, on a thread of its own.
    ///
    /// # Errors
    /// No thread, or no event loop.
    pub fn start(socket: BoundSocket, control: Control) -> Result<Self, SocketError> {
        let path = socket.path().to_owned();
        let failed = |what| {
            let path = path.clone();
            move |source: io::Error| SocketError::Io { path, what, source }
        };
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().map_err(failed("no event loop"))?;
        let (stop, stopped) = oneshot::channel();
        let listener = socket.listener().try_clone().map_err(failed("cannot be listened on"))?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener).map_err(failed("cannot be listened on"))?
        };
        let serve = move || {
            runtime.block_on(serve(listener, control, stopped));
            // here and not earlier: the name goes when nobody answers any more
            drop(socket);
        };
        let thread = std::thread::Builder::new().name("api".into()).spawn(serve).map_err(failed("no thread"))?;
        Ok(Self { path, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the server: those who wait for an operation's end are told first. Takes at most a second and a half.
    /// Call it after the last operation has ended.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

async fn serve(listener: UnixListener, control: Control, stopped: oneshot::Receiver<()>) {
    let shared = control.shared().clone();
    let router = routes::router(control);
    let (told_all, all_told) = oneshot::channel::<()>();
    let serving = axum::serve(Limited::new(listener), router).with_graceful_shutdown(async move {
        let _ = all_told.await;
    });
    let ending = async move {
        let _ = stopped.await;
        let begin = Instant::now();
        while shared.operations().somebody_waits(LINGER) && begin.elapsed() < LINGER {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        drop(told_all);
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = serving => if let Err(e) = result { tracing::warn!("API socket: {e}; the VM goes on without it") },
        () = ending => {}
    }
}

/// A listener that accepts no more than [`CONNECTIONS_MAX`] connections at a time.
struct Limited {
    listener: UnixListener,
    places: Arc<Semaphore>,
}

impl Limited {
    fn new(listener: UnixListener) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Listener for Limited {
    type Io = Connection;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (Connection, unix::SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("nobody closes this semaphore");
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => return (Connection { stream, _place: place }, address),
                Err(e) => {
                    tracing::warn!("API socket: {e}; trying again");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<unix::SocketAddr> {
        self.listener.local_addr()
    }
}

/// A stream with its place among the connections.
struct Connection {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
