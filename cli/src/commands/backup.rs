//! `backup`: what words and chain do not bring back, in one sealed file.

use std::path::Path;

use bitmesh_node::{
    backup::{self, BackupError, Summary},
    control::ErrorCode,
    paths::{Lock, create_private_dir},
    words::{self, Keys},
};
use serde::Serialize;

use crate::{
    args::{BackupArgs, BackupCommand},
    context::Context,
    failure::Failure,
    output::Style,
    passphrase,
};

#[derive(Serialize)]
struct Outcome {
    done: &'static str,
    file: String,
    #[serde(flatten)]
    summary: Summary,
}

pub(super) fn run(context: &Context, args: BackupArgs) -> Result<(), Failure> {
    let (paths, network) = (&context.paths, context.network);
    let file_of_passphrase = args.unlock.passphrase_file.as_deref();
    let (done, file, summary) = match args.command {
        BackupCommand::Create { file } => {
            let passphrase = passphrase::to_open(context, file_of_passphrase)?;
            let summary = backup::create(paths, network, passphrase.as_ref(), &file)?;
            ("created", file, summary)
        }
        BackupCommand::Verify { file, words_file } => {
            let keys = match words_file {
                Some(path) => given_keys(context, &path)?,
                None => {
                    let passphrase = passphrase::to_open(context, file_of_passphrase)?;
                    words::load(paths, network, passphrase.as_ref())?.0
                }
            };
            ("verified", file.clone(), backup::verify(&file, &keys)?)
        }
        BackupCommand::Restore { file, words_file } => {
            // Of the words that are there; else, if it is named, of those that are written.
            let passphrase = match (paths.words().exists(), file_of_passphrase) {
                (false, Some(file)) => Some(passphrase::from_file(file)?),
                (true, file) => passphrase::to_open(context, file)?,
                (false, None) => None,
            };
            let keys = match words_file {
                Some(path) => given_keys(context, &path)?,
                None => words::load(paths, network, passphrase.as_ref())?.0,
            };
            create_private_dir(&paths.datadir)
                .map_err(|error| Failure::file("make", &paths.datadir, &error))?;
            let _lock = Lock::acquire(paths)?;
            let summary = backup::restore(&file, &keys, paths, network, passphrase.as_ref())?;
            ("restored", file, summary)
        }
    };
    let outcome = Outcome {
        done,
        file: file.display().to_string(),
        summary,
    };
    context.out.reply(&outcome, text)?;
    context.out.note(match done {
        "restored" => {
            "What came after this backup is found out from the chain and from the other side of each \
             channel, as soon as the node meets it: leave it running."
        }
        _ => {
            "It opens with the twelve words of this node alone: keep them elsewhere, on paper. What \
             comes after it is in the next one."
        }
    });
    Ok(())
}

fn given_keys(context: &Context, words_file: &Path) -> Result<Keys, Failure> {
    let words = super::init::read_words(words_file)?;
    Ok(words::parse(&words, context.network)?)
}

fn text(outcome: &Outcome, style: Style) -> String {
    let Summary {
        node,
        network,
        made_at_s,
        records,
        channels,
        open_channels,
    } = &outcome.summary;
    let made = bitmesh_node::control::api::Timestamp::from_unix(*made_at_s);
    let rows = [
        (outcome.done, style.bold(&outcome.file)),
        ("made", made.to_string()),
        ("node", node.clone()),
        ("network", network.clone()),
        (
            "holds",
            format!("{records} records; {channels} channels, {open_channels} of them open"),
        ),
    ];
    rows.map(|(name, text)| {
        let room = " ".repeat("verified".len() - name.len());
        format!("{}{room}  {text}\n", style.dim(name))
    })
    .concat()
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        let (code, hint) = match error {
            BackupError::Words(error) => return error.into(),
            BackupError::Sealed(_) => (
                ErrorCode::Usage,
                "give the twelve words of the node that made it with --words-file; nothing was changed",
            ),
            BackupError::Network { .. } => (
                ErrorCode::Usage,
                "say which with --network; nothing was changed",
            ),
            BackupError::Exists(_) => (
                ErrorCode::Conflict,
                "nothing was changed; take another name, or another --datadir",
            ),
            BackupError::Journal(_) => (
                ErrorCode::Failure,
                "nothing was changed; \"bitmesh journal check\" says what is lost and what can be done",
            ),
            BackupError::Version(_) | BackupError::JournalVersion | BackupError::TooLarge(_) => (
                ErrorCode::Failure,
                "nothing was changed; check the name, and that this program is not older than the file",
            ),
            BackupError::Io { .. } => (
                ErrorCode::Failure,
                "nothing was changed; check the path and the disk",
            ),
            BackupError::Open(_) | BackupError::Append(_) => (
                ErrorCode::Failure,
                "the backup is as it was; check the disk and restore again",
            ),
        };
        Self::new(code, error.to_string(), hint)
    }
}
