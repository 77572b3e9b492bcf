//! Channels whose records are lost, as the wallet finds them on the chain: watched, and refunded after
//! their expiry like any other.

use std::time::Instant;

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::XOnlyPublicKey;
use bitcoin::{Amount, OutPoint, Script, Transaction};
use bitmesh_wallet::channel::exposure::ExposureTable;
use bitmesh_wallet::channel::message::{Accept, Open};
use bitmesh_wallet::channel::params::genesis;
use bitmesh_wallet::channel::record::{End, Fact, Record};
use bitmesh_wallet::channel::{ProposalId, TrancheIndex};
use bitmesh_wallet::onchain::LostFunding;

use super::{Output, Payments, party};

/// How many key indexes are passed over after a channel was found whose records are lost: its
/// successors may have been proposed to others without being funded. Half of what the wallet searches,
/// so that the next channel is found again too.
const PASSED_OVER: u32 = 50;

impl Payments {
    /// Whether a channel of this buyer is funded by `outpoint`.
    pub(crate) fn has_funded(&self, outpoint: &OutPoint) -> bool {
        self.payers
            .values()
            .any(|channel| channel.funding == Some(*outpoint))
    }

    /// Buyer: the seller's key in a channel that `tx` carried over into one that this buyer knows nothing of.
    pub(crate) fn lost_next_of(
        &self,
        channel: ProposalId,
        tx: &Transaction,
    ) -> Option<XOnlyPublicKey> {
        let machine = &self.payers.get(&channel)?.machine;
        let tranche = machine.tranche()?;
        let is_split = tranche.settlement(tx, None)?.end == End::Together;
        let (output, next) = (tx.output.first()?, OutPoint::new(tx.compute_txid(), 0));
        let is_carried = tx.output.len() > 1 && *output.script_pubkey != *tranche.change_script();
        let is_known = self.has_funded(&next) || self.is_awaited(&output.script_pubkey);
        let contract = machine.contract()?;
        (is_split && is_carried && !is_known).then(|| contract.accept().payee_key)
    }

    /// Whether a channel that is to be funded by a rollover has this script.
    fn is_awaited(&self, script: &Script) -> bool {
        let mut contracts = self.payers.values().filter_map(|it| it.machine.contract());
        contracts.any(|contract| *contract.scripts().output() == *script)
    }

    /// The first index of a payer's key that is not known to be used, and the usual life of a channel:
    /// where the wallet has to look for what is lost.
    pub(crate) fn search_space(&self) -> (u32, u32) {
        (self.next_payer_key, self.policy.expiry_blocks)
    }

    /// Takes up a channel that this node has funded and knows nothing of. Who is paid by it is not
    /// known, so the node itself stands for the peer: nothing is said or paid on it, and it ends by
    /// the seller's close or by the refund.
    ///
    /// # Errors
    ///
    /// Says what does not fit. Nothing was taken up.
    ///
    /// `from` is the channel that it was carried over from, if it was.
    pub(crate) fn adopt(
        &mut self,
        found: &LostFunding,
        from: Option<ProposalId>,
        now: Instant,
    ) -> Result<ProposalId, String> {
        // The same again if the same is found again.
        let txid = found.outpoint().txid.to_byte_array();
        let mut nonce = [0; 16];
        nonce.iter_mut().zip(txid).for_each(|(to, from)| *to = from);
        let open = Open {
            nonce,
            chain: genesis(self.network),
            payer: party(self.me),
            payee: party(self.me),
            payer_key: found.payer_key,
            capacity: found.capacity(),
            expiry: found.expiry,
            change_script: found.change_script.clone(),
        };
        let proposal = open.proposal();
        let accept = Accept {
            proposal,
            payee_key: found.payee_key,
            min_first: Amount::ZERO,
            exposure: ExposureTable::default(),
        };
        let facts = [
            Fact::Proposed {
                open,
                key_index: found.key_index,
                max_min_first: Amount::ZERO,
                from,
            },
            Fact::Accepted { accept },
            Fact::Funded {
                tranche: TrancheIndex::FIRST,
                tx: Box::new(found.transaction.clone()),
                vout: found.vout,
                fee: found.fee,
            },
        ];
        let records = facts.map(|fact| Record { proposal, fact });
        let mark = self.outputs.len();
        self.outputs
            .extend(records.iter().cloned().map(Output::Persist));
        if let Err(error) = self.restore(records.to_vec(), now) {
            self.outputs.truncate(mark);
            return Err(error);
        }
        Ok(proposal)
    }

    /// Seller: leaves the indexes below `index` alone, if no record tells which of them are used.
    pub(crate) fn begin_payee_keys_at(&mut self, index: u32) {
        if self.next_payee_key == 0 {
            self.next_payee_key = index;
        }
    }

    /// Notes where key indexes go on after a restoration, as payer and as payee.
    pub(crate) fn restore_indexes(&mut self, (payer, payee): (u32, u32)) {
        self.next_payer_key = self.next_payer_key.max(payer);
        self.next_payee_key = self.next_payee_key.max(payee);
    }

    /// Whether this channel was found on the chain, its records lost.
    pub(super) fn is_adopted(&self, open: &Open) -> bool {
        open.payee == party(self.me)
    }

    /// The first index that is surely free after a channel with this one.
    pub(super) fn index_after(&self, index: u32, open: &Open) -> u32 {
        let passed_over = match self.is_adopted(open) {
            true => PASSED_OVER,
            false => 0,
        };
        index.saturating_add(1).saturating_add(passed_over)
    }
}
