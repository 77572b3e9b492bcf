//! The payer's signed running total.
//!
//! A voucher for total `n` is one BIP-340 signature by the payer over the update leaf of the
//! tranche: version 3, lock time 0, one input with sequence `0xFFFFFFFD`, and the change
//! `capacity - n` at the input's own index, sighash `0x83` (`SINGLE|ANYONECANPAY`). When nothing
//! is left to return it is `0x82` (`NONE|ANYONECANPAY`). The payee adds its own signature over the
//! whole transaction, which is what makes those two sighash types safe against third parties.

use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::secp256k1::{self, Keypair};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{Amount, secp256k1::Message as Digest};
use thiserror::Error;

use super::tranche::Tranche;
use super::tx::{DUST_P2TR, template};
use super::{ChannelId, SECP, TrancheIndex};

/// A signed running total. Valid or not: [`Tranche::verify`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// The channel it pays on.
    pub channel: ChannelId,
    /// The tranche it spends.
    pub tranche: TrancheIndex,
    /// Everything paid on this tranche so far, in sat.
    pub total: Amount,
    /// The payer's signature.
    pub signature: Signature,
}

/// A total that a commitment can pay out, and what remains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Legal {
    /// The payer gets `change` back, which is at least dust.
    Part {
        /// Capacity less the total.
        change: Amount,
    },
    /// Everything is paid; no change.
    Full,
}

impl Legal {
    /// What the payer signs with.
    pub const fn sighash_type(self) -> TapSighashType {
        match self {
            Self::Part { .. } => TapSighashType::SinglePlusAnyoneCanPay,
            Self::Full => TapSighashType::NonePlusAnyoneCanPay,
        }
    }
}

/// Why a total cannot be signed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TotalError {
    /// Nothing is paid.
    #[error("a total of zero pays nothing")]
    Zero,
    /// More than the tranche holds.
    #[error("{total} is more than the capacity of {capacity}")]
    OverCapacity {
        /// The total.
        total: Amount,
        /// What the tranche holds.
        capacity: Amount,
    },
    /// The change would be dust; only the full capacity is legal from here on.
    #[error("{total} leaves {change} of change, which is dust")]
    DustGap {
        /// The total.
        total: Amount,
        /// What would be left.
        change: Amount,
    },
}

/// Why a voucher is not valid. The holder's state is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VoucherError {
    /// For another channel or tranche.
    #[error("the voucher names another channel or tranche")]
    Elsewhere,
    /// The total is none that can be signed for.
    #[error(transparent)]
    Total(#[from] TotalError),
    /// The signature is not the payer's over this total.
    #[error("the signature is not the payer's over {total}")]
    Signature {
        /// The total claimed.
        total: Amount,
    },
}

impl Tranche {
    /// Says whether `total` can be paid out, and how.
    ///
    /// # Errors
    ///
    /// Returns [`TotalError`] for zero, for more than the capacity, and for the 329 values just
    /// below the capacity, which would leave dust.
    pub fn legal(&self, total: Amount) -> Result<Legal, TotalError> {
        if total == Amount::ZERO {
            return Err(TotalError::Zero);
        }
        let capacity = self.capacity();
        let Some(change) = capacity.checked_sub(total) else {
            return Err(TotalError::OverCapacity { total, capacity });
        };
        match change {
            Amount::ZERO => Ok(Legal::Full),
            change if change < DUST_P2TR => Err(TotalError::DustGap { total, change }),
            change => Ok(Legal::Part { change }),
        }
    }

    /// The smallest legal total that is at least `total`: inside the dust gap that is the full
    /// capacity, and the difference (at most 329 sat) is credit for the payer.
    ///
    /// # Errors
    ///
    /// Returns [`TotalError`] for zero and for more than the capacity.
    pub fn legal_at_least(&self, total: Amount) -> Result<Amount, TotalError> {
        match self.legal(total) {
            Ok(_) => Ok(total),
            Err(TotalError::DustGap { .. }) => Ok(self.capacity()),
            Err(error @ (TotalError::Zero | TotalError::OverCapacity { .. })) => Err(error),
        }
    }

    /// The 32 bytes a voucher for `total` signs.
    ///
    /// # Errors
    ///
    /// Returns [`TotalError`] if no such voucher can be.
    pub fn digest(&self, total: Amount) -> Result<[u8; 32], TotalError> {
        Ok(*self.message(total)?.as_ref())
    }

    fn message(&self, total: Amount) -> Result<Digest, TotalError> {
        let legal = self.legal(total)?;
        let template = template(self, legal);
        let digest = SighashCache::new(&template)
            .taproot_script_spend_signature_hash(
                0,
                &Prevouts::One(0, self.prevout_ref()),
                self.scripts().update().hash,
                legal.sighash_type(),
            )
            .expect("one input with its prevout, and an output of its index where one is signed");
        Ok(digest.into())
    }

    /// Signs for `total`. Deterministic: the same total gives the same bytes, so a voucher lost
    /// on the way is simply made again.
    ///
    /// The caller has written down that it promises `total` *before* it lets the voucher out.
    ///
    /// # Errors
    ///
    /// Returns [`TotalError`] if `total` cannot be signed for.
    pub fn sign(&self, payer: &Keypair, total: Amount) -> Result<Voucher, TotalError> {
        let signature = SECP.sign_schnorr_no_aux_rand(&self.message(total)?, payer);
        Ok(Voucher {
            channel: self.channel(),
            tranche: self.index(),
            total,
            signature,
        })
    }

    /// Checks that `voucher` is for this tranche, for a legal total, and signed by the payer.
    /// Whether it is *better* than one already held is for the holder to say.
    ///
    /// # Errors
    ///
    /// Returns [`VoucherError`] if it is not.
    pub fn verify(&self, voucher: &Voucher) -> Result<(), VoucherError> {
        if voucher.channel != self.channel() || voucher.tranche != self.index() {
            return Err(VoucherError::Elsewhere);
        }
        let message = self.message(voucher.total)?;
        SECP.verify_schnorr(&voucher.signature, &message, &self.payer_key())
            .map_err(|_: secp256k1::Error| VoucherError::Signature {
                total: voucher.total,
            })
    }
}
