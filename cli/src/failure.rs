//! How a command ends badly: one place that turns every error into a message, a hint and an exit
//! code.

use std::{io, path::Path, process::ExitCode};

use bitmesh_node::{
    control::{ApiError, ErrorCode, error::ErrorBody},
    paths::{LockError, NoHomeError},
};
use clap::error::ErrorKind;
use serde_json::json;

use crate::output::{Output, OutputError};

/// Exit code of a command that was interrupted (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What the daemon said, or what the command itself found wrong in the same form.
    Api(ApiError),
    /// The person pressed Ctrl-C.
    Interrupted,
    /// The output could not be written.
    Output(OutputError),
    /// A child process ended with this code, and has said why.
    Child(u8),
    /// Everything was said already; only the code is left to give.
    Silent(u8),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        Self::Output(error)
    }
}

impl From<NoHomeError> for Failure {
    fn from(error: NoHomeError) -> Self {
        Self::new(
            ErrorCode::Usage,
            error.to_string(),
            "set HOME or give --datadir",
        )
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let hint = match &error {
            LockError::Held { .. } => {
                "\"bitmesh status\" shows it, \"bitmesh down\" stops it; \
                 a second node needs a --datadir of its own"
            }
            LockError::Io { .. } => "check that the data directory exists and is yours",
        };
        Self::new(ErrorCode::Conflict, error.to_string(), hint)
    }
}

impl Failure {
    /// Returns a failure with a next step.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Api(ApiError::new(code, message, hint))
    }

    /// Returns the failure of a command whose words contradict each other.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorCode::Usage, message, hint)
    }

    /// Returns the failure of something done to a file.
    pub fn file(doing: &str, path: &Path, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "run this as the user who owns it",
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::StorageFull => "make room on that disk",
            _ => "check the path and the disk",
        };
        Self::new(
            ErrorCode::Failure,
            format!("cannot {doing} {}: {error}", path.display()),
            hint,
        )
    }

    /// Returns the failure of something that the operating system refused.
    pub fn system(doing: &str, error: &io::Error) -> Self {
        Self::new(
            ErrorCode::Failure,
            format!("cannot {doing}: {error}"),
            "check the limits on open files, processes and memory (ulimit -a)",
        )
    }

    /// Returns the exit code: the contract of `ErrorCode`, and 130.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Api(error) => error.code.exit_code(),
            Self::Interrupted => INTERRUPTED,
            Self::Output(_) => 1,
            Self::Child(code) | Self::Silent(code) => *code,
        }
    }

    /// Writes the error where the reader looks for it and returns the exit code: text to stderr,
    /// and with `--json` an object to stdout too.
    pub fn report(&self, output: &Output) -> ExitCode {
        match self {
            Self::Api(error) => {
                if output.is_json() {
                    // The exit code tells as much if stdout is gone.
                    let _ = output.json(&ErrorBody {
                        error: error.clone(),
                    });
                }
                output.complain(&error.message, &error.hint);
            }
            Self::Output(OutputError::Failed(error)) => {
                output.complain(
                    &format!("cannot write the output: {error}"),
                    "check the disk",
                );
            }
            Self::Interrupted => {
                if output.is_json() {
                    let _ = output.json(&json!({ "error": {
                        "code": "interrupted",
                        "message": "interrupted",
                        "hint": "\"bitmesh status\" shows what the daemon has done",
                    }}));
                }
                output.note("interrupted");
            }
            Self::Output(OutputError::Closed) => {}
            Self::Child(_) | Self::Silent(_) => {}
        }
        ExitCode::from(self.exit_code())
    }
}

/// Reports what clap found: help and version to stdout with 0, the rest to stderr with 2.
pub(crate) fn usage(error: &clap::Error, json: bool) -> ExitCode {
    let asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if json && !asked_for {
        let text = error.render().to_string();
        // The first paragraph: what is missing stands on lines of its own below "error: …".
        let paragraph: Vec<&str> = text
            .lines()
            .map(str::trim)
            .take_while(|line| !line.is_empty())
            .collect();
        let message = paragraph.join(" ");
        let message = message.trim_start_matches("error: ");
        let error = ApiError::new(ErrorCode::Usage, message, "--help shows how it is used");
        if let Ok(line) = serde_json::to_string(&ErrorBody { error }) {
            let _ = crate::output::write_line(&line);
        }
    }
    // A closed pipe is no reason to fail: `bitmesh --help | head`.
    let _ = error.print();
    ExitCode::from(if asked_for {
        0
    } else {
        ErrorCode::Usage.exit_code()
    })
}
