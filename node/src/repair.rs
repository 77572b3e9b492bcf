//! A damaged journal: what can still be read of it, what that means, and a journal to go on with.
//!
//! A node never does this by itself. It refuses to start on a journal that is damaged in its middle,
//! since every record there was durable once and something relies on it. Whoever runs the node looks at
//! the loss with [`check`] and accepts it with [`repair`].
//!
//! What goes on is never less careful than what was. A running total only rises and the other side of
//! each channel knows it, so an old one signs and claims less, not more. A record without those that it
//! stands on is set aside. A channel of a buyer that might have been funded since is given up instead of
//! being funded again: if it was, the wallet finds it on the chain, which is read again for that. Key
//! indexes that may have been used are passed over.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;

use bitcoin::Amount;
use bitmesh_market::envelope::Network;
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::session::record::{Fact as SessionFact, Record as SessionRecord};
use bitmesh_wallet::channel::params::{PayeePolicy, PayerPolicy};
use bitmesh_wallet::channel::payee::{self, Payee};
use bitmesh_wallet::channel::payer::{self, Payer};
use bitmesh_wallet::channel::record::{self, Fact, JOURNAL_KIND, Record};
use bitmesh_wallet::channel::{PartyId, ProposalId};
use bitmesh_wallet::keys::{Keys, Role};
use bitmesh_wallet::onchain;
use bitmesh_wallet::store::format::{self, Scan};
use bitmesh_wallet::store::salvage::{self, Found, Gap, Salvage, Wreck};
use bitmesh_wallet::store::{Entry, OpenError};
use serde::Serialize;
use thiserror::Error;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::indexes;
use crate::paths::{Lock, LockError, Paths};
use crate::records::{Codec, Kind, LeaseRecord, RepairedRecord};

/// Why a journal was not looked at, or not put right. It is as it was.
#[derive(Debug, Error)]
pub enum RepairError {
    /// A daemon has the data directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The journal is open elsewhere, or cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is no journal, or a later version wrote it.
    #[error("{} is not a journal of this version", .0.display())]
    Version(PathBuf),
    /// An intact record that this version does not know.
    #[error("the record at byte {offset} is of kind {kind}, of a later version")]
    Later {
        /// Where it stands.
        offset: u64,
        /// Its kind.
        kind: u8,
    },
    /// The caches could not be dropped.
    #[error("{}: {source}", path.display())]
    Cache {
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The journal could not be replaced.
    #[error(transparent)]
    Replace(#[from] salvage::RepairError),
}

/// What is wrong with a journal, and what it means. Amounts in sat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The file.
    pub journal: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Whether the node refuses to start on it. If not, there is nothing to repair.
    pub damaged: bool,
    /// Records that are intact and fit together.
    pub records: usize,
    /// What is missing, in the order of the file.
    pub missing: Vec<Missing>,
    /// Intact records that cannot be used, because what they stand on is missing.
    pub set_aside: Vec<SetAside>,
    /// Channels of which something may be missing.
    pub channels: Vec<Channel>,
    /// Leases of which something may be missing.
    pub leases: Vec<AffectedLease>,
}

/// Bytes that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Where they begin.
    pub offset: u64,
    /// How many they are.
    pub length: u64,
    /// What they were, if that can be told: one record of this kind. Else they may have been many.
    pub was: Option<&'static str>,
    /// Channels whose id is found in them.
    pub channels: Vec<String>,
    /// Leases whose id is found in them.
    pub leases: Vec<String>,
    /// A write at the end that a crash cut short, as far as can be told: nothing relied on it.
    pub unfinished: bool,
}

/// Intact records of one channel or lease that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetAside {
    /// Where the first one stands in the damaged file.
    pub offset: u64,
    /// How many they are.
    pub records: usize,
    /// The channel, if they are of one.
    pub channel: Option<String>,
    /// The lease, if they are of one.
    pub lease: Option<String>,
    /// The best total among them, if they are vouchers or promises.
    pub total_sat: Option<u64>,
}

/// A channel of which something may be missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Channel {
    /// Its id, as `bitmesh channels` shows it.
    pub channel: String,
    /// The other side, if that is still known.
    pub peer: Option<String>,
    /// What the loss may be.
    pub effect: Effect,
    /// The running total that is still known: promised, or held.
    pub total_sat: u64,
}

/// What a loss means for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Seller: a better voucher than the one kept may be lost.
    VoucherMayBeLost,
    /// Seller: what it agreed on is lost, and with it every claim.
    ClaimLost,
    /// Seller: it does not know the funding, if there was one.
    FundingUnknown,
    /// Buyer: a later promise may be lost.
    PromiseMayBeLost,
    /// Buyer: given up; if it was funded, the money is found on the chain.
    GivenUp,
}

/// A lease of which something may be missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AffectedLease {
    /// Its id.
    pub lease: String,
    /// The other side; `None` if the lease itself is lost.
    pub peer: Option<String>,
}

/// A journal that was put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// What was wrong.
    #[serde(flatten)]
    pub findings: Findings,
    /// The damaged file, as it was. `None` if there was nothing to repair.
    pub kept_at: Option<PathBuf>,
}

/// Looks at the journal of a node. Nothing is written, and the node may run.
///
/// # Errors
///
/// See [`RepairError`].
pub fn check(paths: &Paths, network: Network, keys: &Keys) -> Result<Findings, RepairError> {
    let path = paths.journal();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(OpenError::Io { path, source }.into()),
    };
    Ok(Plan::new(&bytes, paths, network, keys)?.findings)
}

/// Puts the journal of a node right, if the node would refuse to start on it: keeps the damaged file
/// under another name, writes one of everything that can be used, and drops the caches, so that the chain is read
/// again. A crash leaves the damaged journal or the new one.
///
/// # Errors
///
/// See [`RepairError`]; [`RepairError::Lock`] while a daemon runs.
pub fn repair(paths: &Paths, network: Network, keys: &Keys) -> Result<Repaired, RepairError> {
    let _lock = Lock::acquire(paths)?;
    let wreck = Wreck::take(paths.journal())?;
    let Plan { findings, entries } = Plan::new(wreck.bytes(), paths, network, keys)?;
    if !findings.damaged {
        return Ok(Repaired {
            findings,
            kept_at: None,
        });
    }
    // Before the journal: a node that starts on the new one has to read the chain from where the wallet
    // began, for a channel may have been opened, closed or taken back in what is missing.
    drop_caches(paths)?;
    let kept_at = Some(wreck.replace(&entries)?);
    Ok(Repaired { findings, kept_at })
}

fn drop_caches(paths: &Paths) -> Result<(), RepairError> {
    let failed = |path: PathBuf| move |source| RepairError::Cache { path, source };
    let (wallet, book) = (paths.wallet(), paths.book());
    onchain::forget(&wallet).map_err(failed(wallet))?;
    Cache::open(&book)
        .and_then(|cache| cache.forget_watcher())
        .map_err(failed(book))
}

/// What is wrong, and the records to go on with.
struct Plan {
    findings: Findings,
    entries: Vec<Entry>,
}

impl Plan {
    fn new(
        bytes: &[u8],
        paths: &Paths,
        network: Network,
        keys: &Keys,
    ) -> Result<Self, RepairError> {
        let version = || RepairError::Version(paths.journal());
        // What follows a write that was cut short was never durable, intact or not.
        let (damaged, durable) = match format::scan(bytes) {
            Scan::Whole { .. } => (false, bytes.len()),
            Scan::Torn { length, .. } => (false, length),
            Scan::Damaged(_) => (true, bytes.len()),
            // A crash came while it was made; it is made again.
            Scan::Version if format::HEADER.starts_with(bytes) => (false, bytes.len()),
            Scan::Version => return Err(version()),
        };
        let read = bytes.get(..durable).unwrap_or(bytes);
        let Salvage { found, mut gaps } = salvage::salvage(read).ok_or_else(version)?;
        if durable < bytes.len() {
            gaps.push(Gap {
                offset: durable as u64,
                length: (bytes.len() - durable) as u64,
                kind: None,
                is_last: true,
            });
        }
        let sorted = Sorted::new(&found, network)?;
        let mut plan = Self {
            findings: Findings {
                journal: paths.journal(),
                bytes: bytes.len() as u64,
                damaged,
                records: 0,
                missing: Vec::new(),
                set_aside: Vec::new(),
                channels: Vec::new(),
                leases: Vec::new(),
            },
            entries: Vec::new(),
        };
        let mut unusable: BTreeSet<usize> = BTreeSet::new();
        let mut given_up = Vec::new();
        let mut names = BTreeMap::new();
        for (proposal, places) in &sorted.channels {
            let judged = Judged::new(*proposal, places, &found, keys);
            names.insert(*proposal, judged.name.clone());
            plan.note_channel(&judged, places, &found, &gaps);
            // Where nothing is left of it, nothing has to be said.
            if judged.effect == Some(Effect::GivenUp) && judged.usable > 0 {
                given_up.push(Record {
                    proposal: *proposal,
                    fact: Fact::Abandoned,
                });
            }
            unusable.extend(places.iter().skip(judged.usable));
        }
        for (lease, sessions) in &sorted.sessions {
            plan.note_lease(*lease, sessions, &sorted, &found, &gaps);
            if !sorted.leases.contains_key(lease) {
                unusable.extend(&sessions.places);
            }
        }
        let ids = Ids::new(&names, &sorted);
        plan.findings.missing = gaps
            .iter()
            .map(|gap| ids.missing(gap, bytes, damaged))
            .collect();
        plan.findings
            .channels
            .sort_by(|a, b| a.channel.cmp(&b.channel));
        plan.findings.set_aside.sort_by_key(|it| it.offset);
        plan.findings.records = found.len() - unusable.len();
        if damaged {
            let missing = gaps.iter().map(|gap| gap.length).sum();
            let all: Vec<Entry> = found.iter().map(|it| it.entry.clone()).collect();
            let next = indexes::beyond_loss(&all);
            let repaired = RepairedRecord::new(Clock.unix(), missing, unusable.len(), next);
            plan.entries = all
                .into_iter()
                .enumerate()
                .filter(|(place, _)| !unusable.contains(place))
                .map(|(_, entry)| entry)
                .chain(given_up.iter().map(|it| (JOURNAL_KIND, it.to_bytes())))
                .chain([(Kind::Repaired as u8, repaired.to_bytes())])
                .collect();
        }
        Ok(plan)
    }

    fn note_channel(&mut self, judged: &Judged, places: &[usize], found: &[Found], gaps: &[Gap]) {
        let set_aside = places.get(judged.usable..).unwrap_or_default();
        if let Some(first) = set_aside.first().and_then(|place| found.get(*place)) {
            self.findings.set_aside.push(SetAside {
                offset: first.offset,
                records: set_aside.len(),
                channel: Some(judged.name.clone()),
                lease: None,
                total_sat: total_of(set_aside, found).map(Amount::to_sat),
            });
        }
        let is_first_before = |gap: &Gap| {
            let first = places.first().and_then(|place| found.get(*place));
            first.is_some_and(|first| first.offset < gap.offset)
        };
        let may_miss = !set_aside.is_empty() || gaps.iter().any(is_first_before);
        if let Some(effect) = judged.effect.filter(|_| self.findings.damaged && may_miss) {
            self.findings.channels.push(Channel {
                channel: judged.name.clone(),
                peer: judged.peer.map(|peer| peer.to_string()),
                effect,
                total_sat: judged.total.to_sat(),
            });
        }
    }

    fn note_lease(
        &mut self,
        lease: LeaseId,
        sessions: &Sessions,
        sorted: &Sorted,
        found: &[Found],
        gaps: &[Gap],
    ) {
        let agreed = sorted.leases.get(&lease);
        if agreed.is_none()
            && let Some(first) = sessions.places.first().and_then(|it| found.get(*it))
        {
            self.findings.set_aside.push(SetAside {
                offset: first.offset,
                records: sessions.places.len(),
                channel: None,
                lease: Some(lease.to_string()),
                total_sat: None,
            });
        }
        let may_miss = match agreed {
            None => true,
            Some((_, offset)) => !sessions.is_closed && gaps.iter().any(|gap| *offset < gap.offset),
        };
        if self.findings.damaged && may_miss {
            self.findings.leases.push(AffectedLease {
                lease: lease.to_string(),
                peer: agreed.map(|(peer, _)| peer.to_string()),
            });
        }
    }
}

/// The records of a journal by what they are about, as places among those found.
#[derive(Default)]
struct Sorted {
    channels: BTreeMap<ProposalId, Vec<usize>>,
    /// The other side of each lease, and where in the file the lease stands.
    leases: BTreeMap<LeaseId, (NodeId, u64)>,
    sessions: BTreeMap<LeaseId, Sessions>,
}

/// What a lease's session wrote down.
#[derive(Default)]
struct Sessions {
    places: Vec<usize>,
    is_closed: bool,
}

impl Sorted {
    fn new(found: &[Found], network: Network) -> Result<Self, RepairError> {
        let mut sorted = Self::default();
        for (place, Found { offset, entry }) in found.iter().enumerate() {
            let (kind, bytes) = entry;
            // Its checksums are right, so it is not damaged: a later version wrote it, which should
            // repair it too.
            let later = || RepairError::Later {
                offset: *offset,
                kind: *kind,
            };
            if *kind == JOURNAL_KIND {
                let record = Record::from_bytes(bytes).map_err(|_| later())?;
                sorted
                    .channels
                    .entry(record.proposal)
                    .or_default()
                    .push(place);
            } else if *kind == Kind::Lease as u8 {
                let record = LeaseRecord::from_bytes(bytes).ok_or_else(later)?;
                let lease = Lease::verify(record.lease(), network).map_err(|_| later())?;
                let peer = match record.role().ok_or_else(later)? {
                    Role::Payer => lease.seller(),
                    Role::Payee => lease.buyer(),
                };
                sorted.leases.insert(lease.id(), (peer, *offset));
                // It may have written nothing yet.
                sorted.sessions.entry(lease.id()).or_default();
            } else if *kind == Kind::Session as u8 {
                let record = SessionRecord::from_bytes(bytes).map_err(|_| later())?;
                let sessions = sorted.sessions.entry(record.lease).or_default();
                sessions.places.push(place);
                sessions.is_closed |= matches!(record.fact, SessionFact::Closed(_));
            } else if Kind::of(*kind).is_none() {
                return Err(later());
            }
        }
        Ok(sorted)
    }
}

/// What is left of a channel.
struct Judged {
    /// Its id, as people see it.
    name: String,
    peer: Option<NodeId>,
    /// How many of its records, from the first on, can be used.
    usable: usize,
    total: Amount,
    /// What a loss means for it; `None` if it has ended.
    effect: Option<Effect>,
}

/// A channel as the node will have it.
enum Machine {
    Payer(Box<Payer>),
    Payee(Box<Payee>),
}

impl Judged {
    fn new(proposal: ProposalId, places: &[usize], found: &[Found], keys: &Keys) -> Self {
        let records: Vec<Record> = places
            .iter()
            .filter_map(|place| Record::from_bytes(&found.get(*place)?.entry.1).ok())
            .collect();
        // As the node does at its start. Whatever stands behind a record that does not follow stands on
        // what is missing; what stands before it was followed already.
        let (usable, machine) = match restored(records.clone(), keys) {
            Ok(machine) => (records.len(), Some(machine)),
            Err(at) => {
                let usable = records.get(..at).unwrap_or_default().to_vec();
                (at, restored(usable, keys).ok())
            }
        };
        match machine {
            None => Self {
                name: proposal.to_string(),
                peer: None,
                usable: 0,
                total: total_of(places, found).unwrap_or(Amount::ZERO),
                effect: Some(match records.iter().any(is_payees) {
                    true => Effect::ClaimLost,
                    false => Effect::GivenUp,
                }),
            },
            Some(Machine::Payer(payer)) => Self {
                name: payer
                    .channel()
                    .map_or_else(|| proposal.to_string(), |id| id.to_string()),
                peer: node(payer.open().payee),
                usable,
                total: payer.promised(),
                effect: match payer.stage() {
                    payer::Stage::Proposed | payer::Stage::Negotiated => Some(Effect::GivenUp),
                    payer::Stage::Funded
                    | payer::Stage::Open
                    | payer::Stage::Conflicted
                    | payer::Stage::Ending => Some(Effect::PromiseMayBeLost),
                    payer::Stage::Settled | payer::Stage::Abandoned => None,
                },
            },
            Some(Machine::Payee(payee)) => Self {
                name: payee.channel().to_string(),
                peer: node(payee.contract().open().payer),
                usable,
                total: payee.held(),
                effect: match payee.stage() {
                    payee::Stage::Accepted => Some(Effect::FundingUnknown),
                    payee::Stage::Seen
                    | payee::Stage::Confirming
                    | payee::Stage::Open
                    | payee::Stage::Conflicted
                    | payee::Stage::Closing => Some(Effect::VoucherMayBeLost),
                    payee::Stage::Settled | payee::Stage::Abandoned => None,
                },
            },
        }
    }
}

/// Rebuilds a channel. On failure says how many of its records, from the first on, follow.
fn restored(records: Vec<Record>, keys: &Keys) -> Result<Machine, usize> {
    let first = records.first().ok_or(0usize)?;
    let key = |role, index| keys.channel_keypair(role, index).map_err(|_| 0usize);
    match &first.fact {
        Fact::Proposed { key_index, .. } => {
            let key = key(Role::Payer, *key_index)?;
            let payer = Payer::restore(records, key, PayerPolicy::default(), Clock.now());
            payer
                .map(|payer| Machine::Payer(Box::new(payer)))
                .map_err(|error| match error {
                    payer::RestoreError::Record { index } => index,
                    payer::RestoreError::NoProposal | payer::RestoreError::Key => 0,
                })
        }
        Fact::Agreed { key_index, .. } => {
            let key = key(Role::Payee, *key_index)?;
            let payee = Payee::restore(records, key, PayeePolicy::default());
            payee
                .map(|payee| Machine::Payee(Box::new(payee)))
                .map_err(|error| match error {
                    payee::RestoreError::Record { index } => index,
                    payee::RestoreError::NoAgreement | payee::RestoreError::Key => 0,
                })
        }
        _ => Err(0),
    }
}

/// Whether only a payee writes such a record. It does not know the fee of a funding.
fn is_payees(record: &Record) -> bool {
    match record.fact {
        Fact::Agreed { .. } | Fact::Held { .. } => true,
        Fact::Funded { fee, .. } => fee == Amount::ZERO,
        _ => false,
    }
}

/// The best running total among these records.
fn total_of(places: &[usize], found: &[Found]) -> Option<Amount> {
    places
        .iter()
        .filter_map(|place| Record::from_bytes(&found.get(*place)?.entry.1).ok())
        .filter_map(|record| match record.fact {
            Fact::Held { total, .. } | Fact::Promised { total, .. } => Some(total),
            _ => None,
        })
        .max()
}

fn node(party: PartyId) -> Option<NodeId> {
    NodeId::from_bytes(party.as_bytes()).ok()
}

/// The ids that may be recognised in what cannot be read.
struct Ids<'a> {
    all: HashSet<[u8; 32]>,
    names: &'a BTreeMap<ProposalId, String>,
}

impl<'a> Ids<'a> {
    fn new(names: &'a BTreeMap<ProposalId, String>, sorted: &Sorted) -> Self {
        let channels = names.keys().map(|id| *id.as_bytes());
        let leases = sorted.sessions.keys().map(|id| *id.as_bytes());
        Self {
            all: channels.chain(leases).collect(),
            names,
        }
    }

    fn missing(&self, gap: &Gap, bytes: &[u8], damaged: bool) -> Missing {
        let at = usize::try_from(gap.offset).unwrap_or(usize::MAX);
        let length = usize::try_from(gap.length).unwrap_or(usize::MAX);
        let bytes = bytes.get(at..at.saturating_add(length)).unwrap_or_default();
        let (mut channels, mut leases) = (BTreeSet::new(), BTreeSet::new());
        for window in bytes.windows(32) {
            let Some(id) = self.all.get(window) else {
                continue;
            };
            match self.names.get(&ProposalId::from_bytes(*id)) {
                Some(name) => channels.insert(name.clone()),
                None => leases.insert(LeaseId::from_bytes(*id).to_string()),
            };
        }
        let payload = bytes.get(format::HEAD..).unwrap_or_default();
        Missing {
            offset: gap.offset,
            length: gap.length,
            was: gap.kind.map(|kind| name_of(kind, payload)),
            channels: channels.into_iter().collect(),
            leases: leases.into_iter().collect(),
            unfinished: gap.is_last && !damaged,
        }
    }
}

/// What a record of this kind is called. The payload may be damaged.
fn name_of(kind: u8, payload: &[u8]) -> &'static str {
    if kind == JOURNAL_KIND {
        return record::name_of(payload).unwrap_or("record of a channel");
    }
    match Kind::of(kind) {
        Some(Kind::Lease) => "lease",
        Some(Kind::Session) => "record of a lease's session",
        Some(Kind::Opened) => "time at which a channel was opened",
        Some(Kind::WrittenOff) => "credit written off",
        Some(Kind::Moment) => "mark of time",
        Some(Kind::Restored) => "restoration from a backup",
        Some(Kind::Repaired) => "repair",
        None => "record of a later version",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bitcoin::absolute::LockTime;
    use bitcoin::hashes::Hash;
    use bitcoin::secp256k1::{Keypair, Secp256k1};
    use bitcoin::transaction::Version;
    use bitcoin::{OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
    use bitmesh_wallet::channel::TrancheIndex;
    use bitmesh_wallet::channel::deadline::BlockHeight;
    use bitmesh_wallet::channel::exposure::ExposureTable;
    use bitmesh_wallet::channel::message::{Accept, Open};
    use bitmesh_wallet::channel::params::{Contract, DEFAULT_TERM, genesis};
    use bitmesh_wallet::store::Journal;
    use bitmesh_wallet::store::format::HEADER;
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::tests::{lease, receipt, received, session};
    use crate::paths::Environment;
    use crate::words;

    const CAPACITY: Amount = Amount::from_sat(100_000);

    fn keys(of: u8) -> Keys {
        Keys::from_entropy(&[of; 16], bitcoin::Network::Regtest)
    }

    fn party(of: &Keys) -> PartyId {
        PartyId::from_bytes(*words::node_id(of).as_bytes())
    }

    /// A channel of this node and another, as far as both are needed to write its records.
    struct Fixture {
        role: Role,
        key_index: u32,
        payer: Keypair,
        open: Open,
        accept: Accept,
    }

    impl Fixture {
        fn new(role: Role, key_index: u32) -> Self {
            let (ours, theirs) = (keys(1), keys(2));
            let (payer, payee) = match role {
                Role::Payer => (&ours, &theirs),
                Role::Payee => (&theirs, &ours),
            };
            let key = |of: &Keys, role| of.channel_keypair(role, key_index).unwrap();
            let payer_key = key(payer, Role::Payer).x_only_public_key().0;
            let open = Open {
                nonce: [key_index.to_le_bytes()[0]; 16],
                chain: genesis(bitcoin::Network::Regtest),
                payer: party(payer),
                payee: party(payee),
                payer_key,
                capacity: CAPACITY,
                expiry: BlockHeight::new(DEFAULT_TERM),
                change_script: ScriptBuf::new_p2tr(&Secp256k1::new(), payer_key, None),
            };
            let accept = Accept {
                proposal: open.proposal(),
                payee_key: key(payee, Role::Payee).x_only_public_key().0,
                min_first: Amount::from_sat(740),
                exposure: ExposureTable::default(),
            };
            Self {
                role,
                key_index,
                payer: key(payer, Role::Payer),
                open,
                accept,
            }
        }

        fn name(&self) -> String {
            let contract = Contract::new(self.open.clone(), self.accept.clone()).unwrap();
            contract.id().to_string()
        }

        fn entry(&self, fact: Fact) -> Entry {
            let proposal = self.open.proposal();
            (JOURNAL_KIND, Record { proposal, fact }.to_bytes())
        }

        /// Everything that it wrote down, up to the vouchers with these totals.
        fn entries(&self, totals: &[u64]) -> Vec<Entry> {
            let contract = Contract::new(self.open.clone(), self.accept.clone()).unwrap();
            let tx = Transaction {
                version: Version(3),
                lock_time: LockTime::ZERO,
                input: vec![TxIn {
                    previous_output: OutPoint::new(Txid::from_byte_array([0xf0; 32]), 0),
                    script_sig: ScriptBuf::new(),
                    sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                    witness: Witness::from_slice(&[[0x55; 64]]),
                }],
                output: vec![TxOut {
                    value: CAPACITY,
                    script_pubkey: contract.scripts().output().clone(),
                }],
            };
            let funded = contract.fund(&tx, 0).unwrap();
            let (open, accept, key_index) =
                (self.open.clone(), self.accept.clone(), self.key_index);
            let (tx, tranche) = (Box::new(tx), TrancheIndex::FIRST);
            let mut facts = match self.role {
                Role::Payer => vec![
                    Fact::Proposed {
                        open,
                        key_index,
                        max_min_first: Amount::from_sat(1_000),
                        from: None,
                    },
                    Fact::Accepted { accept },
                ],
                Role::Payee => vec![Fact::Agreed {
                    open,
                    accept,
                    key_index,
                    from: None,
                }],
            };
            facts.push(Fact::Funded {
                tranche,
                tx,
                vout: 0,
                fee: match self.role {
                    Role::Payer => Amount::from_sat(154),
                    Role::Payee => Amount::ZERO,
                },
            });
            facts.extend(totals.iter().map(|total| {
                let total = Amount::from_sat(*total);
                match self.role {
                    Role::Payer => Fact::Promised { tranche, total },
                    Role::Payee => Fact::Held {
                        tranche,
                        total,
                        signature: funded.sign(&self.payer, total).unwrap().signature,
                    },
                }
            }));
            facts.into_iter().map(|fact| self.entry(fact)).collect()
        }
    }

    fn lease_entries() -> Vec<Entry> {
        let agreed = LeaseRecord::new(Role::Payee, &lease()).to_bytes();
        let mut entries = vec![(Kind::Lease as u8, agreed)];
        entries.extend((1..=3).map(|seq| session(received(receipt(seq, seq * 1_000)))));
        entries
    }

    /// A journal with a bit of everything, and the highest key indexes it tells of.
    fn everything() -> (Vec<Entry>, (u32, u32)) {
        let channels = [
            Fixture::new(Role::Payer, 3).entries(&[740, 1_000, 2_000]),
            Fixture::new(Role::Payee, 8).entries(&[740, 900]),
            lease_entries(),
            Fixture::new(Role::Payer, 4).entries(&[]),
            Fixture::new(Role::Payee, 9).entries(&[740, 741, 742, 743]),
        ];
        (channels.concat(), (4, 9))
    }

    /// As a journal writes it, each record synced by itself, and where each begins.
    fn file(entries: &[Entry]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut starts) = (HEADER.to_vec(), Vec::new());
        for (kind, payload) in entries {
            starts.push(bytes.len());
            bytes.extend(format::record(bytes.len() as u64, *kind, payload, true).unwrap());
        }
        (bytes, starts)
    }

    fn at(folder: &Path) -> Paths {
        Paths::new(Network::Regtest, Some(folder), &Environment::default()).unwrap()
    }

    fn plan(bytes: &[u8]) -> Plan {
        Plan::new(bytes, &at(Path::new("/node")), Network::Regtest, &keys(1)).unwrap()
    }

    /// What is left of a journal of `entries` of which the record at `lost` is damaged.
    fn without(entries: &[Entry], lost: usize) -> Plan {
        let (mut bytes, starts) = file(entries);
        bytes[starts[lost] + format::HEAD + 1] ^= 1;
        let plan = plan(&bytes);
        assert!(plan.findings.damaged);
        plan
    }

    fn kept(plan: &Plan) -> Vec<Entry> {
        // Without the mark that it was repaired.
        plan.entries[..plan.entries.len() - 1].to_vec()
    }

    #[test]
    fn a_whole_journal_has_nothing_to_repair_and_is_not_changed() {
        let (entries, _) = everything();
        let plan = plan(&file(&entries).0);

        assert!(!plan.findings.damaged && plan.entries.is_empty());
        assert_eq!(plan.findings.records, entries.len());
        let Findings {
            missing,
            set_aside,
            channels,
            leases,
            ..
        } = plan.findings;
        assert!(missing.is_empty() && set_aside.is_empty());
        assert!(channels.is_empty() && leases.is_empty());
    }

    #[test]
    fn a_seller_that_lost_its_best_voucher_goes_on_with_the_one_before() {
        let fixture = Fixture::new(Role::Payee, 0);
        let entries = fixture.entries(&[740, 900]);

        let plan = without(&entries, 3);

        assert_eq!(kept(&plan), entries[..3]);
        let [missing] = &plan.findings.missing[..] else {
            panic!("{:#?}", plan.findings);
        };
        assert_eq!(missing.was, Some("voucher"));
        assert_eq!(plan.findings.set_aside, []);
        let [channel] = &plan.findings.channels[..] else {
            panic!("{:#?}", plan.findings);
        };
        assert_eq!(channel.channel, fixture.name());
        assert_eq!(channel.effect, Effect::VoucherMayBeLost);
        assert_eq!(channel.total_sat, 740);
    }

    #[test]
    fn vouchers_without_the_agreement_or_the_funding_are_set_aside_and_named() {
        let fixture = Fixture::new(Role::Payee, 0);
        let entries = fixture.entries(&[740, 900]);

        for (lost, usable, effect) in [(0, 0, Effect::ClaimLost), (1, 1, Effect::FundingUnknown)] {
            let plan = without(&entries, lost);

            assert_eq!(kept(&plan), entries[..usable]);
            let [set_aside] = &plan.findings.set_aside[..] else {
                panic!("{:#?}", plan.findings);
            };
            assert_eq!(set_aside.records, entries.len() - usable - 1);
            assert_eq!(set_aside.total_sat, Some(900));
            assert_eq!(plan.findings.channels[0].effect, effect);
            // The key was used, whoever still knows it.
            let (_, payee) = indexes::after(&plan.entries);
            assert!(payee >= 1 << 20);
        }
    }

    #[test]
    fn a_buyer_never_funds_again_what_it_may_have_funded() {
        let fixture = Fixture::new(Role::Payer, 5);
        let entries = fixture.entries(&[740]);
        let abandoned = fixture.entry(Fact::Abandoned);

        // The acceptance or the funding is lost: taken as they stand, the records before would fund it.
        for lost in [1, 2] {
            let plan = without(&entries, lost);

            let mut expected = entries[..lost].to_vec();
            expected.push(abandoned.clone());
            assert_eq!(kept(&plan), expected, "record {lost} lost");
            assert_eq!(plan.findings.channels[0].effect, Effect::GivenUp);
        }
        // Everything of it but the proposal is gone, and nothing shows that there was more.
        let noise = (Kind::Moment as u8, vec![0xa0]);
        let journal = [entries[0].clone(), noise.clone(), noise];
        let plan = without(&journal, 1);
        assert!(plan.entries.contains(&abandoned));
        // The proposal itself is lost: there is nothing to give up, and its key is passed over.
        let plan = without(&entries, 0);
        assert_eq!(kept(&plan), []);
        assert_eq!(plan.findings.channels[0].effect, Effect::GivenUp);
    }

    #[test]
    fn a_buyer_that_lost_a_promise_goes_on_from_the_one_before() {
        let fixture = Fixture::new(Role::Payer, 5);
        let entries = fixture.entries(&[740, 900]);

        let plan = without(&entries, 4);

        assert_eq!(kept(&plan), entries[..4]);
        let channel = &plan.findings.channels[0];
        assert_eq!(channel.effect, Effect::PromiseMayBeLost);
        assert_eq!(channel.total_sat, 740);
    }

    #[test]
    fn a_session_without_its_lease_is_set_aside() {
        let entries = lease_entries();

        let plan = without(&entries, 0);

        assert_eq!(kept(&plan), []);
        let id = lease().id().to_string();
        assert_eq!(plan.findings.set_aside[0].lease.as_ref(), Some(&id));
        assert_eq!(plan.findings.set_aside[0].records, 3);
        assert_eq!(plan.findings.leases[0].lease, id);
        // A record of it that is lost is recognised by the id in it.
        let plan = without(&entries, 2);
        assert_eq!(plan.findings.missing[0].leases, [id]);
    }

    #[test]
    fn a_record_of_a_later_version_is_left_to_that() {
        let (mut bytes, starts) = file(&[(99, b"later".to_vec()), (1, vec![0; 40])]);
        bytes[starts[1]] ^= 1;

        let refused = Plan::new(&bytes, &at(Path::new("/node")), Network::Regtest, &keys(1));

        assert!(matches!(
            refused,
            Err(RepairError::Later { kind: 99, offset }) if offset == starts[0] as u64
        ));
    }

    #[test]
    fn the_damaged_file_is_kept_and_the_new_one_opens_and_needs_no_second_repair() {
        let folder = tempfile::tempdir().unwrap();
        let paths = at(folder.path());
        let (entries, _) = everything();
        let (mut bytes, starts) = file(&entries);
        bytes[starts[7] + 20] ^= 4;
        std::fs::write(paths.journal(), &bytes).unwrap();
        std::fs::create_dir_all(paths.wallet().join("coins")).unwrap();
        std::fs::write(paths.wallet().join("birthday"), "7 ab").unwrap();
        Cache::open(&paths.book())
            .unwrap()
            .keep_watcher(b"somewhere");
        assert!(Journal::open(paths.journal()).is_err());

        let running = Lock::acquire(&paths).unwrap();
        let refused = repair(&paths, Network::Regtest, &keys(1));
        assert!(matches!(refused, Err(RepairError::Lock(_))));
        drop(running);
        assert!(check(&paths, Network::Regtest, &keys(1)).unwrap().damaged);
        assert_eq!(std::fs::read(paths.journal()).unwrap(), bytes);
        let repaired = repair(&paths, Network::Regtest, &keys(1)).unwrap();

        let kept_at = repaired.kept_at.unwrap();
        assert_eq!(std::fs::read(&kept_at).unwrap(), bytes);
        let (journal, there, report) = Journal::open(paths.journal()).unwrap();
        assert_eq!(report, bitmesh_wallet::store::Report::default());
        assert_eq!(there.len(), repaired.findings.records + 1);
        drop(journal);
        // The chain is read again from where the wallet began.
        assert!(!paths.wallet().join("coins").exists());
        assert!(paths.wallet().join("birthday").exists());
        assert_eq!(Cache::open(&paths.book()).unwrap().watcher(), None);
        let again = repair(&paths, Network::Regtest, &keys(1)).unwrap();
        assert!(!again.findings.damaged && again.kept_at.is_none());
    }

    #[derive(Clone, Debug)]
    enum Harm {
        Flip { at: f64, bit: u8 },
        Zero { at: f64, length: usize },
        Noise { at: f64, noise: Vec<u8> },
        Cut { at: f64 },
    }

    fn harm() -> impl Strategy<Value = Harm> {
        let at = || 0.0f64..1.0;
        prop_oneof![
            (at(), 0u8..8).prop_map(|(at, bit)| Harm::Flip { at, bit }),
            (at(), prop_oneof![Just(512usize), Just(4_096), 1usize..600])
                .prop_map(|(at, length)| Harm::Zero { at, length }),
            (at(), prop::collection::vec(any::<u8>(), 1..600))
                .prop_map(|(at, noise)| Harm::Noise { at, noise }),
            at().prop_map(|at| Harm::Cut { at }),
        ]
    }

    fn suffer(bytes: &mut Vec<u8>, harm: &Harm) {
        let length = bytes.len();
        let place = |at: f64| ((length as f64 * at) as usize).min(length - 1);
        match harm {
            Harm::Flip { at, bit } => bytes[place(*at)] ^= 1 << bit,
            Harm::Zero { at, length: zeros } => {
                let from = place(*at);
                bytes[from..(from + zeros).min(length)].fill(0);
            }
            Harm::Noise { at, noise } => {
                let rest = &mut bytes[place(*at)..];
                let fits = noise.len().min(rest.len());
                rest[..fits].copy_from_slice(&noise[..fits]);
            }
            Harm::Cut { at } => bytes.truncate(place(*at)),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn whatever_is_damaged_what_goes_on_can_be_followed_and_is_never_less_careful(
            harms in prop::collection::vec(harm(), 1..4),
        ) {
            let (entries, used) = everything();
            let (mut bytes, _) = file(&entries);
            for harm in harms {
                if !bytes.is_empty() {
                    suffer(&mut bytes, &harm);
                }
            }
            let paths = at(Path::new("/node"));
            let Ok(plan) = Plan::new(&bytes, &paths, Network::Regtest, &keys(1)) else {
                // All of it is gone, the header too.
                prop_assert_eq!(salvage::salvage(&bytes), None);
                return Ok(());
            };
            if !plan.findings.damaged {
                prop_assert!(plan.entries.is_empty());
                return Ok(());
            }

            // What the node's start would do with it.
            let found = salvage::salvage(&file(&plan.entries).0).unwrap().found;
            let sorted = Sorted::new(&found, Network::Regtest).unwrap();
            for places in sorted.channels.values() {
                let records: Vec<_> = places
                    .iter()
                    .map(|place| Record::from_bytes(&found[*place].entry.1).unwrap())
                    .collect();
                let machine = restored(records, &keys(1));
                prop_assert!(machine.is_ok(), "record {:?} does not follow", machine.err());
                if let Ok(Machine::Payer(payer)) = machine {
                    let stage = payer.stage();
                    prop_assert!(
                        !matches!(stage, payer::Stage::Proposed | payer::Stage::Negotiated),
                        "it would be funded again"
                    );
                }
            }
            for lease in sorted.sessions.keys() {
                prop_assert!(sorted.leases.contains_key(lease));
            }
            // Nothing is invented or turned around, and no key is used twice.
            let mut before = entries.iter();
            for entry in &plan.entries {
                let is_new = entry.0 == Kind::Repaired as u8
                    || Record::from_bytes(&entry.1).is_ok_and(|it| it.fact == Fact::Abandoned);
                prop_assert!(is_new || before.any(|it| it == entry));
            }
            let (payer, payee) = indexes::after(&plan.entries);
            prop_assert!(payer > used.0 && payee > used.1);
            // Everything is accounted for.
            let read = salvage::salvage(&bytes).unwrap();
            let aside: usize = plan.findings.set_aside.iter().map(|it| it.records).sum();
            prop_assert_eq!(plan.findings.records + aside, read.found.len());
            prop_assert_eq!(plan.findings.missing.len(), read.gaps.len());
            prop_assert!(!plan.findings.missing.is_empty());
        }
    }
}
