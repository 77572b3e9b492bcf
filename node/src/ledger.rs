//! The books of this node: every millisatoshi that moved, as entries that balance.
//!
//! The books are *folded* from the journal whenever somebody asks, and kept nowhere. There is nothing
//! that could come to differ from the journal, a node that nobody asks spends nothing on them, and the
//! machines, which keep figures of their own to decide by, are a second witness: [`audit`] compares
//! the two. Deposits and payments on the chain come from the wallet's history.
//!
//! Each [`Entry`] takes an amount from one [`Account`] and puts it into another. What channels do is
//! posted by the wallet's own [`Ledger`]; here it is joined with what leases bill, in msat, and each
//! account is kept for each peer and role.
//!
//! | What happened | from → to, buying | from → to, selling |
//! |---|---|---|
//! | a channel was funded | coins → locked, coins → fees | |
//! | a voucher was signed, or held | locked → credit | credit → claims |
//! | a receipt was signed | credit → spent | earned → credit |
//! | credit was written off | credit → written off | |
//! | a close, buried | locked → coins, unclaimed → locked | claims → coins, claims → fees |
//! | a refund, buried | unclaimed → locked → coins, fees | claims → lost |
//! | the funding came to nothing | all the way back | claims → credit |
//! | coins came, or went | outside → coins, coins → outside, coins → fees | the same |
//!
//! A rollover is a close and a funding. What it carries over goes from `locked` to `locked` at once, by way
//! of `coins`, though the close is only booked when it is buried.

pub(crate) mod audit;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bitcoin::{Amount, Txid};
use bitmesh_market::envelope::Network;
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::session::record::Fact as SessionFact;
use bitmesh_market::session::{Reading, Receipt, Record as SessionRecord, SignedMessage};
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::record::{End, Fact, JOURNAL_KIND, Record, Settlement};
use bitmesh_wallet::keys::Role;
use bitmesh_wallet::ledger::{self as channels, Ledger};
use bitmesh_wallet::onchain::{HistoryEntry, Status};
use bitmesh_wallet::store;

use crate::control::api::Timestamp;
use crate::records::{
    Codec, Kind, LeaseRecord, MomentRecord, OpenedRecord, RepairedRecord, WrittenOffRecord,
};

/// How far apart the marks of time in the journal are at least, and so how exact the time of an entry
/// is. Movements between two marks are shown as one.
pub(crate) const MOMENT_EVERY: Duration = Duration::from_secs(60);

/// Where money can be. A balance below zero means that more came out than went in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Account {
    /// Everybody else: below zero by what they paid to the wallet and never got back from it.
    Outside,
    /// The wallet's coins on the chain.
    Coins,
    /// In channels that this node pays from, and not promised.
    Locked,
    /// Vouchers held and not settled on the chain.
    Claims,
    /// Service paid for and not carried. Below zero: this node owes the service.
    Credit,
    /// Below zero by what was promised in vouchers that the payee never used.
    Unclaimed,
    /// Below zero by what this node's leases billed to others.
    Earned,
    /// What leases billed to this node.
    Spent,
    /// Credit that the seller does not recognise.
    WrittenOff,
    /// With the miners, paid by this node.
    Fees,
    /// Claims that somebody else's transaction made worthless.
    Lost,
}

impl Account {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Coins => "coins",
            Self::Locked => "locked",
            Self::Claims => "claims",
            Self::Credit => "credit",
            Self::Unclaimed => "unclaimed",
            Self::Earned => "earned",
            Self::Spent => "spent",
            Self::WrittenOff => "written_off",
            Self::Fees => "fees",
            Self::Lost => "lost",
        }
    }
}

/// Why money moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum What {
    /// A channel was funded.
    Funding,
    /// A voucher was signed or received.
    Voucher,
    /// A channel ended by a close.
    Settlement,
    /// A channel ended by a refund.
    Refund,
    /// A channel came to nothing.
    Abandoned,
    /// The buyer signed for bytes.
    Receipt,
    /// Credit was given up, or taken back.
    WriteOff,
    /// Coins came to the wallet, not from a channel.
    Deposit,
    /// Coins left the wallet, not for a channel.
    Payment,
}

impl What {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Funding => "funding",
            Self::Voucher => "voucher",
            Self::Settlement => "settlement",
            Self::Refund => "refund",
            Self::Abandoned => "abandoned",
            Self::Receipt => "receipt",
            Self::WriteOff => "write_off",
            Self::Deposit => "deposit",
            Self::Payment => "payment",
        }
    }
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum About {
    /// A channel, by its proposal.
    Channel(ProposalId),
    /// A lease.
    Lease(LeaseId),
    /// A pair's account.
    Peer,
    /// A transaction of the wallet.
    Transaction(Txid),
}

/// The other side, and which side this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Party {
    is_payee: bool,
    pub(crate) peer: NodeId,
}

impl Party {
    pub(crate) const fn new(role: Role, peer: NodeId) -> Self {
        Self {
            is_payee: matches!(role, Role::Payee),
            peer,
        }
    }

    pub(crate) const fn role(&self) -> Role {
        if self.is_payee {
            Role::Payee
        } else {
            Role::Payer
        }
    }
}

/// One movement: from one account to another, so that both together are as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// When, to within [`MOMENT_EVERY`]. The epoch if nothing is known.
    pub(crate) at: UnixTime,
    pub(crate) what: What,
    pub(crate) about: About,
    /// With whom. `None` for what concerns the wallet alone.
    pub(crate) party: Option<Party>,
    pub(crate) from: Account,
    pub(crate) to: Account,
    /// Never zero.
    pub(crate) amount: Msat,
    /// Bytes that a receipt signs for, beyond the one before.
    pub(crate) bytes: u64,
}

/// Something in the journal that does not fit. What it would have moved is not in the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// The lease, the channel, or the place in the journal.
    pub(crate) whose: String,
    /// What is wrong.
    pub(crate) why: String,
}

/// What the journal says of one channel.
#[derive(Clone, Debug)]
pub(crate) struct ChannelBook {
    pub(crate) party: Party,
    opened: UnixTime,
    pub(crate) capacity: Amount,
    /// The channel that it is funded from by a rollover, at the payer.
    from: Option<ProposalId>,
    /// The running total of vouchers; zero for a channel that came to nothing.
    pub(crate) total: Amount,
    /// The funding transaction and its fee, if it is funded.
    pub(crate) funding: Option<(Txid, Amount)>,
    pub(crate) settlement: Option<Settlement>,
    pub(crate) is_abandoned: bool,
    /// What it moved since the moment that the books were asked for.
    pub(crate) since: ChannelFlows,
}

impl ChannelBook {
    /// Whether it is funded by a rollover.
    const fn is_carried(&self) -> bool {
        self.from.is_some()
    }
}

/// What a channel moved within a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChannelFlows {
    pub(crate) moved: bool,
    pub(crate) paid: i128,
    pub(crate) received: i128,
    pub(crate) fees: i128,
}

/// What the journal says of one lease.
#[derive(Clone, Debug)]
pub(crate) struct LeaseBook {
    pub(crate) lease: Lease,
    pub(crate) party: Party,
    /// The last receipt that the buyer signed.
    pub(crate) receipt: Option<Receipt>,
    /// Seller: its own meter when it got that receipt.
    pub(crate) own: Option<Reading>,
    pub(crate) is_closed: bool,
    /// The last receipt of the buyer as it came, not looked into yet.
    unread: Option<(Vec<u8>, Reading)>,
    /// What it moved since the moment that the books were asked for.
    pub(crate) since: LeaseFlows,
}

impl LeaseBook {
    pub(crate) fn billed(&self) -> Msat {
        self.receipt.map_or(Msat::ZERO, |receipt| receipt.billed)
    }

    fn bytes(&self) -> u64 {
        self.receipt.map_or(0, |it| it.reading.total().get())
    }

    fn paid(&self) -> Msat {
        let carried = self.lease.carried();
        self.receipt
            .map_or(Msat::ZERO, |it| it.paid.saturating_sub(carried))
    }
}

/// What a lease moved within a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseFlows {
    pub(crate) moved: bool,
    pub(crate) bytes: u64,
    pub(crate) billed: Msat,
    pub(crate) paid: Msat,
}

/// Which entries to keep one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// None: balances are enough.
    Nothing,
    /// Those of the span, at most so many.
    AtMost(usize),
}

/// The books.
#[derive(Debug)]
pub(crate) struct Books {
    network: Network,
    /// Figures called `since` count from here.
    since: UnixTime,
    keep: Keep,
    ledger: Ledger,
    pub(crate) channels: BTreeMap<ProposalId, ChannelBook>,
    pub(crate) leases: BTreeMap<LeaseId, LeaseBook>,
    /// What was written off with each seller, in all.
    pub(crate) written_off: BTreeMap<NodeId, Msat>,
    opened: BTreeMap<ProposalId, UnixTime>,
    balances: BTreeMap<(Account, Option<Party>), i128>,
    /// The mark of time that the record being posted stands behind.
    moment: Option<UnixTime>,
    pub(crate) entries: Vec<Entry>,
    /// How many movements there were, kept or not.
    pub(crate) posted: u64,
    /// Entries behind the last mark of time, to which further ones of their kind are added.
    recent: BTreeMap<(About, What, Account, Account), usize>,
    /// More entries than were to be kept.
    pub(crate) overflowed: bool,
    pub(crate) misfits: Vec<Misfit>,
}

impl Books {
    /// Folds the records of a journal, in the order they were written. Figures called `since` count
    /// from that moment on.
    ///
    /// It never fails: what does not fit is in [`misfits`](Self::misfits).
    pub(crate) fn fold(
        records: &[store::Entry],
        network: Network,
        since: UnixTime,
        keep: Keep,
    ) -> Self {
        let mut books = Self {
            network,
            since,
            keep,
            ledger: Ledger::new(),
            channels: BTreeMap::new(),
            leases: BTreeMap::new(),
            written_off: BTreeMap::new(),
            opened: BTreeMap::new(),
            balances: BTreeMap::new(),
            moment: None,
            entries: Vec::new(),
            posted: 0,
            recent: BTreeMap::new(),
            overflowed: false,
            misfits: Vec::new(),
        };
        // For people only, and written behind the record that it belongs to.
        for record in records.iter().filter(|it| it.0 == Kind::Opened as u8) {
            if let Some(record) = OpenedRecord::from_bytes(&record.1) {
                books.opened.insert(record.channel(), record.at());
            }
        }
        for (index, (kind, bytes)) in records.iter().enumerate() {
            if let Err(why) = books.post(*kind, bytes) {
                let whose = format!("record {index} of kind {kind}");
                books.misfits.push(Misfit { whose, why });
            }
        }
        books.read_receipts();
        books
    }

    fn post(&mut self, kind: u8, bytes: &[u8]) -> Result<(), String> {
        let unreadable = || "it cannot be read".to_owned();
        if kind == JOURNAL_KIND {
            let record = Record::from_bytes(bytes).map_err(|_| unreadable())?;
            self.post_channel(&record)
        } else if kind == Kind::Lease as u8 {
            let record = LeaseRecord::from_bytes(bytes).ok_or_else(unreadable)?;
            let role = record.role().ok_or_else(unreadable)?;
            let lease = Lease::verify(record.lease(), self.network).map_err(|e| e.to_string())?;
            let peer = match role {
                Role::Payer => lease.seller(),
                Role::Payee => lease.buyer(),
            };
            let moved = lease.accepted() >= self.since;
            let book = LeaseBook {
                party: Party::new(role, peer),
                receipt: None,
                own: None,
                is_closed: false,
                unread: None,
                since: LeaseFlows {
                    moved,
                    ..LeaseFlows::default()
                },
                lease,
            };
            self.leases.insert(book.lease.id(), book);
            Ok(())
        } else if kind == Kind::Session as u8 {
            let record = SessionRecord::from_bytes(bytes).map_err(|_| unreadable())?;
            self.post_session(record)
        } else if kind == Kind::WrittenOff as u8 {
            let record = WrittenOffRecord::from_bytes(bytes).ok_or_else(unreadable)?;
            let seller = record.seller().ok_or_else(unreadable)?;
            self.post_write_off(seller, record.total());
            Ok(())
        } else if kind == Kind::Moment as u8 {
            let record = MomentRecord::from_bytes(bytes).ok_or_else(unreadable)?;
            self.read_receipts();
            self.recent.clear();
            self.moment = Some(record.at());
            Ok(())
        } else if kind == Kind::Repaired as u8 {
            let record = RepairedRecord::from_bytes(bytes).ok_or_else(unreadable)?;
            let (bytes, records) = record.lost();
            let at = Timestamp::from_unix(record.at().secs());
            // It stays so: what these books leave out, nobody can add to them any more.
            self.misfits.push(Misfit {
                whose: "journal".to_owned(),
                why: format!(
                    "{bytes} bytes were lost and {records} records set aside when it was repaired on \
                     {at}; what they moved is not in the books"
                ),
            });
            Ok(())
        } else if kind == Kind::Opened as u8 || kind == Kind::Restored as u8 {
            Ok(())
        } else {
            Err("it is of a later version".to_owned())
        }
    }

    fn post_channel(&mut self, record: &Record) -> Result<(), String> {
        let id = record.proposal;
        let party = |role, party: bitmesh_wallet::channel::PartyId| {
            NodeId::from_bytes(party.as_bytes())
                .map(|peer| Party::new(role, peer))
                .map_err(|error| error.to_string())
        };
        let begun = match &record.fact {
            Fact::Proposed { open, from, .. } => {
                Some((party(Role::Payer, open.payee)?, open.capacity, *from))
            }
            Fact::Agreed { open, .. } => {
                Some((party(Role::Payee, open.payer)?, open.capacity, None))
            }
            _ => None,
        };
        let moves = self.ledger.post(record).map_err(|it| it.to_string())?;
        if let Some((party, capacity, from)) = begun {
            let opened = self.opened.get(&id).copied().or(self.moment);
            let opened = opened.unwrap_or_default();
            let book = ChannelBook {
                party,
                opened,
                capacity,
                from,
                total: Amount::ZERO,
                funding: None,
                settlement: None,
                is_abandoned: false,
                since: ChannelFlows {
                    moved: opened >= self.since,
                    ..ChannelFlows::default()
                },
            };
            self.channels.insert(id, book);
        }
        let Some(book) = self.channels.get_mut(&id) else {
            return Ok(());
        };
        let what = match &record.fact {
            Fact::Funded { tx, fee, .. } => {
                book.funding = Some((tx.compute_txid(), *fee));
                What::Funding
            }
            Fact::Promised { total, .. } | Fact::Held { total, .. } => {
                book.total = *total;
                What::Voucher
            }
            Fact::Settled(settlement) => {
                book.settlement = Some(*settlement);
                match settlement.end {
                    End::Commitment | End::Together => What::Settlement,
                    End::Refund => What::Refund,
                }
            }
            Fact::Abandoned => {
                book.is_abandoned = true;
                book.total = Amount::ZERO;
                What::Abandoned
            }
            Fact::Proposed { .. }
            | Fact::Accepted { .. }
            | Fact::Agreed { .. }
            | Fact::Splitting { .. }
            | Fact::Closing { .. }
            | Fact::Refunding { .. } => return Ok(()),
        };
        let (party, opened) = (book.party, book.opened);
        for movement in moves {
            let (from, to) = match (party.role(), what, movement.from, movement.to) {
                // The buyer was served for it or not: with this funding nobody has paid anything.
                (Role::Payee, What::Abandoned, channels::Account::Claims, _) => {
                    (Account::Claims, Account::Credit)
                }
                (_, _, from, to) => (account(from), account(to)),
            };
            self.enter(Entry {
                at: self.moment.unwrap_or(opened),
                what,
                about: About::Channel(movement.channel),
                party: Some(party),
                from,
                to,
                amount: msat(movement.amount),
                bytes: 0,
            });
        }
        Ok(())
    }

    fn post_session(&mut self, record: SessionRecord) -> Result<(), String> {
        let id = record.lease;
        let book = self
            .leases
            .get_mut(&id)
            .ok_or("its lease is not in the journal")?;
        match record.fact {
            SessionFact::Signed(receipt) => self.raise(id, receipt, None),
            SessionFact::Receipted(receipted) => {
                // One is as good as all before it, and a signature takes time to verify.
                book.unread = Some((receipted.message.into_vec(), receipted.own));
                Ok(())
            }
            SessionFact::Closed(closed) => {
                book.is_closed = true;
                self.read_receipt(id);
                match closed.receipt {
                    Some(receipt) => self.raise(id, receipt, None),
                    None => Ok(()),
                }
            }
            SessionFact::Countersigned(_)
            | SessionFact::ExtensionAsked(_)
            | SessionFact::Extended(_)
            | SessionFact::Closing(_) => Ok(()),
        }
    }

    /// Looks into the receipts that sellers got since the last mark of time.
    fn read_receipts(&mut self) {
        let unread = self.leases.iter().filter(|(_, it)| it.unread.is_some());
        for id in unread.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.read_receipt(id);
        }
    }

    fn read_receipt(&mut self, id: LeaseId) {
        let Some(book) = self.leases.get_mut(&id) else {
            return;
        };
        let Some((message, own)) = book.unread.take() else {
            return;
        };
        let buyer = book.party.peer;
        let read = SignedMessage::verify(&message, self.network)
            .map_err(|error| format!("a receipt of the buyer does not verify: {error}"))
            .and_then(|message| match message.content().body.buyer_receipt() {
                Some(receipt) if message.signer() == buyer => Ok(*receipt),
                _ => Err("a receipt is not the buyer's".to_owned()),
            })
            .and_then(|receipt| self.raise(id, receipt, Some(own)));
        if let Err(why) = read {
            let whose = format!("lease {id}");
            self.misfits.push(Misfit { whose, why });
        }
    }

    /// The buyer has signed for more.
    fn raise(&mut self, id: LeaseId, receipt: Receipt, own: Option<Reading>) -> Result<(), String> {
        let Some(book) = self.leases.get_mut(&id) else {
            return Ok(());
        };
        let (billed, bytes, paid) = (book.billed(), book.bytes(), book.paid());
        let (Some(more), Some(bytes)) = (
            receipt.billed.checked_sub(billed),
            receipt.reading.total().get().checked_sub(bytes),
        ) else {
            let (got, had) = (receipt.billed.msat(), billed.msat());
            return Err(format!(
                "a receipt of lease {id} bills {got} msat after one of {had} msat"
            ));
        };
        book.receipt = Some(receipt);
        book.own = own.or(book.own);
        let at = self.moment.unwrap_or_else(|| book.lease.accepted());
        let paid = book.paid().saturating_sub(paid);
        if at >= self.since {
            let since = &mut book.since;
            since.moved |= !more.is_zero() || bytes > 0;
            since.bytes = since.bytes.saturating_add(bytes);
            since.billed = since.billed.saturating_add(more);
            since.paid = since.paid.saturating_add(paid);
        }
        let party = book.party;
        let (from, to) = match party.role() {
            Role::Payer => (Account::Credit, Account::Spent),
            Role::Payee => (Account::Earned, Account::Credit),
        };
        self.enter(Entry {
            at,
            what: What::Receipt,
            about: About::Lease(id),
            party: Some(party),
            from,
            to,
            amount: more,
            bytes,
        });
        Ok(())
    }

    fn post_write_off(&mut self, seller: NodeId, total: Msat) {
        let before = self.written_off.insert(seller, total).unwrap_or_default();
        let (from, to, amount) = match total.checked_sub(before) {
            Some(more) => (Account::Credit, Account::WrittenOff, more),
            None => (
                Account::WrittenOff,
                Account::Credit,
                before.saturating_sub(total),
            ),
        };
        self.enter(Entry {
            at: self.moment.unwrap_or_default(),
            what: What::WriteOff,
            about: About::Peer,
            party: Some(Party::new(Role::Payer, seller)),
            from,
            to,
            amount,
            bytes: 0,
        });
    }

    /// Whether this node's coins have changed by the funding of a channel, as far as the books say. By a
    /// rollover they have once the end of the channel before is written down.
    fn has_spent_coins(&self, book: &ChannelBook) -> bool {
        let is_funded_by_payer = book.party.role() == Role::Payer && !book.is_abandoned;
        let is_counted = match (book.from, book.funding) {
            (Some(from), Some((txid, _))) => {
                let before = self.channels.get(&from);
                let before = before.and_then(|before| before.settlement);
                before.is_some_and(|settlement| settlement.txid == txid)
            }
            (Some(_), None) => false,
            (None, _) => true,
        };
        is_funded_by_payer && is_counted
    }

    /// Adds what the chain alone knows: coins that came or went without a channel.
    pub(crate) fn add_history(&mut self, history: &[HistoryEntry]) {
        let mut of_channels = BTreeSet::new();
        for book in self.channels.values() {
            of_channels.extend(book.settlement.map(|it| it.txid));
            if self.has_spent_coins(book) {
                of_channels.extend(book.funding.map(|(txid, _)| txid));
            }
        }
        self.moment = None;
        self.recent.clear();
        for entry in history.iter().rev() {
            if of_channels.contains(&entry.txid) {
                continue;
            }
            let at = match entry.status {
                Status::Confirmed { time, .. } => time,
                Status::Pending { since } => since.unwrap_or_default(),
            };
            let net = i128::from(entry.net_sat());
            let fee = entry.fee.unwrap_or(Amount::ZERO);
            let gone = u64::try_from(-net).unwrap_or(0);
            let mut enter = |what, from, to, amount: Amount| {
                self.enter(Entry {
                    at: UnixTime::from_secs(at),
                    what,
                    about: About::Transaction(entry.txid),
                    party: None,
                    from,
                    to,
                    amount: msat(amount),
                    bytes: 0,
                });
            };
            if let Ok(came) = u64::try_from(net) {
                let came = Amount::from_sat(came);
                enter(What::Deposit, Account::Outside, Account::Coins, came);
            } else {
                let fee = fee.min(Amount::from_sat(gone));
                let paid = Amount::from_sat(gone)
                    .checked_sub(fee)
                    .unwrap_or(Amount::ZERO);
                enter(What::Payment, Account::Coins, Account::Outside, paid);
                enter(What::Payment, Account::Coins, Account::Fees, fee);
            }
        }
    }

    fn enter(&mut self, entry: Entry) {
        if entry.at >= self.since
            && let About::Channel(id) = entry.about
            && let Some(book) = self.channels.get_mut(&id)
        {
            book.since.add(&entry);
        }
        if entry.amount.is_zero() {
            return;
        }
        self.posted = self.posted.saturating_add(1);
        let amount = i128::from(entry.amount.msat());
        for (account, amount) in [(entry.from, -amount), (entry.to, amount)] {
            // Two to the power of 63 of the largest entries fit.
            let balance = self.balances.entry((account, entry.party)).or_default();
            *balance = balance.saturating_add(amount);
        }
        let Keep::AtMost(most) = self.keep else {
            return;
        };
        if entry.at < self.since {
            return;
        }
        let key = (entry.about, entry.what, entry.from, entry.to);
        let adds_up = matches!(entry.what, What::Voucher | What::Receipt);
        let known = self.recent.get(&key).filter(|_| adds_up).copied();
        if let Some(earlier) = known.and_then(|at| self.entries.get_mut(at)) {
            earlier.amount = earlier.amount.saturating_add(entry.amount);
            earlier.bytes = earlier.bytes.saturating_add(entry.bytes);
        } else if self.entries.len() >= most {
            self.overflowed = true;
        } else {
            self.recent.insert(key, self.entries.len());
            self.entries.push(entry);
        }
    }

    /// What an account holds, with one peer or in all, in msat.
    pub(crate) fn balance(&self, account: Account, party: Option<Party>) -> i128 {
        match party {
            Some(_) => self.balances.get(&(account, party)).copied().unwrap_or(0),
            None => self
                .balances
                .iter()
                .filter(|((it, _), _)| *it == account)
                .map(|(_, balance)| balance)
                .sum(),
        }
    }

    /// Every account with a balance, by peer.
    pub(crate) fn balances(&self) -> impl Iterator<Item = (Account, Option<Party>, i128)> {
        let balances = self.balances.iter();
        balances.map(|((account, party), balance)| (*account, *party, *balance))
    }
}

impl ChannelFlows {
    fn add(&mut self, entry: &Entry) {
        let amount = i128::from(entry.amount.msat());
        self.moved |= amount > 0;
        let role = entry.party.map(|party| party.role());
        match (role, entry.from, entry.to) {
            (_, Account::Locked, Account::Credit) | (_, Account::Credit, Account::Claims) => {
                self.paid += amount;
            }
            (_, Account::Credit, Account::Locked) | (_, Account::Claims, Account::Credit) => {
                self.paid -= amount;
            }
            (_, Account::Locked | Account::Claims, Account::Coins) => self.received += amount,
            // What a rollover had taken out is put back, since something else ended the channel.
            (_, Account::Coins, Account::Locked) if entry.what != What::Funding => {
                self.received -= amount;
            }
            (_, _, Account::Fees) => self.fees += amount,
            (_, Account::Fees, _) => self.fees -= amount,
            _ => {}
        }
    }
}

const fn account(account: channels::Account) -> Account {
    match account {
        channels::Account::Coins => Account::Coins,
        channels::Account::Locked => Account::Locked,
        channels::Account::Counterparty => Account::Credit,
        channels::Account::Unclaimed => Account::Unclaimed,
        channels::Account::Claims => Account::Claims,
        channels::Account::Fees => Account::Fees,
        channels::Account::Lost => Account::Lost,
    }
}

/// All the bitcoin there is fit into a [`Msat`] eight times over.
fn msat(amount: Amount) -> Msat {
    Msat::from_sat(amount.to_sat()).unwrap_or(Msat::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
