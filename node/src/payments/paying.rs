//! The buyer's payments: which channel of a pair pays, and when another is needed.
//!
//! A pair may have several channels. They are used in the order in which they were made: one is begun
//! when those before it can pay no more, so that at most one is partly used, at most one first payment
//! is ahead of its bytes, and what is used up ends with no change. Where an amount does not fit into
//! what is left of one, the next pays the rest in the same breath.

use std::time::Instant;

use bitcoin::Amount;
use bitmesh_market::identity::NodeId;
use bitmesh_market::session::PayFailure;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::payee::Payee;
use bitmesh_wallet::channel::payer::{self, PayError};
use tracing::debug;

use super::{Channel, MAX_CHANNELS, Output, Pair, Payments, is_on_its_way, is_usable};

/// Further channels that a lease opens by itself. A lease that needs more is better paid through larger
/// ones, and a seller that ends channel after channel must not make a buyer fund them without end.
const MAX_TOP_UPS: u32 = 8;

/// How often in a lease opening a further channel may come to nothing before it is no longer tried.
const MAX_FAILURES: u32 = 3;

/// How it stands with a further channel for the lease that is carried out.
#[derive(Debug, Default)]
pub(super) struct TopUp {
    stage: Stage,
    opened: u32,
    failures: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Asked for as soon as it is needed.
    #[default]
    Ready,
    /// Asked for, and not answered.
    Asked,
    /// None could be opened: tried again with the next block.
    Waiting,
}

impl TopUp {
    /// One is being opened.
    pub(super) fn opening(&mut self) {
        if self.stage == Stage::Asked {
            self.opened = self.opened.saturating_add(1);
        }
        self.stage = Stage::Ready;
    }

    /// It came to nothing.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.stage = Stage::Waiting;
    }

    fn is_asked(&self) -> bool {
        self.stage == Stage::Asked
    }

    fn may_ask(&self) -> bool {
        self.stage == Stage::Ready && self.opened < MAX_TOP_UPS && self.failures < MAX_FAILURES
    }
}

/// How far a payment got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// All of it is paid.
    Whole,
    /// A channel will pay the rest: its funding is young, or it is not made yet.
    Waits,
    /// What there was is used up.
    Spent,
    /// Nothing can pay.
    Lost,
}

impl Payments {
    /// Buyer: brings what is paid in the present lease with `seller` to `total`. Answered by exactly
    /// one [`Output::Paid`] or [`Output::PayFailed`], later if a channel is still being made.
    pub(crate) fn pay(&mut self, seller: NodeId, total: Msat, now: Instant) {
        let Some(pair) = self.bought.get_mut(&seller) else {
            return;
        };
        pair.wanted = Some(total);
        self.try_pay(seller, now);
    }

    /// Buyer: no further channel is opened, as [`Output::TopUpDue`] asked.
    pub(crate) fn top_up_failed(&mut self, seller: NodeId, now: Instant) {
        if let Some(pair) = self.bought.get_mut(&seller) {
            pair.top_up.failed();
        }
        self.try_pay(seller, now);
    }

    pub(super) fn try_pay(&mut self, seller: NodeId, now: Instant) {
        let Some((lease, wanted, before)) = self.wish(seller) else {
            return;
        };
        if before >= wanted {
            let total = before;
            return self.answer(seller, Output::Paid { lease, total });
        }
        let reached = self.pay_through(seller, wanted, now);
        self.top_up_if_due(seller);
        // Whole payments were answered as their vouchers came out.
        let Some((lease, wanted, total)) = self.wish(seller) else {
            return;
        };
        let fail = |failure| Output::PayFailed { lease, failure };
        let is_topped_up = self
            .bought
            .get(&seller)
            .is_some_and(|pair| pair.top_up.is_asked());
        match reached {
            // What counts is paid at once. The session asks again for what is still due.
            _ if total > before || total >= wanted => {
                self.answer(seller, Output::Paid { lease, total });
            }
            Reached::Whole | Reached::Waits => {}
            Reached::Spent if is_topped_up => {}
            Reached::Spent => {
                debug!(%seller, "the channels have no room for the payment");
                self.answer(seller, fail(PayFailure::CapacitySpent));
            }
            Reached::Lost => self.answer(seller, fail(PayFailure::ChannelLost)),
        }
    }

    /// The lease that waits for a payment, what it wants paid in all, and what is.
    fn wish(&self, seller: NodeId) -> Option<(bitmesh_market::lease::LeaseId, Msat, Msat)> {
        let pair = self.bought.get(&seller)?;
        Some((pair.lease?, pair.wanted?, pair.account.credit()))
    }

    /// Pays through one channel after the other, in their order, as much of it as they can now.
    fn pay_through(&mut self, seller: NodeId, wanted: Msat, now: Instant) -> Reached {
        let channels = self.bought.get(&seller).map(|pair| pair.channels.clone());
        let mut reached = Reached::Lost;
        for id in channels.unwrap_or_default() {
            let missing = self
                .bought
                .get(&seller)
                .map(|it| it.account.missing(wanted));
            let Some(missing) = missing.flatten() else {
                return Reached::Lost;
            };
            if missing == 0 {
                return Reached::Whole;
            }
            let is_rolling = self.is_rolling(id);
            let Some(channel) = self.payers.get(&id) else {
                continue;
            };
            let stage = channel.machine.stage();
            let (promised, capacity) =
                (channel.machine.promised(), channel.machine.open().capacity);
            if promised == capacity {
                reached = Reached::Spent;
                continue;
            }
            if is_rolling {
                // It is paid on the channel that follows, or on this one if that comes to nothing.
                return Reached::Waits;
            }
            let total = promised.checked_add(Amount::from_sat(missing));
            let total = total.map_or(capacity, |total| total.min(capacity));
            match self.pay_on(id, total, now) {
                Ok(()) => reached = Reached::Spent,
                Err(PayError::OverLimit { limit, .. }) => {
                    if limit > promised {
                        let _ = self.pay_on(id, limit, now);
                    }
                    return Reached::Waits;
                }
                // It is paid when the height is known, or when the close comes to nothing; if it does
                // not, the next channel pays, or the lease ends with this one.
                Err(PayError::NoTip | PayError::Closing) => return Reached::Waits,
                Err(PayError::NotOpen) if is_on_its_way(stage) => return Reached::Waits,
                Err(
                    error @ (PayError::NotOpen | PayError::Stopped { .. } | PayError::Total(_)),
                ) => {
                    debug!(channel = %id, %error, "the channel can no longer pay");
                }
            }
        }
        match self.wish(seller) {
            Some((_, wanted, paid)) if paid < wanted => reached,
            Some(_) | None => Reached::Whole,
        }
    }

    fn pay_on(&mut self, id: ProposalId, total: Amount, now: Instant) -> Result<(), PayError> {
        let Some(channel) = self.payers.get_mut(&id) else {
            return Err(PayError::NotOpen);
        };
        let paid = channel.machine.handle(payer::Input::Pay { total }, now);
        self.drain_payer(id, now);
        match paid {
            Ok(()) => Ok(()),
            Err(payer::Error::Pay(error)) => Err(error),
            Err(_) => Err(PayError::NotOpen),
        }
    }

    /// Queues the one answer to the session's present wish.
    pub(super) fn answer(&mut self, seller: NodeId, output: Output) {
        if let Some(pair) = self.bought.get_mut(&seller) {
            pair.wanted = None;
        }
        self.outputs.push_back(output);
    }

    // When another is needed.

    /// Asks for a further channel if the lease may cost more than the channels hold and they are half
    /// used up. That early, since it takes a block or two until much is believed of a new one.
    ///
    /// What is left in a channel that is ending counts as well: a channel is opened in place of one that
    /// is used up, never because the seller wants to end one.
    fn top_up_if_due(&mut self, seller: NodeId) {
        let Some(pair) = self.bought.get(&seller) else {
            return;
        };
        let Some(missing) = pair.account.missing(pair.reach) else {
            return;
        };
        let mut left = Amount::ZERO;
        let mut newest = Amount::ZERO;
        for channel in pair.channels.iter().filter_map(|id| self.payers.get(id)) {
            if is_on_its_way(channel.machine.stage()) {
                return;
            }
            newest = channel.machine.open().capacity;
            let rest = newest.checked_sub(channel.machine.promised());
            left = rest.and_then(|rest| left.checked_add(rest)).unwrap_or(left);
        }
        // A seller keeps one channel of a pair that is not funded yet.
        if self.is_rolling_with(seller) {
            return;
        }
        let lacking = missing.saturating_sub(left.to_sat());
        let is_due = lacking > 0 && left.to_sat() <= newest.to_sat() / 2;
        if pair.lease.is_none()
            || !is_due
            || !pair.top_up.may_ask()
            || pair.channels.len() >= MAX_CHANNELS
        {
            return;
        }
        if let Some(pair) = self.bought.get_mut(&seller) {
            pair.top_up.stage = Stage::Asked;
        }
        let lacking = Amount::from_sat(lacking);
        self.outputs.push_back(Output::TopUpDue { seller, lacking });
    }

    /// A block came: coins may have confirmed that a channel can be funded with.
    pub(super) fn top_up_again(&mut self) {
        let waiting = self.bought.iter_mut().filter_map(|(seller, pair)| {
            let was = std::mem::take(&mut pair.top_up.stage);
            match was {
                Stage::Waiting => return Some(*seller),
                Stage::Ready | Stage::Asked => pair.top_up.stage = was,
            }
            None
        });
        for seller in waiting.collect::<Vec<_>>() {
            self.top_up_if_due(seller);
        }
    }

    // What there is.

    /// Buyer: what the channels with this seller can still pay, whatever counts of it now.
    pub(crate) fn room_to_pay(&self, seller: NodeId) -> Amount {
        let pair = self.bought.get(&seller);
        let channels = pair
            .map(|pair| pair.channels.as_slice())
            .unwrap_or_default();
        let usable = channels
            .iter()
            .filter_map(|id| self.payers.get(id))
            .filter(|channel| is_usable(&channel.machine));
        usable.fold(Amount::ZERO, |sum, channel| {
            sum.checked_add(channel.machine.spendable()).unwrap_or(sum)
        })
    }

    /// Seller: what the channels of a pair can still be paid.
    pub(super) fn room_to_be_paid(&self, pair: &Pair) -> Amount {
        let channels = pair.channels.iter().filter_map(|id| self.payees.get(id));
        channels
            .filter(|channel| channel.machine.is_serving())
            .filter_map(|channel| {
                let capacity = channel.machine.contract().open().capacity;
                capacity.checked_sub(channel.machine.held())
            })
            .fold(Amount::ZERO, |sum, room| {
                sum.checked_add(room).unwrap_or(sum)
            })
    }

    /// Buyer: whether a channel with this seller is proposed or agreed on, and not funded: from coins, or
    /// from another that is being carried over.
    pub(super) fn is_opening(&self, seller: NodeId) -> bool {
        if self.is_rolling_with(seller) {
            return true;
        }
        let pair = self.bought.get(&seller);
        let channels = pair
            .map(|pair| pair.channels.as_slice())
            .unwrap_or_default();
        let mut stages = channels
            .iter()
            .filter_map(|id| self.payers.get(id))
            .map(|channel| channel.machine.stage());
        stages.any(is_on_its_way)
    }

    /// Buyer: whether a channel with this seller can pay, or will.
    pub(super) fn can_go_on(&self, seller: NodeId) -> bool {
        self.is_opening(seller) || self.room_to_pay(seller) > Amount::ZERO
    }

    /// Seller: whether a buyer has another channel than this one to pay through.
    pub(super) fn is_served_without(&self, buyer: NodeId, channel: ProposalId) -> bool {
        let Some(pair) = self.sold.get(&buyer) else {
            return false;
        };
        let others = pair.channels.iter().filter(|id| **id != channel);
        others.filter_map(|id| self.payees.get(id)).any(can_be_paid)
    }

    /// Buyer: what the next payment to this seller is at least, if it is the first on its channel.
    pub(crate) fn first_due(&self, seller: NodeId) -> Amount {
        let pair = self.bought.get(&seller);
        let channels = pair
            .map(|pair| pair.channels.as_slice())
            .unwrap_or_default();
        let next = channels
            .iter()
            .filter_map(|id| self.payers.get(id))
            .find(|channel| is_usable(&channel.machine));
        next.filter(|channel| channel.machine.promised() == Amount::ZERO)
            .and_then(|channel| channel.machine.contract())
            .map_or(Amount::ZERO, |contract| contract.accept().min_first)
    }
}

/// Whether more can be paid through a channel that this node is paid on.
pub(super) fn can_be_paid(channel: &Channel<Payee>) -> bool {
    let capacity = channel.machine.contract().open().capacity;
    channel.machine.is_serving() && channel.machine.held() < capacity
}
