//! A funded output of a channel, as everything that spends it is made from.

use bitcoin::secp256k1::XOnlyPublicKey;
use bitcoin::{Amount, OutPoint, Script, ScriptBuf, TxOut};

use super::deadline::BlockHeight;
use super::script::Scripts;
use super::{ChannelId, TrancheIndex};

/// A funded output of a channel: everything a voucher, commitment or refund is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tranche {
    pub(super) channel: ChannelId,
    pub(super) index: TrancheIndex,
    pub(super) outpoint: OutPoint,
    pub(super) prevout: TxOut,
    pub(super) payer_key: XOnlyPublicKey,
    pub(super) expiry: BlockHeight,
    pub(super) change: ScriptBuf,
    pub(super) scripts: Scripts,
    pub(super) next: Option<TxOut>,
}

impl Tranche {
    /// The channel it belongs to.
    pub const fn channel(&self) -> ChannelId {
        self.channel
    }

    /// Its index within the channel.
    pub const fn index(&self) -> TrancheIndex {
        self.index
    }

    /// The output that holds the money.
    pub const fn outpoint(&self) -> OutPoint {
        self.outpoint
    }

    /// That output's content.
    pub fn prevout(&self) -> TxOut {
        self.prevout.clone()
    }

    pub(crate) const fn prevout_ref(&self) -> &TxOut {
        &self.prevout
    }

    /// How much it holds.
    pub const fn capacity(&self) -> Amount {
        self.prevout.value
    }

    /// The payer's key, `B`.
    pub const fn payer_key(&self) -> XOnlyPublicKey {
        self.payer_key
    }

    /// From this height on the payer can take it back.
    pub const fn expiry(&self) -> BlockHeight {
        self.expiry
    }

    /// Where the unpaid part goes.
    pub fn change_script(&self) -> &Script {
        &self.change
    }

    /// Output script and leaves.
    pub const fn scripts(&self) -> &Scripts {
        &self.scripts
    }

    /// The output of the next channel, into which a rollover carries what was not paid.
    pub const fn next(&self) -> Option<&TxOut> {
        self.next.as_ref()
    }

    /// The same tranche, to be ended by a rollover: of what was not paid, `next` is the output of the
    /// next channel, and the rest is change. Concerns splits only ([`super::split`]); vouchers are what
    /// they were.
    #[must_use]
    pub fn carried_into(&self, next: TxOut) -> Self {
        Self {
            next: Some(next),
            ..self.clone()
        }
    }
}
