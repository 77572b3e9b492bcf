//! What was earned and spent.
//!
//! Of all time, from the figures that sessions and channels decide by, at no cost. A span, an audit and
//! the single entries come from the journal, which is read and folded on a thread of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use bitmesh_market::time::UnixTime;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::keys::Role;
use bitmesh_wallet::store::format::{Scan, scan};

use super::Driver;
use super::commands::Answer;
use super::views;
use super::words;
use crate::control::api;
use crate::control::{ApiError, ErrorCode};
use crate::ledger::audit::{ChainEvidence, Disagreement, Evidence, LeaseEvidence, audit};
use crate::ledger::{About, Account, Books, Entry, Keep, What};

/// Entries given out at once. As JSON they are at most some 14 MB; a client takes 16.
const ENTRIES_MAX: usize = 40_000;

/// Everything that a report is made of, taken at one moment.
struct Report {
    journal: PathBuf,
    /// Length of the journal at that moment.
    length: u64,
    network: bitmesh_market::envelope::Network,
    since: Option<UnixTime>,
    audits: bool,
    lists: bool,
    evidence: Evidence,
    /// The figures of all time, to be narrowed.
    earnings: api::Earnings,
    /// Whose each line of `earnings.channels` is.
    channels: Vec<ProposalId>,
}

impl Driver {
    /// Answers a question for earnings.
    pub(super) fn earnings(&self, wanted: &api::GetEarnings, answer: Answer) {
        let earnings = self.earnings_view();
        if wanted.since_s.is_none() && !wanted.audit && !wanted.entries {
            let _ = answer.send(Ok(earnings.into()));
            return;
        }
        let Ok(permit) = self.folding.clone().try_acquire_owned() else {
            let _ = answer.send(Err(ApiError::new(
                ErrorCode::Conflict,
                "the journal is being read for somebody else",
                "nothing is lost; ask again in a few seconds",
            )));
            return;
        };
        let now = self.unix();
        let report = Report {
            journal: self.journal.path().to_owned(),
            length: self.journal.length(),
            network: self.network,
            since: wanted
                .since_s
                .map(|span| UnixTime::from_secs(now.secs().saturating_sub(span))),
            audits: wanted.audit,
            lists: wanted.entries,
            evidence: self.evidence(),
            earnings,
            channels: self
                .payments
                .channels()
                .iter()
                .map(|it| it.proposal)
                .collect(),
        };
        tokio::task::spawn_blocking(move || {
            let outcome = report.draw_up();
            // Given back first: whoever has the answer may ask again.
            drop(permit);
            let _ = answer.send(outcome.map(Into::into));
        });
    }

    /// What everybody but the journal says at this moment.
    fn evidence(&self) -> Evidence {
        let mut evidence = Evidence::default();
        for (id, session) in &self.sessions {
            evidence.leases.push(LeaseEvidence {
                lease: *id,
                receipt: session.receipt(),
                meter: Some(session.reading()),
            });
        }
        for closed in self.closed.iter() {
            evidence.leases.push(LeaseEvidence {
                lease: closed.lease.id(),
                receipt: closed.ending.receipt,
                meter: None,
            });
        }
        self.payments.add_evidence(&mut evidence);
        evidence.chain = self.is_synced().then(|| ChainEvidence {
            history: self.wallet.history(),
            balance: self.wallet.balance().total(),
        });
        evidence
    }

    fn earnings_view(&self) -> api::Earnings {
        let channels = self.payments.channels();
        let mut earnings = api::Earnings {
            selling: self.totals(Role::Payee),
            buying: self.totals(Role::Payer),
            ..api::Earnings::default()
        };
        for channel in &channels {
            let settled = channel.settlement;
            let received = settled.map_or(0, |settlement| match channel.role {
                Role::Payer => settlement.returned.to_sat(),
                Role::Payee => settlement.received.to_sat(),
            });
            earnings.channels.push(api::EarningsChannel {
                channel: channel.id.clone(),
                role: views::channel_role(channel.role),
                peer: channel.peer.to_string(),
                state: views::channel_state(channel),
                capacity_sat: channel.capacity.to_sat(),
                paid_sat: channel.paid.to_sat(),
                received_sat: received,
                fees_sat: channel.fees.to_sat(),
            });
        }
        let open = self.sessions.keys().filter_map(|id| self.lease_view(*id));
        let closed = self.closed.iter().map(views::closed_view);
        for lease in open.chain(closed) {
            earnings.leases.push(api::EarningsLease {
                lease: lease.id,
                role: lease.role,
                peer: lease.peer,
                state: lease.state,
                bytes: lease
                    .reading
                    .up_bytes
                    .saturating_add(lease.reading.down_bytes),
                billed_msat: lease.billed_msat,
                paid_msat: lease.paid_msat.saturating_sub(lease.carried_msat),
                channel: lease.channel,
                opened_at: lease.opened_at,
            });
        }
        earnings
    }

    fn totals(&self, role: Role) -> api::Totals {
        let closed = self.closed.totals(role);
        let mut totals = api::Totals {
            bytes: closed.bytes.get(),
            billed_msat: closed.billed.msat(),
            leases: closed.leases,
            ..api::Totals::default()
        };
        for session in self
            .sessions
            .values()
            .filter(|session| session.role() == role)
        {
            totals.bytes = totals.bytes.saturating_add(session.reading().total().get());
            totals.billed_msat = totals.billed_msat.saturating_add(session.cost().msat());
            totals.leases = totals.leases.saturating_add(1);
        }
        for channel in self
            .payments
            .channels()
            .iter()
            .filter(|channel| channel.role == role)
        {
            let paid = channel.paid.to_sat();
            totals.paid_sat = totals.paid_sat.saturating_add(paid);
            totals.fees_sat = totals.fees_sat.saturating_add(channel.fees.to_sat());
            match channel.settlement {
                Some(settlement) => {
                    let received = match role {
                        Role::Payer => settlement.returned,
                        Role::Payee => settlement.received,
                    };
                    totals.received_sat = totals.received_sat.saturating_add(received.to_sat());
                }
                None => {
                    let open = match role {
                        Role::Payer => channel.locked().to_sat(),
                        Role::Payee => paid,
                    };
                    totals.open_sat = totals.open_sat.saturating_add(open);
                }
            }
        }
        totals
    }

    /// The other side's words for a role, for lists.
    pub(super) fn role_matches(role: Option<api::Role>, other: Role) -> bool {
        role.is_none_or(|role| role == words::role(other))
    }
}

impl Report {
    fn draw_up(self) -> Result<api::Earnings, ApiError> {
        let records = self.read().map_err(|error| {
            let path = self.journal.display();
            ApiError::failure(format!("{path} cannot be read back: {error}"))
        })?;
        let keep = if self.lists {
            Keep::AtMost(ENTRIES_MAX)
        } else {
            Keep::Nothing
        };
        let since = self.since.unwrap_or_default();
        let mut books = Books::fold(&records, self.network, since, keep);
        drop(records);
        if let Some(chain) = &self.evidence.chain {
            books.add_history(&chain.history);
        }
        if books.overflowed {
            return Err(ApiError::new(
                ErrorCode::Usage,
                format!("there are more than {ENTRIES_MAX} entries"),
                "ask for a span: bitmesh earnings --csv --since 30d",
            ));
        }
        let mut earnings = match self.since {
            Some(since) => narrow(&self, &books, since),
            None => self.earnings.clone(),
        };
        if self.audits {
            earnings.audit = Some(audit_view(&books, &self.evidence));
        }
        if self.lists {
            earnings.entries = Some(self.entry_views(&books));
        }
        Ok(earnings)
    }

    /// The journal as it was when the question was asked.
    fn read(&self) -> io::Result<Vec<bitmesh_wallet::store::Entry>> {
        let mut bytes = Vec::new();
        File::open(&self.journal)?
            .take(self.length)
            .read_to_end(&mut bytes)?;
        match scan(&bytes) {
            Scan::Whole { entries } => Ok(entries),
            Scan::Torn { entries, length } => Err(io::Error::other(format!(
                "it ends at byte {length} of {}, after {} records",
                bytes.len(),
                entries.len()
            ))),
            Scan::Version => Err(io::Error::other("it is not a journal of this version")),
            Scan::Damaged(damage) => Err(io::Error::other(format!(
                "it is damaged at byte {}; {} records before it are intact",
                damage.offset, damage.intact
            ))),
        }
    }

    fn entry_views(&self, books: &Books) -> Vec<api::LedgerEntry> {
        let channels = self.evidence.channels.iter();
        let ids = channels.map(|it| (it.channel, it.id.as_str())).collect();
        let entries = books.entries.iter();
        entries.map(|entry| entry_view(entry, &ids)).collect()
    }
}

fn entry_view(entry: &Entry, ids: &BTreeMap<ProposalId, &str>) -> api::LedgerEntry {
    let (lease, channel, txid) = match entry.about {
        About::Lease(lease) => (Some(lease.to_string()), None, None),
        About::Channel(channel) => {
            let id = ids.get(&channel).map(|id| (*id).to_owned());
            (None, Some(id.unwrap_or_else(|| channel.to_string())), None)
        }
        About::Transaction(txid) => (None, None, Some(txid.to_string())),
        About::Peer => (None, None, None),
    };
    api::LedgerEntry {
        at: (entry.at > UnixTime::default()).then(|| words::moment(entry.at)),
        what: entry.what.name().to_owned(),
        from: entry.from.name().to_owned(),
        to: entry.to.name().to_owned(),
        amount_msat: entry.amount.msat(),
        bytes: (entry.what == What::Receipt).then_some(entry.bytes),
        role: entry.party.map(|party| words::role(party.role())),
        peer: entry.party.map(|party| party.peer.to_string()),
        lease,
        channel,
        txid,
    }
}

/// The figures of what moved since a moment.
fn narrow(report: &Report, books: &Books, since: UnixTime) -> api::Earnings {
    let mut narrowed = api::Earnings {
        since: Some(words::moment(since)),
        ..api::Earnings::default()
    };
    for lease in books.leases.values().filter(|lease| lease.since.moved) {
        let totals = match lease.party.role() {
            Role::Payer => &mut narrowed.buying,
            Role::Payee => &mut narrowed.selling,
        };
        totals.leases = totals.leases.saturating_add(1);
        totals.bytes = totals.bytes.saturating_add(lease.since.bytes);
        totals.billed_msat = totals.billed_msat.saturating_add(lease.since.billed.msat());
    }
    let by_id: BTreeMap<String, _> = books
        .leases
        .iter()
        .map(|(id, book)| (id.to_string(), book))
        .collect();
    for line in &report.earnings.leases {
        if let Some(book) = by_id.get(&line.lease)
            && book.since.moved
        {
            let mut line = line.clone();
            line.bytes = book.since.bytes;
            line.billed_msat = book.since.billed.msat();
            line.paid_msat = book.since.paid.msat();
            narrowed.leases.push(line);
        }
    }
    for (line, proposal) in report.earnings.channels.iter().zip(&report.channels) {
        let Some(book) = books.channels.get(proposal).filter(|it| it.since.moved) else {
            continue;
        };
        let totals = match book.party.role() {
            Role::Payer => &mut narrowed.buying,
            Role::Payee => &mut narrowed.selling,
        };
        let (paid, received) = (whole_sat(book.since.paid), whole_sat(book.since.received));
        let fees = whole_sat(book.since.fees);
        totals.paid_sat = totals.paid_sat.saturating_add(paid);
        totals.received_sat = totals.received_sat.saturating_add(received);
        totals.fees_sat = totals.fees_sat.saturating_add(fees);
        let is_open = book.settlement.is_none() && !book.is_abandoned;
        let open = match book.party.role() {
            Role::Payer if book.funding.is_some() => {
                line.capacity_sat.saturating_sub(book.total.to_sat())
            }
            Role::Payer => 0,
            Role::Payee => book.total.to_sat(),
        };
        totals.open_sat = totals
            .open_sat
            .saturating_add(if is_open { open } else { 0 });
        let mut line = line.clone();
        (line.paid_sat, line.received_sat, line.fees_sat) = (paid, received, fees);
        narrowed.channels.push(line);
    }
    narrowed
}

/// Of msat that are whole sat. What was taken back within a span shows as nothing.
fn whole_sat(msat: i128) -> u64 {
    u64::try_from(msat / 1_000).unwrap_or(0)
}

fn audit_view(books: &Books, evidence: &Evidence) -> api::Audit {
    let findings = audit(books, evidence);
    let balances = books.balances().filter(|(_, _, balance)| *balance != 0);
    api::Audit {
        entries: books.posted,
        compared: findings.compared,
        chain: evidence.chain.is_some(),
        misfits: books
            .misfits
            .iter()
            .map(|misfit| api::Misfit {
                whose: misfit.whose.clone(),
                why: misfit.why.clone(),
            })
            .collect(),
        disagreements: findings.disagreements.iter().map(disagreement).collect(),
        balances: balances
            .map(|(account, party, balance)| api::AccountBalance {
                account: Account::name(account).to_owned(),
                role: party.map(|party| words::role(party.role())),
                peer: party.map(|party| party.peer.to_string()),
                balance_msat: figure(balance),
            })
            .collect(),
    }
}

fn disagreement(found: &Disagreement) -> api::Disagreement {
    api::Disagreement {
        whose: found.whose.clone(),
        rule: found.rule.to_owned(),
        left: found.left.0.to_owned(),
        left_figure: figure(found.left.1),
        right: found.right.0.to_owned(),
        right_figure: figure(found.right.1),
        difference: figure(found.left.1.saturating_sub(found.right.1)),
        unit: found.unit.to_owned(),
    }
}

/// All money there is fits, four times over.
fn figure(figure: i128) -> i64 {
    i64::try_from(figure).unwrap_or(if figure < 0 { i64::MIN } else { i64::MAX })
}
