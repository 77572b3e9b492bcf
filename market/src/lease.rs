//! What both have signed: three envelopes, each inside the next.
//!
//! ```text
//! Acceptance, signed by the seller
//! └── Proposal, signed by the buyer        SHA-256 of these bytes names the lease
//!     └── Quote, signed by the seller
//! ```
//!
//! Each embeds the one before exactly as it was received, so the outermost bytes are the whole lease:
//! what is stored, and what proves it to anyone.

use std::fmt;
use std::sync::Arc;

use serde_bytes::ByteBuf;
use thiserror::Error;

use crate::envelope::{Content, EnvelopeError, Network, Signed};
use crate::id::byte_id;
use crate::identity::{NodeId, Signer};
use crate::offer::{Egress, Rails, Tunnels};
use crate::quote::{Mode, Quote, QuoteError};
use crate::time::UnixTime;
use crate::units::{Bytes, BytesPerSecond, Msat, Price};
use crate::wire::cbor_map;

byte_id! {
    /// Names a lease: SHA-256 of the signed proposal's bytes.
    pub struct LeaseId([u8; 32]);
}

cbor_map! {
    /// A buyer's binding wish to take a quote.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub open struct Proposal {
        /// The signed quote, exactly as received.
        1 => pub quote: ByteBuf,
        /// Bytes the lease is for, both directions summed. It may be extended up to the quote's limit.
        2 => pub quota: Bytes,
        /// Who goes first.
        3 => pub mode: Mode,
        /// When the lease ends.
        4 => pub until: UnixTime,
    }
}

impl Content for Proposal {
    const KIND: &'static str = "proposal";
    const MAX_BYTES: usize = 768;
}

cbor_map! {
    /// A seller's countersignature under a proposal.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub open struct Acceptance {
        /// The signed proposal, exactly as received.
        1 => pub proposal: ByteBuf,
        /// When it was accepted, by the seller's clock.
        2 => pub at: UnixTime,
    }
}

impl Content for Acceptance {
    const KIND: &'static str = "acceptance";
    const MAX_BYTES: usize = 1_024;
}

/// Why three envelopes are not a lease.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LeaseError {
    /// One of them does not verify.
    #[error("{part} does not verify")]
    Envelope {
        /// Which one.
        part: &'static str,
        /// Why not.
        #[source]
        source: EnvelopeError,
    },
    /// The quote makes no sense.
    #[error("the quote makes no sense")]
    Quote(#[from] QuoteError),
    /// The acceptance is not signed by the seller that quoted.
    #[error("quoted by {quoted}, accepted by {accepted}")]
    WrongSeller {
        /// Who signed the quote.
        quoted: NodeId,
        /// Who signed the acceptance.
        accepted: NodeId,
    },
    /// The proposal is not signed by the buyer the quote is for.
    #[error("quoted to {quoted}, proposed by {proposed}")]
    WrongBuyer {
        /// Whom the quote is for.
        quoted: NodeId,
        /// Who signed the proposal.
        proposed: NodeId,
    },
    /// Buyer and seller are the same node.
    #[error("a node cannot sell to itself")]
    SameNode,
    /// The quota is zero or above what was quoted.
    #[error("proposed {} bytes, quoted at most {}", proposed.get(), max.get())]
    Quota {
        /// As proposed.
        proposed: Bytes,
        /// As quoted.
        max: Bytes,
    },
    /// The mode was not quoted.
    #[error("proposed a mode that was not quoted")]
    Mode,
    /// The lease would end later than quoted, or before it was accepted, or the quote had expired.
    #[error("the times do not fit together")]
    Term,
}

fn verify<T: Content>(
    part: &'static str,
    bytes: &[u8],
    network: Network,
) -> Result<Signed<T>, LeaseError> {
    Signed::verify(bytes, network).map_err(|source| LeaseError::Envelope { part, source })
}

/// A proposal that holds: well signed, by the right buyer, for what was quoted.
/// Clones share everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed(Arc<Wish>);

#[derive(Debug, PartialEq, Eq)]
struct Wish {
    quote: Signed<Quote>,
    proposal: Signed<Proposal>,
    network: Network,
}

impl Proposed {
    /// Verifies a proposal and the quote in it. Whether the quote was this seller's, and still stands,
    /// is the negotiation's question.
    ///
    /// # Errors
    ///
    /// Returns [`LeaseError`] if a signature, a signer or a term does not hold.
    pub fn verify(bytes: &[u8], network: Network) -> Result<Self, LeaseError> {
        let proposal: Signed<Proposal> = verify("the proposal", bytes, network)?;
        let quote: Signed<Quote> = verify("the quote", &proposal.content().quote, network)?;
        let (terms, wish) = (quote.content(), proposal.content());
        terms.check()?;
        if proposal.signer() != terms.buyer {
            return Err(LeaseError::WrongBuyer {
                quoted: terms.buyer,
                proposed: proposal.signer(),
            });
        }
        if proposal.signer() == quote.signer() {
            return Err(LeaseError::SameNode);
        }
        if wish.quota.is_zero() || wish.quota > terms.max_quota {
            return Err(LeaseError::Quota {
                proposed: wish.quota,
                max: terms.max_quota,
            });
        }
        if !terms.modes.contains(wish.mode.as_set()) {
            return Err(LeaseError::Mode);
        }
        if wish.until > terms.until {
            return Err(LeaseError::Term);
        }
        Ok(Self(Arc::new(Wish {
            quote,
            proposal,
            network,
        })))
    }

    /// The name the lease will have.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        LeaseId::from_bytes(self.0.proposal.digest())
    }

    /// The quote it takes.
    #[must_use]
    pub fn quote(&self) -> &Signed<Quote> {
        &self.0.quote
    }

    /// What is proposed.
    #[must_use]
    pub fn proposal(&self) -> &Signed<Proposal> {
        &self.0.proposal
    }

    /// The words a seller signs to accept at `at`. Sealing them makes the lease.
    #[must_use]
    pub fn acceptance(&self, at: UnixTime) -> Acceptance {
        Acceptance {
            proposal: ByteBuf::from(self.0.proposal.as_bytes()),
            at,
            unknown: crate::wire::Unknown::default(),
        }
    }

    /// Accepts at `at`, as the seller.
    ///
    /// # Errors
    ///
    /// Returns [`LeaseError`] if `signer` is not the seller, or the quote has expired by then.
    pub fn accept(&self, at: UnixTime, signer: &dyn Signer) -> Result<Lease, LeaseError> {
        Lease::join(
            self.clone(),
            Signed::seal(self.acceptance(at), signer, self.0.network),
        )
    }
}

/// A quote both have signed: price, rate, quota and term of a session.
///
/// Invariant: all three signatures verify, and the terms fit together. There is no other way to get
/// one than [`Lease::verify`] and [`Proposed::accept`]. Clones share everything.
///
/// It says nothing about today: an old lease from the journal is still a lease. Compare
/// [`until`](Self::until) with the time.
#[derive(Clone, PartialEq, Eq)]
pub struct Lease(Arc<Parts>);

#[derive(PartialEq, Eq)]
struct Parts {
    id: LeaseId,
    proposed: Proposed,
    acceptance: Signed<Acceptance>,
}

impl Lease {
    /// Longest encoding of a lease.
    pub const MAX_BYTES: usize = Acceptance::MAX_BYTES;

    /// Verifies a lease: the bytes of a signed acceptance with everything in it.
    ///
    /// # Errors
    ///
    /// Returns [`LeaseError`] if any of the three does not verify, or they do not fit together.
    pub fn verify(bytes: &[u8], network: Network) -> Result<Self, LeaseError> {
        let acceptance: Signed<Acceptance> = verify("the acceptance", bytes, network)?;
        let proposed = Proposed::verify(&acceptance.content().proposal, network)?;
        Self::join(proposed, acceptance)
    }

    fn join(proposed: Proposed, acceptance: Signed<Acceptance>) -> Result<Self, LeaseError> {
        if acceptance.signer() != proposed.quote().signer() {
            return Err(LeaseError::WrongSeller {
                quoted: proposed.quote().signer(),
                accepted: acceptance.signer(),
            });
        }
        let at = acceptance.content().at;
        if at > proposed.quote().content().expires || at > proposed.proposal().content().until {
            return Err(LeaseError::Term);
        }
        Ok(Self(Arc::new(Parts {
            id: proposed.id(),
            proposed,
            acceptance,
        })))
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.0.id
    }

    /// The whole lease, for the journal and the wire; [`verify`](Self::verify) reads it back.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.acceptance.as_bytes()
    }

    /// The network its signatures are for.
    #[must_use]
    pub fn network(&self) -> Network {
        self.0.proposed.0.network
    }

    /// The quote as the seller signed it.
    #[must_use]
    pub fn quote(&self) -> &Signed<Quote> {
        self.0.proposed.quote()
    }

    /// The proposal as the buyer signed it.
    #[must_use]
    pub fn proposal(&self) -> &Signed<Proposal> {
        self.0.proposed.proposal()
    }

    /// The acceptance as the seller signed it.
    #[must_use]
    pub fn acceptance(&self) -> &Signed<Acceptance> {
        &self.0.acceptance
    }

    /// Who buys.
    #[must_use]
    pub fn buyer(&self) -> NodeId {
        self.proposal().signer()
    }

    /// Who sells.
    #[must_use]
    pub fn seller(&self) -> NodeId {
        self.quote().signer()
    }

    /// Price per GB.
    #[must_use]
    pub fn price(&self) -> Price {
        self.quote().content().price
    }

    /// The most that is carried in a second, both directions summed.
    #[must_use]
    pub fn rate(&self) -> BytesPerSecond {
        self.quote().content().rate
    }

    /// What is there for this lease however many others share the seller's line.
    #[must_use]
    pub fn assured(&self) -> BytesPerSecond {
        self.quote().content().assured
    }

    /// The quota at the start; extensions may raise it.
    #[must_use]
    pub fn quota(&self) -> Bytes {
        self.proposal().content().quota
    }

    /// The most that extensions may raise the quota to.
    #[must_use]
    pub fn max_quota(&self) -> Bytes {
        self.quote().content().max_quota
    }

    /// What is at stake on either side.
    #[must_use]
    pub fn window(&self) -> Bytes {
        self.quote().content().window
    }

    /// Who goes first.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.proposal().content().mode
    }

    /// What the first payment is at least, on top of the carried credit.
    #[must_use]
    pub fn min_first(&self) -> Msat {
        self.quote().content().min_first
    }

    /// Credit from earlier sessions that counts as paid in this one.
    #[must_use]
    pub fn carried(&self) -> Msat {
        self.quote().content().carried
    }

    /// When it was accepted, by the seller's clock.
    #[must_use]
    pub fn accepted(&self) -> UnixTime {
        self.0.acceptance.content().at
    }

    /// When it ends.
    #[must_use]
    pub fn until(&self) -> UnixTime {
        self.proposal().content().until
    }

    /// How it is paid.
    #[must_use]
    pub fn rail(&self) -> Rails {
        self.quote().content().rail
    }

    /// How the bytes travel.
    #[must_use]
    pub fn tunnel(&self) -> Tunnels {
        self.quote().content().tunnel
    }

    /// What the seller's egress lets through.
    #[must_use]
    pub fn egress(&self) -> Egress {
        self.quote().content().egress
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("id", &self.id())
            .field("buyer", &self.buyer())
            .field("seller", &self.seller())
            .field("price", &self.price())
            .field("rate", &self.rate())
            .field("quota", &self.quota())
            .field("mode", &self.mode())
            .field("until", &self.until())
            .finish_non_exhaustive()
    }
}
