//! What can go wrong with a call, sorted by what the caller can do about it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// What kind of failure it was. The kinds, their names and their exit codes are a contract:
/// scripts decide by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The node failed at something it should have managed.
    Failure,
    /// The request is malformed or contradicts itself.
    Usage,
    /// No daemon answers. Never sent by a server; made by the client.
    Unreachable,
    /// The caller may not do this.
    NotAuthorised,
    /// No lease, channel, peer or setting of that name.
    NotFound,
    /// It was tried and nothing came of it in time.
    TimedOut,
    /// The wallet does not hold enough.
    InsufficientFunds,
    /// No live offer satisfies the bid.
    NoMatch,
    /// The other node said no.
    Refused,
    /// The node runs and something that it needs does not.
    Unhealthy,
    /// The node cannot do this in its present state; nothing was changed.
    Conflict,
}

impl ErrorCode {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 11] = [
        Self::Failure,
        Self::Usage,
        Self::Unreachable,
        Self::NotAuthorised,
        Self::NotFound,
        Self::TimedOut,
        Self::InsufficientFunds,
        Self::NoMatch,
        Self::Refused,
        Self::Unhealthy,
        Self::Conflict,
    ];

    /// Returns the exit code of a command that ends with this error.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failure | Self::Conflict => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotAuthorised => 4,
            Self::NotFound => 5,
            Self::TimedOut => 6,
            Self::InsufficientFunds => 7,
            Self::NoMatch => 8,
            Self::Refused => 9,
            Self::Unhealthy => 10,
        }
    }

    /// Returns the HTTP status that a server answers with.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Failure => 500,
            Self::Usage => 400,
            Self::Unreachable | Self::Unhealthy => 503,
            Self::NotAuthorised => 403,
            Self::NotFound => 404,
            Self::TimedOut => 504,
            Self::InsufficientFunds => 402,
            Self::NoMatch => 422,
            Self::Refused => 502,
            Self::Conflict => 409,
        }
    }
}

/// An error as every surface shows it: a code for scripts, a message and a next step for people.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure it was.
    pub code: ErrorCode,
    /// What happened, in lower case and without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// When trying again makes sense, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
    /// Evidence for programs, each field with its unit in its name: `cheapest_msat_per_gb`.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

impl ApiError {
    /// Returns an error with a next step. Every error has one; there is no constructor without.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint.into(),
            retry_after_s: None,
            details: Map::new(),
        }
    }

    /// Adds one piece of evidence. The name carries the unit.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_after_s(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The node failed at something it should have managed; the log has more.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(
            ErrorCode::Failure,
            message,
            "see the daemon's log for what led to this",
        )
    }

    /// No `thing` (lease, channel, peer) is called `name`.
    pub fn not_found(thing: &str, name: &str) -> Self {
        let hint = match thing {
            "lease" => "\"bitmesh leases --all\" lists them".to_owned(),
            "channel" => "\"bitmesh channels --all\" lists them".to_owned(),
            "setting" => "\"bitmesh config get\" lists them".to_owned(),
            other => format!("\"bitmesh {other}s\" lists them"),
        };
        Self::new(ErrorCode::NotFound, format!("no {thing} {name}"), hint)
    }
}

/// The body of an answer that is an error: `{"error":{…}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

/// Shortest beginning of an id that is taken for it. Four hex digits tell 65,536 leases apart on
/// average, and are what people read out loud.
pub const PREFIX_MIN: usize = 4;

/// Finds the one id in `ids` that is `given` or begins with it.
///
/// # Errors
///
/// [`ErrorCode::NotFound`] if there is none, [`ErrorCode::Usage`] if `given` is shorter than
/// [`PREFIX_MIN`] or fits several.
pub fn resolve<'a>(
    thing: &str,
    ids: impl IntoIterator<Item = &'a str>,
    given: &str,
) -> Result<&'a str, ApiError> {
    if given.len() < PREFIX_MIN {
        return Err(ApiError::new(
            ErrorCode::Usage,
            format!("\"{given}\" is too short to name a {thing}"),
            format!("give at least the first {PREFIX_MIN} characters of its id"),
        ));
    }
    let mut found = None;
    for id in ids {
        if id == given {
            return Ok(id);
        }
        if id.starts_with(given) {
            if found.is_some() {
                return Err(ApiError::new(
                    ErrorCode::Usage,
                    format!("more than one {thing} begins with {given}"),
                    "give more characters of its id",
                ));
            }
            found = Some(id);
        }
    }
    found.ok_or_else(|| ApiError::not_found(thing, given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_its_evidence_beside_its_message() {
        let error = ApiError::new(
            ErrorCode::NoMatch,
            "no offer at or below 20 sat/GB",
            "use --wait",
        )
        .with("cheapest_msat_per_gb", 118_000)
        .retry_after_s(30);

        let json = serde_json::to_value(ErrorBody {
            error: error.clone(),
        })
        .unwrap();
        assert_eq!(
            json,
            serde_json::json!({"error": {
                "code": "no_match",
                "message": "no offer at or below 20 sat/GB",
                "hint": "use --wait",
                "retry_after_s": 30,
                "cheapest_msat_per_gb": 118_000,
            }})
        );
        let back: ErrorBody = serde_json::from_value(json).unwrap();
        assert_eq!(back.error, error);
    }

    #[test]
    fn the_exit_codes_are_the_contract() {
        let table: Vec<(String, u8)> = ErrorCode::ALL
            .iter()
            .map(|code| {
                let name = serde_json::to_value(code)
                    .unwrap()
                    .as_str()
                    .unwrap()
                    .to_owned();
                (name, code.exit_code())
            })
            .collect();
        let expected = [
            ("failure", 1),
            ("usage", 2),
            ("unreachable", 3),
            ("not_authorised", 4),
            ("not_found", 5),
            ("timed_out", 6),
            ("insufficient_funds", 7),
            ("no_match", 8),
            ("refused", 9),
            ("unhealthy", 10),
            ("conflict", 1),
        ]
        .map(|(name, code)| (name.to_owned(), code));
        assert_eq!(table, expected);
    }

    #[test]
    fn an_id_is_found_by_its_beginning_unless_two_share_it() {
        let ids = ["7f3a11", "7f3a22", "90bc00"];
        assert_eq!(resolve("lease", ids, "90bc").unwrap(), "90bc00");
        assert_eq!(resolve("lease", ids, "7f3a22").unwrap(), "7f3a22");
        assert_eq!(
            resolve("lease", ids, "7f3a").unwrap_err().code,
            ErrorCode::Usage
        );
        assert_eq!(
            resolve("lease", ids, "7f").unwrap_err().code,
            ErrorCode::Usage
        );
        assert_eq!(
            resolve("lease", ids, "ffff").unwrap_err().code,
            ErrorCode::NotFound
        );
    }

    #[test]
    fn an_exact_id_wins_over_a_longer_one_that_begins_with_it() {
        let ids = ["7f3a11", "7f3a"];
        assert_eq!(resolve("lease", ids, "7f3a").unwrap(), "7f3a");
    }
}
