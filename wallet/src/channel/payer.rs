//! The machine of the side that pays.
//!
//! ```text
//! Proposed ─▶ Negotiated ─▶ Funded ⇄ Open ─▶ Ending ─▶ Settled
//!     │            │           └─▶ Conflicted
//!     └────────────┴─▶ Abandoned
//! ```
//!
//! What the payer can lose: what it promised and was not served for, which is the first payment or
//! one credit window, and the fees. If the payee vanishes, everything promised and unclaimed comes
//! back with the refund.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bitcoin::secp256k1::Keypair;
use bitcoin::{Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction};
use thiserror::Error;

use super::deadline::{BlockHeight, Phase};
use super::message::{Accept, Depth, Funding, Message, Open, RefusalCode, Refused};
use super::params::{
    Contract, ContractError, FINAL_DEPTH, FundingError, Parties, PayerPolicy, Tranche, genesis,
};
use super::record::{End, Fact, Record, Settlement};
use super::tx::{self, BuildError};
use super::voucher::{TotalError, Voucher, VoucherError};
use super::{ChannelId, ProposalId, TrancheIndex};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The payee said something.
    Received(Message),
    /// The payee can be reached again: whatever it has not answered is sent again.
    Reconnected,
    /// The wallet made the transaction [`Output::Fund`] asked for. It must not have been broadcast.
    FundingSigned {
        /// Version 3 and fully signed.
        tx: Box<Transaction>,
        /// What it pays to the miners, for the ledger.
        fee: Amount,
    },
    /// The wallet cannot make it. The channel is abandoned.
    FundingFailed,
    /// At least `total` is to be paid on this channel, over its whole life, in sat.
    Pay {
        /// The running total.
        total: Amount,
    },
    /// The chain's best block is at this height. Feed it at the start and with every block.
    TipChanged(BlockHeight),
    /// Our funding is in the mempool, or has this many confirmations (0 for the mempool).
    FundingDepth {
        /// How many blocks, its own included.
        confirmations: u32,
    },
    /// Our funding left the mempool unconfirmed, without a conflict seen.
    FundingDropped,
    /// Another transaction spends what our funding spends.
    FundingConflicted {
        /// Confirmations of that other transaction, 0 for the mempool.
        confirmations: u32,
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
    /// The operator, or the answer to [`Event::RefundDue`]: take everything back at this fee rate.
    RefundAsked {
        /// What to pay the miners.
        feerate: FeeRate,
    },
}

/// What to do. Perform outputs in order, each before the next is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write this down and make it durable before performing what follows.
    Persist(Record),
    /// Send this to the payee. It may get lost: the machine sends it again when it matters.
    Send(Message),
    /// Make a version 3 transaction from confirmed coins that pays `amount` to `script`; answer
    /// with [`Input::FundingSigned`] or [`Input::FundingFailed`]. Do not broadcast it.
    Fund {
        /// The channel's output script.
        script: ScriptBuf,
        /// The capacity.
        amount: Amount,
    },
    /// Hand this to the chain. That it is known already, or mined, or its inputs are spent, is no
    /// failure: the watcher tells what became of it.
    Broadcast(Box<Transaction>),
    /// Watch this output from now on and report what happens to it.
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
    /// The payee agreed; the channel has its id.
    Negotiated {
        /// The id.
        channel: ChannelId,
        /// The least the first voucher pays.
        min_first: Amount,
    },
    /// The funding is on its way: vouchers can be signed.
    Funded {
        /// The funding output.
        outpoint: OutPoint,
    },
    /// The payee credits up to `limit` now.
    LimitChanged {
        /// Highest running total that counts.
        limit: Amount,
    },
    /// A voucher for `total` is written down and sent. It may be more than was asked for: the
    /// first payment and the dust gap round up, and the difference is credit.
    Paid {
        /// The running total signed for.
        total: Amount,
    },
    /// The payee holds a voucher of ours for `total` that we had forgotten: our records are older
    /// than its. We continue from there.
    CaughtUp {
        /// The running total.
        total: Amount,
    },
    /// The payee refused something.
    Refused {
        /// Why.
        code: RefusalCode,
    },
    /// The funding is gone from the mempool; it is being broadcast again.
    FundingDropped,
    /// The funding is being double-spent by our own wallet, or was reorganised away. Nothing more
    /// is paid until it is seen again.
    FundingConflicted,
    /// Nothing came of it; no money is locked.
    Abandoned,
    /// From here on nothing more may be paid: the expiry is near.
    PaymentsStopped,
    /// The expiry has come and the money can be taken back: answer with [`Input::RefundAsked`].
    /// Repeated with every block until done.
    RefundDue,
    /// The funding output is being spent; nothing more can be paid.
    Ending {
        /// How.
        end: End,
    },
    /// It is spent and buried.
    Settled(Settlement),
}

/// Why an input was not taken. The machine is as before and has nothing to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The message does not belong here: another channel, or another state. Theirs.
    #[error("unexpected message of kind {kind:?}")]
    Unexpected {
        /// What it was.
        kind: super::message::Kind,
    },
    /// The payee's answer does not fit our proposal. Theirs.
    #[error("unacceptable answer: {0}")]
    Contract(#[from] ContractError),
    /// The payee asks for a larger first payment than we agreed to. Theirs.
    #[error("a first payment of {got} is asked for, at most {max} was agreed")]
    MinFirst {
        /// What it asks.
        got: Amount,
        /// What we agreed to.
        max: Amount,
    },
    /// The payee claims to hold a voucher we did not sign. Theirs.
    #[error("claimed voucher: {0}")]
    Claim(VoucherError),
    /// The wallet's transaction does not fund this channel. Ours.
    #[error("wrong funding: {0}")]
    Funding(#[from] FundingError),
    /// The payment cannot be made.
    #[error(transparent)]
    Pay(#[from] PayError),
    /// The refund cannot be made.
    #[error(transparent)]
    Refund(#[from] RefundError),
    /// Nothing was asked of the wallet.
    #[error("no funding was asked for")]
    NotFunding,
}

/// Why a payment is not made. Nothing was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PayError {
    /// The channel is not funded, is ending, or its funding is in conflict.
    #[error("the channel cannot pay in its state")]
    NotOpen,
    /// No tip is known yet, so it cannot be said how near the expiry is.
    #[error("the height of the chain is not known yet")]
    NoTip,
    /// The expiry is too near.
    #[error("no payments from {margin} blocks before the expiry on")]
    Stopped {
        /// How many blocks before.
        margin: u32,
    },
    /// The total is none the channel can pay.
    #[error(transparent)]
    Total(#[from] TotalError),
    /// The payee would not credit it yet; it will when the funding is deeper
    /// ([`Event::LimitChanged`]).
    #[error("the payee credits {limit} at most until the funding is deeper, not {total}")]
    OverLimit {
        /// What was to be paid.
        total: Amount,
        /// What the payee credits.
        limit: Amount,
    },
}

/// Why no refund is made. Nothing was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RefundError {
    /// Nothing is locked, or it is already settled.
    #[error("there is nothing to take back")]
    NotFunded,
    /// The expiry has not come.
    #[error("not before height {expiry}")]
    TooEarly {
        /// The first tip at which it is valid.
        expiry: BlockHeight,
    },
    /// The transaction cannot be made.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Why records do not make a machine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// The first record is not [`Fact::Proposed`].
    #[error("the records do not begin with the proposal")]
    NoProposal,
    /// The key is not the one the channel was proposed with.
    #[error("the key is not the channel's")]
    Key,
    /// A record does not follow from those before it.
    #[error("record {index} does not follow from those before it")]
    Record {
        /// Its place, from zero.
        index: usize,
    },
}

/// A channel to propose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Random.
    pub nonce: [u8; 16],
    /// The chain to fund on.
    pub network: Network,
    /// Who we and they are.
    pub parties: Parties,
    /// What to lock.
    pub capacity: Amount,
    /// When it can be taken back.
    pub expiry: BlockHeight,
    /// Where change and refund go: an unused pay-to-taproot script of our wallet.
    pub change_script: ScriptBuf,
    /// The largest first payment we agree to, as the user was told.
    pub max_min_first: Amount,
    /// Derivation index of the channel key; never used for another channel.
    pub key_index: u32,
}

/// Where the payer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Waiting for the payee's answer.
    Proposed,
    /// Waiting for the wallet's transaction.
    Negotiated,
    /// The funding is made and not confirmed.
    Funded,
    /// The funding is confirmed.
    Open,
    /// The funding is in conflict; nothing is paid.
    Conflicted,
    /// The funding output is being spent.
    Ending,
    /// Spent and buried.
    Settled,
    /// Nothing came of it.
    Abandoned,
}

/// The payer's end of one channel.
#[derive(Debug)]
pub struct Payer {
    policy: PayerPolicy,
    keypair: Keypair,
    open: Open,
    proposal: ProposalId,
    max_min_first: Amount,
    state: State,
    tip: Option<BlockHeight>,
    resend: Resend,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum State {
    Proposed,
    Negotiated(Box<Contract>),
    Funded(Box<Funded>),
    Settled {
        contract: Box<Contract>,
        settlement: Settlement,
        promised: Amount,
    },
    Abandoned,
}

#[derive(Debug)]
struct Funded {
    contract: Contract,
    tranche: Tranche,
    funding: Transaction,
    promised: Amount,
    /// The best total the payee has shown to hold.
    acknowledged: Amount,
    /// What the payee last said it credits.
    limit: Amount,
    /// Whether the payee has said anything about the funding.
    is_seen_by_payee: bool,
    /// Whether a payment was refused for want of limit, so that the payee is asked again.
    wants_limit: bool,
    has_stopped: bool,
    chain: Chain,
    refund: Option<Transaction>,
    spent: Option<Spend>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chain {
    Unconfirmed,
    Confirmed,
    Conflicted,
}

#[derive(Debug)]
struct Spend {
    settlement: Settlement,
    is_mined: bool,
}

/// When to repeat what was not answered.
#[derive(Debug, Default)]
struct Resend {
    at: Option<Instant>,
    wait: Duration,
}

impl Payer {
    /// Proposes a channel. `keypair` is the channel key of `proposal.key_index`.
    pub fn propose(
        proposal: Proposal,
        keypair: Keypair,
        policy: PayerPolicy,
        now: Instant,
    ) -> Self {
        let open = Open {
            nonce: proposal.nonce,
            chain: genesis(proposal.network),
            payer: proposal.parties.payer,
            payee: proposal.parties.payee,
            payer_key: keypair.x_only_public_key().0,
            capacity: proposal.capacity,
            expiry: proposal.expiry,
            change_script: proposal.change_script,
        };
        let fact = Fact::Proposed {
            open: open.clone(),
            key_index: proposal.key_index,
            max_min_first: proposal.max_min_first,
        };
        let mut payer = Self::new(open, proposal.max_min_first, keypair, policy);
        payer.persist(fact);
        payer.send_pending(now);
        payer
    }

    /// Rebuilds the machine from the records of one proposal, in the order they were written, and
    /// queues what has to be done again: watching, broadcasting, asking the wallet, and sending the
    /// last message that may not have arrived.
    ///
    /// # Errors
    ///
    /// Returns [`RestoreError`] if the records or the key do not belong together.
    pub fn restore(
        records: impl IntoIterator<Item = Record>,
        keypair: Keypair,
        policy: PayerPolicy,
        now: Instant,
    ) -> Result<Self, RestoreError> {
        let mut records = records.into_iter().enumerate();
        let Some((
            _,
            Record {
                fact:
                    Fact::Proposed {
                        open,
                        max_min_first,
                        ..
                    },
                proposal,
            },
        )) = records.next()
        else {
            return Err(RestoreError::NoProposal);
        };
        if open.proposal() != proposal {
            return Err(RestoreError::NoProposal);
        }
        if open.payer_key != keypair.x_only_public_key().0 {
            return Err(RestoreError::Key);
        }
        let mut payer = Self::new(open, max_min_first, keypair, policy);
        for (index, record) in records {
            let is_ours = record.proposal == proposal;
            if !is_ours || !payer.replay(record.fact) {
                return Err(RestoreError::Record { index });
            }
        }
        payer.resume(now);
        Ok(payer)
    }

    fn new(open: Open, max_min_first: Amount, keypair: Keypair, policy: PayerPolicy) -> Self {
        Self {
            policy,
            keypair,
            proposal: open.proposal(),
            open,
            max_min_first,
            state: State::Proposed,
            tip: None,
            resend: Resend::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Applies one record; `false` if it does not follow.
    fn replay(&mut self, fact: Fact) -> bool {
        let state = std::mem::replace(&mut self.state, State::Abandoned);
        let next = match (state, fact) {
            (State::Proposed, Fact::Accepted { accept }) => {
                match Contract::new(self.open.clone(), accept) {
                    Ok(contract) => State::Negotiated(Box::new(contract)),
                    Err(_) => return false,
                }
            }
            (
                State::Negotiated(contract),
                Fact::Funded {
                    tranche, tx, vout, ..
                },
            ) if tranche == TrancheIndex::FIRST => match contract.fund(&tx, vout) {
                Ok(tranche) => State::Funded(Box::new(Funded::new(*contract, tranche, *tx))),
                Err(_) => return false,
            },
            (State::Funded(mut funded), Fact::Promised { tranche, total })
                if tranche == TrancheIndex::FIRST
                    && total > funded.promised
                    && funded.tranche.legal(total).is_ok() =>
            {
                funded.promised = total;
                State::Funded(funded)
            }
            (State::Funded(mut funded), Fact::Refunding { tx }) => {
                funded.refund = Some(*tx);
                State::Funded(funded)
            }
            (State::Funded(funded), Fact::Settled(settlement)) => funded.settle(settlement),
            (State::Proposed | State::Negotiated(_) | State::Funded(_), Fact::Abandoned) => {
                State::Abandoned
            }
            _ => return false,
        };
        self.state = next;
        true
    }

    /// Queues what a crash may have kept from being done.
    fn resume(&mut self, now: Instant) {
        match &self.state {
            State::Proposed | State::Settled { .. } | State::Abandoned => {}
            State::Negotiated(contract) => {
                let (script, amount) = (
                    contract.scripts().output().clone(),
                    contract.open().capacity,
                );
                self.outputs.push_back(Output::Fund { script, amount });
            }
            State::Funded(funded) => {
                let watch = funded.watch();
                let funding = Output::Broadcast(Box::new(funded.funding.clone()));
                let refund = funded
                    .refund
                    .clone()
                    .map(|tx| Output::Broadcast(Box::new(tx)));
                self.outputs.extend([watch, funding]);
                self.outputs.extend(refund);
            }
        }
        self.send_pending(now);
    }

    /// Takes an input.
    ///
    /// # Errors
    ///
    /// Returns [`Error`] if it is refused; nothing changed and nothing is queued, except that
    /// [`PayError::OverLimit`] makes the machine ask the payee for its limit after a while.
    pub fn handle(&mut self, input: Input, now: Instant) -> Result<(), Error> {
        match input {
            Input::Received(message) => self.receive(message, now),
            Input::Reconnected => {
                self.resend = Resend::default();
                self.send_pending(now);
                Ok(())
            }
            Input::FundingSigned { tx, fee } => self.funding_signed(*tx, fee, now),
            Input::FundingFailed => match self.state {
                State::Negotiated(_) => {
                    self.abandon();
                    Ok(())
                }
                _ => Err(Error::NotFunding),
            },
            Input::Pay { total } => self.pay(total, now).map_err(Error::from),
            Input::TipChanged(tip) => {
                self.tip_changed(tip);
                Ok(())
            }
            Input::FundingDepth { confirmations } => {
                if let State::Funded(funded) = &mut self.state {
                    funded.chain = match confirmations {
                        0 => Chain::Unconfirmed,
                        _ => Chain::Confirmed,
                    };
                }
                Ok(())
            }
            Input::FundingDropped => {
                self.funding_dropped();
                Ok(())
            }
            Input::FundingConflicted { confirmations } => {
                self.funding_conflicted(confirmations);
                Ok(())
            }
            Input::Spent { tx, height } => {
                self.spent(&tx, height);
                Ok(())
            }
            Input::Unspent => {
                if let State::Funded(funded) = &mut self.state {
                    funded.spent = None;
                }
                Ok(())
            }
            Input::RefundAsked { feerate } => self.refund(feerate).map_err(Error::from),
        }
    }

    /// The next thing to do, in order. `None` when there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.resend.at
    }

    /// Sends again what was not answered in time. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.resend.at.is_some_and(|at| at <= now) {
            self.send_pending(now);
        }
    }

    fn receive(&mut self, message: Message, now: Instant) -> Result<(), Error> {
        match message {
            Message::Accept(accept) => self.accepted(accept),
            Message::Depth(depth) => self.depth(depth, now),
            Message::Refused(refused) => self.refused(refused),
            Message::Open(_) | Message::Funding(_) | Message::Voucher(_) => {
                Err(Error::Unexpected {
                    kind: message.kind(),
                })
            }
        }
    }

    fn accepted(&mut self, accept: Accept) -> Result<(), Error> {
        match &self.state {
            State::Proposed => {}
            State::Negotiated(contract) if *contract.accept() == accept => return Ok(()),
            State::Funded(funded) if *funded.contract.accept() == accept => return Ok(()),
            _ => {
                return Err(Error::Unexpected {
                    kind: super::message::Kind::Accept,
                });
            }
        }
        if accept.min_first > self.max_min_first {
            let (got, max) = (accept.min_first, self.max_min_first);
            return Err(Error::MinFirst { got, max });
        }
        let min_first = accept.min_first;
        let contract = Contract::new(self.open.clone(), accept.clone())?;
        self.persist(Fact::Accepted { accept });
        self.notify(Event::Negotiated {
            channel: contract.id(),
            min_first,
        });
        let (script, amount) = (
            contract.scripts().output().clone(),
            contract.open().capacity,
        );
        self.outputs.push_back(Output::Fund { script, amount });
        self.state = State::Negotiated(Box::new(contract));
        self.answered();
        Ok(())
    }

    fn funding_signed(&mut self, tx: Transaction, fee: Amount, now: Instant) -> Result<(), Error> {
        let State::Negotiated(contract) = &self.state else {
            return Err(Error::NotFunding);
        };
        let script = contract.scripts().output();
        let vout = tx
            .output
            .iter()
            .position(|output| output.script_pubkey == *script);
        let vout = vout
            .and_then(|index| u32::try_from(index).ok())
            .unwrap_or(u32::MAX);
        let tranche = contract.fund(&tx, vout)?;
        let outpoint = tranche.outpoint();
        let funded = Funded::new((**contract).clone(), tranche, tx.clone());
        let watch = funded.watch();
        self.state = State::Funded(Box::new(funded));
        let tx = Box::new(tx);
        self.persist(Fact::Funded {
            tranche: TrancheIndex::FIRST,
            tx: tx.clone(),
            vout,
            fee,
        });
        self.outputs.extend([watch, Output::Broadcast(tx)]);
        self.notify(Event::Funded { outpoint });
        self.send_pending(now);
        Ok(())
    }

    fn depth(&mut self, depth: Depth, now: Instant) -> Result<(), Error> {
        let unexpected = Error::Unexpected {
            kind: super::message::Kind::Depth,
        };
        let State::Funded(funded) = &mut self.state else {
            return Err(unexpected);
        };
        if depth.channel != funded.contract.id() || depth.tranche != funded.tranche.index() {
            return Err(unexpected);
        }
        let mut caught_up = None;
        if let Some((total, signature)) = depth.held {
            if total > funded.promised {
                let (channel, tranche) = (depth.channel, depth.tranche);
                let voucher = Voucher {
                    channel,
                    tranche,
                    total,
                    signature,
                };
                funded.tranche.verify(&voucher).map_err(Error::Claim)?;
                funded.promised = total;
                caught_up = Some(total);
            }
            funded.acknowledged = funded.acknowledged.max(total);
        }
        let is_first = !std::mem::replace(&mut funded.is_seen_by_payee, true);
        let is_new = funded.limit != depth.limit;
        funded.limit = depth.limit;
        if is_new {
            funded.wants_limit = false;
        }
        let (tranche, is_pending) = (funded.tranche.index(), funded.is_pending());
        if let Some(total) = caught_up {
            self.persist(Fact::Promised { tranche, total });
            self.notify(Event::CaughtUp { total });
        }
        if is_new {
            self.notify(Event::LimitChanged { limit: depth.limit });
        }
        if !is_pending {
            self.resend = Resend::default();
        } else if is_first {
            self.resend = Resend::default();
            self.send_pending(now);
        }
        Ok(())
    }

    fn refused(&mut self, refused: Refused) -> Result<(), Error> {
        let unexpected = Error::Unexpected {
            kind: super::message::Kind::Refused,
        };
        let code = refused.code;
        match &self.state {
            State::Proposed if refused.subject == *self.proposal.as_bytes() => {
                self.notify(Event::Refused { code });
                self.abandon();
                Ok(())
            }
            State::Funded(funded) if refused.subject == *funded.contract.id().as_bytes() => {
                self.resend = Resend::default();
                self.notify(Event::Refused { code });
                Ok(())
            }
            _ => Err(unexpected),
        }
    }

    fn pay(&mut self, total: Amount, now: Instant) -> Result<(), PayError> {
        let phase = self.phase();
        let State::Funded(funded) = &mut self.state else {
            return Err(PayError::NotOpen);
        };
        if funded.promised >= total && funded.promised > Amount::ZERO {
            let total = funded.promised;
            self.notify(Event::Paid { total });
            return Ok(());
        }
        if funded.spent.is_some() || funded.refund.is_some() || funded.chain == Chain::Conflicted {
            return Err(PayError::NotOpen);
        }
        if phase.ok_or(PayError::NoTip)? >= Phase::Stop {
            return Err(PayError::Stopped {
                margin: self.policy.margins.stop,
            });
        }
        let min_first = funded.contract.accept().min_first;
        let total = funded.tranche.legal_at_least(total.max(min_first))?;
        // The first payment is owed whatever the depth; beyond it the payee must credit.
        let first = match min_first {
            Amount::ZERO => Amount::ZERO,
            min_first => funded.tranche.legal_at_least(min_first)?,
        };
        let limit = funded.limit.max(first);
        if total > limit {
            funded.wants_limit = true;
            self.arm(now);
            return Err(PayError::OverLimit { total, limit });
        }
        let voucher = funded.tranche.sign(&self.keypair, total)?;
        funded.promised = total;
        funded.wants_limit = false;
        self.persist(Fact::Promised {
            tranche: voucher.tranche,
            total,
        });
        self.outputs
            .push_back(Output::Send(Message::Voucher(voucher)));
        self.notify(Event::Paid { total });
        self.arm(now);
        Ok(())
    }

    fn tip_changed(&mut self, tip: BlockHeight) {
        self.tip = Some(tip);
        let phase = self.phase();
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        if phase >= Some(Phase::Stop) && !funded.has_stopped {
            funded.has_stopped = true;
            self.outputs
                .push_back(Output::Notify(Event::PaymentsStopped));
        }
        if let Some(spend) = &funded.spent {
            let is_buried =
                spend.is_mined && spend.settlement.height.blocks_until(tip) + 1 >= FINAL_DEPTH;
            if is_buried {
                self.settle();
            }
        } else if let Some(refund) = &funded.refund {
            self.outputs
                .push_back(Output::Broadcast(Box::new(refund.clone())));
        } else if phase == Some(Phase::Expired) {
            self.outputs.push_back(Output::Notify(Event::RefundDue));
        }
    }

    fn funding_dropped(&mut self) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        funded.chain = Chain::Unconfirmed;
        let funding = Output::Broadcast(Box::new(funded.funding.clone()));
        self.outputs
            .extend([funding, Output::Notify(Event::FundingDropped)]);
    }

    fn funding_conflicted(&mut self, confirmations: u32) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        if funded.chain != Chain::Conflicted {
            funded.chain = Chain::Conflicted;
            self.outputs
                .push_back(Output::Notify(Event::FundingConflicted));
        }
        if confirmations >= FINAL_DEPTH {
            self.abandon();
        }
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
        self.resend = Resend::default();
        if is_news {
            self.notify(Event::Ending {
                end: settlement.end,
            });
        }
        if let Some(tip) = self.tip {
            self.tip_changed(tip);
        }
    }

    fn settle(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Abandoned);
        let State::Funded(funded) = state else {
            self.state = state;
            return;
        };
        let Some(spend) = &funded.spent else {
            self.state = State::Funded(funded);
            return;
        };
        let settlement = spend.settlement;
        self.state = funded.settle(settlement);
        self.persist(Fact::Settled(settlement));
        self.notify(Event::Settled(settlement));
    }

    fn refund(&mut self, feerate: FeeRate) -> Result<(), RefundError> {
        let phase = self.phase();
        let State::Funded(funded) = &mut self.state else {
            return Err(RefundError::NotFunded);
        };
        if funded.spent.as_ref().is_some_and(|spend| spend.is_mined) {
            return Err(RefundError::NotFunded);
        }
        if phase != Some(Phase::Expired) {
            return Err(RefundError::TooEarly {
                expiry: funded.tranche.expiry(),
            });
        }
        let payout = funded.tranche.change_script();
        let tx = tx::refund(&funded.tranche, &self.keypair, payout, feerate)?;
        funded.refund = Some(tx.clone());
        let tx = Box::new(tx);
        self.persist(Fact::Refunding { tx: tx.clone() });
        self.outputs.push_back(Output::Broadcast(tx));
        Ok(())
    }

    fn abandon(&mut self) {
        self.state = State::Abandoned;
        self.resend = Resend::default();
        self.persist(Fact::Abandoned);
        self.notify(Event::Abandoned);
    }

    fn phase(&self) -> Option<Phase> {
        self.tip
            .map(|tip| self.policy.margins.phase(self.open.expiry, tip))
    }

    fn persist(&mut self, fact: Fact) {
        self.outputs.push_back(Output::Persist(Record {
            proposal: self.proposal,
            fact,
        }));
    }

    fn notify(&mut self, event: Event) {
        self.outputs.push_back(Output::Notify(event));
    }

    /// Sends the last message that is not answered, and arms the clock for the next time.
    fn send_pending(&mut self, now: Instant) {
        let message = match &self.state {
            State::Proposed => Message::Open(self.open.clone()),
            State::Funded(funded) if funded.spent.is_some() => return self.answered(),
            State::Funded(funded) if funded.is_seen_by_payee && funded.promised > Amount::ZERO => {
                match funded.tranche.sign(&self.keypair, funded.promised) {
                    Ok(voucher) => Message::Voucher(voucher),
                    Err(_) => return self.answered(),
                }
            }
            State::Funded(funded) => funded.message(),
            State::Negotiated(_) | State::Settled { .. } | State::Abandoned => {
                return self.answered();
            }
        };
        self.outputs.push_back(Output::Send(message));
        let wait = match self.resend.wait {
            Duration::ZERO => self.policy.resend,
            wait => wait.saturating_mul(2).min(PayerPolicy::MAX_RESEND),
        };
        self.resend = Resend {
            at: now.checked_add(wait),
            wait,
        };
    }

    fn arm(&mut self, now: Instant) {
        if self.resend.at.is_none() {
            let wait = self.policy.resend;
            self.resend = Resend {
                at: now.checked_add(wait),
                wait,
            };
        }
    }

    fn answered(&mut self) {
        self.resend = Resend::default();
    }

    /// The id records are filed under.
    pub const fn proposal(&self) -> ProposalId {
        self.proposal
    }

    /// The proposal as sent.
    pub const fn open(&self) -> &Open {
        &self.open
    }

    /// The channel's id, once the payee agreed.
    pub fn channel(&self) -> Option<ChannelId> {
        self.contract().map(Contract::id)
    }

    /// What both agreed, once they did.
    pub fn contract(&self) -> Option<&Contract> {
        match &self.state {
            State::Negotiated(contract) | State::Settled { contract, .. } => Some(contract),
            State::Funded(funded) => Some(&funded.contract),
            State::Proposed | State::Abandoned => None,
        }
    }

    /// Where it stands.
    pub fn stage(&self) -> Stage {
        match &self.state {
            State::Proposed => Stage::Proposed,
            State::Negotiated(_) => Stage::Negotiated,
            State::Funded(funded) if funded.spent.is_some() || funded.refund.is_some() => {
                Stage::Ending
            }
            State::Funded(funded) => match funded.chain {
                Chain::Unconfirmed => Stage::Funded,
                Chain::Confirmed => Stage::Open,
                Chain::Conflicted => Stage::Conflicted,
            },
            State::Settled { .. } => Stage::Settled,
            State::Abandoned => Stage::Abandoned,
        }
    }

    /// The funded tranche, from the funding until the end is buried.
    pub fn tranche(&self) -> Option<&Tranche> {
        match &self.state {
            State::Funded(funded) => Some(&funded.tranche),
            _ => None,
        }
    }

    /// The running total signed for so far.
    pub fn promised(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.promised,
            State::Settled { promised, .. } => *promised,
            State::Proposed | State::Negotiated(_) | State::Abandoned => Amount::ZERO,
        }
    }

    /// The best running total the payee has shown to hold.
    pub fn acknowledged(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.acknowledged,
            _ => Amount::ZERO,
        }
    }

    /// The highest running total the payee last said it credits.
    pub fn limit(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.limit,
            _ => Amount::ZERO,
        }
    }

    /// What can still be paid over the life of the channel, whatever the payee credits now. Zero
    /// where nothing more may be paid.
    pub fn spendable(&self) -> Amount {
        let is_serving = self.phase().is_some_and(|phase| phase < Phase::Stop);
        match &self.state {
            State::Funded(funded)
                if is_serving
                    && funded.spent.is_none()
                    && funded.refund.is_none()
                    && funded.chain != Chain::Conflicted =>
            {
                funded
                    .tranche
                    .capacity()
                    .checked_sub(funded.promised)
                    .unwrap_or(Amount::ZERO)
            }
            _ => Amount::ZERO,
        }
    }

    /// How it ended, once that is buried.
    pub const fn settlement(&self) -> Option<Settlement> {
        match &self.state {
            State::Settled { settlement, .. } => Some(*settlement),
            _ => None,
        }
    }
}

impl Funded {
    fn new(contract: Contract, tranche: Tranche, funding: Transaction) -> Self {
        Self {
            contract,
            tranche,
            funding,
            promised: Amount::ZERO,
            acknowledged: Amount::ZERO,
            limit: Amount::ZERO,
            is_seen_by_payee: false,
            wants_limit: false,
            has_stopped: false,
            chain: Chain::Unconfirmed,
            refund: None,
            spent: None,
        }
    }

    fn watch(&self) -> Output {
        Output::Watch {
            outpoint: self.tranche.outpoint(),
            script: self.tranche.scripts().output().clone(),
            funding: Box::new(self.funding.clone()),
        }
    }

    fn message(&self) -> Message {
        Message::Funding(Box::new(Funding {
            channel: self.contract.id(),
            tranche: self.tranche.index(),
            tx: self.funding.clone(),
            vout: self.tranche.outpoint().vout,
        }))
    }

    /// Whether something we sent is unanswered, or the payee is to be asked for its limit.
    fn is_pending(&self) -> bool {
        !self.is_seen_by_payee || self.acknowledged < self.promised || self.wants_limit
    }

    fn settle(self, settlement: Settlement) -> State {
        State::Settled {
            contract: Box::new(self.contract),
            settlement,
            promised: self.promised,
        }
    }
}
