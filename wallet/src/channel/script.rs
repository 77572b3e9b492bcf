//! The channel's output and its two leaves.
//!
//! ```text
//! tr(P, { and_v(v:pk(B),pk(S)), and_v(v:pk(B),after(T)) })
//! ```
//!
//! `B` is the payer's key, `S` the payee's, `P` their BIP-327 aggregate, `T` the expiry height.
//! The first leaf pays out a voucher, the second is the payer's refund. `P` ends the channel
//! together ([`super::split`]).

use bitcoin::key::UntweakedPublicKey;
use bitcoin::opcodes::all::{OP_CHECKSIG, OP_CHECKSIGVERIFY, OP_CLTV};
use bitcoin::script::Builder;
use bitcoin::secp256k1::XOnlyPublicKey;
use bitcoin::taproot::{ControlBlock, LeafVersion, TapLeafHash, TaprootBuilder, TaprootSpendInfo};
use bitcoin::{ScriptBuf, TapNodeHash};

use super::deadline::BlockHeight;
use super::{SECP, aggregate};

/// A leaf together with what a spend of it has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The tapscript.
    pub script: ScriptBuf,
    /// Its hash, as signed.
    pub hash: TapLeafHash,
    /// Proof that the output commits to it.
    pub control: ControlBlock,
}

/// Output script and leaves of one tranche.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scripts {
    keys: (XOnlyPublicKey, XOnlyPublicKey),
    internal_key: UntweakedPublicKey,
    merkle_root: TapNodeHash,
    output_key: XOnlyPublicKey,
    output: ScriptBuf,
    update: Leaf,
    refund: Leaf,
}

impl Scripts {
    /// Builds the scripts for payer key `payer`, payee key `payee` and expiry height `expiry`.
    pub fn new(payer: XOnlyPublicKey, payee: XOnlyPublicKey, expiry: BlockHeight) -> Self {
        let internal_key = aggregate(payer, payee);
        let update = update_leaf(payer, payee);
        let refund = refund_leaf(payer, expiry);
        let spend = TaprootBuilder::new()
            .add_leaf(1, update.clone())
            .and_then(|builder| builder.add_leaf(1, refund.clone()))
            .expect("two leaves of depth one are a tree")
            .finalize(&SECP, internal_key)
            .expect("two leaves of depth one are a whole tree");
        Self {
            keys: (payer, payee),
            internal_key,
            merkle_root: spend.merkle_root().expect("a tree has a root"),
            output_key: spend.output_key().to_x_only_public_key(),
            output: ScriptBuf::new_p2tr_tweaked(spend.output_key()),
            update: leaf(&spend, update),
            refund: leaf(&spend, refund),
        }
    }

    /// The root that [`new`](Self::new) arrives at, at a tenth of its cost.
    pub(crate) fn merkle_root_of(
        payer: XOnlyPublicKey,
        payee: XOnlyPublicKey,
        expiry: BlockHeight,
    ) -> TapNodeHash {
        let node = |script: &ScriptBuf| TapNodeHash::from_script(script, LeafVersion::TapScript);
        TapNodeHash::from_node_hashes(
            node(&update_leaf(payer, payee)),
            node(&refund_leaf(payer, expiry)),
        )
    }

    /// The script the funding output must pay.
    pub const fn output(&self) -> &ScriptBuf {
        &self.output
    }

    /// The payer's and the payee's key.
    pub const fn keys(&self) -> (XOnlyPublicKey, XOnlyPublicKey) {
        self.keys
    }

    /// The aggregate of both keys, before the taproot tweak.
    pub const fn internal_key(&self) -> UntweakedPublicKey {
        self.internal_key
    }

    /// The key the output pays to: the internal key with the taproot tweak.
    pub const fn output_key(&self) -> XOnlyPublicKey {
        self.output_key
    }

    /// Root of the two leaves, as the taproot tweak commits to it.
    pub const fn merkle_root(&self) -> TapNodeHash {
        self.merkle_root
    }

    /// The leaf both sign: pays out a voucher.
    pub const fn update(&self) -> &Leaf {
        &self.update
    }

    /// The leaf the payer signs alone, valid from the expiry height on.
    pub const fn refund(&self) -> &Leaf {
        &self.refund
    }
}

fn leaf(spend: &TaprootSpendInfo, script: ScriptBuf) -> Leaf {
    let control = spend
        .control_block(&(script.clone(), LeafVersion::TapScript))
        .expect("the tree holds the leaf it was built from");
    Leaf {
        hash: TapLeafHash::from_script(&script, LeafVersion::TapScript),
        script,
        control,
    }
}

/// `and_v(v:pk(B),pk(S))`: 68 bytes.
fn update_leaf(payer: XOnlyPublicKey, payee: XOnlyPublicKey) -> ScriptBuf {
    Builder::new()
        .push_x_only_key(&payer)
        .push_opcode(OP_CHECKSIGVERIFY)
        .push_x_only_key(&payee)
        .push_opcode(OP_CHECKSIG)
        .into_script()
}

/// `and_v(v:pk(B),after(T))`: 38 bytes, 39 from height 32,768 on.
fn refund_leaf(payer: XOnlyPublicKey, expiry: BlockHeight) -> ScriptBuf {
    Builder::new()
        .push_x_only_key(&payer)
        .push_opcode(OP_CHECKSIGVERIFY)
        .push_int(i64::from(expiry.get()))
        .push_opcode(OP_CLTV)
        .into_script()
}

/// BIP-327 `KeyAgg(KeySort(payer, payee))`, of the points with even Y.
pub fn aggregate(payer: XOnlyPublicKey, payee: XOnlyPublicKey) -> UntweakedPublicKey {
    let aggregated = aggregate::aggregate(payer, payee).agg_pk();
    XOnlyPublicKey::from_slice(&aggregated.to_byte_array()).expect("an aggregate is a point")
}
