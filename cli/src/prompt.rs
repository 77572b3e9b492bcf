//! Questions, asked only where somebody can answer.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::{args::Global, failure::Failure};

/// Whether a question may be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consent {
    /// `--yes`: every answer is yes.
    Given,
    /// There is a terminal to ask on.
    Askable,
    /// `--no-input`, or no terminal: a question is an error.
    Refused,
}

impl Consent {
    pub(crate) fn of(global: &Global) -> Self {
        if global.yes {
            Self::Given
        } else if global.no_input || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            Self::Refused
        } else {
            Self::Askable
        }
    }

    /// Asks whether to go on, and returns an error unless the answer is yes.
    pub(crate) fn ask(self, question: &str) -> Result<(), Failure> {
        match self {
            Self::Given => Ok(()),
            Self::Refused => Err(Failure::usage(
                format!("this needs an answer: {question}"),
                "give --yes to accept",
            )),
            Self::Askable => {
                let mut stderr = io::stderr().lock();
                let _ = write!(stderr, "{question} [y/N] ");
                let _ = stderr.flush();
                let mut answer = String::new();
                let read = io::stdin().lock().read_line(&mut answer);
                let yes = matches!(answer.trim(), "y" | "Y" | "yes" | "Yes");
                match read {
                    Ok(_) if yes => Ok(()),
                    _ => Err(Failure::usage(
                        "not confirmed; nothing was done",
                        "answer y to accept",
                    )),
                }
            }
        }
    }
}
