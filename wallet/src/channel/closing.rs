//! Which channels a payee closes in this block, which of them in a batch, and what it bids.
//!
//! [`plan`] is a function of the chain's height, the going fee rate and the claims as they stand.
//! It remembers nothing, so it goes on after a restart where it stopped: the bid follows from the
//! distance to the expiry alone, and a close that stands already is replaced only where the bid is
//! well above it.
//!
//! | blocks before the expiry | bid | at most |
//! |---|---|---|
//! | 144 | the going rate | half of the claim |
//! | from 100, every 6 | 1.5 times as much as before | a quarter of the claim, or the going rate |
//! | from 36, and after the expiry | likewise | half of the claim |
//!
//! A claim of which the going rate would eat more than half waits until the rate falls, or until 36
//! blocks are left: then the half is bid, whatever the rate is, since a bid costs nothing unless it
//! is mined. No bid is below 1 sat/vB.
//!
//! Channels that are due at once share a transaction ([`super::batch`]), as long as each can bear
//! its rate: a small claim neither holds down the bid for a large one nor is dragged above half of
//! what it is worth.

use std::collections::BTreeMap;

use bitcoin::{Amount, OutPoint, Transaction, Txid};

use super::ProposalId;
use super::batch::{FULL_WEIGHT, MAX_CHANNELS, PART_WEIGHT};
use super::deadline::{BlockHeight, Margins, Phase};
use super::tx::DUST_P2TR;

/// Blocks between two raises: an hour, for which the going rate is an estimate.
pub const RAISE_EVERY: u32 = 6;

/// Weight of a close without its channels: 53.5 vB, the payout to a taproot script included.
const BARE_WEIGHT: u64 = 214;

/// What the payee holds on one channel and may close with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The channel.
    pub channel: ProposalId,
    /// What its best voucher pays.
    pub total: Amount,
    /// Whether that is all the channel holds, so that nothing returns to the payer.
    pub is_full: bool,
    /// From this height on the payer can take everything back.
    pub expiry: BlockHeight,
    /// Whether it may share a transaction: its funding is confirmed.
    pub can_join: bool,
    /// Whether a close is due whatever the height: the payee came back late, or the close it made
    /// can no longer be mined.
    pub is_due: bool,
    /// What stands to spend it, and is in no block.
    pub standing: Option<Standing>,
}

/// A transaction in no block that spends a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its id. Channels that share it end in one batch.
    pub txid: Txid,
    /// Its whole fee.
    pub fee: Amount,
    /// Its virtual size.
    pub vbytes: u64,
    /// Who made it.
    pub by: By,
}

/// Whose transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The payee's close.
    Payee,
    /// The payer's refund, after the expiry.
    Payer,
}

/// A close to make: all `members` in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// At least one, at most [`MAX_CHANNELS`].
    pub members: Vec<ProposalId>,
    /// What to bid, in sat/vB.
    pub feerate: u64,
    /// The payee's close that it replaces: its payout script serves again.
    pub replaces: Option<Txid>,
}

/// A claim that is not closed now, because that would cost too much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The channel.
    pub channel: ProposalId,
    /// What is at stake.
    pub total: Amount,
    /// What closing it alone would cost.
    pub fee: Amount,
    /// At this rate, in sat/vB.
    pub feerate: u64,
}

/// What to do in this block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Transactions to make, in this order: a later one may rely on an earlier one having replaced
    /// what both spend.
    pub closes: Vec<Close>,
    /// Claims that wait.
    pub waiting: Vec<Waiting>,
}

/// What is to be closed when the chain's tip is `tip` and `going` sat/vB are needed to be mined
/// within six blocks. Call it with every block, with all claims.
pub fn plan(claims: &[Claim], tip: BlockHeight, going: u64, margins: &Margins) -> Plan {
    let going = going.max(1);
    let (mut plan, mut fresh) = (Plan::default(), Vec::new());
    let mut standing: BTreeMap<Txid, (Standing, Vec<Bid>)> = BTreeMap::new();
    for claim in claims {
        let phase = margins.phase(claim.expiry, tip);
        let is_due = phase >= Phase::Close || claim.is_due;
        let half = claim.affordable(2);
        let is_worth_it = half >= going || (phase >= Phase::Last && half > 0);
        let bid = Bid {
            claim: *claim,
            rate: claim.bid(phase, tip.blocks_until(claim.expiry), going, margins),
            half,
        };
        match claim.standing {
            // What was asked for before its time stays as it was asked for.
            Some(close) if close.by == By::Payee && phase < Phase::Close => {}
            Some(close) if close.by == By::Payee => {
                let (_, members) = standing
                    .entry(close.txid)
                    .or_insert_with(|| (close, Vec::new()));
                members.push(bid);
            }
            _ if !is_due => {}
            Some(refund) => {
                let rate = bid.rate.max(refund.beaten_at(vbytes(&[bid])));
                match is_worth_it && rate <= half {
                    true => plan.closes.push(Close {
                        members: vec![claim.channel],
                        feerate: rate,
                        replaces: None,
                    }),
                    false => plan.waiting.push(claim.waiting(rate)),
                }
            }
            None if is_worth_it => fresh.push(bid),
            None => plan.waiting.push(claim.waiting(going)),
        }
    }
    for (close, members) in standing.into_values() {
        plan.closes.extend(replacements(close, members));
    }
    plan.closes
        .extend(groups(fresh).into_iter().map(|group| group.close(None)));
    plan
}

/// Closes all `claims` that nothing is closing yet at `feerate` sat/vB, whatever the height: what an
/// operator asks for. Those of which that would eat more than half are left out and returned as
/// waiting.
pub fn all(claims: &[Claim], feerate: u64) -> Plan {
    let rate = feerate.max(1);
    let (mut plan, mut bids) = (Plan::default(), Vec::new());
    for claim in claims.iter().filter(|claim| claim.standing.is_none()) {
        let half = claim.affordable(2);
        match half >= rate {
            true => bids.push(Bid {
                claim: *claim,
                rate,
                half,
            }),
            false => plan.waiting.push(claim.waiting(rate)),
        }
    }
    plan.closes
        .extend(groups(bids).into_iter().map(|group| group.close(None)));
    plan
}

impl Claim {
    const fn weight(&self) -> u64 {
        if self.is_full {
            FULL_WEIGHT
        } else {
            PART_WEIGHT
        }
    }

    /// The highest rate at which closing it alone costs at most one `part` of it and leaves more
    /// than dust; zero if there is none. In a batch it costs less.
    fn affordable(&self, part: u64) -> u64 {
        let total = self.total.to_sat();
        let most = (total / part).min(total.saturating_sub(DUST_P2TR.to_sat()));
        most / vbytes_of(self.weight())
    }

    /// What to bid, in sat/vB.
    fn bid(&self, phase: Phase, left: u32, going: u64, margins: &Margins) -> u64 {
        let raises = match margins.raise.checked_sub(left) {
            Some(blocks) => 1 + blocks / RAISE_EVERY,
            None => 0,
        };
        let wanted = (0..raises).fold(going, |rate, _| rate.saturating_add(rate.div_ceil(2)));
        let half = self.affordable(2);
        let most = match phase >= Phase::Last {
            true => half,
            false => self.affordable(4).max(going.min(half)),
        };
        wanted.min(most).max(1)
    }

    fn waiting(&self, feerate: u64) -> Waiting {
        Waiting {
            channel: self.channel,
            total: self.total,
            fee: Amount::from_sat(vbytes_of(self.weight()).saturating_mul(feerate)),
            feerate,
        }
    }
}

impl Standing {
    /// What it pays, in sat/vB, rounded up.
    pub fn rate(&self) -> u64 {
        self.fee.to_sat().div_ceil(self.vbytes.max(1))
    }

    /// The least rate at which a transaction of `vbytes` replaces it (BIP-125): a higher rate, and
    /// 1 sat for each of its own virtual bytes more in all.
    fn beaten_at(&self, vbytes: u64) -> u64 {
        let fee = self.fee.to_sat().saturating_add(vbytes);
        fee.div_ceil(vbytes.max(1))
            .max(self.rate().saturating_add(1))
    }
}

#[derive(Clone, Copy, Debug)]
struct Bid {
    claim: Claim,
    /// What it would bid.
    rate: u64,
    /// Above this it has no part in anything.
    half: u64,
}

#[derive(Debug)]
struct Group {
    rate: u64,
    members: Vec<Bid>,
}

impl Group {
    fn close(self, replaces: Option<Txid>) -> Close {
        Close {
            members: self.members.iter().map(|bid| bid.claim.channel).collect(),
            feerate: self.rate,
            replaces,
        }
    }
}

/// Puts bids together that can all bear the highest among them.
fn groups(mut bids: Vec<Bid>) -> Vec<Group> {
    bids.sort_by_key(|bid| std::cmp::Reverse((bid.rate, bid.half, bid.claim.channel)));
    let mut groups = Vec::new();
    while let Some(first) = bids.first().copied() {
        let rate = first.rate;
        let mut members = Vec::new();
        bids.retain(|bid| {
            let is_first = bid.claim.channel == first.claim.channel;
            let joins = first.claim.can_join && bid.claim.can_join && bid.half >= rate;
            let is_taken = is_first || (joins && members.len() < MAX_CHANNELS);
            if is_taken {
                members.push(*bid);
            }
            !is_taken
        });
        groups.push(Group { rate, members });
    }
    groups
}

/// What replaces the payee's own `close` of `members`: nothing, unless one of them would bid well
/// above it. Those who cannot bear the new rate get a transaction of their own, which is valid once
/// the first has replaced the old.
fn replacements(close: Standing, members: Vec<Bid>) -> Vec<Close> {
    // A quarter more: raises are by half, and an estimate that wobbles is no reason.
    let (rate, enough) = (close.rate(), close.rate().saturating_mul(5).div_ceil(4));
    let highest = members.iter().map(|bid| bid.rate).max().unwrap_or(0);
    if highest <= rate || highest < enough {
        return Vec::new();
    }
    let mut groups = groups(members).into_iter();
    let Some(mut first) = groups.next() else {
        return Vec::new();
    };
    first.rate = first.rate.max(close.beaten_at(vbytes(&first.members)));
    if first.members.iter().any(|bid| bid.half < first.rate) {
        return Vec::new();
    }
    let mut closes = vec![first.close(Some(close.txid))];
    closes.extend(groups.map(|group| group.close(None)));
    closes
}

/// Virtual bytes of a close of these.
fn vbytes(bids: &[Bid]) -> u64 {
    vbytes_of(bids.iter().map(|bid| bid.claim.weight()).sum())
}

const fn vbytes_of(channels: u64) -> u64 {
    (BARE_WEIGHT + channels).div_ceil(4)
}

/// The funded outputs of all channels that the payee is paid on, also of ended ones: what one
/// channel cannot say of another that shares its close.
#[derive(Clone, Debug, Default)]
pub struct Outputs(BTreeMap<OutPoint, (Amount, Option<Txid>)>);

impl Outputs {
    /// None yet.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds an output that holds `capacity`, and what has taken it
    /// ([`Payee::taken_by`](super::payee::Payee::taken_by)).
    pub fn insert(&mut self, outpoint: OutPoint, capacity: Amount, taken_by: Option<Txid>) {
        self.0.insert(outpoint, (capacity, taken_by));
    }

    /// What the inputs of `tx` hold in all; `None` if one of them is of no channel.
    pub fn spent_in(&self, tx: &Transaction) -> Option<Amount> {
        tx.input.iter().try_fold(Amount::ZERO, |sum, input| {
            let (capacity, _) = self.0.get(&input.previous_output)?;
            sum.checked_add(*capacity)
        })
    }

    /// What `tx` pays to the miners; `None` if one of its inputs is of no channel.
    pub fn fee_of(&self, tx: &Transaction) -> Option<Amount> {
        let mut outputs = tx.output.iter();
        let paid = outputs.try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value))?;
        self.spent_in(tx)?.checked_sub(paid)
    }

    /// Whether something else has taken what one of the inputs of `tx` spends.
    pub fn is_overtaken(&self, tx: &Transaction) -> bool {
        let txid = tx.compute_txid();
        tx.input.iter().any(|input| {
            let taken_by = self.0.get(&input.previous_output).and_then(|(_, by)| *by);
            taken_by.is_some_and(|by| by != txid)
        })
    }
}
