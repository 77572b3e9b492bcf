//! The passphrase of the words: from a file, or asked for where somebody can answer.

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    path::Path,
};

use bitmesh_node::{
    control::ErrorCode,
    words::{self, Passphrase, WordsFileError},
};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

use crate::{context::Context, failure::Failure};

/// The most that is read: a passphrase and the end of its line, and one byte by which more is found out.
const INPUT_MAX: usize = words::MAX_PASSPHRASE + 3;

/// Ctrl-C, as a terminal sends it.
const INTERRUPT: u8 = 3;

/// The passphrase that opens the words of this node; `None` if they are under none, or are not there.
pub(crate) fn to_open(
    context: &Context,
    file: Option<&Path>,
) -> Result<Option<Passphrase>, Failure> {
    match words::is_sealed(&context.paths) {
        Ok(false) | Err(WordsFileError::Missing(_)) => Ok(None),
        Ok(true) => match file {
            Some(file) => from_file(file).map(Some),
            None => {
                can_ask(context, || {
                    WordsFileError::Sealed(context.paths.words()).into()
                })?;
                ask("Passphrase of the words: ").map(Some)
            }
        },
        Err(error) => Err(error.into()),
    }
}

/// A new passphrase, asked for twice if it is not in a file.
pub(crate) fn to_set(context: &Context, file: Option<&Path>) -> Result<Passphrase, Failure> {
    if let Some(file) = file {
        return from_file(file);
    }
    can_ask(context, || {
        Failure::usage(
            "there is no terminal to ask for a passphrase on",
            "name a file that holds it",
        )
    })?;
    let first = ask("New passphrase: ")?;
    if first.is(&ask("The same again: ")?) {
        return Ok(first);
    }
    Err(Failure::usage(
        "the two passphrases differ; nothing was changed",
        "try again",
    ))
}

/// Reads a passphrase from a file, or with `-` from standard input.
pub(crate) fn from_file(path: &Path) -> Result<Passphrase, Failure> {
    let bytes = if path == Path::new("-") {
        read_from(io::stdin(), End::Input)
    } else {
        File::open(path).and_then(|file| read_from(file, End::Input))
    };
    made(&bytes.map_err(|error| Failure::file("read the passphrase from", path, &error))?)
}

fn made(bytes: &[u8]) -> Result<Passphrase, Failure> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Failure::usage("a passphrase is text in UTF-8", "give it again"))?;
    Passphrase::new(text).map_err(|error| {
        Failure::usage(
            error.to_string(),
            "nothing was changed; give the passphrase alone, on one line",
        )
    })
}

fn can_ask(context: &Context, otherwise: impl FnOnce() -> Failure) -> Result<(), Failure> {
    let is_possible = io::stdin().is_terminal() && io::stderr().is_terminal();
    match is_possible && !context.global.no_input {
        true => Ok(()),
        false => Err(otherwise()),
    }
}

/// Asks on the terminal, which does not show what is typed.
fn ask(question: &str) -> Result<Passphrase, Failure> {
    let mut stderr = io::stderr().lock();
    let typed = {
        // Before the question: whoever sees it may type.
        let _hidden = Hidden::begin()?;
        let _ = write!(stderr, "{question}");
        let _ = stderr.flush();
        read_from(io::stdin(), End::Line)
    };
    let _ = writeln!(stderr);
    let typed = typed.map_err(|error| Failure::system("read the passphrase", &error))?;
    if typed.contains(&INTERRUPT) {
        return Err(Failure::Interrupted);
    }
    made(&typed)
}

/// Up to where is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The end of a line that is typed, or Ctrl-C.
    Line,
    /// The end of the file.
    Input,
}

/// At most [`INPUT_MAX`] bytes, past the buffers of `std`, which would keep a copy.
fn read_from(from: impl AsFd, end: End) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(vec![0; INPUT_MAX]);
    let mut length = 0;
    while let Some(byte) = line.get_mut(length..).and_then(|rest| rest.get_mut(..1)) {
        match rustix::io::read(&from, &mut *byte) {
            Ok(0) => break,
            Ok(_) => {
                let is_last = end == End::Line && matches!(byte, [b'\n' | INTERRUPT]);
                length += 1;
                if is_last {
                    break;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    line.truncate(length);
    Ok(line)
}

/// A terminal that does not show what is typed, until this is dropped. Ctrl-C ends the line instead of
/// the program, which would leave the terminal as it is.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Result<Self, Failure> {
        let refused =
            |error: rustix::io::Errno| Failure::system("hide what is typed", &error.into());
        let before = tcgetattr(io::stdin()).map_err(refused)?;
        let mut hidden = before.clone();
        hidden
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ISIG);
        hidden.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(io::stdin(), OptionalActions::Now, &hidden).map_err(refused)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// How a refusal to open the words is told.
pub(crate) fn failure(error: &WordsFileError) -> Option<Failure> {
    let (code, hint) = match error {
        WordsFileError::Sealed(_) => (
            ErrorCode::Usage,
            "nothing was done; on a terminal it is asked for, else name a file that holds it with \
             --passphrase-file, or in BITMESH_PASSPHRASE_FILE",
        ),
        WordsFileError::NotSealed(_) => (
            ErrorCode::Conflict,
            "nothing was changed; \"bitmesh wallet passphrase set\" sets one",
        ),
        WordsFileError::Unseal { source, .. } => match source {
            words::UnsealError::Passphrase => (
                ErrorCode::NotAuthorised,
                "nothing was changed and nothing is lost; try again. If it is forgotten, move the file \
                 away and restore the node from the twelve words on paper: bitmesh init --words-file -",
            ),
            words::UnsealError::Damaged => (
                ErrorCode::Failure,
                "the passphrase is not to blame; keep the file, and restore the words from paper: move \
                 it away, then bitmesh init --words-file -; the journal beside it stays as it is",
            ),
            words::UnsealError::Version => (
                ErrorCode::Failure,
                "nothing was changed; use the program that sealed it, or a later one",
            ),
            words::UnsealError::Memory { .. } => {
                (ErrorCode::Failure, "end other programs and try again")
            }
        },
        _ => return None,
    };
    Some(Failure::new(code, error.to_string(), hint))
}
