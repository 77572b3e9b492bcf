//! Where the money of our channels is, derived from their records.
//!
//! Every record that moves money becomes [`Entry`]s from one [`Account`] to another, so nothing
//! appears or vanishes: what left one account is in the others. The ledger holds balances only;
//! the records are the book. It counts what is on the channels and on the chain, and knows nothing
//! of what was bought.
//!
//! | Record | Payer | Payee |
//! |---|---|---|
//! | funded | coins → locked, coins → fees | |
//! | promised / held | locked → counterparty | counterparty → claims |
//! | settled by a close | locked → coins, unclaimed → locked | claims → coins, claims → fees |
//! | settled together, nothing paid | locked → coins, locked → fees | |
//! | settled by a refund | unclaimed → locked → coins, locked → fees | claims → lost |
//! | abandoned | all the way back | claims → lost |
//!
//! A rollover ends one channel and funds the next, but the end is only written down when it is buried. So
//! that nothing is counted twice meanwhile, funding the next one takes what it holds out of the other's
//! `locked` at once (locked → coins → locked), and what its end brings is less by that. If something
//! else ends it after all, it gets that back.

use std::collections::BTreeMap;

use bitcoin::{Amount, SignedAmount, Txid};
use thiserror::Error;

use crate::channel::ProposalId;
use crate::channel::record::{End, Fact, Record, Settlement};

/// Where money can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// Our coins on the chain. Negative: more of it went into channels than came out.
    Coins,
    /// In funding outputs of ours, not promised to anyone.
    Locked,
    /// With the other side, in vouchers: positive is what we signed, negative what we were given.
    Counterparty,
    /// Payer: below zero by what was signed and never taken on the chain. Above zero by what was taken
    /// beyond what we know to have signed, which only lost records can explain.
    Unclaimed,
    /// Vouchers held and not yet settled on the chain.
    Claims,
    /// With the miners, paid by us.
    Fees,
    /// Claims that came to nothing: the funding was double-spent, or the payer's refund won.
    Lost,
}

const ACCOUNTS: usize = 7;

/// One movement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The channel.
    pub channel: ProposalId,
    /// Where it was.
    pub from: Account,
    /// Where it is.
    pub to: Account,
    /// How much; never zero.
    pub amount: Amount,
}

/// Which side of a channel is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// We pay.
    Payer,
    /// We are paid.
    Payee,
}

/// The books of one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    role: Role,
    capacity: Amount,
    funding_fee: Amount,
    is_funded: bool,
    is_ended: bool,
    /// The running total promised or held.
    total: Amount,
    settlement: Option<Settlement>,
    /// Payer: the channel that a rollover is to fund this one from.
    from: Option<ProposalId>,
    /// Payer: the rollover that has taken something out of this channel, and how much.
    carried: Option<(Txid, Amount)>,
    balances: [SignedAmount; ACCOUNTS],
}

/// The sums a person wants to see. Each is non-negative, and together they explain every sat: see
/// [`Totals::adds_up`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// What we put into channels, over all time, without fees.
    pub funded: Amount,
    /// Of that, what is locked and not promised.
    pub locked: Amount,
    /// Of that, what we paid: promised, or settled if the channel has ended.
    pub paid: Amount,
    /// Of that, what came back when a payee closed, or when the funding never confirmed.
    pub returned: Amount,
    /// Of that, what we took back ourselves after the expiry.
    pub refunded: Amount,
    /// Of that, what our refunds cost, and closing together where nothing was paid.
    pub refund_fees: Amount,
    /// What our fundings cost; on top of `funded`.
    pub funding_fees: Amount,
    /// What was paid to us, over all time.
    pub earned: Amount,
    /// Of that, what is held as vouchers.
    pub claims: Amount,
    /// Of that, what we received on the chain.
    pub received: Amount,
    /// Of that, what our closes cost.
    pub close_fees: Amount,
    /// Of that, what was lost.
    pub lost: Amount,
}

impl Totals {
    /// Whether both sides of the book agree, to the sat.
    pub fn adds_up(&self) -> bool {
        let sum = |parts: &[Amount]| {
            parts
                .iter()
                .try_fold(Amount::ZERO, |sum, part| sum.checked_add(*part))
        };
        let Self {
            locked,
            paid,
            returned,
            refunded,
            refund_fees,
            ..
        } = *self;
        let Self {
            claims,
            received,
            close_fees,
            lost,
            ..
        } = *self;
        sum(&[locked, paid, returned, refunded, refund_fees]) == Some(self.funded)
            && sum(&[claims, received, close_fees, lost]) == Some(self.earned)
    }
}

/// Why a record does not fit into the books. The ledger is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// The channel's first record is missing.
    #[error("no channel {channel} was begun")]
    Unknown {
        /// The channel.
        channel: ProposalId,
    },
    /// The channel has ended; nothing moves any more.
    #[error("channel {channel} has ended")]
    Ended {
        /// The channel.
        channel: ProposalId,
    },
    /// A running total went down, or money moves on a channel without funding.
    #[error("a record of channel {channel} is out of order")]
    Order {
        /// The channel.
        channel: ProposalId,
    },
    /// More would leave the channel than it holds.
    #[error("channel {channel} does not add up: {account:?} would be left with {balance}")]
    Imbalance {
        /// The channel.
        channel: ProposalId,
        /// The account that does not come out right.
        account: Account,
        /// What would be in it.
        balance: SignedAmount,
    },
}

/// The books of all channels.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    channels: BTreeMap<ProposalId, Statement>,
}

impl Ledger {
    /// Empty books.
    pub const fn new() -> Self {
        Self {
            channels: BTreeMap::new(),
        }
    }

    /// The books after `records`, in the order they were written.
    ///
    /// # Errors
    ///
    /// Returns the first [`LedgerError`]: the records contradict one another.
    pub fn from_records<'a>(
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<Self, LedgerError> {
        let mut ledger = Self::new();
        for record in records {
            ledger.post(record)?;
        }
        Ok(ledger)
    }

    /// Posts one record, and returns what it moved; most records of a channel's beginning and end
    /// move nothing or several amounts.
    ///
    /// # Errors
    ///
    /// Returns [`LedgerError`] if the record does not fit; the ledger is unchanged.
    pub fn post(&mut self, record: &Record) -> Result<Vec<Entry>, LedgerError> {
        let channel = record.proposal;
        let begun = match &record.fact {
            Fact::Proposed { open, from, .. } => Some((Role::Payer, open.capacity, *from)),
            Fact::Agreed { open, .. } => Some((Role::Payee, open.capacity, None)),
            _ => None,
        };
        if let Some((role, capacity, from)) = begun {
            if self.channels.contains_key(&channel) {
                return Err(LedgerError::Order { channel });
            }
            self.channels
                .insert(channel, Statement::new(role, capacity, from));
            return Ok(Vec::new());
        }
        let statement = self
            .channels
            .get(&channel)
            .ok_or(LedgerError::Unknown { channel })?;
        if statement.is_ended {
            return Err(LedgerError::Ended { channel });
        }
        let mut next = statement.clone();
        let moves = next
            .apply(&record.fact)
            .ok_or(LedgerError::Order { channel })?;
        let mut entries = next.post(channel, moves)?;
        if let Some((from, mut before)) = self.carried_from(&next) {
            let moves = before.carry(&record.fact, next.capacity);
            let carried = before.post(from, moves.into_iter().collect())?;
            self.channels.insert(from, before);
            // What leaves the one comes before it is in the other.
            entries.splice(0..0, carried);
        }
        self.channels.insert(channel, next);
        Ok(entries)
    }

    /// The channel that a rollover funds `statement` from, while it has not ended.
    fn carried_from(&self, statement: &Statement) -> Option<(ProposalId, Statement)> {
        let from = statement.from?;
        let before = self.channels.get(&from)?;
        let is_running = before.role == Role::Payer && before.is_funded && !before.is_ended;
        is_running.then(|| (from, before.clone()))
    }

    /// The books of one channel.
    pub fn channel(&self, channel: ProposalId) -> Option<&Statement> {
        self.channels.get(&channel)
    }

    /// The sums over all channels.
    pub fn totals(&self) -> Totals {
        self.channels
            .values()
            .fold(Totals::default(), |sum, statement| sum + statement.totals())
    }
}

impl Statement {
    const fn new(role: Role, capacity: Amount, from: Option<ProposalId>) -> Self {
        Self {
            role,
            capacity,
            funding_fee: Amount::ZERO,
            is_funded: false,
            is_ended: false,
            total: Amount::ZERO,
            settlement: None,
            from,
            carried: None,
            balances: [SignedAmount::ZERO; ACCOUNTS],
        }
    }

    /// What `fact` moves. `None` if it does not follow.
    fn apply(&mut self, fact: &Fact) -> Option<Vec<(Account, Account, Amount)>> {
        use Account::{Claims, Coins, Counterparty, Fees, Locked, Lost, Unclaimed};
        let moves = match (self.role, fact) {
            (_, Fact::Proposed { .. } | Fact::Agreed { .. }) => return None,
            (
                _,
                Fact::Accepted { .. }
                | Fact::Splitting { .. }
                | Fact::Closing { .. }
                | Fact::Refunding { .. },
            ) => vec![],
            (_, Fact::Funded { .. }) if self.is_funded => return None,
            (Role::Payer, Fact::Funded { fee, .. }) => {
                self.is_funded = true;
                self.funding_fee = *fee;
                vec![(Coins, Locked, self.capacity), (Coins, Fees, *fee)]
            }
            (Role::Payee, Fact::Funded { .. }) => {
                self.is_funded = true;
                vec![]
            }
            (Role::Payer, Fact::Promised { total, .. }) => {
                vec![(Locked, Counterparty, self.raise(*total)?)]
            }
            (Role::Payee, Fact::Held { total, .. }) => {
                vec![(Counterparty, Claims, self.raise(*total)?)]
            }
            (Role::Payer, Fact::Held { .. }) | (Role::Payee, Fact::Promised { .. }) => return None,
            (_, Fact::Settled(_)) if !self.is_funded => return None,
            (Role::Payer, Fact::Settled(settlement)) => {
                let (signed, taken) = (self.total, settlement.paid());
                let unclaimed = match signed.checked_sub(taken) {
                    Some(rest) => (Unclaimed, Locked, rest),
                    None => (Locked, Unclaimed, taken.checked_sub(signed)?),
                };
                let (back, rest) = match self.carried.take() {
                    Some((txid, carried)) if txid == settlement.txid => {
                        (Amount::ZERO, settlement.returned.checked_sub(carried)?)
                    }
                    Some((_, carried)) => (carried, settlement.returned),
                    None => (Amount::ZERO, settlement.returned),
                };
                let fee = settlement.payer_fee();
                self.end(Some(*settlement));
                vec![
                    (Coins, Locked, back),
                    unclaimed,
                    (Locked, Coins, rest),
                    (Locked, Fees, fee),
                ]
            }
            (Role::Payee, Fact::Settled(settlement)) => {
                let (received, fee) = (settlement.received, settlement.payee_fee());
                // More than is held, if the close is younger than the backup that the books are from.
                // No close pays more than there was.
                let paid = received
                    .checked_add(fee)
                    .filter(|paid| *paid <= self.capacity)?
                    .max(self.total);
                let found = self.raise(paid)?;
                let lost = paid.checked_sub(received)?.checked_sub(fee)?;
                self.end(Some(*settlement));
                vec![
                    (Counterparty, Claims, found),
                    (Claims, Coins, received),
                    (Claims, Fees, fee),
                    (Claims, Lost, lost),
                ]
            }
            (Role::Payer, Fact::Abandoned) => {
                let capacity = if self.is_funded {
                    self.capacity
                } else {
                    Amount::ZERO
                };
                self.end(None);
                let fee = std::mem::take(&mut self.funding_fee);
                vec![
                    (Counterparty, Locked, self.total),
                    (Locked, Coins, capacity),
                    (Fees, Coins, fee),
                ]
            }
            (Role::Payee, Fact::Abandoned) => {
                self.end(None);
                vec![(Claims, Lost, self.total)]
            }
        };
        Some(moves)
    }

    /// What it moves here that the channel after this one was funded by a rollover, or came to nothing.
    fn carry(&mut self, fact: &Fact, capacity: Amount) -> Option<(Account, Account, Amount)> {
        match fact {
            Fact::Funded { tx, .. } => {
                self.carried = Some((tx.compute_txid(), capacity));
                Some((Account::Locked, Account::Coins, capacity))
            }
            Fact::Abandoned => {
                let (_, carried) = self.carried.take()?;
                Some((Account::Coins, Account::Locked, carried))
            }
            Fact::Proposed { .. }
            | Fact::Accepted { .. }
            | Fact::Agreed { .. }
            | Fact::Promised { .. }
            | Fact::Held { .. }
            | Fact::Splitting { .. }
            | Fact::Closing { .. }
            | Fact::Refunding { .. }
            | Fact::Settled(_) => None,
        }
    }

    /// Makes `moves`, and returns them as entries.
    fn post(
        &mut self,
        channel: ProposalId,
        moves: Vec<(Account, Account, Amount)>,
    ) -> Result<Vec<Entry>, LedgerError> {
        let moves = moves.into_iter().filter(|it| it.2 > Amount::ZERO);
        let entries: Vec<Entry> = moves
            .map(|(from, to, amount)| Entry {
                channel,
                from,
                to,
                amount,
            })
            .collect();
        for entry in &entries {
            self.move_money(entry)?;
        }
        self.check(channel)?;
        Ok(entries)
    }

    /// Raises the running total and returns by how much.
    fn raise(&mut self, total: Amount) -> Option<Amount> {
        let delta = total.checked_sub(self.total).filter(|_| self.is_funded)?;
        self.total = total;
        Some(delta)
    }

    const fn end(&mut self, settlement: Option<Settlement>) {
        self.is_ended = true;
        self.settlement = settlement;
    }

    fn move_money(&mut self, entry: &Entry) -> Result<(), LedgerError> {
        let channel = entry.channel;
        let amount = entry
            .amount
            .to_signed()
            .map_err(|_| LedgerError::Order { channel })?;
        let moved = |balance: SignedAmount, amount: SignedAmount| balance.checked_add(amount);
        for (account, amount) in [(entry.from, -amount), (entry.to, amount)] {
            let balance = &mut self.balances[account as usize];
            *balance = moved(*balance, amount).ok_or(LedgerError::Order { channel })?;
        }
        Ok(())
    }

    /// Nothing may be left with less than nothing, and an ended channel holds nothing.
    fn check(&self, channel: ProposalId) -> Result<(), LedgerError> {
        for account in [
            Account::Locked,
            Account::Claims,
            Account::Fees,
            Account::Lost,
        ] {
            let balance = self.balance(account);
            let is_inside = matches!(account, Account::Locked | Account::Claims);
            if balance.is_negative() || (self.is_ended && is_inside && balance.is_positive()) {
                return Err(LedgerError::Imbalance {
                    channel,
                    account,
                    balance,
                });
            }
        }
        Ok(())
    }

    /// Our side.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// What the channel was to hold.
    pub const fn capacity(&self) -> Amount {
        self.capacity
    }

    /// Whether nothing will move any more.
    pub const fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// What this channel has put into `account`, or taken out of it. All accounts together are
    /// zero.
    pub const fn balance(&self, account: Account) -> SignedAmount {
        self.balances[account as usize]
    }

    fn positive(&self, account: Account) -> Amount {
        self.balance(account).to_unsigned().unwrap_or(Amount::ZERO)
    }

    /// The sums of this channel.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        match self.role {
            Role::Payer => {
                let is_refund = self.settlement.is_some_and(|s| s.end == End::Refund);
                let back = match (self.is_ended, &self.settlement) {
                    (true, Some(settlement)) => settlement.returned,
                    (true, None) if self.is_funded => self.capacity,
                    (false, _) => self.carried.map_or(Amount::ZERO, |(_, carried)| carried),
                    _ => Amount::ZERO,
                };
                let ours = |amount| if is_refund { amount } else { Amount::ZERO };
                totals.funded = if self.is_funded {
                    self.capacity
                } else {
                    Amount::ZERO
                };
                totals.locked = self.positive(Account::Locked);
                let taken = self
                    .balance(Account::Counterparty)
                    .checked_add(self.balance(Account::Unclaimed));
                totals.paid = taken
                    .and_then(|taken| taken.to_unsigned().ok())
                    .unwrap_or(Amount::ZERO);
                totals.refunded = ours(back);
                totals.returned = if is_refund { Amount::ZERO } else { back };
                totals.refund_fees = self.settlement.map_or(Amount::ZERO, |s| s.payer_fee());
                totals.funding_fees = self.funding_fee;
            }
            Role::Payee => {
                totals.earned = self.total;
                totals.claims = self.positive(Account::Claims);
                totals.received = self.positive(Account::Coins);
                totals.close_fees = self.positive(Account::Fees);
                totals.lost = self.positive(Account::Lost);
            }
        }
        totals
    }
}

impl std::ops::Add for Totals {
    type Output = Self;

    /// Adds sum by sum. All money there is fits many times over.
    fn add(self, other: Self) -> Self {
        Self {
            funded: self.funded + other.funded,
            locked: self.locked + other.locked,
            paid: self.paid + other.paid,
            returned: self.returned + other.returned,
            refunded: self.refunded + other.refunded,
            refund_fees: self.refund_fees + other.refund_fees,
            funding_fees: self.funding_fees + other.funding_fees,
            earned: self.earned + other.earned,
            claims: self.claims + other.claims,
            received: self.received + other.received,
            close_fees: self.close_fees + other.close_fees,
            lost: self.lost + other.lost,
        }
    }
}
