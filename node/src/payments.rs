//! Where leases meet channels: the only room that knows both.
//!
//! A session says "bring what is paid to this many millisatoshi"; a channel knows running totals of
//! whole satoshi. Between the two stands one [`Account`] for each pair and direction, which outlives
//! leases and channels alike. Everything here is a machine like the others: told what happened,
//! drained for what to do.

mod account;
mod closing;
mod events;
mod lost;
mod messages;
mod opening;
mod output;
mod paying;
mod rollover;
#[cfg(test)]
mod tests;
mod views;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bitcoin::{Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction, TxOut};
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::LeaseId;
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::batch::BatchError;
use bitmesh_wallet::channel::closing::{Outputs, Waiting};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::exposure::ZeroConfBudget;
use bitmesh_wallet::channel::params::{PayeePolicy, PayerPolicy};
use bitmesh_wallet::channel::payee::{self, Payee};
use bitmesh_wallet::channel::payer::{self, Payer};
use bitmesh_wallet::channel::record::{Fact, Record};
use bitmesh_wallet::channel::{ChannelId, PartyId, ProposalId, tx};
use bitmesh_wallet::keys::{Keys, Role};
use thiserror::Error;
use tracing::debug;

use self::account::Account;
pub(crate) use self::closing::{Share, Step};
pub(crate) use self::opening::{LeftOut, MAX_TOGETHER, Terms};
use self::opening::{Openings, Welcome};
pub(crate) use self::output::{ChainFact, Output};
use self::paying::TopUp;
use self::rollover::Rolling;
pub(crate) use self::rollover::{RolloverError, RolloverFailure, Wish};
pub(crate) use self::views::{ChannelStage, ChannelView};

/// Channels of one pair, in one direction, that are not over. A buyer needs two: one that is being used
/// up, and the next. Each costs a seller a record and an output to watch, and its buyer a funding.
const MAX_CHANNELS: usize = 8;

/// Why a channel is not opened, closed or refunded. Nothing was changed.
#[derive(Debug, Error)]
pub(crate) enum PaymentsError {
    /// No channel of that id.
    #[error("no such channel")]
    Unknown,
    /// A channel with this seller is being opened. A seller takes one proposal of a buyer at a time, and
    /// gives the one before up.
    #[error("a channel with this seller is being opened already")]
    Opening,
    /// As many channels with this seller as it takes are not over.
    #[error("{MAX_CHANNELS} channels with this seller are open, as many as it takes")]
    TooMany,
    /// The chain's height is not known yet, so no expiry can be chosen.
    #[error("the height of the chain is not known yet")]
    NoTip,
    /// All keys of the wallet's channel branch are used up.
    #[error("no channel key is left")]
    NoKey,
    /// The payer's machine refused.
    #[error(transparent)]
    Payer(#[from] payer::Error),
    /// The payee's machine refused.
    #[error(transparent)]
    Payee(#[from] payee::Error),
    /// The channel is not carried over.
    #[error(transparent)]
    Rollover(#[from] RolloverError),
    /// These channels do not go into one batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// What this node insists on in channels.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// As a seller.
    pub(crate) payee: PayeePolicy,
    /// As a buyer.
    pub(crate) payer: PayerPolicy,
    /// What all unconfirmed channels together may be credited.
    pub(crate) zero_conf_total: Amount,
    /// Blocks until a new channel of this buyer expires.
    pub(crate) expiry_blocks: u32,
}

/// One direction of one pair: everything this node pays a seller, or is paid by a buyer.
#[derive(Debug, Default)]
struct Pair {
    account: Account,
    /// The channels that are not over, oldest first: they are used up in this order.
    channels: Vec<ProposalId>,
    /// The latest, over or not, for people.
    latest: Option<ProposalId>,
    /// The lease being carried out, if any. One at a time: a second would race it for the credit.
    lease: Option<LeaseId>,
    /// Seller: channels proposed in that lease that no block has funded.
    proposed: u32,
    /// Seller: channels whose funding is out of sight.
    lost: BTreeSet<ProposalId>,
    /// Seller: whether they hold the lease up.
    is_held_up: bool,
    /// Buyer: the session's total that waits for a channel to be ready.
    wanted: Option<Msat>,
    /// Buyer: what the lease costs if all of it is used. Where the channels hold less, another is opened
    /// before they are used up.
    reach: Msat,
    /// Buyer: how that stands.
    top_up: TopUp,
}

#[derive(Debug)]
struct Channel<M> {
    machine: M,
    peer: NodeId,
    /// Its funding output, once there is one; kept after the machine has settled.
    funding: Option<OutPoint>,
    /// What this node has paid the miners for it.
    fees: Amount,
    /// The transaction that this node has made, or signed with the peer, to end it.
    ending: Option<Transaction>,
    /// Seller: the wallet's script that it is paid out to.
    payout: Option<ScriptBuf>,
    /// Seller: the height at which the buyer was last asked to close together because of the expiry.
    /// Buyer: at which this node last tried to carry the channel over by itself.
    asked_at: Option<BlockHeight>,
    /// Seller: the index of its key.
    key_index: Option<u32>,
    /// Seller: how many channels to follow were proposed since that height.
    renewals: u32,
    renewed_at: Option<BlockHeight>,
    /// Seller: when a channel that is to follow another is given up, if nothing came of it.
    give_up_at: Option<Instant>,
}

impl<M> Channel<M> {
    fn new(machine: M, peer: NodeId) -> Self {
        Self {
            machine,
            peer,
            funding: None,
            fees: Amount::ZERO,
            ending: None,
            payout: None,
            asked_at: None,
            key_index: None,
            renewals: 0,
            renewed_at: None,
            give_up_at: None,
        }
    }
}

/// All channels and accounts of this node.
#[derive(Debug)]
pub(crate) struct Payments {
    me: NodeId,
    network: Network,
    keys: Arc<Keys>,
    policy: Policy,
    payers: BTreeMap<ProposalId, Channel<Payer>>,
    payees: BTreeMap<ProposalId, Channel<Payee>>,
    by_channel: BTreeMap<ChannelId, ProposalId>,
    bought: BTreeMap<NodeId, Pair>,
    sold: BTreeMap<NodeId, Pair>,
    budget: ZeroConfBudget,
    tip: Option<BlockHeight>,
    /// In sat per virtual byte.
    feerate: u64,
    next_payer_key: u32,
    next_payee_key: u32,
    /// When each channel was proposed, for people.
    opened: BTreeMap<ProposalId, UnixTime>,
    /// Channels that should be closed and are not, since that is not worth its fee.
    waiting: BTreeMap<ProposalId, Waiting>,
    /// Buyer: channels that are being carried over. Nothing is paid on them meanwhile.
    rollovers: BTreeMap<ProposalId, Rolling>,
    /// Buyer: channels that are to be funded together, and wait for one another.
    openings: Openings,
    /// Seller: how many proposals of strangers are still taken.
    welcome: Welcome,
    outputs: VecDeque<Output>,
}

impl Payments {
    pub(crate) fn new(
        me: NodeId,
        network: Network,
        keys: Arc<Keys>,
        policy: Policy,
        feerate: u64,
    ) -> Self {
        let budget = ZeroConfBudget::new(policy.zero_conf_total);
        Self {
            me,
            network,
            keys,
            policy,
            payers: BTreeMap::new(),
            payees: BTreeMap::new(),
            by_channel: BTreeMap::new(),
            bought: BTreeMap::new(),
            sold: BTreeMap::new(),
            budget,
            tip: None,
            feerate,
            next_payer_key: 0,
            next_payee_key: 0,
            opened: BTreeMap::new(),
            waiting: BTreeMap::new(),
            rollovers: BTreeMap::new(),
            openings: Openings::default(),
            welcome: Welcome::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Rebuilds one channel from its records, in the order they were written. Called once for each
    /// proposal, before anything else happens, oldest first: they are used up in this order.
    ///
    /// # Errors
    ///
    /// Says which rule the records break. Money may stand on them: the caller must not go on without.
    pub(crate) fn restore(&mut self, records: Vec<Record>, now: Instant) -> Result<(), String> {
        let Some(first) = records.first() else {
            return Ok(());
        };
        let proposal = first.proposal;
        match &first.fact {
            Fact::Proposed {
                open, key_index, ..
            } => {
                let (seller, index) = (node(open.payee)?, *key_index);
                let next_index = self.index_after(index, open);
                let (funding, fees) = funding_in(&records);
                let key = self
                    .key(Role::Payer, index)
                    .map_err(|error| error.to_string())?;
                let machine = Payer::restore(records, key, self.policy.payer, now)
                    .map_err(|error| error.to_string())?;
                self.next_payer_key = self.next_payer_key.max(next_index);
                self.index(machine.channel(), proposal);
                let promised = machine.promised();
                let follows = machine.carried_from().is_some() && funding.is_none();
                let is_over = matches!(
                    machine.stage(),
                    payer::Stage::Settled | payer::Stage::Abandoned
                );
                let mut channel = Channel::new(machine, seller);
                (channel.funding, channel.fees) = (funding, fees);
                self.payers.insert(proposal, channel);
                match follows {
                    true => {
                        count_channel(&mut self.bought, seller, proposal, promised);
                    }
                    false => use_channel(&mut self.bought, seller, proposal, promised, is_over),
                }
                self.drain_payer(proposal, now);
                if follows {
                    self.resume_next(proposal, now);
                }
            }
            Fact::Agreed {
                open, key_index, ..
            } => {
                let (buyer, index) = (node(open.payer)?, *key_index);
                let (funding, _) = funding_in(&records);
                let key = self
                    .key(Role::Payee, index)
                    .map_err(|error| error.to_string())?;
                let machine = Payee::restore(records, key, self.policy.payee.clone())
                    .map_err(|error| error.to_string())?;
                self.next_payee_key = self.next_payee_key.max(index.saturating_add(1));
                let follows = machine.carried_from().is_some() && funding.is_none();
                self.index(Some(machine.channel()), proposal);
                // What is settled counts; what is not counts again once the chain shows its funding.
                let counts = match machine.stage() {
                    payee::Stage::Settled => machine.held(),
                    payee::Stage::Accepted
                    | payee::Stage::Seen
                    | payee::Stage::Confirming
                    | payee::Stage::Open
                    | payee::Stage::Conflicted
                    | payee::Stage::Closing
                    | payee::Stage::Abandoned => machine.credited(),
                };
                let is_over = matches!(
                    machine.stage(),
                    payee::Stage::Settled | payee::Stage::Abandoned
                );
                let mut channel = Channel::new(machine, buyer);
                (channel.funding, channel.key_index) = (funding, Some(index));
                self.payees.insert(proposal, channel);
                match follows {
                    true => {
                        count_channel(&mut self.sold, buyer, proposal, counts);
                    }
                    false => use_channel(&mut self.sold, buyer, proposal, counts, is_over),
                }
                self.drain_payee(proposal, now);
                if follows {
                    self.resume_next(proposal, now);
                }
            }
            other => return Err(format!("the records of a channel begin with {other:?}")),
        }
        Ok(())
    }

    /// Notes when a channel was proposed.
    pub(crate) fn restore_opened(&mut self, channel: ProposalId, at: UnixTime) {
        self.opened.insert(channel, at);
    }

    /// Notes what a lease of an earlier run billed in the end.
    pub(crate) fn restore_billed(&mut self, role: Role, peer: NodeId, billed: Msat) {
        self.pairs(role)
            .entry(peer)
            .or_default()
            .account
            .on_lease_over(billed);
    }

    /// Buyer: notes what an earlier run wrote off with this seller, in all.
    pub(crate) fn restore_written_off(&mut self, seller: NodeId, total: Msat) {
        let pair = self.bought.entry(seller).or_default();
        pair.account.restore_written_off(total);
    }

    // What a trade needs to know before it is made.

    /// Seller: what a new channel of this buyer would have to pay first, and the credit the buyer
    /// has. Nothing need be paid first where the credit covers `cost`, or the pair's channels have room
    /// for the rest of it.
    pub(crate) fn terms_for(&self, buyer: NodeId, cost: Msat) -> (Msat, Msat) {
        let pair = self.sold.get(&buyer);
        let credit = pair.map_or(Msat::ZERO, |pair| pair.account.credit());
        let room = pair.map_or(Amount::ZERO, |pair| self.room_to_be_paid(pair));
        let first = if fits(cost, credit, room) {
            Msat::ZERO
        } else {
            self.first_payment()
        };
        (first, credit)
    }

    /// Buyer: whether the channels with this seller can pay for `cost`.
    pub(crate) fn has_room(&self, seller: NodeId, cost: Msat) -> bool {
        let room = self.room_to_pay(seller);
        let pair = self.bought.get(&seller);
        room > Amount::ZERO && pair.is_some_and(|pair| fits(cost, pair.account.credit(), room))
    }

    /// Buyer: whether `cost` can be paid for with this seller as things stand: by credit or through the
    /// channels there are.
    pub(crate) fn can_pay(&self, seller: NodeId, cost: Msat) -> bool {
        self.session_paid(Role::Payer, seller) >= cost || self.has_room(seller, cost)
    }

    /// Whether the height of the chain is known, without which no channel is opened or paid on.
    pub(crate) fn knows_height(&self) -> bool {
        self.tip.is_some()
    }

    /// Whether a lease of this pair is being carried out.
    pub(crate) fn is_leased(&self, role: Role, peer: NodeId) -> bool {
        let pairs = match role {
            Role::Payer => &self.bought,
            Role::Payee => &self.sold,
        };
        pairs.get(&peer).is_some_and(|pair| pair.lease.is_some())
    }

    /// The first payment that makes a new channel worth closing at the present fee rate.
    pub(crate) fn first_payment(&self) -> Msat {
        FeeRate::from_sat_per_vb(self.feerate)
            .and_then(tx::min_first_payment)
            .and_then(|first| Msat::from_sat(first.to_sat()))
            .unwrap_or(Msat::MAX)
    }

    /// The fee rate that estimates are made with.
    pub(crate) fn feerate(&self) -> FeeRate {
        FeeRate::from_sat_per_vb(self.feerate).unwrap_or(FeeRate::BROADCAST_MIN)
    }

    // Opening, paying, closing.

    /// Buyer: of this pair's credit, the seller recognises `carried` in a lease that begins now.
    /// Returns what is written off in all from here on, if that has changed: it must be durable before
    /// the lease is.
    pub(crate) fn credit_recognised(&mut self, seller: NodeId, carried: Msat) -> Option<Msat> {
        let pair = self.bought.entry(seller).or_default();
        pair.account.recognise(carried)
    }

    /// A lease of this pair is carried out from now on, and costs `reach` in all if it is used up. At
    /// most one at a time.
    pub(crate) fn lease_begun(&mut self, role: Role, peer: NodeId, lease: LeaseId, reach: Msat) {
        let pair = self.pairs(role).entry(peer).or_default();
        pair.lease = Some(lease);
        pair.proposed = 0;
        pair.lost.clear();
        pair.is_held_up = false;
        pair.wanted = None;
        pair.reach = reach;
        pair.top_up = TopUp::default();
    }

    /// Buyer: both agreed that the lease may cost so much.
    pub(crate) fn lease_extended(&mut self, seller: NodeId, reach: Msat) {
        if let Some(pair) = self.bought.get_mut(&seller) {
            pair.reach = reach;
        }
    }

    /// The lease is over, having billed `billed` in all.
    pub(crate) fn lease_over(&mut self, role: Role, peer: NodeId, lease: LeaseId, billed: Msat) {
        let Some(pair) = self.pairs(role).get_mut(&peer) else {
            return;
        };
        if pair.lease != Some(lease) {
            return;
        }
        pair.lease = None;
        pair.wanted = None;
        pair.account.on_lease_over(billed);
    }

    /// The credit a session of this pair stands on now: what it has been paid so far in all.
    pub(crate) fn session_paid(&self, role: Role, peer: NodeId) -> Msat {
        let pairs = match role {
            Role::Payer => &self.bought,
            Role::Payee => &self.sold,
        };
        pairs
            .get(&peer)
            .map_or(Msat::ZERO, |pair| pair.account.credit())
    }

    /// Seller: ends a channel with its best voucher.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Unknown`], or why the payee has nothing to close with.
    pub(crate) fn close(
        &mut self,
        channel: ProposalId,
        payout: ScriptBuf,
        feerate: FeeRate,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        self.tell_payee(channel, payee::Input::CloseAsked { payout, feerate }, now)
    }

    /// Ends a channel together with the peer; answered by [`Output::Closing`] or, within
    /// [`CLOSE_PATIENCE`](bitmesh_wallet::channel::params::CLOSE_PATIENCE), [`Output::CloseFailed`].
    /// `feerate` is what a buyer's node holds the seller's choice against. `seed` is random, and used
    /// for nothing else.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Unknown`], or why there is nothing to close.
    pub(crate) fn close_together(
        &mut self,
        channel: ProposalId,
        feerate: FeeRate,
        seed: [u8; 32],
        now: Instant,
    ) -> Result<(), PaymentsError> {
        match self.payers.contains_key(&channel) {
            true => self.tell_payer(channel, payer::Input::TogetherAsked { feerate, seed }, now),
            false => self.tell_payee(channel, payee::Input::TogetherAsked, now),
        }
    }

    /// Seller: where a close together pays out to, and at which fee rate; and the output of the next
    /// channel, if it carries over. `seed` as before.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Unknown`].
    pub(crate) fn split_chosen(
        &mut self,
        channel: ProposalId,
        payout: ScriptBuf,
        feerate: FeeRate,
        seed: [u8; 32],
        next: Option<TxOut>,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        let input = match next {
            None => payee::Input::SplitChosen {
                payout,
                feerate,
                seed,
            },
            Some(next) => payee::Input::RolloverChosen {
                payout,
                feerate,
                seed,
                next,
            },
        };
        self.tell_payee(channel, input, now)
    }

    /// Seller: where this channel is paid out to, once that was chosen. One script serves every
    /// attempt to close it: a buyer that begins many must not use up the wallet's.
    pub(crate) fn payout_of(&self, channel: ProposalId) -> Option<ScriptBuf> {
        self.payees.get(&channel)?.payout.clone()
    }

    /// Notes where this channel is paid out to.
    pub(crate) fn set_payout(&mut self, channel: ProposalId, payout: ScriptBuf) {
        if let Some(channel) = self.payees.get_mut(&channel) {
            channel.payout = Some(payout);
        }
    }

    /// A message to this peer did not arrive, and there is no connection to it: whoever waits for its
    /// answer to close together need not.
    pub(crate) fn unreachable(&mut self, peer: NodeId, now: Instant) {
        for channel in self.payers_of(peer) {
            let _ = self.tell_payer(channel, payer::Input::Unreachable, now);
        }
        self.rollovers_unreachable(peer, now);
        let payees = self.payees.iter().filter(|(_, c)| c.peer == peer);
        for channel in payees.map(|(id, _)| *id).collect::<Vec<_>>() {
            let _ = self.tell_payee(channel, payee::Input::Unreachable, now);
        }
    }

    /// Buyer: takes everything back after the expiry.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Unknown`], or why it is too early.
    pub(crate) fn refund(
        &mut self,
        channel: ProposalId,
        feerate: FeeRate,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        self.tell_payer(channel, payer::Input::RefundAsked { feerate }, now)
    }

    /// The peer can be reached: machines repeat what was not answered.
    pub(crate) fn connected(&mut self, peer: NodeId, now: Instant) {
        for channel in self.payers_of(peer) {
            let _ = self.tell_payer(channel, payer::Input::Reconnected, now);
        }
    }

    /// A block came or went: the chain's best block is at `tip`.
    pub(crate) fn tip_changed(&mut self, tip: BlockHeight, now: Instant) {
        self.tip = Some(tip);
        self.budget.tip_changed(tip);
        for channel in self.payers.keys().copied().collect::<Vec<_>>() {
            let _ = self.tell_payer(channel, payer::Input::TipChanged(tip), now);
        }
        for channel in self.payees.keys().copied().collect::<Vec<_>>() {
            let _ = self.tell_payee(channel, payee::Input::TipChanged(tip), now);
        }
        self.plan_closes(tip);
        self.top_up_again();
    }

    /// The fee rate changed, in sat per virtual byte.
    pub(crate) fn feerate_changed(&mut self, feerate: u64) {
        self.feerate = feerate.max(1);
    }

    /// Feeds a fact of the chain to the machine it concerns.
    pub(crate) fn on_chain(&mut self, channel: ProposalId, fact: ChainFact, now: Instant) {
        if let ChainFact::Spent(tx, _) = &fact {
            self.carry_into_next(channel, tx, now);
        }
        let told = if self.payers.contains_key(&channel) {
            fact.for_payer()
                .map(|input| self.tell_payer(channel, input, now))
        } else {
            let outputs = match fact {
                ChainFact::Spent(..) => self.outputs_paid_on(),
                _ => Outputs::new(),
            };
            let input = match fact {
                ChainFact::Seen(sighting)
                    if sighting.has_confirmed_inputs && self.is_own_rollover(channel) =>
                {
                    payee::Input::RolloverSeen
                }
                fact => fact.for_payee(&outputs),
            };
            Some(self.tell_payee(channel, input, now))
        };
        if let Some(Err(error)) = told {
            debug!(%error, "a fact of the chain changed nothing");
        }
    }

    // The machine's shape.

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let payers = self
            .payers
            .values()
            .filter_map(|channel| channel.machine.poll_timeout());
        let payees = self
            .payees
            .values()
            .filter_map(|channel| channel.machine.poll_timeout());
        let openings = self.openings.poll_timeout();
        let rollovers = self.rollover_deadline();
        payers.chain(payees).chain(openings).chain(rollovers).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.openings_timed_out(now);
        self.rollovers_timed_out(now);
        for channel in self.payers.keys().copied().collect::<Vec<_>>() {
            if let Some(payer) = self.payers.get_mut(&channel)
                && payer.machine.poll_timeout().is_some_and(|at| at <= now)
            {
                payer.machine.handle_timeout(now);
                let seller = payer.peer;
                self.drain_payer(channel, now);
                // A close that came to nothing lets payments go on.
                self.try_pay(seller, now);
            }
        }
        for channel in self.payees.keys().copied().collect::<Vec<_>>() {
            if let Some(payee) = self.payees.get_mut(&channel)
                && payee.machine.poll_timeout().is_some_and(|at| at <= now)
            {
                payee.machine.handle_timeout(now);
                self.drain_payee(channel, now);
            }
        }
    }

    fn payers_of(&self, seller: NodeId) -> Vec<ProposalId> {
        self.payers
            .iter()
            .filter(|(_, c)| c.peer == seller)
            .map(|(id, _)| *id)
            .collect()
    }

    fn pairs(&mut self, role: Role) -> &mut BTreeMap<NodeId, Pair> {
        match role {
            Role::Payer => &mut self.bought,
            Role::Payee => &mut self.sold,
        }
    }

    fn index(&mut self, channel: Option<ChannelId>, proposal: ProposalId) {
        if let Some(channel) = channel {
            self.by_channel.insert(channel, proposal);
        }
    }

    fn key(&self, role: Role, index: u32) -> Result<bitcoin::secp256k1::Keypair, PaymentsError> {
        self.keys
            .channel_keypair(role, index)
            .map_err(|_| PaymentsError::NoKey)
    }
}

/// What a channel's records say of its funding: the output, and what it paid the miners.
fn funding_in(records: &[Record]) -> (Option<OutPoint>, Amount) {
    let funding = records.iter().find_map(|record| match &record.fact {
        Fact::Funded { tx, vout, fee, .. } => Some((OutPoint::new(tx.compute_txid(), *vout), *fee)),
        _ => None,
    });
    funding.map_or((None, Amount::ZERO), |(outpoint, fee)| {
        (Some(outpoint), fee)
    })
}

/// A party of a channel is a node, by the same key.
fn party(node: NodeId) -> PartyId {
    PartyId::from_bytes(*node.as_bytes())
}

fn node(party: PartyId) -> Result<NodeId, String> {
    NodeId::from_bytes(party.as_bytes()).map_err(|error| error.to_string())
}

fn use_channel(
    pairs: &mut BTreeMap<NodeId, Pair>,
    peer: NodeId,
    channel: ProposalId,
    total: Amount,
    is_over: bool,
) {
    let pair = count_channel(pairs, peer, channel, total);
    if !is_over {
        pair.channels.push(channel);
    }
    pair.latest = Some(channel);
}

/// Counts what was paid on a channel, which need not be in use yet.
fn count_channel(
    pairs: &mut BTreeMap<NodeId, Pair>,
    peer: NodeId,
    channel: ProposalId,
    total: Amount,
) -> &mut Pair {
    let pair = pairs.entry(peer).or_default();
    pair.account.on_channel_total(channel, total.to_sat());
    pair
}

/// Whether `room` in channels holds what of `cost` the credit does not cover.
fn fits(cost: Msat, credit: Msat, room: Amount) -> bool {
    cost.saturating_sub(credit) <= Msat::from_sat(room.to_sat()).unwrap_or(Msat::MAX)
}

fn is_usable(payer: &Payer) -> bool {
    matches!(payer.stage(), payer::Stage::Funded | payer::Stage::Open)
        && payer.spendable() > Amount::ZERO
}

fn is_on_its_way(stage: payer::Stage) -> bool {
    matches!(stage, payer::Stage::Proposed | payer::Stage::Negotiated)
}
