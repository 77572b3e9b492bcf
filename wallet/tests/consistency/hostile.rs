//! A buyer whose program was changed: what it can do with its keys that its machine never would. It
//! may pay what it likes; what it must not be able to do is take from the seller what was credited.

use bitcoin::OutPoint;
use bitcoin::secp256k1::Keypair;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::message::{Close, Funding, Message};
use bitmesh_wallet::channel::musig::PublicNonce;
use bitmesh_wallet::channel::params::Tranche;
use bitmesh_wallet::channel::tx;
use bitmesh_wallet::channel::voucher::Voucher;

use crate::action::{Bytes, one_of};
use crate::fixture::sat;
use crate::keys::{BUYER_CHANGE, buyer_key, seller_key};
use crate::world::{Side, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trick {
    /// A voucher for more than its machine has promised, at any time: also after it has given away
    /// its half of a split.
    More,
    /// One for less than the seller holds.
    Less,
    /// A total that no close could pay out, with the signature of another.
    TooMuch,
    /// Somebody else's signature.
    Forged,
    /// It begins to close together once more, and says what it likes of what it has promised.
    Begin,
    /// It shows another funding.
    Funding,
    /// It takes everything back as soon as a miner lets it, at whatever fee.
    Refund,
}

impl Trick {
    pub(crate) const ALL: [Self; 7] = [
        Self::More,
        Self::Less,
        Self::TooMuch,
        Self::Forged,
        Self::Begin,
        Self::Funding,
        Self::Refund,
    ];
}

impl World {
    pub(crate) fn cheat(&mut self, bytes: &mut Bytes<'_>) {
        let (which, choice, how) = (bytes.take(), bytes.take(), u64::from(bytes.take()));
        let trick = Trick::ALL[usize::from(which) % Trick::ALL.len()];
        let ids: Vec<ProposalId> = self.funded().into_iter().map(|(id, _)| id).collect();
        let Some(id) = one_of(&ids, choice) else {
            return;
        };
        let (Some(tranche), Some(key)) = (self.truths[&id].tranche.clone(), self.buyers_key(id))
        else {
            return;
        };
        self.counts.add("trick", trick);
        let signed = self.truths[&id].signed;
        match trick {
            Trick::More => {
                let total = tranche.legal_at_least(signed + sat(1 + how * 40));
                let total = total.unwrap_or(tranche.capacity());
                self.promise(id, &tranche, &key, total.to_sat());
            }
            Trick::Less => {
                let total = signed.to_sat() * (how + 1) / 257;
                self.promise(id, &tranche, &key, total.max(1));
            }
            Trick::TooMuch => {
                let capacity = tranche.capacity();
                let voucher = tranche.sign(&key, capacity).expect("all of it is legal");
                let total = match how % 3 {
                    0 => capacity + sat(1 + how),
                    1 => capacity - sat(1 + how),
                    _ => sat(0),
                };
                self.say(Message::Voucher(Voucher { total, ..voucher }));
            }
            Trick::Forged => {
                let total = tranche.legal_at_least(signed + sat(1 + how));
                let total = total.unwrap_or(tranche.capacity());
                let voucher = tranche.sign(&seller_key(how as u32 % 4), total);
                self.say(Message::Voucher(voucher.expect("it is legal")));
            }
            Trick::Begin => {
                let total = tranche.legal_at_least(sat(signed.to_sat() * (how % 4) / 2));
                let promised = total.ok().filter(|_| how % 5 > 0).map(|total| {
                    let truth = self.truths.get_mut(&id).expect("it is funded");
                    truth.signed = truth.signed.max(total);
                    let voucher = tranche.sign(&key, total).expect("it is legal");
                    (total, voucher.signature)
                });
                self.truths.get_mut(&id).expect("it is funded").is_cheated = true;
                self.say(Message::Close(Box::new(Close {
                    channel: tranche.channel(),
                    tranche: tranche.index(),
                    nonce: any_nonce(how),
                    promised,
                    next: None,
                })));
            }
            Trick::Funding => {
                let mut tx = self.truths[&id].funding.clone().expect("it is funded");
                let OutPoint { vout, .. } = tranche.outpoint();
                match how % 3 {
                    // The coin of another channel, or less in it, or a place where nothing is.
                    0 => tx.input[0].previous_output.vout += 1,
                    1 => tx.output[vout as usize].value = sat(how),
                    _ => tx.output.truncate(vout as usize),
                }
                // Before it knows the right one, it would wait for this, and nothing more.
                if self.seller_knows(id) {
                    self.say(Message::Funding(Box::new(Funding {
                        channel: tranche.channel(),
                        tranche: tranche.index(),
                        tx,
                        vout,
                    })));
                }
            }
            Trick::Refund => {
                let feerate = bitcoin::FeeRate::from_sat_per_vb(1 + how).expect("a small number");
                if let Ok(refund) = tx::refund(&tranche, &key, &BUYER_CHANGE, feerate) {
                    self.broadcast(id, &refund);
                    self.tell_chain();
                }
            }
        }
    }

    /// Signs for `total` and says so. Nothing is written down.
    fn promise(&mut self, id: ProposalId, tranche: &Tranche, key: &Keypair, total: u64) {
        let Ok(voucher) = tranche.sign(key, sat(total)) else {
            return;
        };
        let truth = self.truths.get_mut(&id).expect("it is funded");
        truth.signed = truth.signed.max(voucher.total);
        truth.is_cheated = true;
        self.say(Message::Voucher(voucher));
    }

    fn say(&mut self, message: Message) {
        self.send(Side::Seller, message.to_bytes());
    }

    fn buyers_key(&self, id: ProposalId) -> Option<Keypair> {
        let key = self.buyer.machines.get(&id)?.open().payer_key;
        let is_it = |index: &u32| buyer_key(*index).x_only_public_key().0 == key;
        (0..u32::from(self.proposed)).find(is_it).map(buyer_key)
    }

    fn seller_knows(&self, id: ProposalId) -> bool {
        let payee = self.seller.machines.get(&id);
        payee.is_some_and(|payee| payee.tranche().is_some())
    }
}

/// Any two points do for a nonce, as long as nobody signs with it.
fn any_nonce(how: u64) -> PublicNonce {
    let point = |index: u64| {
        let key = buyer_key(index as u32 % 8).x_only_public_key().0;
        [&[2], &key.serialize()[..]].concat()
    };
    let bytes = [point(how), point(how / 8)].concat();
    let bytes = bytes.try_into().expect("two compressed points");
    PublicNonce::from_byte_array(&bytes).expect("keys are points")
}
