//! The other end of the control API: what the command line, the testnet and tests speak with.

mod events;

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use tokio::net::UnixStream;

pub use self::events::Events;
use super::{
    ANSWER_WITHIN, Request,
    error::{ApiError, ErrorBody, ErrorCode},
    percent,
    server::VERSION_HEADER,
};

/// The largest answer taken. The largest real one is a book of some thousand offers.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// What a client waits beyond the time that the daemon gives itself.
const SLACK: Duration = Duration::from_secs(5);

/// Speaks with one daemon. Cheap to make and to clone; every call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Returns a client of the daemon that listens on `socket`. Nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Returns the path of the daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes one call.
    ///
    /// # Errors
    ///
    /// What the daemon answered; [`ErrorCode::Unreachable`] if there is none,
    /// [`ErrorCode::NotAuthorised`] if its socket belongs to somebody else,
    /// [`ErrorCode::TimedOut`] if it does not answer. A call that timed out may still have been
    /// carried out.
    pub async fn call<R: Request>(&self, request: &R) -> Result<R::Reply, ApiError> {
        let (path, body) = address(request)?;
        let patience = ANSWER_WITHIN
            .saturating_add(request.patience())
            .saturating_add(SLACK);
        let answered = async {
            let response = self.send(R::ROUTE.method, &path, body).await?;
            read(response).await
        };
        match tokio::time::timeout(patience, answered).await {
            Ok(answer) => serde_json::from_slice(&answer?).map_err(|error| {
                ApiError::new(
                    ErrorCode::Failure,
                    format!(
                        "the daemon's answer to {} is not understood: {error}",
                        R::ROUTE.name
                    ),
                    "restart the daemon if it was updated since it was started",
                )
            }),
            Err(_) => Err(ApiError::new(
                ErrorCode::TimedOut,
                format!("no answer within {} s", patience.as_secs()),
                "look at \"bitmesh status\"; what was asked may still have been done",
            )),
        }
    }

    /// Watches events whose names are in `types`; all of them if it is empty.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn events(&self, types: &[&str]) -> Result<Events, ApiError> {
        let path = if types.is_empty() {
            "/v1/events".to_owned()
        } else {
            format!("/v1/events?types={}", percent::encode(&types.join(",")))
        };
        let opened = async {
            let response = self.send("GET", &path, Bytes::new()).await?;
            if response.status() == StatusCode::OK {
                Ok(Events::new(response.into_body()))
            } else {
                Err(read(response)
                    .await
                    .err()
                    .unwrap_or_else(|| ApiError::failure("no events")))
            }
        };
        tokio::time::timeout(SLACK, opened)
            .await
            .unwrap_or_else(|_| {
                Err(ApiError::new(
                    ErrorCode::TimedOut,
                    format!("no answer within {} s", SLACK.as_secs()),
                    "look at \"bitmesh status\"",
                ))
            })
    }

    /// Sends a request as it is and returns the status and the body of the answer, for what
    /// [`call`](Self::call) has no type for.
    ///
    /// # Errors
    ///
    /// Only if no answer came; an answer that is an error is returned as it is.
    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<(u16, Bytes), ApiError> {
        let response = self.send(method, path, body.into()).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await;
        Ok((
            status,
            body.map_err(|error| broken(&error.to_string()))?.to_bytes(),
        ))
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ApiError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error.to_string()))?;
        // Ends with the response's body: the sender is gone after this one request.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let method = Method::from_bytes(method.as_bytes()).map_err(|error| malformed(&error))?;
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "bitmesh")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| malformed(&error))?;
        sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error.to_string()))
    }

    fn unreachable(&self, error: &io::Error) -> ApiError {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => ApiError::new(
                ErrorCode::NotAuthorised,
                format!("not allowed to open the daemon's socket {socket}"),
                "run this as the user who started the daemon",
            ),
            kind => {
                let why = match kind {
                    ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                    ErrorKind::NotFound => "no such socket".to_owned(),
                    _ => error.to_string(),
                };
                ApiError::new(
                    ErrorCode::Unreachable,
                    format!("cannot reach the BitMesh daemon at {socket} ({why})"),
                    "start it with \"bitmesh up\"",
                )
            }
        }
    }
}

fn malformed(why: &impl std::fmt::Display) -> ApiError {
    ApiError::new(
        ErrorCode::Usage,
        format!("no such request can be sent: {why}"),
        "write it like: GET /v1/status",
    )
}

fn broken(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Unreachable,
        format!("the connection to the daemon broke ({why})"),
        "look at \"bitmesh status\"; what was asked may still have been done",
    )
}

/// Lays a request out as path, query and body: the mirror of the server's parsing.
fn address<R: Request>(request: &R) -> Result<(String, Bytes), ApiError> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(request) else {
        return Err(ApiError::failure(format!(
            "{} is not an object",
            R::ROUTE.name
        )));
    };
    let mut path = R::ROUTE.path.to_owned();
    let names: Vec<String> = fields.keys().cloned().collect();
    for name in names {
        let place = format!("{{{name}}}");
        if path.contains(&place)
            && let Some(value) = fields.remove(&name)
        {
            path = path.replace(&place, &percent::encode(&plain(&value)));
        }
    }
    if R::ROUTE.method != "GET" {
        return Ok((path, Bytes::from(Value::Object(fields).to_string())));
    }
    let query = query(&fields);
    if !query.is_empty() {
        path.push('?');
        path.push_str(&query);
    }
    Ok((path, Bytes::new()))
}

fn query(fields: &Map<String, Value>) -> String {
    let pairs: Vec<String> = fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| format!("{name}={}", percent::encode(&plain(value))))
        .collect();
    pairs.join("&")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

async fn read(response: Response<Incoming>) -> Result<Bytes, ApiError> {
    let status = response.status();
    let theirs = response
        .headers()
        .get(VERSION_HEADER)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(|error| broken(&error.to_string()))?
        .to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let mut error = match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(ErrorBody { error }) => error,
        Err(_) => ApiError::failure(format!(
            "the daemon answered {status} without an explanation"
        )),
    };
    let ours = env!("CARGO_PKG_VERSION");
    if let Some(theirs) = theirs
        && theirs != ours
        && matches!(
            error.code,
            ErrorCode::Usage | ErrorCode::NotFound | ErrorCode::Failure
        )
    {
        error.hint.push_str(&format!(
            "; the daemon is version {theirs} and this is {ours}: restart it if it was updated"
        ));
    }
    Err(error)
}
