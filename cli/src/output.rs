//! Where words go: data to stdout, everything else to stderr, colour only where it helps.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use serde::Serialize;

use crate::args::{Color, Global};

/// Why something could not be written to stdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputError {
    /// The reader has closed its end, which is its good right.
    Closed,
    /// The disk is full, or worse.
    Failed(String),
}

/// How a text may be dressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    color: bool,
}

impl Style {
    /// Returns a style with or without colour.
    pub fn new(color: bool) -> Self {
        Self { color }
    }

    fn dress(self, code: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// What matters most on the screen.
    pub fn bold(self, text: &str) -> String {
        self.dress("1", text)
    }

    /// What may be overlooked.
    pub fn dim(self, text: &str) -> String {
        self.dress("2", text)
    }

    /// All is well.
    pub fn good(self, text: &str) -> String {
        self.dress("32", text)
    }

    /// Something wants attention.
    pub fn warn(self, text: &str) -> String {
        self.dress("33", text)
    }

    /// Something failed.
    pub fn bad(self, text: &str) -> String {
        self.dress("31", text)
    }
}

/// What a command prints with.
#[derive(Clone, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
    redraws: bool,
    stdout: Style,
    stderr: Style,
}

/// Cursor to the upper left corner, and everything below it cleared.
const CLEAR: &str = "\x1b[H\x1b[2J";

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let plain = set("NO_COLOR") || dumb;
        let style = |terminal: bool| {
            Style::new(match global.color {
                Color::Always => true,
                Color::Never => false,
                Color::Auto => terminal && !plain,
            })
        };
        Self {
            json: global.json,
            quiet: global.quiet,
            redraws: io::stdout().is_terminal() && !dumb,
            stdout: style(io::stdout().is_terminal()),
            stderr: style(io::stderr().is_terminal()),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a reply: as JSON if asked for, else as `text` dresses it.
    pub(crate) fn reply<T: Serialize>(
        &self,
        reply: &T,
        text: impl FnOnce(&T, Style) -> String,
    ) -> Result<(), OutputError> {
        if self.json {
            self.json(reply)
        } else {
            write_text(&text(reply, self.stdout))
        }
    }

    /// Prints one JSON object on one line.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), OutputError> {
        let line =
            serde_json::to_string(value).map_err(|error| OutputError::Failed(error.to_string()))?;
        write_line(&line)
    }

    /// Prints a reply as the present state of something that changes: on a terminal it takes the
    /// place of the one before.
    pub(crate) fn frame<T: Serialize>(
        &self,
        reply: &T,
        text: impl FnOnce(&T, Style) -> String,
    ) -> Result<(), OutputError> {
        if self.json {
            return self.json(reply);
        }
        let text = text(reply, self.stdout);
        if self.redraws {
            write_text(&format!("{CLEAR}{text}"))
        } else {
            write_text(&text)
        }
    }

    /// Prints a reply for people; nothing with `--json`.
    pub(crate) fn text<T>(
        &self,
        reply: &T,
        text: impl FnOnce(&T, Style) -> String,
    ) -> Result<(), OutputError> {
        if self.json {
            Ok(())
        } else {
            write_text(&text(reply, self.stdout))
        }
    }

    /// Shows something to decide by, to stderr: the answer on stdout comes afterwards.
    pub(crate) fn show<T>(&self, reply: &T, text: impl FnOnce(&T, Style) -> String) {
        if !self.quiet {
            to_stderr(text(reply, self.stderr).trim_end());
        }
    }

    /// Prints a line as it is, `--json` or not.
    pub(crate) fn line(&self, line: &str) -> Result<(), OutputError> {
        write_line(line)
    }

    /// Prints a document that is for other programs.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), OutputError> {
        write_bytes(bytes)
    }

    /// Says what is going on, to stderr; nothing with `--quiet`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            to_stderr(text);
        }
    }

    /// Says what went wrong and what to do, to stderr.
    pub(crate) fn complain(&self, message: &str, hint: &str) {
        let mut text = format!("{} {message}", self.stderr.bad("error:"));
        if !hint.is_empty() {
            let _ = write!(text, "\n{} {hint}", self.stderr.bold("hint:"));
        }
        to_stderr(&text);
    }

    /// Whether a person is at the other end of stderr and wants to be kept company.
    pub(crate) fn shows_progress(&self) -> bool {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        !self.quiet && !self.json && !dumb && io::stderr().is_terminal()
    }
}

fn to_stderr(text: &str) {
    // There is nowhere left to complain to.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

pub(crate) fn write_line(line: &str) -> Result<(), OutputError> {
    write_text(&format!("{line}\n"))
}

fn write_text(text: &str) -> Result<(), OutputError> {
    write_bytes(text.as_bytes())
}

pub(crate) fn write_bytes(bytes: &[u8]) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                OutputError::Closed
            } else {
                OutputError::Failed(error.to_string())
            }
        })
}
