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

mod machine;

use bitcoin::{Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use thiserror::Error;

use super::deadline::BlockHeight;
use super::message::{Kind, Message, RefusalCode};
use super::params::{FundingError, Parties};
use super::record::{End, Record, Settlement};
use super::split::CloseFailure;
use super::tx::BuildError;
use super::voucher::VoucherError;
use super::{ChannelId, ProposalId};

pub use self::machine::Payee;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The payer said something.
    Received(Message),
    /// The payer can be reached again: it is told where things stand.
    Reconnected,
    /// The chain's best block is at this height. Feed it once the chain source has caught up, and
    /// then with every block: the first after a restart decides whether to close at once.
    TipChanged(BlockHeight),
    /// The funding is in our own mempool. Feed it again when one of the facts changes.
    FundingSeen(Sighting),
    /// The funding is in our own mempool, all it spends is confirmed, and it is a rollover of ours: nothing
    /// can displace it but what we sign ourselves, as long as the channel it carries over has not expired.
    RolloverSeen,
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
    /// Like [`Spent`](Self::Spent), by a batch.
    SpentInBatch {
        /// What spent it.
        tx: Box<Transaction>,
        /// The height of its block.
        height: Option<BlockHeight>,
        /// What its inputs hold in all
        /// ([`Outputs::spent_in`](super::closing::Outputs::spent_in)), from which follows what of
        /// its fee this channel bears.
        spent: Amount,
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
    /// The channel ends in this batch ([`commitments`](super::batch::commitments)). Replaces a close
    /// made before, and like [`CloseAsked`](Self::CloseAsked) it ends an attempt to close together.
    CloseInBatch {
        /// Fully signed, with this channel's best voucher.
        tx: Box<Transaction>,
    },
    /// The operator: close together with the payer, at whatever the fee takes. Ends in
    /// [`Event::Closing`] or, within [`CLOSE_PATIENCE`](super::params::CLOSE_PATIENCE), in
    /// [`Event::CloseFailed`].
    TogetherAsked,
    /// The answer to [`Event::CooperationDue`]: like [`TogetherAsked`](Self::TogetherAsked), as long as
    /// the fee takes at most half of what is paid. Else the channel waits for its deadline.
    CooperationAsked,
    /// The answer to [`Event::SplitDue`].
    SplitChosen {
        /// Where the payout goes: an unused pay-to-taproot script of our wallet. The same for every
        /// attempt on this channel, so that a payer that begins many does not use up scripts.
        payout: ScriptBuf,
        /// What to pay the miners.
        feerate: FeeRate,
        /// 32 bytes that were never used before, fresh from the operating system: a nonce is made of
        /// them, and two signatures with one nonce give the key away.
        seed: [u8; 32],
    },
    /// The answer to [`Event::RolloverWanted`]: like [`SplitChosen`](Self::SplitChosen), and the rest goes
    /// into the next channel.
    RolloverChosen {
        /// As in [`SplitChosen`](Self::SplitChosen).
        payout: ScriptBuf,
        /// As in [`SplitChosen`](Self::SplitChosen).
        feerate: FeeRate,
        /// As in [`SplitChosen`](Self::SplitChosen).
        seed: [u8; 32],
        /// The output that funds the next channel ([`Contract::output`](super::params::Contract::output)).
        next: TxOut,
    },
    /// The other answer to [`Event::RolloverWanted`]: there is no such channel to carry over into.
    RolloverUnknown,
    /// What was sent to the payer did not arrive, and there is no connection to it.
    Unreachable,
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
    /// The funding is in no block and no mempool that we know of: stop service; nothing more is
    /// credited until it is found again, as it is after most reorganisations.
    FundingDropped,
    /// Something else spends what the funding spends: end service. Nothing more is credited unless
    /// the funding is found again.
    FundingConflicted,
    /// The funding is there again, after one of the two before.
    FundingFound,
    /// The expiry is near: end service on this channel. Vouchers that pay for service already
    /// given are still taken until the close.
    ServiceStopped,
    /// The channel should be carried over into a new one; service goes on. Repeated with every block
    /// until [`ServiceStopped`](Self::ServiceStopped). It is the payer who begins that; without it the
    /// channel simply runs out.
    RolloverDue {
        /// Blocks left until the payer's refund is valid too.
        blocks_left: u32,
    },
    /// The payer should be asked to end the channel together, which is cheaper for both than what
    /// comes next. Repeated with every block until [`CloseDue`](Self::CloseDue). Answer with
    /// [`Input::CooperationAsked`], now and then; what is not agreed by then is closed alone.
    CooperationDue {
        /// Blocks left until the payer's refund is valid too.
        blocks_left: u32,
    },
    /// The close must be broadcast: answer with [`Input::CloseAsked`], or [`Input::CloseInBatch`]
    /// if others are due too; [`closing::plan`](super::closing::plan) says which, and at what bid,
    /// also in the blocks after. Repeated with every block until a close is made.
    CloseDue {
        /// What is at stake.
        held: Amount,
        /// Blocks left until the payer's refund is valid too; zero if it is.
        blocks_left: u32,
    },
    /// The payer closes together with us: answer with [`Input::SplitChosen`].
    SplitDue,
    /// The payer carries the rest over into another channel, that was agreed on by
    /// [`Renew`](super::message::Renew): answer with [`Input::RolloverChosen`], or
    /// [`Input::RolloverUnknown`]. If it is made, the transaction in [`Output::Broadcast`] funds `next`:
    /// give it that as a [`Funding`](super::message::Funding).
    RolloverWanted {
        /// The next channel.
        next: ChannelId,
    },
    /// An attempt to close together came to nothing. The channel is as it was.
    CloseFailed {
        /// Why.
        failure: CloseFailure,
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
        kind: Kind,
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
    /// A split is being signed, or the funding is out of sight: it has to wait. Theirs, but innocent.
    #[error("the channel is frozen for the moment")]
    Frozen,
    /// The attempt to close together is over, or was never begun. Theirs, but innocent.
    #[error("no such attempt to close together")]
    NoAttempt,
    /// The partial signature is invalid. Theirs.
    #[error("invalid partial signature")]
    Partial,
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
            Self::Frozen => Some(RefusalCode::Busy),
            Self::NoAttempt | Self::Partial => Some(RefusalCode::Attempt),
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
    /// It is being closed, or spent.
    #[error("the channel is ending already")]
    Ending,
    /// The transaction cannot be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The transaction given does not pay out this channel's best voucher.
    #[error("the transaction does not close this channel with its best voucher")]
    Elsewhere,
}

/// Why records do not make a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// The first record is not [`Fact::Agreed`](super::record::Fact::Agreed).
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

/// What a payee is told along with a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The chain we are on.
    pub network: Network,
    /// Who they and we are, as authenticated.
    pub parties: Parties,
    /// The least the first voucher must pay; see [`min_first_payment`](super::tx::min_first_payment).
    pub min_first: Amount,
    /// The chain's tip.
    pub tip: BlockHeight,
    /// Derivation index of the channel key; never used for another channel but one that is carried
    /// over into this.
    pub key_index: u32,
    /// The channel that it is to be funded from, if it was proposed by
    /// [`Renew`](super::message::Renew).
    pub from: Option<ProposalId>,
}
