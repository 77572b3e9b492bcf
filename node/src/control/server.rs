//! The daemon's end of the control API: HTTP on a Unix socket in front of the driver.
//!
//! The server decides nothing. It checks the shape of a request, hands a [`Call`] to the driver
//! and waits for the answer; watchers get the driver's events as they come. All it holds is
//! bounded: connections, body sizes, waiting calls, and how far a watcher may fall behind.

mod listener;
mod socket;

use std::{io, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Query, RawPathParams, State, rejection::BytesRejection},
    http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{self, KeepAlive},
    },
    routing::{get, post, put},
};
use futures::stream;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::listener::Bounded;
pub use self::socket::{BindError, Socket};
use super::{
    ANSWER_WITHIN, BODY_MAX, Call, Event, Request,
    api::{RequestVisitor, each_request},
    error::{ApiError, ErrorBody, ErrorCode},
    openapi, percent,
};

/// Header with the daemon's version, so that a client of another version can say so.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("bitmesh-version");

/// How often a silent event stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long answers that are under way may take once the daemon stops.
const FAREWELL: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shared {
    calls: mpsc::Sender<Call>,
    events: broadcast::Sender<Event>,
    stop: CancellationToken,
    answer_within: Duration,
}

/// Serves the control API on `socket` until `stop` is cancelled, then lets answers that are under
/// way finish and removes the socket.
///
/// `calls` leads to the driver and should hold [`CALL_QUEUE`](super::CALL_QUEUE); `events` is what
/// the driver sends on, with room for [`EVENT_BACKLOG`](super::EVENT_BACKLOG).
///
/// # Errors
///
/// Returns what the socket said when it was put to use. Errors of single connections are logged.
pub async fn serve(
    socket: Socket,
    calls: mpsc::Sender<Call>,
    events: broadcast::Sender<Event>,
    stop: CancellationToken,
) -> io::Result<()> {
    serve_within(ANSWER_WITHIN, socket, calls, events, stop).await
}

pub(super) async fn serve_within(
    answer_within: Duration,
    socket: Socket,
    calls: mpsc::Sender<Call>,
    events: broadcast::Sender<Event>,
    stop: CancellationToken,
) -> io::Result<()> {
    let (listener, guard) = socket.into_listener()?;
    let shared = Shared {
        calls,
        events,
        stop: stop.clone(),
        answer_within,
    };
    let serving = axum::serve(Bounded::new(listener), router(shared))
        .with_graceful_shutdown(stop.clone().cancelled_owned());
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        served = serving.into_future() => served?,
        () = too_late => warn!("a control connection did not end in time"),
    }
    drop(guard);
    Ok(())
}

fn router(shared: Shared) -> Router {
    struct Mount(Router<Shared>);
    impl RequestVisitor for Mount {
        fn visit<R: Request>(&mut self) {
            let handler = match R::ROUTE.method {
                "GET" => get(answer::<R>),
                "PUT" => put(answer::<R>),
                _ => post(answer::<R>),
            };
            let router = std::mem::take(&mut self.0);
            self.0 = router.route(R::ROUTE.path, handler);
        }
    }
    let mut mount = Mount(Router::new());
    each_request(&mut mount);
    mount
        .0
        .route("/v1/events", get(watch))
        .route("/openapi.json", get(document))
        .fallback(no_such_call)
        .method_not_allowed_fallback(no_such_call)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(shared)
}

async fn answer<R: Request>(
    State(shared): State<Shared>,
    uri: Uri,
    path: RawPathParams,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let outcome = match parse::<R>(&uri, &path, body) {
        Ok(request) => ask(&shared, request).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(reply) => json(StatusCode::OK, &reply),
        Err(error) => failed(error),
    }
}

/// A request is the fields of its path, and those of the query (`GET`) or of the body.
fn parse<R: Request>(
    uri: &Uri,
    path: &RawPathParams,
    body: Result<Bytes, BytesRejection>,
) -> Result<R, ApiError> {
    if R::ROUTE.method == "GET" {
        return parse_query(uri, path);
    }
    let body = body.map_err(|rejection| malformed(rejection.body_text()))?;
    let mut fields: Map<String, Value> = if body.is_empty() {
        Map::new()
    } else {
        serde_json::from_slice(&body).map_err(|error| malformed(error.to_string()))?
    };
    for (name, value) in path {
        if fields.insert(name.to_owned(), Value::from(value)).is_some() {
            return Err(malformed(format!(
                "{name} stands in the path and in the body"
            )));
        }
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| malformed(error.to_string()))
}

fn parse_query<R: DeserializeOwned>(uri: &Uri, path: &RawPathParams) -> Result<R, ApiError> {
    let mut query = uri.query().unwrap_or_default().to_owned();
    for (name, value) in path {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        query.push_str(&percent::encode(value));
    }
    let uri = format!("/?{query}")
        .parse::<Uri>()
        .map_err(|error| malformed(error.to_string()))?;
    Query::try_from_uri(&uri)
        .map(|Query(request)| request)
        .map_err(|rejection| malformed(rejection.body_text()))
}

fn malformed(message: impl Into<String>) -> ApiError {
    ApiError::new(
        ErrorCode::Usage,
        message,
        "GET /openapi.json describes every call and its fields",
    )
}

async fn ask<R: Request>(shared: &Shared, request: R) -> Result<R::Reply, ApiError> {
    let patience = shared.answer_within.saturating_add(request.patience());
    let name = R::ROUTE.name;
    let (call, reply) = Call::new(request);
    let stopping = || {
        ApiError::new(
            ErrorCode::Unreachable,
            "the daemon is stopping",
            "start it again with \"bitmesh up\"",
        )
    };
    let asked = async {
        shared.calls.send(call).await.map_err(|_| stopping())?;
        reply.await.map_err(|_| stopping())?
    };
    match tokio::time::timeout(patience, asked).await {
        Ok(Ok(reply)) => R::Reply::try_from(reply).map_err(|_| {
            warn!(
                call = name,
                "the driver answered with the reply of another call"
            );
            ApiError::failure(format!("{name} was answered with the wrong kind of reply"))
        }),
        Ok(Err(error)) => {
            debug!(call = name, code = ?error.code, %error, "a call was refused");
            Err(error)
        }
        Err(_) => Err(ApiError::new(
            ErrorCode::TimedOut,
            format!("{name} was not answered within {} s", patience.as_secs()),
            "look at \"bitmesh status\", then try again",
        )),
    }
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (
            VERSION_HEADER,
            HeaderValue::from_static(env!("CARGO_PKG_VERSION")),
        ),
    ];
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, headers, bytes).into_response(),
        Err(error) => {
            warn!(%error, "a reply could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn failed(error: ApiError) -> Response {
    let status =
        StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &ErrorBody { error })
}

async fn no_such_call(method: Method, uri: Uri) -> Response {
    failed(ApiError::new(
        ErrorCode::NotFound,
        format!("no call {method} {}", uri.path()),
        "GET /openapi.json lists every call",
    ))
}

async fn document() -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        openapi::DOCUMENT,
    )
        .into_response()
}

/// The query of `/v1/events`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Watch {
    /// Names of the events to send, separated by commas. Absent: all of them.
    #[serde(default)]
    types: Option<String>,
}

async fn watch(State(shared): State<Shared>, uri: Uri) -> Response {
    let types = match Query::<Watch>::try_from_uri(&uri) {
        Ok(Query(Watch { types })) => types,
        Err(rejection) => return failed(malformed(rejection.body_text())),
    };
    let wanted: Option<Vec<String>> =
        types.map(|list| list.split(',').map(str::to_owned).collect());
    let unknown = wanted
        .iter()
        .flatten()
        .find(|name| !Event::NAMES.contains(&name.as_str()));
    if let Some(name) = unknown {
        return failed(ApiError::new(
            ErrorCode::Usage,
            format!("no event is called \"{name}\""),
            format!("there are {}", Event::NAMES.join(", ")),
        ));
    }
    let receiver = shared.events.subscribe();
    let stream = stream::unfold(Some((receiver, shared.stop, wanted)), next_event);
    let alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(stream).keep_alive(alive).into_response();
    let version = HeaderValue::from_static(env!("CARGO_PKG_VERSION"));
    response.headers_mut().insert(VERSION_HEADER, version);
    response
}

type Watching = (
    broadcast::Receiver<Event>,
    CancellationToken,
    Option<Vec<String>>,
);

async fn next_event(
    watching: Option<Watching>,
) -> Option<(Result<sse::Event, axum::Error>, Option<Watching>)> {
    let (mut receiver, stop, wanted) = watching?;
    loop {
        let received = tokio::select! {
            biased;
            received = receiver.recv() => received,
            () = stop.cancelled() => Err(RecvError::Closed),
        };
        let (event, last) = match received {
            Ok(event) => (event, false),
            Err(RecvError::Lagged(missed)) => (Event::Lagged { missed }, false),
            Err(RecvError::Closed) => (Event::Stopping {}, true),
        };
        // What the server itself has to say concerns every watcher.
        let always = matches!(event, Event::Lagged { .. } | Event::Stopping {});
        let fits = wanted
            .as_ref()
            .is_none_or(|names| names.iter().any(|name| name == event.name()));
        if !always && !fits {
            continue;
        }
        let message = sse::Event::default().event(event.name()).json_data(&event);
        return Some((message, (!last).then_some((receiver, stop, wanted))));
    }
}
