//! Under which addresses others reach this node, by what they say.
//!
//! A node that connected to this one says which address it used. One such word proves nothing; two
//! from hosts that are not neighbours make it worth telling others.

use std::net::IpAddr;
use std::time::Duration;

use libp2p::Multiaddr;
use tokio::time::Instant;

/// Words needed, from different networks.
const QUORUM: usize = 2;

/// Addresses considered at once. A node has one or two.
const MAX_ADDRESSES: usize = 16;

/// Witnesses remembered for one address.
const MAX_WITNESSES: usize = 8;

/// How long a word counts. Home connections change their address daily.
const FRESH: Duration = Duration::from_secs(3 * 60 * 60);

#[derive(Debug)]
struct Candidate {
    address: Multiaddr,
    witnesses: Vec<(IpAddr, Instant)>,
    confirmed: bool,
}

/// What came of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The address is worth telling.
    Confirmed(Multiaddr),
    /// Nobody has used it for long.
    Expired(Multiaddr),
}

/// Addresses this node has been reached at.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    candidates: Vec<Candidate>,
}

impl Observed {
    /// Somebody at `witness` says it connected to `address`, which is public.
    pub(crate) fn saw(
        &mut self,
        witness: IpAddr,
        address: Multiaddr,
        now: Instant,
    ) -> Option<Change> {
        let witness = network_of(witness);
        let index = match self
            .candidates
            .iter()
            .position(|candidate| candidate.address == address)
        {
            Some(index) => index,
            None => {
                if self.candidates.len() >= MAX_ADDRESSES {
                    // The words of one stranger make room for those of the next.
                    let weakest = self
                        .candidates
                        .iter()
                        .position(|candidate| !candidate.confirmed)?;
                    self.candidates.remove(weakest);
                }
                self.candidates.push(Candidate {
                    address,
                    witnesses: Vec::new(),
                    confirmed: false,
                });
                self.candidates.len() - 1
            }
        };
        let candidate = &mut self.candidates[index];
        candidate.forget(now);
        candidate.witnesses.retain(|(known, _)| *known != witness);
        if candidate.witnesses.len() >= MAX_WITNESSES {
            candidate.witnesses.remove(0);
        }
        candidate.witnesses.push((witness, now));
        if !candidate.confirmed && candidate.witnesses.len() >= QUORUM {
            candidate.confirmed = true;
            return Some(Change::Confirmed(candidate.address.clone()));
        }
        None
    }

    /// Takes one address out that nobody has used for long. To be called now and then.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<Change> {
        for candidate in &mut self.candidates {
            candidate.forget(now);
        }
        let index = self
            .candidates
            .iter()
            .position(|candidate| candidate.witnesses.is_empty())?;
        let candidate = self.candidates.remove(index);
        if candidate.confirmed {
            Some(Change::Expired(candidate.address))
        } else {
            self.expired(now)
        }
    }
}

impl Candidate {
    fn forget(&mut self, now: Instant) {
        self.witnesses
            .retain(|(_, at)| now.saturating_duration_since(*at) < FRESH);
    }
}

/// Hosts that are likely one party: an IPv4 /16 or an IPv6 /32.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            IpAddr::from([a, b, 0, 0])
        }
        IpAddr::V6(ip) => {
            let [a, b, ..] = ip.segments();
            IpAddr::from([a, b, 0, 0, 0, 0, 0, 0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        Instant::from_std(std::time::Instant::now())
    }

    fn addr(n: u8) -> Multiaddr {
        format!("/ip4/8.8.8.{n}/tcp/1").parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_needs_two_witnesses_from_different_networks() {
        let mut observed = Observed::default();
        let now = epoch();

        assert_eq!(observed.saw(ip("1.1.1.1"), addr(1), now), None);
        assert_eq!(observed.saw(ip("1.1.2.2"), addr(1), now), None);
        assert_eq!(observed.saw(ip("9.9.9.9"), addr(2), now), None);
        assert_eq!(
            observed.saw(ip("9.9.9.9"), addr(1), now),
            Some(Change::Confirmed(addr(1)))
        );
        assert_eq!(observed.saw(ip("4.4.4.4"), addr(1), now), None);
    }

    #[test]
    fn an_address_nobody_uses_expires() {
        let mut observed = Observed::default();
        let now = epoch();
        observed.saw(ip("1.1.1.1"), addr(1), now);
        observed.saw(ip("9.9.9.9"), addr(1), now);
        observed.saw(ip("9.9.9.9"), addr(2), now);

        assert_eq!(observed.expired(now + FRESH / 2), None);
        assert_eq!(
            observed.expired(now + FRESH),
            Some(Change::Expired(addr(1)))
        );
        assert_eq!(observed.expired(now + FRESH), None);
        assert!(observed.candidates.is_empty());
    }

    #[test]
    fn one_liar_cannot_fill_the_table_or_push_out_what_is_confirmed() {
        let mut observed = Observed::default();
        let now = epoch();
        observed.saw(ip("1.1.1.1"), addr(1), now);
        observed.saw(ip("9.9.9.9"), addr(1), now);

        for n in 2..200 {
            assert_eq!(observed.saw(ip("6.6.6.6"), addr(n), now), None);
        }

        assert!(observed.candidates.len() <= MAX_ADDRESSES);
        assert!(observed.candidates[0].confirmed);
    }
}
