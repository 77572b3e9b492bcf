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
        self.ask_with(question, Otherwise::No)
    }

    /// Asks whether to go on with what was wanted anyway: an empty line is a yes.
    pub(crate) fn ask_to_go_on(self, question: &str) -> Result<(), Failure> {
        self.ask_with(question, Otherwise::Yes)
    }

    fn ask_with(self, question: &str, otherwise: Otherwise) -> Result<(), Failure> {
        match self {
            Self::Given => Ok(()),
            Self::Refused => Err(Failure::usage(
                format!("this needs an answer: {question}"),
                "give --yes to accept",
            )),
            Self::Askable => {
                let choice = match otherwise {
                    Otherwise::Yes => "[Y/n]",
                    Otherwise::No => "[y/N]",
                };
                let mut stderr = io::stderr().lock();
                let _ = write!(stderr, "{question} {choice} ");
                let _ = stderr.flush();
                let mut answer = String::new();
                match io::stdin().lock().read_line(&mut answer) {
                    // An end of input is not the Enter key.
                    Ok(read) if read > 0 && is_yes(&answer, otherwise) => Ok(()),
                    _ => Err(Failure::usage(
                        "not confirmed; nothing was done",
                        "answer y to accept",
                    )),
                }
            }
        }
    }
}

/// What an empty line means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Otherwise {
    Yes,
    No,
}

fn is_yes(answer: &str, otherwise: Otherwise) -> bool {
    match answer.trim() {
        "" => otherwise == Otherwise::Yes,
        "y" | "Y" | "yes" | "Yes" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes_and_an_empty_line_is_what_the_question_says() {
        for yes in ["y\n", "Y\n", "yes\n", " Yes \n"] {
            assert!(is_yes(yes, Otherwise::No) && is_yes(yes, Otherwise::Yes));
        }
        for no in ["n\n", "no\n", "yess\n", "q\n"] {
            assert!(!is_yes(no, Otherwise::No) && !is_yes(no, Otherwise::Yes));
        }
        assert!(is_yes("\n", Otherwise::Yes));
        assert!(!is_yes("\n", Otherwise::No));
    }
}
