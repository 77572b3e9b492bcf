//! The machine of the side that is paid.
//!
//! ```text
//! Accepted ─▶ Seen ─▶ Confirming ─▶ Open ─▶ Closing ─▶ Settled
//!     │         └──────────┴─▶ Conflicted
//!     └─▶ Abandoned
//! ```
//!
//! It *holds* the best voucher and *credits* a part of it: no more than the exposure table allows
//! for the depth of the funding. What it can lose is what it credited on funding that then
//! disappeared, and everything it holds if it sleeps past the expiry.

use std::collections::VecDeque;
use std::time::Instant;

use bitcoin::secp256k1::Keypair;
use bitcoin::{Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction, Txid};
use thiserror::Error;

use super::deadline::{BlockHeight, Phase};
use super::message::{Accept, Depth, Funding, Message, Open, RefusalCode};
use super::params::{
    Contract, FINAL_DEPTH, FundingError, OpenError, Parties, PayeePolicy, Tranche,
};
use super::record::{End, Fact, Record, Settlement};
use super::tx::{self, BuildError};
use super::voucher::{Voucher, VoucherError};
use super::{ChannelId, ProposalId, TrancheIndex};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The payer said something.
    Received(Message),
    /// The payer can be reached again: it is told where things stand.
    Reconnected,
    /// The chain's best block is at this height. Feed it at the start and with every block.
    TipChanged(BlockHeight),
    /// The funding is in our own mempool. Feed it again when one of the facts changes.
    FundingSeen(Sighting),
    /// The funding is in a block and has this many confirmations, at least 1; fewer than before
    /// after a reorganisation. Feed it with every block until [`Payee::wants_depth`] is false.
    FundingConfirmed {
        /// How many blocks, its own included.
        confirmations: u32,
    },
    /// The funding left the mempool unconfirmed, without a conflict seen.
    FundingDropped,
    /// Another transaction spends what the funding spends.
    FundingConflicted {
        /// Confirmations of that other transaction, 0 for the mempool.
        confirmations: u32,
    },
    /// The answer to [`Event::ZeroConfDue`], from the node's
    /// [`ZeroConfBudget`](super::exposure::ZeroConfBudget).
    ZeroConfGranted {
        /// Highest running total credited while unconfirmed. May be zero.
        limit: Amount,
    },
    /// The funding output was spent; `height` is `None` while that is unconfirmed. Feed it again
    /// when the height changes.
    Spent {
        /// What spent it.
        tx: Box<Transaction>,
        /// The height of its block.
        height: Option<BlockHeight>,
    },
    /// What spent the funding output is gone from chain and mempool.
    Unspent,
    /// The operator, or the answer to [`Event::CloseDue`]: end the channel with the best voucher.
    /// Asked again, a new transaction at the new fee rate replaces the one before.
    CloseAsked {
        /// Where the payout goes: an unused script of our wallet.
        payout: ScriptBuf,
        /// What to pay the miners.
        feerate: FeeRate,
    },
    /// The channel was never funded and its room is needed. Refused once it is funded.
    AbandonAsked,
}

/// What is known of funding that is in our own node's mempool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Whether all coins it spends are confirmed. If not, it can fall with its parents, and a
    /// version 3 close cannot be put on top of it.
    pub has_confirmed_inputs: bool,
    /// What it pays.
    pub feerate: FeeRate,
    /// What the node thinks is needed to be mined within six blocks.
    pub wanted_feerate: FeeRate,
}

impl Sighting {
    /// Whether such funding may be trusted a little before it is confirmed.
    pub fn is_sound(&self) -> bool {
        self.has_confirmed_inputs && self.feerate >= self.wanted_feerate
    }
}

/// What to do. Perform outputs in order, each before the next is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write this down and make it durable before performing what follows. For vouchers that may
    /// wait for others (group commit), as long as what follows waits with it.
    Persist(Record),
    /// Send this to the payer. It may get lost: the payer asks again.
    Send(Message),
    /// Hand this to the chain. That it is known already, or mined, or its inputs are spent, is no
    /// failure: the watcher tells what became of it.
    Broadcast(Box<Transaction>),
    /// Watch this output from now on and report what happens to it and to the transaction that
    /// makes it.
    Watch {
        /// The funding output.
        outpoint: OutPoint,
        /// Its script.
        script: ScriptBuf,
        /// The transaction that makes it.
        funding: Box<Transaction>,
    },
    /// Tell whoever cares.
    Notify(Event),
}

/// What the rest of the node learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The payer showed a funding transaction; it is being watched.
    Funded {
        /// The funding output.
        outpoint: OutPoint,
    },
    /// This much of what the payer paid counts, over the life of the channel. Only ever grows.
    Credited {
        /// The running total, in sat.
        total: Amount,
    },
    /// Up to this much would count at the present depth.
    LimitChanged {
        /// Highest running total credited.
        limit: Amount,
    },
    /// The unconfirmed funding has stood long enough: ask the node's budget and answer with
    /// [`Input::ZeroConfGranted`].
    ZeroConfDue {
        /// The most this channel may be granted.
        want: Amount,
    },
    /// The funding is confirmed: give the grant, if there was one, back to the budget.
    ZeroConfReleased,
    /// The funding was lost while a grant was out: the budget keeps it counted for a while.
    ZeroConfLost,
    /// The funding is being replaced or was evicted: stop service; nothing more is credited until
    /// it is seen again.
    FundingLost,
    /// The expiry is near: end service on this channel. Vouchers that pay for service already
    /// given are still taken until the close.
    ServiceStopped,
    /// The close must be broadcast: answer with [`Input::CloseAsked`]. Repeated with every block
    /// until done.
    CloseDue {
        /// What is at stake.
        held: Amount,
        /// Blocks left until the payer's refund is valid too; zero if it is.
        blocks_left: u32,
    },
    /// This close is on its way.
    Closing {
        /// The transaction.
        txid: Txid,
    },
    /// The funding output is being spent.
    Ending {
        /// How.
        end: End,
    },
    /// It is spent and buried.
    Settled(Settlement),
    /// Nothing came of it; no money was in it, or it was double-spent for good.
    Abandoned,
}

/// Why an input was not taken. The machine is as before and has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The message does not belong here: another channel, or another state. Theirs.
    #[error("unexpected message of kind {kind:?}")]
    Unexpected {
        /// What it was.
        kind: super::message::Kind,
    },
    /// The funding is not what was agreed. Theirs.
    #[error("wrong funding: {0}")]
    Funding(#[from] FundingError),
    /// The voucher is invalid. Theirs.
    #[error("invalid voucher: {0}")]
    Voucher(#[from] VoucherError),
    /// The first voucher pays less than was agreed. Theirs.
    #[error("the first voucher pays {got}, agreed were {min}")]
    BelowFirst {
        /// What it pays.
        got: Amount,
        /// What was agreed.
        min: Amount,
    },
    /// The channel is being closed; a voucher comes too late. Theirs, but innocent.
    #[error("the channel is closing")]
    Closing,
    /// The channel cannot be closed. Ours.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// The channel is funded and cannot be abandoned.
    #[error("the channel is funded")]
    Funded,
}

impl Error {
    /// What to tell the payer, for errors that are theirs.
    pub const fn refusal(&self) -> Option<RefusalCode> {
        match self {
            Self::Unexpected { .. } => Some(RefusalCode::Unknown),
            Self::Funding(_) => Some(RefusalCode::Funding),
            Self::Voucher(_) | Self::BelowFirst { .. } => Some(RefusalCode::Voucher),
            Self::Closing => Some(RefusalCode::Closing),
            Self::Close(_) | Self::Funded => None,
        }
    }
}

/// Why the channel is not closed. Nothing was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CloseError {
    /// There is no voucher to close with, or the channel has ended.
    #[error("there is nothing to close with")]
    NothingHeld,
    /// The transaction cannot be made.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Why records do not make a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// The first record is not [`Fact::Agreed`].
    #[error("the records do not begin with the agreement")]
    NoAgreement,
    /// The key is not the one the channel was agreed with.
    #[error("the key is not the channel's")]
    Key,
    /// A record does not follow from those before it.
    #[error("record {index} does not follow from those before it")]
    Record {
        /// Its place, from zero.
        index: usize,
    },
}

/// Where the payee stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Waiting for the funding.
    Accepted,
    /// The funding is known and not confirmed.
    Seen,
    /// It is confirmed, and not yet deep enough for everything to be credited.
    Confirming,
    /// Everything that is paid is credited.
    Open,
    /// The funding is being replaced or was evicted.
    Conflicted,
    /// A close is made, or the output is being spent.
    Closing,
    /// Spent and buried.
    Settled,
    /// Nothing came of it.
    Abandoned,
}

/// The payee's end of one channel.
#[derive(Debug)]
pub struct Payee {
    policy: PayeePolicy,
    keypair: Keypair,
    contract: Contract,
    state: State,
    tip: Option<BlockHeight>,
    /// Set after a restart until the first tip: a payee that comes back late closes at once.
    is_returning: bool,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum State {
    Accepted,
    Funded(Box<Funded>),
    Settled {
        settlement: Settlement,
        held: Amount,
    },
    Abandoned,
}

#[derive(Debug)]
struct Funded {
    tranche: Tranche,
    funding: Transaction,
    held: Option<Voucher>,
    credited: Amount,
    chain: Chain,
    /// The limit last told to the payer and the node.
    told_limit: Amount,
    has_stopped: bool,
    close: Option<Transaction>,
    spent: Option<Spend>,
}

/// What our chain source last said of the funding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chain {
    Unseen,
    Mempool {
        since: Instant,
        is_sound: bool,
        grant: Grant,
    },
    Confirmed {
        confirmations: u32,
    },
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    /// Not old enough to ask.
    Young,
    /// The budget was asked.
    Asked,
    /// The budget's answer.
    Given(Amount),
}

#[derive(Debug)]
struct Spend {
    settlement: Settlement,
    is_mined: bool,
}

/// What a payee is told along with a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The chain we are on.
    pub network: Network,
    /// Who they and we are, as authenticated.
    pub parties: Parties,
    /// The least the first voucher must pay; see [`tx::min_first_payment`].
    pub min_first: Amount,
    /// The chain's tip.
    pub tip: BlockHeight,
    /// Derivation index of the channel key; never used for another channel.
    pub key_index: u32,
}

impl Payee {
    /// Accepts a proposal. `keypair` is the channel key of `acceptance.key_index`.
    ///
    /// A proposal already accepted has its machine: give the [`Open`] to that, and it answers as it
    /// did before.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError`] if the policy does not allow it; tell the payer its
    /// [`refusal`](OpenError::refusal). The key index may be used for another proposal then.
    pub fn accept(
        open: Open,
        acceptance: &Acceptance,
        keypair: Keypair,
        policy: PayeePolicy,
    ) -> Result<Self, OpenError> {
        let Acceptance {
            network,
            parties,
            min_first,
            tip,
            key_index,
        } = *acceptance;
        policy.check(&open, network, parties, min_first, tip)?;
        let accept = Accept {
            proposal: open.proposal(),
            payee_key: keypair.x_only_public_key().0,
            min_first,
            exposure: policy.exposure.clone(),
        };
        let contract =
            Contract::new(open.clone(), accept.clone()).map_err(|_| OpenError::SameKey)?;
        let mut payee = Self::new(contract, keypair, policy);
        payee.tip = Some(tip);
        payee.persist(Fact::Agreed {
            open,
            accept: accept.clone(),
            key_index,
        });
        payee
            .outputs
            .push_back(Output::Send(Message::Accept(accept)));
        Ok(payee)
    }

    /// Rebuilds the machine from the records of one proposal, in the order they were written, and
    /// queues what has to be done again: watching and broadcasting. The first
    /// [`Input::TipChanged`] may then ask for a close at once.
    ///
    /// Vouchers are trusted as recorded: the journal guards them with a checksum, and a close
    /// verifies the one it uses.
    ///
    /// # Errors
    ///
    /// Returns [`RestoreError`] if the records or the key do not belong together.
    pub fn restore(
        records: impl IntoIterator<Item = Record>,
        keypair: Keypair,
        policy: PayeePolicy,
    ) -> Result<Self, RestoreError> {
        let mut records = records.into_iter().enumerate();
        let Some((
            _,
            Record {
                fact: Fact::Agreed { open, accept, .. },
                proposal,
            },
        )) = records.next()
        else {
            return Err(RestoreError::NoAgreement);
        };
        let contract = Contract::new(open, accept).map_err(|_| RestoreError::NoAgreement)?;
        if contract.proposal() != proposal {
            return Err(RestoreError::NoAgreement);
        }
        if contract.accept().payee_key != keypair.x_only_public_key().0 {
            return Err(RestoreError::Key);
        }
        let mut payee = Self::new(contract, keypair, policy);
        payee.is_returning = true;
        for (index, record) in records {
            let is_ours = record.proposal == proposal;
            if !is_ours || !payee.replay(record.fact) {
                return Err(RestoreError::Record { index });
            }
        }
        payee.resume();
        Ok(payee)
    }

    fn new(contract: Contract, keypair: Keypair, policy: PayeePolicy) -> Self {
        Self {
            policy,
            keypair,
            contract,
            state: State::Accepted,
            tip: None,
            is_returning: false,
            outputs: VecDeque::new(),
        }
    }

    /// Applies one record; `false` if it does not follow.
    fn replay(&mut self, fact: Fact) -> bool {
        let state = std::mem::replace(&mut self.state, State::Abandoned);
        let next = match (state, fact) {
            (
                State::Accepted,
                Fact::Funded {
                    tranche, tx, vout, ..
                },
            ) if tranche == TrancheIndex::FIRST => match self.contract.fund(&tx, vout) {
                Ok(tranche) => State::Funded(Box::new(Funded::new(tranche, *tx))),
                Err(_) => return false,
            },
            (
                State::Funded(mut funded),
                Fact::Held {
                    tranche,
                    total,
                    signature,
                },
            ) if tranche == TrancheIndex::FIRST
                && total > funded.held_total()
                && funded.tranche.legal(total).is_ok() =>
            {
                let channel = self.contract.id();
                funded.held = Some(Voucher {
                    channel,
                    tranche,
                    total,
                    signature,
                });
                State::Funded(funded)
            }
            (State::Funded(mut funded), Fact::Closing { tx }) => {
                funded.close = Some(*tx);
                State::Funded(funded)
            }
            (State::Funded(funded), Fact::Settled(settlement)) => State::Settled {
                settlement,
                held: funded.held_total(),
            },
            (State::Accepted | State::Funded(_), Fact::Abandoned) => State::Abandoned,
            _ => return false,
        };
        self.state = next;
        true
    }

    /// Queues what a crash may have kept from being done.
    fn resume(&mut self) {
        let State::Funded(funded) = &self.state else {
            return;
        };
        let watch = funded.watch();
        let funding = Output::Broadcast(Box::new(funded.funding.clone()));
        let close = funded
            .close
            .clone()
            .map(|tx| Output::Broadcast(Box::new(tx)));
        self.outputs.extend([watch, funding]);
        self.outputs.extend(close);
    }

    /// Takes an input.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if it is refused; nothing changed and nothing is queued. Tell the payer
    /// the [`refusal`](Error::refusal) if there is one.
    pub fn handle(&mut self, input: Input, now: Instant) -> Result<(), Error> {
        match input {
            Input::Received(message) => return self.receive(message),
            Input::Reconnected => self.tell_depth(),
            Input::TipChanged(tip) => self.tip_changed(tip),
            Input::FundingSeen(sighting) => self.seen(sighting, now),
            Input::FundingConfirmed { confirmations } => self.confirmed(confirmations),
            Input::FundingDropped => self.lost(),
            Input::FundingConflicted { confirmations } => {
                self.lost();
                if confirmations >= FINAL_DEPTH && matches!(self.state, State::Funded(_)) {
                    self.abandon();
                }
            }
            Input::ZeroConfGranted { limit } => self.granted(limit),
            Input::Spent { tx, height } => self.spent(&tx, height),
            Input::Unspent => {
                if let State::Funded(funded) = &mut self.state {
                    funded.spent = None;
                }
            }
            Input::CloseAsked { payout, feerate } => self.close(&payout, feerate)?,
            Input::AbandonAsked => match self.state {
                State::Accepted => self.abandon(),
                State::Funded(_) | State::Settled { .. } => return Err(Error::Funded),
                State::Abandoned => {}
            },
        }
        Ok(())
    }

    /// The next thing to do, in order. `None` when there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called: when unconfirmed funding
    /// is old enough to count.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let State::Funded(funded) = &self.state else {
            return None;
        };
        match funded.chain {
            Chain::Mempool {
                since,
                is_sound: true,
                grant: Grant::Young,
            } if self.zero_conf_limit() > Amount::ZERO => {
                since.checked_add(self.policy.min_mempool_age)
            }
            Chain::Unseen | Chain::Mempool { .. } | Chain::Confirmed { .. } | Chain::Lost => None,
        }
    }

    /// Asks the budget for unconfirmed funding that is old enough. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        let want = self.zero_conf_limit();
        if let State::Funded(funded) = &mut self.state
            && let Chain::Mempool { grant, .. } = &mut funded.chain
        {
            *grant = Grant::Asked;
            self.notify(Event::ZeroConfDue { want });
        }
    }

    fn receive(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Open(open) if open == *self.contract.open() => {
                let accept = self.contract.accept().clone();
                self.outputs
                    .push_back(Output::Send(Message::Accept(accept)));
                Ok(())
            }
            Message::Funding(funding) => self.funding_received(*funding),
            Message::Voucher(voucher) => self.voucher_received(voucher),
            Message::Open(_) | Message::Accept(_) | Message::Depth(_) | Message::Refused(_) => {
                Err(Error::Unexpected {
                    kind: message.kind(),
                })
            }
        }
    }

    fn funding_received(&mut self, funding: Funding) -> Result<(), Error> {
        let unexpected = Error::Unexpected {
            kind: super::message::Kind::Funding,
        };
        if funding.channel != self.contract.id() || funding.tranche != TrancheIndex::FIRST {
            return Err(unexpected);
        }
        match &self.state {
            State::Accepted => {}
            State::Funded(funded) if funded.funding == funding.tx => {
                self.tell_depth();
                return Ok(());
            }
            State::Funded(_) | State::Settled { .. } | State::Abandoned => return Err(unexpected),
        }
        let Funding { tx, vout, .. } = funding;
        let tranche = self.contract.fund(&tx, vout)?;
        let outpoint = tranche.outpoint();
        let funded = Funded::new(tranche, tx.clone());
        let watch = funded.watch();
        self.state = State::Funded(Box::new(funded));
        let tx = Box::new(tx);
        let (tranche, fee) = (TrancheIndex::FIRST, Amount::ZERO);
        self.persist(Fact::Funded {
            tranche,
            tx: tx.clone(),
            vout,
            fee,
        });
        self.outputs.extend([watch, Output::Broadcast(tx)]);
        self.notify(Event::Funded { outpoint });
        self.tell_depth();
        Ok(())
    }

    fn voucher_received(&mut self, voucher: Voucher) -> Result<(), Error> {
        let min = self.contract.accept().min_first;
        let State::Funded(funded) = &mut self.state else {
            return Err(Error::Unexpected {
                kind: super::message::Kind::Voucher,
            });
        };
        let held = funded.held_total();
        if voucher.channel == funded.tranche.channel()
            && voucher.tranche == funded.tranche.index()
            && voucher.total <= held
        {
            // Replayed or stale: worth nothing, and the answer shows what is held.
            self.tell_depth();
            return Ok(());
        }
        if funded.close.is_some() || funded.spent.is_some() {
            return Err(Error::Closing);
        }
        if voucher.total < min {
            return Err(Error::BelowFirst {
                got: voucher.total,
                min,
            });
        }
        funded.tranche.verify(&voucher)?;
        funded.held = Some(voucher);
        let Voucher {
            tranche,
            total,
            signature,
            ..
        } = voucher;
        self.persist(Fact::Held {
            tranche,
            total,
            signature,
        });
        self.credit();
        self.tell_depth();
        Ok(())
    }

    fn seen(&mut self, sighting: Sighting, now: Instant) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let is_sound = sighting.is_sound();
        funded.chain = match funded.chain {
            // What was granted stays: the rule guards the decision to trust, not its memory.
            Chain::Mempool { since, grant, .. } => Chain::Mempool {
                since,
                is_sound,
                grant,
            },
            Chain::Unseen | Chain::Confirmed { .. } | Chain::Lost => Chain::Mempool {
                since: now,
                is_sound,
                grant: Grant::Young,
            },
        };
        self.limit_may_have_changed();
        self.handle_timeout(now);
    }

    fn confirmed(&mut self, confirmations: u32) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let was = std::mem::replace(&mut funded.chain, Chain::Confirmed { confirmations });
        if !matches!(was, Chain::Confirmed { .. }) {
            self.notify(Event::ZeroConfReleased);
        }
        self.limit_may_have_changed();
    }

    fn lost(&mut self) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let was = std::mem::replace(&mut funded.chain, Chain::Lost);
        if was == Chain::Lost {
            return;
        }
        if was.has_asked() {
            self.notify(Event::ZeroConfLost);
        }
        self.notify(Event::FundingLost);
        self.limit_may_have_changed();
    }

    fn granted(&mut self, limit: Amount) {
        let most = self.zero_conf_limit();
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        if let Chain::Mempool {
            grant: grant @ Grant::Asked,
            ..
        } = &mut funded.chain
        {
            *grant = Grant::Given(limit.min(most));
            self.limit_may_have_changed();
        }
    }

    fn limit_may_have_changed(&mut self) {
        let limit = self.limit();
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        if funded.told_limit != limit {
            funded.told_limit = limit;
            self.notify(Event::LimitChanged { limit });
            self.tell_depth();
        }
        self.credit();
    }

    /// Credits what is held and allowed, if that is more than before.
    fn credit(&mut self) {
        let limit = self.limit();
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let total = funded.held_total().min(limit);
        if total > funded.credited {
            funded.credited = total;
            self.notify(Event::Credited { total });
        }
    }

    fn tip_changed(&mut self, tip: BlockHeight) {
        self.tip = Some(tip);
        let expiry = self.contract.open().expiry;
        let phase = self.policy.margins.phase(expiry, tip);
        let is_returning = std::mem::replace(&mut self.is_returning, false);
        match &mut self.state {
            State::Accepted if phase >= Phase::Stop => self.abandon(),
            State::Accepted | State::Settled { .. } | State::Abandoned => {}
            State::Funded(funded) => {
                let (is_ending, held) = (funded.spent.is_some(), funded.held_total());
                let is_due = phase >= Phase::Close || (is_returning && phase >= Phase::Stop);
                let is_open = funded.close.is_none() && !is_ending;
                let has_news = phase >= Phase::Stop && !funded.has_stopped;
                funded.has_stopped |= has_news;
                let is_buried = funded.spent.as_ref().is_some_and(|spend| {
                    spend.is_mined && spend.settlement.height.blocks_until(tip) + 1 >= FINAL_DEPTH
                });
                let rebroadcast = funded.close.clone().filter(|_| !is_ending);
                if has_news {
                    self.notify(Event::ServiceStopped);
                }
                if let Some(close) = rebroadcast {
                    self.outputs.push_back(Output::Broadcast(Box::new(close)));
                }
                if is_due && is_open && held > Amount::ZERO {
                    let blocks_left = tip.blocks_until(expiry);
                    self.notify(Event::CloseDue { held, blocks_left });
                }
                if is_buried {
                    self.settle();
                }
            }
        }
    }

    fn close(&mut self, payout: &ScriptBuf, feerate: FeeRate) -> Result<(), CloseError> {
        let State::Funded(funded) = &mut self.state else {
            return Err(CloseError::NothingHeld);
        };
        let Some(voucher) = &funded.held else {
            return Err(CloseError::NothingHeld);
        };
        if funded.spent.as_ref().is_some_and(|spend| spend.is_mined) {
            return Err(CloseError::NothingHeld);
        }
        let tx = tx::commitment(&funded.tranche, voucher, &self.keypair, payout, feerate)?;
        funded.close = Some(tx.clone());
        let txid = tx.compute_txid();
        let tx = Box::new(tx);
        self.persist(Fact::Closing { tx: tx.clone() });
        self.outputs.push_back(Output::Broadcast(tx));
        self.notify(Event::Closing { txid });
        self.limit_may_have_changed();
        Ok(())
    }

    fn spent(&mut self, tx: &Transaction, height: Option<BlockHeight>) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let Some(settlement) = funded.tranche.settlement(tx, height) else {
            return;
        };
        let is_news = funded
            .spent
            .as_ref()
            .is_none_or(|s| s.settlement.txid != settlement.txid);
        funded.spent = Some(Spend {
            settlement,
            is_mined: height.is_some(),
        });
        if is_news {
            self.notify(Event::Ending {
                end: settlement.end,
            });
            self.limit_may_have_changed();
        }
        if let Some(tip) = self.tip {
            self.tip_changed(tip);
        }
    }

    fn settle(&mut self) {
        let State::Funded(funded) = &self.state else {
            return;
        };
        let Some(Spend { settlement, .. }) = funded.spent else {
            return;
        };
        self.state = State::Settled {
            settlement,
            held: funded.held_total(),
        };
        self.persist(Fact::Settled(settlement));
        self.notify(Event::Settled(settlement));
    }

    fn abandon(&mut self) {
        self.state = State::Abandoned;
        self.persist(Fact::Abandoned);
        self.notify(Event::Abandoned);
    }

    fn persist(&mut self, fact: Fact) {
        let proposal = self.contract.proposal();
        self.outputs
            .push_back(Output::Persist(Record { proposal, fact }));
    }

    fn notify(&mut self, event: Event) {
        self.outputs.push_back(Output::Notify(event));
    }

    fn tell_depth(&mut self) {
        let limit = self.limit();
        let State::Funded(funded) = &self.state else {
            return;
        };
        let confirmations = match funded.chain {
            Chain::Confirmed { confirmations } => confirmations,
            Chain::Unseen | Chain::Mempool { .. } | Chain::Lost => 0,
        };
        self.outputs.push_back(Output::Send(Message::Depth(Depth {
            channel: self.contract.id(),
            tranche: funded.tranche.index(),
            confirmations,
            limit,
            held: funded
                .held
                .map(|voucher| (voucher.total, voucher.signature)),
        })));
    }

    fn zero_conf_limit(&self) -> Amount {
        self.contract.accept().exposure.limit(0)
    }

    /// The id records are filed under.
    pub const fn proposal(&self) -> ProposalId {
        self.contract.proposal()
    }

    /// The channel's id.
    pub const fn channel(&self) -> ChannelId {
        self.contract.id()
    }

    /// What both agreed.
    pub const fn contract(&self) -> &Contract {
        &self.contract
    }

    /// Where it stands.
    pub fn stage(&self) -> Stage {
        let funded = match &self.state {
            State::Accepted => return Stage::Accepted,
            State::Settled { .. } => return Stage::Settled,
            State::Abandoned => return Stage::Abandoned,
            State::Funded(funded) => funded,
        };
        if funded.close.is_some() || funded.spent.is_some() {
            return Stage::Closing;
        }
        match funded.chain {
            Chain::Unseen | Chain::Mempool { .. } => Stage::Seen,
            Chain::Lost => Stage::Conflicted,
            Chain::Confirmed { confirmations } => {
                match confirmations >= self.contract.accept().exposure.final_depth() {
                    true => Stage::Open,
                    false => Stage::Confirming,
                }
            }
        }
    }

    /// The funded tranche, from the funding until the end is buried.
    pub fn tranche(&self) -> Option<&Tranche> {
        match &self.state {
            State::Funded(funded) => Some(&funded.tranche),
            State::Accepted | State::Settled { .. } | State::Abandoned => None,
        }
    }

    /// The best running total held, credited or not.
    pub fn held(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.held_total(),
            State::Settled { held, .. } => *held,
            State::Accepted | State::Abandoned => Amount::ZERO,
        }
    }

    /// The best voucher.
    pub fn voucher(&self) -> Option<Voucher> {
        match &self.state {
            State::Funded(funded) => funded.held,
            State::Accepted | State::Settled { .. } | State::Abandoned => None,
        }
    }

    /// The running total that counts as paid. Starts at zero again after a restart, until the
    /// chain source has reported the funding.
    pub fn credited(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.credited,
            State::Settled { .. } | State::Accepted | State::Abandoned => Amount::ZERO,
        }
    }

    /// The highest running total that would be credited now. Zero where nothing more is.
    pub fn limit(&self) -> Amount {
        let State::Funded(funded) = &self.state else {
            return Amount::ZERO;
        };
        if funded.close.is_some() || funded.spent.is_some() {
            return Amount::ZERO;
        }
        let exposure = &self.contract.accept().exposure;
        let limit = match funded.chain {
            Chain::Unseen | Chain::Lost => Amount::ZERO,
            Chain::Mempool {
                grant: Grant::Given(limit),
                ..
            } => limit,
            Chain::Mempool { .. } => Amount::ZERO,
            Chain::Confirmed { confirmations } => exposure.limit(confirmations),
        };
        limit.min(funded.tranche.capacity())
    }

    /// Whether new sessions may be paid on this channel: it is funded, not ending, and not near
    /// its expiry.
    pub fn is_serving(&self) -> bool {
        let State::Funded(funded) = &self.state else {
            return false;
        };
        let phase = self
            .tip
            .map(|tip| self.policy.margins.phase(self.contract.open().expiry, tip));
        phase.is_some_and(|phase| phase < Phase::Stop)
            && funded.close.is_none()
            && funded.spent.is_none()
            && funded.chain != Chain::Lost
    }

    /// Whether deeper confirmations would still change anything.
    pub fn wants_depth(&self) -> bool {
        matches!(
            self.stage(),
            Stage::Seen | Stage::Confirming | Stage::Conflicted
        )
    }

    /// How it ended, once that is buried.
    pub const fn settlement(&self) -> Option<Settlement> {
        match &self.state {
            State::Settled { settlement, .. } => Some(*settlement),
            State::Accepted | State::Funded(_) | State::Abandoned => None,
        }
    }
}

impl Funded {
    fn new(tranche: Tranche, funding: Transaction) -> Self {
        Self {
            tranche,
            funding,
            held: None,
            credited: Amount::ZERO,
            chain: Chain::Unseen,
            told_limit: Amount::ZERO,
            has_stopped: false,
            close: None,
            spent: None,
        }
    }

    fn held_total(&self) -> Amount {
        self.held.map_or(Amount::ZERO, |voucher| voucher.total)
    }

    fn watch(&self) -> Output {
        Output::Watch {
            outpoint: self.tranche.outpoint(),
            script: self.tranche.scripts().output().clone(),
            funding: Box::new(self.funding.clone()),
        }
    }
}

impl Chain {
    /// Whether the budget was asked while the funding was unconfirmed.
    const fn has_asked(self) -> bool {
        matches!(
            self,
            Self::Mempool {
                grant: Grant::Asked | Grant::Given(_),
                ..
            }
        )
    }
}
