//! Carrying a lease out: metering, paying, pausing, closing.
//!
//! Two machines, [`buyer::Buyer`] and [`seller::Seller`], of the shape all machines here have: tell one
//! [`handle`](buyer::Buyer::handle) what happened, drain `poll_output`, wait until `poll_timeout`, then
//! call `handle_timeout`. In this crate `poll_timeout` gives the reason beside the moment, so that a
//! log can say what a session is waiting for; the reason decides nothing.
//!
//! # What is at stake
//!
//! With a window *W* = [`Lease::window`](crate::lease::Lease::window):
//!
//! - the buyer has never paid more than `max(carried + min_first, cost(used + W))`, rounded up to a
//!   whole satoshi by the payment rail. Bytes it did not take off its own meter are never billed;
//! - the seller has never forwarded more than *W* beyond what the buyer has signed for, and nothing
//!   beyond what is paid (prepaid) or at most *W* beyond it (postpaid).
//!
//! Both hold whatever the other side sends, leaves out or repeats. The bound on what is unsigned is
//! for the whole lease: a connection that breaks does not renew it, so bytes lost in broken streams
//! add up, and a lease that has lost a window of them ends with [`CloseReason::MeterDispute`]. Only a
//! seller that crashes gives up count: it goes on from what it wrote down with the last receipt.
//!
//! # The driver's part
//!
//! - Perform outputs in order, each before the next: a [`Output::Persist`] is durable before the
//!   [`Output::Send`] behind it leaves.
//! - Received bytes become a [`SignedMessage`] by [`Signed::verify`](crate::envelope::Signed::verify);
//!   the machine itself checks who signed and for which lease.
//! - The payload never comes here: a meter reports when its total reaches the mark, at once if it has
//!   already. Limits and marks are on the meter's own running total.
//! - If the control stream breaks, drop the lanes with it, report the meter a last time, then say
//!   `Detached`. Attach flows only at [`Output::Start`].
//! - Answer each [`Output::Pay`] with exactly one `Paid` or `PayFailed`, whenever that is known. A `Paid`
//!   that is less than was asked for is followed by another `Pay` if more is still due.
//! - A machine may be dropped after [`Event::Closed`] and a drain. A seller's is better kept for a
//!   while (or restored when asked for): it answers a buyer that comes back late with how it ended.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Msat};

pub mod buyer;
mod credit;
pub mod message;
mod meter;
mod receipt;
pub mod record;
pub mod seller;

pub use message::{Message, SignedMessage};
pub use meter::Reading;
pub use receipt::Receipt;
pub use record::Record;

/// Why nothing is forwarded for the moment. Flows are held back, not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// What is paid for (and the credit beyond it) is used; a voucher is due.
    Unpaid,
    /// The quota is used; an extension takes the session up again.
    QuotaSpent,
    /// The voucher is there, but the channel's funding is not deep enough in the chain to count it, or
    /// has been lost in a reorganisation and may come back.
    WaitingForConfirmation,
    /// A window is delivered that the buyer has not signed for; a receipt is due.
    AwaitingReceipt,
    /// The seller's operator has paused.
    SellerPaused,
    /// The two sides are not connected.
    Detached,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The buyer has what it wanted.
    Completed,
    /// The buyer's budget, or its channel, is used up.
    BudgetSpent,
    /// The lease's term is over.
    Expired,
    /// The buyer left before its quota was used.
    BuyerLeft,
    /// The seller left before the quota was used, or stopped answering.
    SellerLeft,
    /// The two sides count differently, by a whole window.
    MeterDispute,
    /// A payment did not come in time.
    Unpaid,
    /// The connection did not come back in time.
    Detached,
    /// The seller's uplink is gone.
    UplinkDown,
    /// The channel is closed, expired, or its funding was replaced.
    ChannelLost,
    /// The seller's policy forbids going on.
    Policy,
    /// The node is shutting down.
    Shutdown,
    /// The other side broke the protocol.
    Violation,
}

/// Why a payment that was asked for did not happen. Nothing was paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayFailure {
    /// For now: the machine asks again after [`Patience::pay_retry`].
    Passing,
    /// The channel has no room for this total. What is paid for is still used, nothing beyond it, and
    /// then the session closes with [`CloseReason::BudgetSpent`].
    CapacitySpent,
    /// The channel is gone: the session closes with [`CloseReason::ChannelLost`].
    ChannelLost,
}

/// Something about the other side's messages that was not taken into account. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Signed by another node than the lease's other side.
    WrongSigner,
    /// About another lease.
    WrongLease,
    /// Out of place: the sender's role does not say this, or not before attaching.
    OutOfPlace,
    /// A receipt with a total below one already signed, or with a used number and other totals.
    Decreasing,
    /// A receipt whose cost is not what its bytes cost, or beyond the quota.
    WrongCost,
    /// A countersignature under a receipt that was never signed.
    NeverSigned,
    /// An extension that was not asked for.
    NeverAsked,
    /// More receipts or wishes than a session has use for.
    TooOften,
}

/// What the people and the books on this side should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing is forwarded any more. Also sent when the reason changes.
    Paused(PauseReason),
    /// Forwarding goes on (or begins).
    Resumed,
    /// Both have signed a higher quota.
    Extended {
        /// The quota in force.
        quota: Bytes,
    },
    /// The seller refused, or did not answer, an extension; the quota is as before.
    NotExtended {
        /// The quota that was asked for.
        quota: Bytes,
    },
    /// Both sides have signed this receipt; it stands for all before it. `paid` is the seller's word.
    Receipted(Receipt),
    /// A payment failed; see [`PayFailure`] for what happens next.
    PayFailed(PayFailure),
    /// A message was ignored.
    Ignored(Fault),
    /// The session has ended. The last event.
    Closed(Ending),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: CloseReason,
    /// The last receipt the buyer signed, as far as this side knows: it is what was billed.
    pub receipt: Option<Receipt>,
    /// Who has signed it.
    pub signatures: Signatures,
}

impl Ending {
    /// What was billed in this session in the end.
    #[must_use]
    pub fn billed(&self) -> Msat {
        self.receipt.map_or(Msat::ZERO, |receipt| receipt.billed)
    }
}

/// Whose signatures are under the final receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signatures {
    /// Both: the two sides' books are the same.
    Both,
    /// The buyer's alone, or there is none to sign: the other side was not heard in the end.
    OneSided,
}

/// What to do. Perform in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Attach the flows to a meter that counts on from exactly this reading. Once for every attach,
    /// before its limits.
    Start(Reading),
    /// Let the meter's total go up to this, not beyond. May be below the total: then nothing flows.
    SetLimit(Bytes),
    /// Report the reading once the total reaches this; at once if it has.
    SetMark(Bytes),
    /// Stop the flows for good and answer with `Input::Stopped` and the last reading.
    Stop,
    /// Bring what is paid in this session to this running total, carried credit included. Paying a
    /// little more (whole satoshi) is fine. Asking again for the same total is not paying again.
    Pay {
        /// The running total.
        total: Msat,
    },
    /// Seal this and send it on the control stream; drop it if there is none.
    Send(Message),
    /// Make this durable before performing the next output.
    Persist(Record),
    /// Tell whoever is interested.
    Notify(Event),
}

/// What a session is waiting for; goes with the moment in `poll_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// The lease's term.
    Expiry,
    /// The connection to come back.
    Detached,
    /// A payment.
    Unpaid,
    /// The channel's funding to be found again.
    Funding,
    /// A receipt for what was delivered.
    Receipt,
    /// An extension of the quota.
    Quota,
    /// The seller's countersignature.
    Countersignature,
    /// The answer to an extension.
    Extension,
    /// Another attempt to pay.
    Payment,
    /// The other side's part in closing.
    Close,
}

/// How long each side waits for the other. Never a matter of money: amounts at stake do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a broken connection to come back; also for the first one. Long enough for a phone to
    /// change networks and for a daemon to restart.
    pub detached: Duration,
    /// Seller: for a payment while nothing flows.
    pub unpaid: Duration,
    /// Seller: for the channel's funding to be found again. A reorganisation puts it back at once, and
    /// the buyer's node broadcasts it again as soon as it misses it.
    pub funding: Duration,
    /// Seller: for a receipt while nothing flows.
    pub receipt: Duration,
    /// Seller: for an extension once the quota is used. A slot is not kept for ever.
    pub quota: Duration,
    /// Buyer: for the seller to countersign.
    pub countersignature: Duration,
    /// Buyer: for the answer to an extension.
    pub extension: Duration,
    /// Buyer: between two attempts to pay.
    pub pay_retry: Duration,
    /// For the other side's part in closing; afterwards the session ends one-sided.
    pub close: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            detached: Duration::from_secs(60),
            unpaid: Duration::from_secs(30),
            funding: Duration::from_secs(60),
            receipt: Duration::from_secs(30),
            quota: Duration::from_secs(300),
            countersignature: Duration::from_secs(30),
            extension: Duration::from_secs(10),
            pay_retry: Duration::from_secs(1),
            close: Duration::from_secs(5),
        }
    }
}

/// Messages a side ignores before it closes the session with [`CloseReason::Violation`]. Honest nodes
/// send none; a few are forgiven because a restart may repeat old words.
const MAX_FAULTS: u32 = 16;

/// The moment `patience` from now. One too far to be written down is a century away.
fn deadline(now: Instant, patience: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    now.checked_add(patience)
        .or_else(|| now.checked_add(FAR))
        .unwrap_or(now)
}

/// Whether the two sides can talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// No control stream. Given up at the deadline.
    Detached { until: Instant },
    /// A control stream, and no answer on it yet. The deadline is that of the break.
    Greeting { until: Instant },
    /// Both have taken the session up.
    Attached,
}

impl Link {
    /// When patience with a broken connection ends.
    const fn until(self) -> Option<Instant> {
        match self {
            Self::Detached { until } | Self::Greeting { until } => Some(until),
            Self::Attached => None,
        }
    }

    /// A control stream was opened. One that replaces another starts a new patience.
    fn opened(self, now: Instant, patience: Duration) -> Self {
        Self::Greeting {
            until: self.until().unwrap_or_else(|| deadline(now, patience)),
        }
    }

    /// The control stream broke. A second break in a row does not start a new patience.
    fn broken(self, now: Instant, patience: Duration) -> Self {
        Self::Detached {
            until: self.until().unwrap_or_else(|| deadline(now, patience)),
        }
    }
}
