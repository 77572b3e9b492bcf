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

mod machine;

use bitcoin::{Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction, Txid};
use thiserror::Error;

use super::deadline::BlockHeight;
use super::message::{Kind, Message, RefusalCode};
use super::params::{Contract, ContractError, FundingError, Parties};
use super::record::{End, Record, Settlement};
use super::split::CloseFailure;
use super::tx::BuildError;
use super::voucher::{TotalError, VoucherError};
use super::{ChannelId, ProposalId};

pub use self::machine::Payer;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The payee said something.
    Received(Message),
    /// The payee can be reached again: whatever it has not answered is sent again.
    Reconnected,
    /// The wallet made the transaction [`Output::Fund`] asked for. It must not have been broadcast. Of a
    /// channel that is carried over from another: the rollover, wherever it was seen.
    FundingSigned {
        /// Version 3 and fully signed.
        tx: Box<Transaction>,
        /// What it pays to the miners, for the ledger.
        fee: Amount,
    },
    /// The wallet cannot make it. The channel is abandoned.
    FundingFailed,
    /// The channel is no longer wanted, or the payee's answer is not acceptable. Refused once it
    /// is funded: then the money comes back by the payee's close or by the refund.
    AbandonAsked,
    /// At least `total` is to be paid on this channel, over its whole life, in sat.
    Pay {
        /// The running total.
        total: Amount,
    },
    /// The chain's best block is at this height. Feed it once the chain source has caught up, and
    /// then with every block.
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
    /// The operator, or the answer to [`Event::CloseWanted`]: close together with the payee. Ends in
    /// [`Event::Closing`] or, within [`CLOSE_PATIENCE`](super::params::CLOSE_PATIENCE), in
    /// [`Event::CloseFailed`].
    TogetherAsked {
        /// Our estimate for the next blocks: the payee's choice is held against it.
        feerate: FeeRate,
        /// 32 bytes that were never used before, fresh from the operating system: a nonce is made of
        /// them, and two signatures with one nonce give the key away.
        seed: [u8; 32],
    },
    /// Carry what is left over into `next`, a channel that was proposed as the one after this
    /// (`from` in its [`Proposal`]) and agreed on. An attempt to close together, and over in the same ways; the
    /// transaction in [`Output::Broadcast`] funds `next`: give it that as
    /// [`FundingSigned`](Self::FundingSigned), with a fee of zero.
    RolloverAsked {
        /// As in [`TogetherAsked`](Self::TogetherAsked).
        feerate: FeeRate,
        /// As in [`TogetherAsked`](Self::TogetherAsked).
        seed: [u8; 32],
        /// The next channel.
        next: Box<Contract>,
    },
    /// What was sent to the payee did not arrive, and there is no connection to it.
    Unreachable,
}

/// What to do. Perform outputs in order, each before the next is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write this down and make it durable before performing what follows.
    Persist(Record),
    /// Send this to the payee. It may get lost: the machine sends it again when it matters.
    Send(Message),
    /// Make a version 3 transaction from confirmed coins that pays `amount` to `script`; answer
    /// with [`Input::FundingSigned`] or [`Input::FundingFailed`]. Do not broadcast it. Never asked for a
    /// channel that is carried over from another.
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
    /// The expiry comes near, and what is left may be carried over into a new channel: propose that, and
    /// answer with [`Input::RolloverAsked`]. Repeated with every block until
    /// [`PaymentsStopped`](Self::PaymentsStopped); without an answer the channel simply runs out.
    RolloverDue {
        /// Blocks left until the refund is valid.
        blocks_left: u32,
    },
    /// From here on nothing more may be paid: the expiry is near.
    PaymentsStopped,
    /// The expiry has come and the money can be taken back: answer with [`Input::RefundAsked`].
    /// Repeated with every block until done.
    RefundDue,
    /// The payee asks to close together, or a close that is half signed is to be tried again: answer
    /// with [`Input::TogetherAsked`].
    CloseWanted,
    /// Our half of a close together is given away: nothing more is paid on this channel, and the
    /// payee may end it at any time.
    HalfSigned {
        /// The running total it pays out.
        total: Amount,
    },
    /// An attempt to close together came to nothing. The channel is as it was; if our half was given
    /// away it stays frozen, and is tried again with the next block or connection.
    CloseFailed {
        /// Why.
        failure: CloseFailure,
    },
    /// Both have signed this close, and it is on its way.
    Closing {
        /// The transaction.
        txid: Txid,
    },
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
        kind: Kind,
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
    /// There is nothing to close together.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// The payee shows a close that we did not sign. Theirs.
    #[error("the close is not signed by both")]
    Signature,
    /// The channel is funded and cannot be abandoned.
    #[error("the channel is funded")]
    Funded,
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
    /// The channel is being closed together; it pays again if that fails.
    #[error("the channel is being closed")]
    Closing,
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

/// Why no attempt to close together is begun. Nothing was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CloseError {
    /// Nothing is locked, or it is already settled.
    #[error("there is nothing to close")]
    NothingLocked,
    /// It is being closed or refunded.
    #[error("the channel is ending already")]
    Ending,
    /// The refund is due.
    #[error("the channel has expired: its refund is due")]
    Expired,
    /// Rollover: nothing was paid, so that there is nothing to settle.
    #[error("nothing was paid on the channel yet: it can be used as it is")]
    Unpaid,
    /// Rollover: another attempt goes on, or its half is given away.
    #[error("the channel is being closed")]
    Closing,
    /// Rollover: the next channel is not made up by what is left, or has another key of the payee's.
    #[error("the next channel does not follow from this one")]
    Next,
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
    /// The first record is not [`Fact::Proposed`](super::record::Fact::Proposed).
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
    /// The channel to fund it from, by a rollover. `None` to fund it from coins of the wallet.
    pub from: Option<ProposalId>,
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
    /// A close is half or fully signed, or the funding output is being spent.
    Ending,
    /// Spent and buried.
    Settled,
    /// Nothing came of it.
    Abandoned,
}
