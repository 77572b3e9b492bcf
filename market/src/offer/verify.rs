//! From a peer's bytes to an offer that can be believed, and what to do with the rest.

use super::{
    EnvelopeError, LimitError, MAX_CLOCK_SKEW, Network, NodeId, Offer, Signed, Signer, Terms,
    UnixTime,
};
use thiserror::Error;

/// What gossip does with a message, and so with the peer it came from.
///
/// The line between [`Ignore`](Self::Ignore) and [`Reject`](Self::Reject): a message is rejected
/// only if every honest node rejects it, whatever its clock, its version and what it has heard
/// before. Anything else would make honest nodes punish each other; a node whose own clock is
/// wrong would cut itself off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Good: pass it on.
    Accept,
    /// Not good now or not for us: drop it, hold it against nobody.
    Ignore,
    /// Nobody honest passes this on: drop it and count it against the sender.
    Reject,
}

/// Why an offer is not believed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// Not a signed offer for this network.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// A field is out of bounds.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// It no longer holds.
    #[error("expired at {expiry}")]
    Expired {
        /// When it stopped holding.
        expiry: UnixTime,
    },
    /// It is dated further ahead than clocks differ.
    #[error("dated {issued}, more than {} s ahead", MAX_CLOCK_SKEW.as_secs())]
    FromTheFuture {
        /// When it says it was stated.
        issued: UnixTime,
    },
}

impl VerifyError {
    /// What gossip does with such a message.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match self {
            // An honest newer node signs what we cannot read.
            Self::Envelope(EnvelopeError::UnknownVersion { .. }) => Verdict::Ignore,
            Self::Envelope(
                EnvelopeError::TooLong { .. }
                | EnvelopeError::Layout
                | EnvelopeError::Key
                | EnvelopeError::Signature
                | EnvelopeError::Content(_),
            ) => Verdict::Reject,
            Self::Limit(_) => Verdict::Reject,
            // Depends on whose clock is right, and ours may be the wrong one.
            Self::Expired { .. } | Self::FromTheFuture { .. } => Verdict::Ignore,
        }
    }
}

/// An offer that was signed by its seller for this network, within its bounds and, when it was
/// checked, in force. The only thing an order book takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedOffer(Signed<Offer>);

impl VerifiedOffer {
    /// Checks what a peer sent: envelope, limits, time.
    ///
    /// # Errors
    ///
    /// The first check that fails; [`VerifyError::verdict`] says what to do about it.
    pub fn verify(bytes: &[u8], network: Network, now: UnixTime) -> Result<Self, VerifyError> {
        let signed = Signed::<Offer>::verify(bytes, network)?;
        check(signed.content(), now)?;
        Ok(Self(signed))
    }

    /// Signs an offer of this node's own.
    ///
    /// # Errors
    ///
    /// What a peer would find wrong with it. Nothing is signed then.
    pub fn seal(
        offer: Offer,
        signer: &dyn Signer,
        network: Network,
        now: UnixTime,
    ) -> Result<Self, VerifyError> {
        check(&offer, now)?;
        let signed = Signed::seal(offer, signer, network);
        let (length, max) = (signed.as_bytes().len(), super::MAX_OFFER_BYTES);
        if length > max {
            return Err(EnvelopeError::TooLong { length, max }.into());
        }
        Ok(Self(signed))
    }

    /// Who offers.
    #[must_use]
    pub const fn seller(&self) -> NodeId {
        self.0.signer()
    }

    /// What is stated.
    #[must_use]
    pub const fn offer(&self) -> &Offer {
        self.0.content()
    }

    /// The terms; `None` if this withdraws.
    #[must_use]
    pub const fn terms(&self) -> Option<&Terms> {
        self.offer().terms.as_ref()
    }

    /// The bytes as they were signed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The signed message inside.
    #[must_use]
    pub fn into_signed(self) -> Signed<Offer> {
        self.0
    }
}

fn check(offer: &Offer, now: UnixTime) -> Result<(), VerifyError> {
    offer.check_limits()?;
    if offer.issued > now.saturating_add(MAX_CLOCK_SKEW) {
        return Err(VerifyError::FromTheFuture {
            issued: offer.issued,
        });
    }
    let expiry = offer.expiry();
    if expiry <= now {
        return Err(VerifyError::Expired { expiry });
    }
    Ok(())
}
