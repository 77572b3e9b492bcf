//! How often one peer may ask.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::identity::NodeId;

/// Time one request takes off a peer's allowance: five a second.
const INTERVAL: Duration = Duration::from_millis(200);

/// Requests a peer may make at once after a pause.
const BURST: u32 = 5;

/// Peers whose allowance is remembered. A peer that has not asked for a second is forgotten; beyond this
/// number of busy ones, newcomers wait. Identities are free, so this bounds memory, not requests.
const MAX_PEERS: usize = 4_096;

/// A token bucket per peer, kept as the moment at which the bucket will be full again.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    full_at: HashMap<NodeId, Instant>,
}

impl Limiter {
    /// Takes a token of `peer`'s. `false` if there is none; nothing changes then.
    pub(super) fn take(&mut self, peer: NodeId, now: Instant) -> bool {
        if !self.full_at.contains_key(&peer) && self.full_at.len() >= MAX_PEERS {
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= MAX_PEERS {
                return false;
            }
        }
        let full_at = self.full_at.get(&peer).copied().unwrap_or(now).max(now);
        let Some(after) = full_at.checked_add(INTERVAL) else {
            return false;
        };
        if after.saturating_duration_since(now) > INTERVAL * BURST {
            return false;
        }
        self.full_at.insert(peer, after);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Ed25519Signer, Signer as _};

    #[expect(
        clippy::disallowed_methods,
        reason = "virtual time has to start somewhere"
    )]
    fn epoch() -> Instant {
        Instant::now()
    }

    fn peer(seed: u8) -> NodeId {
        Ed25519Signer::from_seed([seed; 32]).node_id()
    }

    #[test]
    fn a_peer_has_five_requests_at_once_and_five_a_second_after_that() {
        let t0 = epoch();
        let mut limiter = Limiter::default();
        let asked_at = |limiter: &mut Limiter, ms| {
            (0..100)
                .filter(|_| limiter.take(peer(1), t0 + Duration::from_millis(ms)))
                .count()
        };
        assert_eq!(asked_at(&mut limiter, 0), 5);
        assert_eq!(asked_at(&mut limiter, 199), 0);
        assert_eq!(asked_at(&mut limiter, 200), 1);
        assert_eq!(asked_at(&mut limiter, 1_200), 5);
        assert_eq!(asked_at(&mut limiter, 60_000), 5);
    }

    #[test]
    fn one_peer_does_not_use_up_what_another_may_ask() {
        let t0 = epoch();
        let mut limiter = Limiter::default();
        while limiter.take(peer(1), t0) {}
        assert!(limiter.take(peer(2), t0));
    }

    #[test]
    fn a_crowd_of_identities_does_not_grow_the_memory() {
        let t0 = epoch();
        let mut limiter = Limiter::default();
        let mut served = 0;
        for number in 0..u16::try_from(MAX_PEERS).unwrap() + 100 {
            let mut seed = [0; 32];
            seed[..2].copy_from_slice(&number.to_be_bytes());
            let peer = Ed25519Signer::from_seed(seed).node_id();
            served += usize::from(limiter.take(peer, t0));
        }
        assert_eq!(served, MAX_PEERS);
        assert_eq!(limiter.full_at.len(), MAX_PEERS);
        // A moment later all of them are forgotten, and a newcomer is served.
        assert!(limiter.take(peer(1), t0 + Duration::from_secs(1)));
        assert_eq!(limiter.full_at.len(), 1);
    }
}
