//! Why nothing was bought, in words for people.

use bitmesh_market::negotiation::buyer::{Failure, FailureReason};
use bitmesh_market::units::Price;

use super::super::words;
use super::Purchase;
use crate::control::{ApiError, ErrorCode};

pub(super) fn no_match(purchase: &Purchase, cheapest: Option<Price>, asks: usize) -> ApiError {
    let limit = purchase.bid.max_price;
    match cheapest {
        Some(price) => ApiError::new(
            ErrorCode::NoMatch,
            format!("no offer at or below {limit}; the cheapest that fits asks {price}"),
            "raise --max-price, or use --wait to wait for a cheaper offer",
        )
        .with("cheapest_msat_per_gb", price.msat_per_gb()),
        None if asks == 0 => ApiError::new(
            ErrorCode::NoMatch,
            "no offer is known yet",
            "check \"bitmesh peers\", or use --wait to wait for an offer",
        )
        .retry_after_s(5),
        // This node itself is always left out.
        None if purchase.bid.banned.len() > 1 => ApiError::new(
            ErrorCode::NoMatch,
            format!(
                "none of the {asks} known offers fits, those of sellers with an open lease left out"
            ),
            "extend the lease there is (\"bitmesh leases\"), or use --wait for another offer",
        ),
        None => ApiError::new(
            ErrorCode::NoMatch,
            format!("none of the {asks} known offers fits"),
            "see \"bitmesh offers\" and ask for less, or use --wait",
        ),
    }
}

pub(super) fn waited_in_vain(purchase: &Purchase) -> ApiError {
    ApiError::new(
        ErrorCode::NoMatch,
        format!("no offer came in {} s", purchase.wanted.wait_s),
        "raise --max-price or wait longer",
    )
}

pub(super) fn negotiation_failed(purchase: &Purchase, failure: &Failure) -> ApiError {
    let asked = failure.asked;
    let error = match failure.reason {
        FailureReason::NoCandidates => no_match(purchase, None, 0),
        FailureReason::NoAnswer => ApiError::new(
            ErrorCode::TimedOut,
            format!("none of the {asked} sellers asked answered"),
            "try again; their offers may be minutes old",
        )
        .retry_after_s(5),
        FailureReason::Refused | FailureReason::NotAccepted => {
            let why = failure
                .refusal
                .map_or("no reason given", words::refusal_text);
            ApiError::new(
                ErrorCode::Refused,
                format!("all {asked} sellers asked refused; the last said: {why}"),
                "try again in a while, or ask for less",
            )
            .retry_after_s(30)
        }
        FailureReason::OverLimit => match failure.lowest_first {
            Some(first) => ApiError::new(
                ErrorCode::NoMatch,
                format!(
                    "a first payment of {} sat is asked for, more than the limit allows; it is \
                     credit, not a fee, and makes a new channel worth closing",
                    first.sat_ceil()
                ),
                "raise --budget or --max-first, or buy from a seller you have a channel with",
            )
            .with("first_payment_msat", first.msat()),
            None => ApiError::new(
                ErrorCode::NoMatch,
                "every quote is above the limit",
                "raise --max-price or --budget",
            ),
        },
    };
    match failure.cheapest {
        Some(price) => error.with("cheapest_msat_per_gb", price.msat_per_gb()),
        None => error,
    }
}
