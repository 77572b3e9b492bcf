//! What the node says to people about what happened, in one place.

use bitmesh_market::lease::LeaseId;
use bitmesh_market::negotiation::Refusal;
use bitmesh_market::session::{CloseReason, PauseReason};
use bitmesh_market::time::UnixTime;
use bitmesh_wallet::channel::deadline::Phase;
use bitmesh_wallet::keys::Role;

use crate::control::{ApiError, ErrorCode, api};
use crate::payments::Step;
use crate::protocol;

pub(super) fn role(role: Role) -> api::Role {
    match role {
        Role::Payer => api::Role::Buyer,
        Role::Payee => api::Role::Seller,
    }
}

pub(super) fn moment(at: UnixTime) -> api::Timestamp {
    api::Timestamp::from_unix(at.secs())
}

/// Why nothing flows and what to do, seen from one side.
pub(super) fn paused(reason: PauseReason, role: Role) -> api::Reason {
    let (code, message, hint) = match (reason, role) {
        (PauseReason::Unpaid, Role::Payer) => (
            "unpaid",
            "what is paid for is used and a payment is under way",
            None,
        ),
        (PauseReason::Unpaid, Role::Payee) => (
            "unpaid",
            "what is paid for is used and the buyer has not paid on",
            None,
        ),
        (PauseReason::QuotaSpent, Role::Payer) => (
            "quota_spent",
            "the quota is used; flows stand still and lose nothing",
            Some("add to it with \"bitmesh lease extend\""),
        ),
        (PauseReason::QuotaSpent, Role::Payee) => (
            "quota_spent",
            "the quota is used and the buyer may add to it",
            None,
        ),
        (PauseReason::WaitingForConfirmation, _) => (
            "waiting_for_confirmation",
            "the payment counts once a block holds the channel's funding",
            None,
        ),
        (PauseReason::AwaitingReceipt, _) => (
            "awaiting_receipt",
            "a receipt for what was carried is under way",
            None,
        ),
        (PauseReason::SellerPaused, Role::Payer) => {
            ("seller_paused", "the seller has paused", None)
        }
        (PauseReason::SellerPaused, Role::Payee) => (
            "seller_paused",
            "paused by this node's operator",
            Some("go on with \"bitmesh sell start\""),
        ),
        (PauseReason::Detached, _) => (
            "detached",
            "the two nodes have lost each other; the lease goes on when they meet again",
            None,
        ),
    };
    api::Reason {
        code: code.to_owned(),
        message: message.to_owned(),
        hint: hint.map(str::to_owned),
    }
}

/// For programs whose connections the proxy holds back.
pub(super) fn pause_notice(reason: PauseReason, lease: LeaseId) -> String {
    let why = paused(reason, Role::Payer).message;
    match reason {
        PauseReason::QuotaSpent => {
            format!(
                "paused: {why}. Go on with: bitmesh lease extend {} 1GB",
                lease.short()
            )
        }
        PauseReason::Unpaid
        | PauseReason::WaitingForConfirmation
        | PauseReason::AwaitingReceipt
        | PauseReason::SellerPaused
        | PauseReason::Detached => format!("paused: {why}"),
    }
}

/// Why a lease ended.
pub(super) fn closed(reason: CloseReason) -> api::Reason {
    let (code, message, hint) = match reason {
        CloseReason::Completed => ("completed", "the buyer has what it wanted", None),
        CloseReason::BudgetSpent => (
            "budget_spent",
            "the channel has no room for more",
            Some("buy again: a new channel is opened"),
        ),
        CloseReason::Expired => ("expired", "the lease's term is over", None),
        CloseReason::BuyerLeft => ("buyer_left", "the buyer left", None),
        CloseReason::SellerLeft => ("seller_left", "the seller left", Some("buy from another")),
        CloseReason::MeterDispute => (
            "meter_dispute",
            "the two sides count differently by a whole window",
            None,
        ),
        CloseReason::Unpaid => ("unpaid", "a payment did not come in time", None),
        CloseReason::Detached => (
            "detached",
            "the connection did not come back in time",
            Some("buy again"),
        ),
        CloseReason::UplinkDown => ("uplink_down", "the seller's uplink is gone", None),
        CloseReason::ChannelLost => (
            "channel_lost",
            "the channel is closed, expired, or its funding was replaced",
            Some("buy again: a new channel is opened"),
        ),
        CloseReason::Policy => ("policy", "the seller's rules forbid going on", None),
        CloseReason::Shutdown => ("shutdown", "a node is shutting down", None),
        CloseReason::Violation => ("violation", "the other side broke the protocol", None),
    };
    api::Reason {
        code: code.to_owned(),
        message: message.to_owned(),
        hint: hint.map(str::to_owned),
    }
}

/// A purchase was leased and its session ended before it carried anything.
pub(super) fn never_carried(reason: CloseReason) -> ApiError {
    let reason = closed(reason);
    ApiError::new(
        ErrorCode::Refused,
        format!(
            "the lease ended before it carried anything: {}",
            reason.message
        ),
        "nothing was billed; what was paid, if anything, stays as credit with the seller",
    )
    .with("reason", reason.code)
}

pub(super) fn refusal_text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotSelling => "it does not sell for the moment",
        Refusal::NoCapacity => "it has no free capacity",
        Refusal::TooManyRequests => "it is asked too often",
        Refusal::BadRequest => "it cannot read the request",
        Refusal::Quota => "the quantity is outside what it offers",
        Refusal::Rate => "it cannot promise a rate this high",
        Refusal::Mode => "it does not offer this way of paying",
        Refusal::Rail => "no way of paying in common",
        Refusal::Tunnel => "no kind of tunnel in common",
        Refusal::Term => "the term is outside what it offers",
        Refusal::AlreadyLeased => "there is a lease between the two nodes already",
        Refusal::QuoteUnknown => "it does not know the quote",
        Refusal::QuoteExpired => "the quote is no longer firm",
    }
}

/// A refusal as it goes over the wire. The exact reason stands at the head of the text, as a number,
/// because the code says only what to do next.
pub(super) fn refusal(refusal: Refusal) -> protocol::Refusal {
    let code = match refusal {
        Refusal::NotSelling | Refusal::Mode | Refusal::Rail | Refusal::Tunnel => {
            protocol::RefusalCode::Unsupported
        }
        Refusal::NoCapacity => protocol::RefusalCode::NoCapacity,
        Refusal::TooManyRequests => protocol::RefusalCode::TooFast,
        Refusal::BadRequest => protocol::RefusalCode::Malformed,
        Refusal::Quota | Refusal::Rate | Refusal::Term | Refusal::AlreadyLeased => {
            protocol::RefusalCode::Declined
        }
        Refusal::QuoteUnknown => protocol::RefusalCode::Unknown,
        Refusal::QuoteExpired => protocol::RefusalCode::Expired,
    };
    protocol::Refusal::new(
        code,
        &format!("{} {}", refusal.code(), refusal_text(refusal)),
    )
}

/// The exact reason of a peer's refusal, if it gives one that is known here.
pub(super) fn refusal_back(refused: &protocol::Refusal) -> Option<Refusal> {
    let number = refused.detail.split(' ').next()?;
    Refusal::from_code(number.parse().ok()?)
}

/// Something that happens to a channel, with its reason.
pub(super) fn channel_step(role: Role, step: Step, height: u32) -> api::ChannelStep {
    let (what, why) = match (step.phase, role) {
        (Phase::Propose, Role::Payee) => (
            api::StepKind::CarriesOver,
            "a buyer that still trades with this node carries it over into a new one, which pays this \
             node what it is owed",
        ),
        (Phase::Propose, Role::Payer) => (
            api::StepKind::CarriesOver,
            "what is left goes into a new channel with this seller, if there was a lease with it \
             within a week; else it runs out",
        ),
        (Phase::Serve | Phase::Stop, Role::Payee) => (
            api::StepKind::Stops,
            "nothing more is carried on it, so that it can be closed in time",
        ),
        (Phase::Serve | Phase::Stop, Role::Payer) => (
            api::StepKind::Stops,
            "nothing more is paid on it; the next purchase opens another",
        ),
        (Phase::Cooperate, Role::Payee) => (
            api::StepKind::Asks,
            "the buyer is asked to close together while it is there, for three quarters of the fee",
        ),
        (Phase::Cooperate, Role::Payer) => (
            api::StepKind::Asks,
            "the seller asks this node to close together; the rest comes back a day sooner",
        ),
        (Phase::Close, Role::Payee) => (
            api::StepKind::Closes,
            "this node takes what it was paid, well before the buyer may take everything back",
        ),
        (Phase::Close, Role::Payer) => (
            api::StepKind::Closes,
            "the seller takes what it was paid; the rest comes back",
        ),
        (Phase::Raise, Role::Payee | Role::Payer) => (
            api::StepKind::BidsMore,
            "if no block has taken the close up, half as much again is bid every 6 blocks",
        ),
        (Phase::Last, Role::Payee | Role::Payer) => (
            api::StepKind::BidsHalf,
            "if no block has taken the close up, up to half of what was paid is bid",
        ),
        (Phase::Expired, Role::Payee) => (
            api::StepKind::Expires,
            "the buyer may take everything back; whoever is mined first wins",
        ),
        (Phase::Expired, Role::Payer) => (
            api::StepKind::Expires,
            "this node takes back all that the seller has not claimed",
        ),
    };
    let at = step.height.get();
    api::ChannelStep {
        what,
        height: at,
        in_blocks: at.saturating_sub(height),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        for code in 1..=13 {
            let said = Refusal::from_code(code).unwrap();
            assert_eq!(refusal_back(&refusal(said)), Some(said));
        }
        let foreign = protocol::Refusal::new(protocol::RefusalCode::Busy, "come back later");
        assert_eq!(refusal_back(&foreign), None);
    }
}
