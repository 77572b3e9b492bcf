//! Leases: listed, closed, extended, and who waits for that.

use std::time::{Duration, Instant};

use bitmesh_market::lease::LeaseId;
use bitmesh_market::session::CloseReason;
use bitmesh_market::units::Bytes;
use bitmesh_wallet::keys::Role;

use super::super::Driver;
use super::super::sessions::Session;
use super::super::views::closed_view;
use super::{Answer, Outcome};
use crate::control::api::{self, Reply};
use crate::control::error::resolve;
use crate::control::{ApiError, ErrorCode};

/// How long the answer to an extension or a close is waited for before the lease is shown as it is.
const SETTLING: Duration = Duration::from_secs(12);

/// Somebody waits for a lease to be extended, or to be closed.
#[derive(Debug)]
pub(in crate::driver) struct Waiting {
    lease: LeaseId,
    answer: Answer,
    until: Instant,
}

/// Answers all who wait for this lease with how it stands.
fn answer_all(waiting: &mut Vec<Waiting>, id: LeaseId, view: Option<&api::Lease>) {
    for Waiting { answer, .. } in waiting.extract_if(.., |it| it.lease == id) {
        let view = view.cloned();
        let outcome = view.ok_or_else(|| ApiError::not_found("lease", &id.to_string()));
        let _ = answer.send(outcome.map(Reply::from));
    }
}

impl Driver {
    pub(super) fn list_leases(&self, wanted: &api::ListLeases) -> api::Leases {
        let open = self
            .sessions
            .iter()
            .filter(|(_, session)| Self::role_matches(wanted.role, session.role()))
            .filter_map(|(id, _)| self.lease_view(*id));
        let mut leases: Vec<_> = open.collect();
        leases.sort_by_key(|lease| std::cmp::Reverse(lease.opened_at));
        if wanted.all {
            let closed = self
                .closed
                .iter()
                .filter(|c| Self::role_matches(wanted.role, c.role));
            leases.extend(closed.map(closed_view));
        }
        api::Leases { leases }
    }

    pub(super) fn lease_id(&self, given: &str) -> Result<LeaseId, ApiError> {
        let open = self.sessions.keys().copied();
        let closed = self.closed.iter().map(|closed| closed.lease.id());
        let ids: Vec<_> = open.chain(closed).map(|id| (id.to_string(), id)).collect();
        let found = resolve("lease", ids.iter().map(|(text, _)| text.as_str()), given)?.to_owned();
        let found = ids.into_iter().find(|(text, _)| *text == found);
        found
            .map(|(_, id)| id)
            .ok_or_else(|| ApiError::not_found("lease", given))
    }

    pub(super) fn find_lease(&self, given: &str) -> Result<api::Lease, ApiError> {
        let id = self.lease_id(given)?;
        self.lease_view(id)
            .ok_or_else(|| ApiError::not_found("lease", given))
    }

    pub(super) fn close_lease(&mut self, given: &str, answer: Answer) {
        let id = match self.lease_id(given) {
            Ok(id) => id,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        let Some(role) = self.sessions.get(&id).map(Session::role) else {
            // Closing what is closed is done.
            let _ = answer.send(self.find_lease(given).map(Reply::from));
            return;
        };
        let until = self
            .clock
            .now()
            .checked_add(SETTLING)
            .unwrap_or(self.clock.now());
        self.closing.push(Waiting {
            lease: id,
            answer,
            until,
        });
        let reason = match role {
            Role::Payer => CloseReason::BuyerLeft,
            Role::Payee => CloseReason::SellerLeft,
        };
        self.close_session(id, reason);
    }

    pub(in crate::driver) fn close_answered(&mut self, id: LeaseId) {
        let view = self.lease_view(id);
        answer_all(&mut self.closing, id, view.as_ref());
        answer_all(&mut self.extending, id, view.as_ref());
    }

    pub(super) fn extend_lease(&mut self, wanted: &api::ExtendLease, answer: Answer) {
        let outcome = self.lease_id(&wanted.lease).and_then(|id| {
            let session = self.sessions.get(&id).ok_or_else(|| {
                ApiError::new(ErrorCode::Conflict, "the lease is closed", "buy again")
            })?;
            if session.role() != Role::Payer {
                return Err(ApiError::new(
                    ErrorCode::Conflict,
                    "only the buyer extends a lease",
                    "ask the buyer to",
                ));
            }
            let quota = session
                .quota()
                .checked_add(Bytes::new(wanted.bytes))
                .filter(|quota| *quota <= session.lease().max_quota());
            let most = session.lease().max_quota();
            let quota = quota.ok_or_else(|| {
                ApiError::new(
                    ErrorCode::Refused,
                    format!("the seller leases at most {most} at once"),
                    "close this lease when it is used and buy again",
                )
            })?;
            let whole = session
                .lease()
                .price()
                .cost_of(quota)
                .unwrap_or(bitmesh_market::units::Msat::MAX);
            if !self.payments.can_reach(session.peer, whole) {
                return Err(ApiError::new(
                    ErrorCode::InsufficientFunds,
                    "the channels with this seller do not hold enough for that",
                    format!(
                        "add to them with \"bitmesh channels topup {} AMOUNT\", then extend; the lease \
                         goes on meanwhile",
                        session.peer
                    ),
                ));
            }
            Ok((id, quota))
        });
        match outcome {
            Ok((id, quota)) => {
                let until = self
                    .clock
                    .now()
                    .checked_add(SETTLING)
                    .unwrap_or(self.clock.now());
                self.extending.push(Waiting {
                    lease: id,
                    answer,
                    until,
                });
                self.extend_session(id, quota);
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    pub(in crate::driver) fn extension_answered(&mut self, id: LeaseId) {
        let view = self.lease_view(id);
        answer_all(&mut self.extending, id, view.as_ref());
    }

    /// Answers those who have waited long enough with the lease as it stands.
    pub(in crate::driver) fn settle_waiting(&mut self, now: Instant) {
        let late: Vec<_> = self
            .extending
            .iter()
            .chain(&self.closing)
            .filter(|waiting| waiting.until <= now)
            .map(|waiting| waiting.lease)
            .collect();
        for lease in late {
            self.close_answered(lease);
        }
    }

    pub(super) fn usage(&self, given: Option<&str>) -> Outcome {
        let ids: Vec<_> = match given {
            Some(given) => vec![self.lease_id(given)?],
            None => self.sessions.keys().copied().collect(),
        };
        let leases = ids
            .into_iter()
            .filter_map(|id| self.usage_line(id))
            .collect();
        Ok(api::Usage { leases }.into())
    }
}
