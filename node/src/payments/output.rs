//! What comes out of the payments room, and what the chain tells it.

use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut};
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::LeaseId;
use bitmesh_market::session::PayFailure;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::closing::{Close, Outputs};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::message::Message;
use bitmesh_wallet::channel::record::Record;
use bitmesh_wallet::channel::split::CloseFailure;
use bitmesh_wallet::channel::{ProposalId, payee, payer};

#[cfg(doc)]
use super::Payments;
use super::RolloverFailure;

/// What to do. Performed in order, each before the next.
#[derive(Debug)]
pub(crate) enum Output {
    /// Make this durable before performing what follows.
    Persist(Record),
    /// Send this to a peer, by whatever way is open. It may get lost.
    Send {
        /// Whom to.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Make a funding transaction and answer with [`Payments::funded`] or
    /// [`Payments::funding_failed`].
    Fund {
        /// For which channel.
        channel: ProposalId,
        /// The script to pay to.
        script: ScriptBuf,
        /// How much.
        amount: Amount,
    },
    /// Every seller of an opening has answered, or has not in time: look at
    /// [`Payments::take_opening`], make one transaction that funds those that agreed, and answer with
    /// [`Payments::funded_together`], or for each with [`Payments::funding_failed`].
    FundTogether {
        /// Which.
        opening: u64,
    },
    /// Hand this to the chain.
    Broadcast(Box<Transaction>),
    /// Watch this output and report what happens to it.
    Watch {
        /// For which channel.
        channel: ProposalId,
        /// The funding output.
        outpoint: OutPoint,
        /// Its script.
        script: ScriptBuf,
        /// The transaction that makes it.
        funding: Box<Transaction>,
    },
    /// The deadline of these channels has come, or more has to be bid for their close: answer with
    /// [`Payments::close_due`].
    CloseDue {
        /// Which, and at what fee rate.
        close: Close,
        /// Where to; a fresh script of the wallet if nothing is replaced.
        payout: Option<ScriptBuf>,
    },
    /// Seller: the expiry comes near, and the buyer should be asked to close together. Answer with
    /// [`Payments::cooperate`] if there is a connection to it; if not, this comes again with the next
    /// block.
    CooperationDue {
        /// Which channel.
        channel: ProposalId,
        /// Who pays on it.
        buyer: NodeId,
    },
    /// The payer may take its money back: answer with [`Payments::refund`].
    RefundDue {
        /// Which channel.
        channel: ProposalId,
    },
    /// Buyer: the seller closes together with us: answer with [`Payments::close_together`].
    CloseWanted {
        /// Which channel.
        channel: ProposalId,
    },
    /// Seller: the buyer closes together with us: answer with [`Payments::split_chosen`].
    SplitDue {
        /// Which channel.
        channel: ProposalId,
        /// The output of the next channel, if it is carried over.
        next: Option<TxOut>,
    },
    /// Buyer: the expiry comes near, and the channel in use should be carried over if the two go on
    /// trading: answer with [`Payments::rollover_tried`] and [`Payments::roll_over`]. If not, this comes
    /// again with the next block.
    RolloverDue {
        /// Which channel.
        channel: ProposalId,
        /// Who is paid on it.
        seller: NodeId,
    },
    /// Buyer: the seller agreed to the channel after this one: answer with [`Payments::carry_over`].
    RolloverAgreed {
        /// The channel that is carried over.
        channel: ProposalId,
    },
    /// Buyer: a channel was carried over into the next, by a transaction that both have signed.
    RolledOver {
        /// The channel that ends.
        channel: ProposalId,
        /// The one that is in use from now on.
        next: ProposalId,
    },
    /// Buyer: carrying over came to nothing.
    RolloverFailed {
        /// The channel; it is used as before, unless this node's half was given away.
        channel: ProposalId,
        /// Why.
        failure: RolloverFailure,
    },
    /// This channel is being closed, by a transaction that both have signed or, where this node is
    /// paid, that it has made alone.
    Closing {
        /// Which channel.
        channel: ProposalId,
    },
    /// An attempt to close together came to nothing.
    CloseFailed {
        /// Which channel.
        channel: ProposalId,
        /// Why.
        failure: CloseFailure,
    },
    /// Tell this lease's session what it has paid in all, credit included.
    Paid {
        /// The lease.
        lease: LeaseId,
        /// The running total.
        total: Msat,
    },
    /// Buyer: what the lease with this seller may still cost is more than its channels hold, and they
    /// are half used up: open a further one with [`Payments::open`], or say that none can be with
    /// [`Payments::top_up_failed`].
    TopUpDue {
        /// Who is paid.
        seller: NodeId,
        /// What the channels lack, at least.
        lacking: Amount,
    },
    /// Seller: a voucher for this running total is held, and counts once the funding is deeper.
    Deferred {
        /// The lease.
        lease: LeaseId,
        /// The running total it would make.
        total: Msat,
    },
    /// Tell this lease's session that a payment will not happen.
    PayFailed {
        /// The lease.
        lease: LeaseId,
        /// Why.
        failure: PayFailure,
    },
    /// Seller: service on this lease must stop until [`FundingFound`](Self::FundingFound): what pays
    /// for it is in no block and no mempool.
    FundingLost {
        /// The lease.
        lease: LeaseId,
    },
    /// Seller: what pays for this lease is there again.
    FundingFound {
        /// The lease.
        lease: LeaseId,
    },
    /// Service on this lease must end: its channel is.
    ChannelEnding {
        /// The lease.
        lease: LeaseId,
    },
    /// Something about this channel changed that people may want to see.
    Changed(ProposalId),
}

/// A fact about a channel's funding, as the chain's watcher reports it.
#[derive(Clone, Debug)]
pub(crate) enum ChainFact {
    /// It is in the mempool.
    Seen(payee::Sighting),
    /// It has this many confirmations.
    Confirmed(u32),
    /// It left the mempool.
    Dropped,
    /// Something else spends its inputs, with this many confirmations.
    Conflicted(u32),
    /// Its output is spent, in a block at this height if in any.
    Spent(Box<Transaction>, Option<u32>),
    /// What spent it is gone again.
    Unspent,
}

impl ChainFact {
    pub(super) fn for_payer(self) -> Option<payer::Input> {
        Some(match self {
            Self::Seen(_) => payer::Input::FundingDepth { confirmations: 0 },
            Self::Confirmed(confirmations) => payer::Input::FundingDepth { confirmations },
            Self::Dropped => payer::Input::FundingDropped,
            Self::Conflicted(confirmations) => payer::Input::FundingConflicted { confirmations },
            Self::Spent(tx, height) => payer::Input::Spent {
                tx,
                height: height.map(BlockHeight::new),
            },
            Self::Unspent => payer::Input::Unspent,
        })
    }

    /// `outputs` are those of all channels that this node is paid on: a close may spend several.
    pub(super) fn for_payee(self, outputs: &Outputs) -> payee::Input {
        match self {
            Self::Seen(sighting) => payee::Input::FundingSeen(sighting),
            Self::Confirmed(confirmations) => payee::Input::FundingConfirmed { confirmations },
            Self::Dropped => payee::Input::FundingDropped,
            Self::Conflicted(confirmations) => payee::Input::FundingConflicted { confirmations },
            Self::Spent(tx, height) => {
                let height = height.map(BlockHeight::new);
                match outputs.spent_in(&tx) {
                    Some(spent) if tx.input.len() > 1 => {
                        payee::Input::SpentInBatch { tx, height, spent }
                    }
                    Some(_) | None => payee::Input::Spent { tx, height },
                }
            }
            Self::Unspent => payee::Input::Unspent,
        }
    }
}
