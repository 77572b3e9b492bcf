//! `wallet passphrase`: the words of this node under a passphrase, another one, or none.

use bitmesh_node::{paths::Lock, words, words::WordsFileError};
use serde::Serialize;

use crate::{
    args::PassphraseCommand, context::Context, failure::Failure, output::Style, passphrase,
};

#[derive(Serialize)]
struct Outcome {
    done: &'static str,
    words_file: String,
    sealed: bool,
}

pub(super) fn run(context: &Context, command: PassphraseCommand) -> Result<(), Failure> {
    let (paths, network) = (&context.paths, context.network);
    let is_sealed = words::is_sealed(paths)?;
    // A daemon has read the words already; it is not to find others when it starts again.
    let _lock = Lock::acquire(paths)?;
    let (done, old, new) = match command {
        PassphraseCommand::Set { passphrase_file } => {
            if is_sealed {
                return Err(Failure::new(
                    bitmesh_node::control::ErrorCode::Conflict,
                    WordsFileError::Sealed(paths.words()).to_string(),
                    "nothing was changed; \"bitmesh wallet passphrase change\" sets another",
                ));
            }
            let new = passphrase::to_set(context, passphrase_file.as_deref())?;
            ("set", None, Some(new))
        }
        PassphraseCommand::Change {
            passphrase_file,
            new_passphrase_file,
        } => {
            let old = old(context, is_sealed, passphrase_file.as_deref())?;
            let new = passphrase::to_set(context, new_passphrase_file.as_deref())?;
            ("changed", old, Some(new))
        }
        PassphraseCommand::Remove { passphrase_file } => {
            let old = old(context, is_sealed, passphrase_file.as_deref())?;
            ("removed", old, None)
        }
    };
    words::change_passphrase(paths, network, old.as_ref(), new.as_ref())?;
    let outcome = Outcome {
        done,
        words_file: paths.words().display().to_string(),
        sealed: new.is_some(),
    };
    context.out.reply(&outcome, text)?;
    context.out.note(match done {
        "removed" => "Whoever can read that file has the coins.",
        "set" => {
            "The node starts with this passphrase alone; if it is forgotten, the words on paper bring \
             it back.\nThe disk may still hold the words as they were before: \"set\" cannot wipe that."
        }
        _ => {
            "What opens with the old passphrase is gone from this folder, and may still be on the disk \
             and in copies of it."
        }
    });
    Ok(())
}

fn old(
    context: &Context,
    is_sealed: bool,
    file: Option<&std::path::Path>,
) -> Result<Option<words::Passphrase>, Failure> {
    if !is_sealed {
        return Err(WordsFileError::NotSealed(context.paths.words()).into());
    }
    let old = passphrase::to_open(context, file)?;
    // Before a new one is asked for, twice.
    words::load(&context.paths, context.network, old.as_ref())?;
    Ok(old)
}

fn text(outcome: &Outcome, style: Style) -> String {
    format!(
        "{} {}\n{}      {}\n",
        style.dim("passphrase"),
        outcome.done,
        style.dim("words"),
        outcome.words_file
    )
}
