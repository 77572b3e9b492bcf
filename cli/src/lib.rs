//! The command line of BitMesh.
//!
//! [`args`] says what may be typed, each file of `commands` does one command, `render` turns
//! replies into text for people. Every error ends in [`failure`], which knows the exit codes.
//!
//! Rules that hold everywhere and are tested: data goes to stdout and everything else to stderr;
//! `--json` prints one object; nothing is asked unless there is a terminal; each error has a hint.

pub mod args;
mod commands;
mod context;
pub mod failure;
mod output;
mod passphrase;
mod progress;
mod prompt;
pub mod render;

pub use self::output::Style;

use std::process::ExitCode;

use clap::{ArgMatches, FromArgMatches};

use crate::{
    args::Cli,
    context::Context,
    failure::Failure,
    output::{Output, OutputError},
};

/// Runs the command line of this process and returns its exit code.
pub fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let parsed = args::command()
        .try_get_matches_from(&words)
        .and_then(|matches: ArgMatches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error, words.iter().any(|word| word == "--json")),
    };
    let output = Output::new(&cli.global);
    let done = Context::new(&cli.global, output.clone())
        .and_then(|context| commands::run(context, cli.command));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read us has seen enough: `bitmesh offers | head -1`.
        Err(Failure::Output(OutputError::Closed)) => ExitCode::SUCCESS,
        Err(failure) => failure.report(&output),
    }
}
