//! A client of the API: HTTP over the unix socket, one connection a request, for callers that are not asynchronous.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::types::Problem;
use crate::config::SOCKET_PATH_MAX;

/// Largest answer, in bytes.
const ANSWER_MAX: usize = 16 << 20;
/// How long an answer to a question may take; a healthy VM needs a millisecond, whatever it is doing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a command may take: it may wait for a checkpoint.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Why the API gave no answer, or which error it gave. The text is the CLI's line.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("{}: no VM runs there ({why}); `ckvmm ps` lists those that run", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        why: &'static str,
    },
    /// It belongs to somebody else.
    #[error("{}: may not be used by this user; use the account that started the VM", .0.display())]
    Denied(PathBuf),
    /// The VM ended in the middle.
    #[error("{}: the VM ended before it answered", socket.display())]
    Lost {
        /// The socket.
        socket: PathBuf,
    },
    /// The VM said no.
    #[error("{detail}")]
    Problem {
        /// The HTTP status.
        status: u16,
        /// The line.
        detail: String,
    },
    /// Something is wrong with what came back, or with this process.
    #[error("{}: {what}; is it a ckvmm socket?", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// A client of one VM.
pub struct Client {
    socket: PathBuf,
    patience: Duration,
    runtime: tokio::runtime::Runtime,
}

struct Answer {
    status: StatusCode,
    location: Option<String>,
    body: Bytes,
}

impl Client {
    /// A client of the VM behind `socket`. Nothing is connected yet.
    ///
    /// # Errors
    /// The path is too long for a socket, or there is no event loop to be had.
    pub fn new(socket: PathBuf) -> Result<Self, ClientError> {
        let broken = |what: String| ClientError::Broken { socket: socket.clone(), what };
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(broken(format!("a socket's path has room for {SOCKET_PATH_MAX} bytes")));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| broken(e.to_string()))?;
        Ok(Self { socket, patience: READ_TIMEOUT, runtime })
    }

    /// The same, which waits no longer for the answer to a question.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`.
    ///
    /// # Errors
    /// No VM, or its problem.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.request(Method::GET, path, Bytes::new(), self.patience)?;
        self.parse(&answer.body)
    }

    /// `PUT path` with a JSON body.
    ///
    /// # Errors
    /// No VM, or its problem.
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let answer = self.request(Method::PUT, path, self.json(body)?, WRITE_TIMEOUT)?;
        self.parse(&answer.body)
    }

    /// `POST path` with a JSON body; the answer's `Location`.
    ///
    /// # Errors
    /// No VM, or its problem.
    pub fn post_for_location(&self, path: &str, body: &impl Serialize) -> Result<String, ClientError> {
        let answer = self.request(Method::POST, path, self.json(body)?, READ_TIMEOUT)?;
        answer.location.ok_or_else(|| self.broken("it sent no Location"))
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// No VM, or its problem.
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.request(Method::DELETE, path, Bytes::new(), READ_TIMEOUT).map(|_| ())
    }

    fn request(&self, method: Method, path: &str, body: Bytes, timeout: Duration) -> Result<Answer, ClientError> {
        let answer = self.runtime.block_on(async {
            let exchange = self.exchange(method, path, body);
            let late = |_| Err(self.broken(format!("no answer within {} s", timeout.as_secs())));
            tokio::time::timeout(timeout, exchange).await.unwrap_or_else(late)
        })?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let detail = match serde_json::from_slice::<Problem>(&answer.body) {
            Ok(problem) => problem.detail,
            Err(_) => format!("{}: {}", self.socket.display(), answer.status),
        };
        Err(ClientError::Problem { status: answer.status.as_u16(), detail })
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.cannot_connect(&e))?;
        let lost = |_| ClientError::Lost { socket: self.socket.clone() };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body));
        let request = request.map_err(|e| self.broken(e))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| if e.is_parse() { self.broken("what answers there does not speak HTTP") } else { lost(e) })?;
        let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(|e| {
            if e.is::<hyper::Error>() { ClientError::Lost { socket: self.socket.clone() } } else { self.broken(e) }
        })?;
        Ok(Answer { status, location, body: body.to_bytes() })
    }

    fn cannot_connect(&self, e: &std::io::Error) -> ClientError {
        let not_running = |why| ClientError::NotRunning { socket: self.socket.clone(), why };
        match e.kind() {
            ErrorKind::NotFound => not_running("there is no such socket"),
            ErrorKind::ConnectionRefused => not_running("a VM that has died left the socket"),
            ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
            _ => self.broken(e),
        }
    }

    fn json(&self, body: &impl Serialize) -> Result<Bytes, ClientError> {
        serde_json::to_vec(body).map(Bytes::from).map_err(|e| self.broken(e))
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|e| self.broken(format!("an answer that is not understood ({e})")))
    }

    fn broken(&self, what: impl ToString) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), what: what.to_string() }
    }
}
