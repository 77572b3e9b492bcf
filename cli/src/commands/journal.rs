//! `journal`: what damage has cost, and going on without it.

use bitmesh_node::{
    control::ErrorCode,
    repair::{
        self, AffectedLease, Channel, Effect, Findings, Missing, RepairError, Repaired, SetAside,
    },
    words,
};

use crate::{
    args::{JournalArgs, JournalCommand},
    context::Context,
    failure::Failure,
    output::Style,
    passphrase,
    prompt::Consent,
};

/// Lines of each list that are shown; `--json` has them all.
const SHOWN: usize = 20;

pub(super) fn run(context: &Context, args: &JournalArgs) -> Result<(), Failure> {
    let (paths, network) = (&context.paths, context.network);
    let passphrase = passphrase::to_open(context, args.unlock.passphrase_file.as_deref())?;
    let (keys, _) = words::load(paths, network, passphrase.as_ref())?;
    let findings = repair::check(paths, network, &keys)?;
    match args.command {
        JournalCommand::Check => {
            context.out.reply(&findings, text)?;
            if !findings.damaged {
                return Ok(());
            }
            context.out.complain(
                "the journal is damaged",
                "nothing was changed. Copy the whole data directory first. If you have a good copy of the \
                 journal that is as new as this one, put it in its place; else \"bitmesh journal repair\" goes \
                 on with what can be read",
            );
            Err(Failure::Silent(ErrorCode::Failure.exit_code()))
        }
        JournalCommand::Repair => {
            if findings.damaged {
                if context.consent != Consent::Given {
                    context.out.show(&findings, text);
                }
                context.consent.ask("go on without what is missing?")?;
            }
            let repaired = repair::repair(paths, network, &keys)?;
            context.out.reply(&repaired, repaired_text)?;
            if repaired.kept_at.is_some() {
                context.out.note(NEXT);
            }
            Ok(())
        }
    }
}

/// What to do after a repair.
const NEXT: &str = "\
Keep that file. Start the node with \"bitmesh up\" and leave it running: it reads the chain again, takes up
channels of its coins that it finds there, and the other side of each channel says the last total that it
knows. \"bitmesh earnings --audit\" goes on to say that the books are not complete. Look for what damaged
the disk before it does so again, and make a \"bitmesh backup create\".";

fn repaired_text(repaired: &Repaired, style: Style) -> String {
    match &repaired.kept_at {
        None => format!(
            "{} is not damaged; nothing was changed\n",
            repaired.findings.journal.display()
        ),
        Some(kept_at) => format!(
            "{}{} {}, with {}\n{}  {}\n",
            text(&repaired.findings, style),
            style.dim("repaired"),
            style.bold(&repaired.findings.journal.display().to_string()),
            counted(repaired.findings.records),
            style.dim("damaged file"),
            kept_at.display()
        ),
    }
}

fn text(findings: &Findings, style: Style) -> String {
    let Findings {
        journal,
        bytes,
        damaged,
        records,
        missing,
        set_aside,
        channels,
        leases,
    } = findings;
    let state = match (damaged, missing.is_empty()) {
        (true, _) => style.bad("damaged"),
        (false, true) => style.good("whole"),
        (false, false) => style.good("whole, but for a write that a crash cut short"),
    };
    let mut text = format!(
        "{}  {}\n{state}: {bytes} bytes; {} can be used\n",
        style.dim("journal"),
        journal.display(),
        counted(*records)
    );
    text += &list("missing", missing, missing_line, style);
    text += &list(
        "readable, but what it stands on is missing",
        set_aside,
        set_aside_line,
        style,
    );
    text += &list(
        "channels that may have lost something",
        channels,
        channel_line,
        style,
    );
    text += &list(
        "leases that may have lost something; what is not known as used may be used once more",
        leases,
        lease_line,
        style,
    );
    text
}

fn list<T>(title: &str, items: &[T], line: impl Fn(&T) -> String, style: Style) -> String {
    if items.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}\n", style.bold(title));
    for item in items.iter().take(SHOWN) {
        text += &format!("  {}\n", line(item));
    }
    if let Some(more) = items.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text += &format!("  and {more} more: --json\n");
    }
    text
}

fn missing_line(missing: &Missing) -> String {
    let what = match (missing.unfinished, missing.was) {
        (true, _) => "a write that was never finished; nothing relied on it".to_owned(),
        (false, Some(was)) => format!("one record: {was}"),
        (false, None) => "unknown: one record or many".to_owned(),
    };
    let mut line = format!("{} bytes at {}: {what}", missing.length, missing.offset);
    for (name, ids) in [("channel", &missing.channels), ("lease", &missing.leases)] {
        for id in ids {
            line += &format!("; {name} {}", short(id));
        }
    }
    line
}

fn set_aside_line(set_aside: &SetAside) -> String {
    let of = match (&set_aside.channel, &set_aside.lease) {
        (Some(channel), _) => format!("channel {}", short(channel)),
        (None, Some(lease)) => format!("lease {}", short(lease)),
        (None, None) => "nothing known".to_owned(),
    };
    let total = set_aside
        .total_sat
        .map(|sat| format!(", up to {sat} sat"))
        .unwrap_or_default();
    format!(
        "{} of {of} from byte {} on{total}",
        counted(set_aside.records),
        set_aside.offset
    )
}

fn channel_line(channel: &Channel) -> String {
    let sat = channel.total_sat;
    let what = match channel.effect {
        Effect::VoucherMayBeLost => format!(
            "vouchers for {sat} sat are kept; if there was a better one, the buyer says it again when \
             the two meet, and else it is lost"
        ),
        Effect::ClaimLost => format!(
            "the agreement with the buyer is lost, so that {sat} sat cannot be claimed; only a backup \
             of the journal brings it back"
        ),
        Effect::FundingUnknown => {
            "its funding is not known any more; a buyer whose node starts again \
                                   tells it again"
                .to_owned()
        }
        Effect::PromiseMayBeLost => format!(
            "{sat} sat are known as promised; if it was more, the seller shows it, and nothing is paid \
             twice"
        ),
        Effect::GivenUp => {
            "given up; if it was funded, the wallet finds it on the chain and takes back \
                            what is not claimed when it has expired"
                .to_owned()
        }
    };
    format!("{}: {what}", short(&channel.channel))
}

fn lease_line(lease: &AffectedLease) -> String {
    match &lease.peer {
        Some(peer) => format!("{} with {peer}", short(&lease.lease)),
        None => format!("{}: the lease itself is lost", short(&lease.lease)),
    }
}

fn counted(records: usize) -> String {
    match records {
        1 => "1 record".to_owned(),
        more => format!("{more} records"),
    }
}

/// The beginning of an id, as other commands take it.
fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

impl From<RepairError> for Failure {
    fn from(error: RepairError) -> Self {
        let (code, hint) = match error {
            RepairError::Lock(error) => return error.into(),
            RepairError::Open(_) => (
                ErrorCode::Failure,
                "nothing was changed; end whoever has it open, and check the path and the disk",
            ),
            RepairError::Version(_) | RepairError::Later { .. } => (
                ErrorCode::Failure,
                "nothing was changed; use the program that wrote it, or a later one",
            ),
            RepairError::Cache { .. } => (
                ErrorCode::Failure,
                "the journal is as it was; check that the folder is yours, and try again",
            ),
            RepairError::Replace(_) => (
                ErrorCode::Failure,
                "the journal is as it was; make room on the disk, and try again",
            ),
        };
        Self::new(code, error.to_string(), hint)
    }
}
