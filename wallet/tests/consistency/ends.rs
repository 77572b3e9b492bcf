//! How every run ends: nothing goes wrong any more, whoever is left does what is due, and then the
//! money is counted.

use std::collections::BTreeSet;

use bitcoin::{Amount, SignedAmount, Transaction};
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::params::FINAL_DEPTH;
use bitmesh_wallet::channel::record::{End, Settlement};
use bitmesh_wallet::channel::{payee, payer};
use bitmesh_wallet::ledger::Account;

use crate::chain::Place;
use crate::keys::{BUYER_CHANGE, FUNDING_CHANGE, SELLER_PAYOUT};
use crate::world::{CLOSE, STOP, Side, Truth, World, coin};

/// Who is still there at the end, and what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// Both wait for the deadlines.
    Patient,
    /// The seller closes as soon as nothing goes wrong.
    Prompt,
    /// The seller is never heard of again.
    SellerGone,
    /// The buyer is never heard of again.
    BuyerGone,
}

impl Ending {
    pub(crate) const ALL: [Self; 4] = [
        Self::Patient,
        Self::Prompt,
        Self::SellerGone,
        Self::BuyerGone,
    ];

    fn gone(self) -> Option<Side> {
        match self {
            Self::Patient | Self::Prompt => None,
            Self::SellerGone => Some(Side::Seller),
            Self::BuyerGone => Some(Side::Buyer),
        }
    }
}

impl World {
    pub(crate) fn end(&mut self, choice: u8) {
        let ending = Ending::ALL[usize::from(choice % 4)];
        self.counts.add("ending", ending);
        self.fault = self.fault.filter(|fault| !fault.waits);
        self.chain.floor = 1;
        self.buyer.eyes.are_shut = false;
        self.seller.eyes.are_shut = false;
        self.seller_syncs();
        self.seller.is_grouping = false;
        self.tell_chain();
        self.settle_down();
        for _ in 0..4 {
            self.mine(false);
            self.settle_down();
        }
        if !self.is_forged {
            self.check_agreement();
        }
        match ending {
            // Alone, or in a batch.
            Ending::Prompt if (choice / 4).is_multiple_of(2) => {
                for id in self.sellers() {
                    self.close(id, self.chain.feerate());
                }
            }
            Ending::Prompt => self.close_all(),
            Ending::SellerGone => self.seller.eyes.are_shut = true,
            Ending::BuyerGone => self.buyer.eyes.are_shut = true,
            Ending::Patient => {}
        }
        self.pass_deadlines(ending);
        self.check_ends(ending);
        self.check_coins(ending);
    }

    /// Everything sent arrives, and everybody has time to say it again.
    fn settle_down(&mut self) {
        const ENOUGH: usize = 400;
        for _ in 0..6 {
            self.sleep(61);
            for _ in 0..ENOUGH {
                if self.network.is_empty() {
                    break;
                }
                self.deliver(0, false);
            }
            self.check();
        }
    }

    /// Past every height at which somebody has to do something.
    fn pass_deadlines(&mut self, ending: Ending) {
        let expiries: BTreeSet<u32> = self.truths.values().map(|truth| truth.expiry).collect();
        let heights = expiries.iter().flat_map(|expiry| [expiry - CLOSE, *expiry]);
        let heights: BTreeSet<u32> = heights.collect();
        for height in heights {
            self.jump(height);
            for _ in 0..FINAL_DEPTH + 2 {
                self.mine(false);
                if ending.gone().is_some() {
                    self.network.clear();
                } else {
                    while !self.network.is_empty() {
                        self.deliver(0, false);
                    }
                }
                self.check();
            }
        }
    }

    /// With nothing lost on the way any more, the seller holds what the buyer promised, and counts it.
    fn check_agreement(&self) {
        for (id, payee) in &self.seller.machines {
            let Some(payer) = self.buyer.machines.get(id) else {
                continue;
            };
            let is_open = payer.stage() == payer::Stage::Open;
            if is_open && payee.stage() == payee::Stage::Open {
                match self.truths[id].is_cheated {
                    // Its machine may not know yet what was said with its keys.
                    true => assert!(payee.held() >= payer.promised(), "they differ in the end"),
                    false => assert_eq!(payee.held(), payer.promised(), "they differ in the end"),
                }
                assert_eq!(payer.acknowledged(), payer.promised());
                assert_eq!(payee.credited(), payee.held(), "held and never counted");
            }
            let is_wanted = self.chain.height + STOP < self.truths[id].expiry;
            if is_open && payee.stage() == payee::Stage::Accepted && is_wanted {
                panic!("a seller that forgot the funding is never shown it again");
            }
            if payer.stage() == payer::Stage::Funded && is_wanted {
                panic!("a funding is never mined: {:?}", payee.stage());
            }
        }
    }

    /// What became of every channel, and who lost what.
    fn check_ends(&mut self, ending: Ending) {
        let gone = ending.gone();
        let is_behind = self.truths.values().any(|truth| truth.is_behind);
        let mut ends = Vec::new();
        for (id, outpoint) in self.funded() {
            let truth = &self.truths[&id];
            let (tranche, funding) = (truth.tranche.as_ref(), truth.funding.as_ref());
            let (tranche, funding) = tranche.zip(funding).expect("it was funded");
            let txid = funding.compute_txid();
            if !matches!(self.chain.place(txid), Some(Place::Block(_))) {
                ends.push("never funded".to_owned());
                self.check_unfunded(id, gone);
                continue;
            }
            let spender = self.chain.spender(outpoint);
            let Some((tx, Place::Block(height))) = spender else {
                let is_stuck = gone == Some(Side::Buyer) && self.seller.held(id) == Amount::ZERO;
                let is_lost = self.is_forged && gone == Some(Side::Buyer);
                assert!(
                    is_stuck || is_lost,
                    "money is left in a channel: {ending:?}"
                );
                ends.push("left".to_owned());
                continue;
            };
            let settlement = self.settlement(tranche, tx);
            if tx.input.len() > 1 {
                ends.push("in a batch".to_owned());
            }
            let sum = settlement.returned + settlement.received + settlement.fee;
            assert_eq!(sum, tranche.capacity(), "money appeared or vanished");
            self.check_losses(id, &settlement, gone);
            if self.chain.height + 1 >= height + FINAL_DEPTH {
                // What its seller bears of the fee of a batch is not for a buyer to know, nor for a
                // seller whose backup lacks another channel of it.
                let is_known = |known: &Settlement| {
                    (known.end, known.returned, known.paid())
                        == (settlement.end, settlement.returned, settlement.paid())
                };
                if gone != Some(Side::Buyer) {
                    let known = self.buyer.machines[&id].settlement();
                    let is_right = known.as_ref().is_some_and(is_known);
                    assert!(is_right, "the buyer knows of {known:?}");
                }
                if gone != Some(Side::Seller)
                    && !self.is_forged
                    && let Some(payee) = self.seller.machines.get(&id)
                    && payee.stage() != payee::Stage::Accepted
                    && payee.stage() != payee::Stage::Abandoned
                {
                    let known = payee.settlement();
                    let is_right = known.as_ref().is_some_and(is_known);
                    let bears = known.map(|known| (known.received, known.fee));
                    let is_share = bears == Some((settlement.received, settlement.fee));
                    assert!(
                        is_right && (is_share || is_behind),
                        "the seller knows of {known:?}"
                    );
                }
            }
            ends.push(format!("{:?}", settlement.end));
        }
        for end in ends {
            self.counts.add("end", end);
        }
    }

    fn check_losses(&self, id: ProposalId, settlement: &Settlement, gone: Option<Side>) {
        let truth = &self.truths[&id];
        let capacity = truth.tranche.as_ref().expect("it was funded").capacity();
        match settlement.end {
            End::Commitment => {
                let paid = settlement.paid();
                assert!(
                    paid <= truth.signed,
                    "the buyer paid more than it signed for"
                );
                assert_eq!(settlement.returned, capacity - paid);
                self.check_paid(id, paid);
            }
            End::Together => {
                let paid = settlement.paid();
                assert!(truth.halves.contains(&paid), "a split nobody signed");
                assert_eq!(
                    settlement.returned,
                    capacity - paid - settlement.payer_fee()
                );
                self.check_paid(id, paid);
            }
            End::Refund => {
                assert_eq!(settlement.returned, capacity - settlement.fee);
                let is_excused = truth.is_excused || gone == Some(Side::Seller);
                assert!(
                    truth.served == Amount::ZERO || is_excused,
                    "the refund won against a seller that was awake"
                );
            }
        }
    }

    /// The seller is paid everything that it served for and holds.
    fn check_paid(&self, id: ProposalId, paid: Amount) {
        let (truth, held) = (&self.truths[&id], self.seller.held(id));
        assert!(
            truth.served <= paid || truth.is_closed_before,
            "the seller was paid less than it served for"
        );
        // A backup may be older than the close, or know of the close of a batch only from one member.
        let is_best = paid == held || truth.is_behind;
        assert!(is_best, "closed with an old voucher: {paid}, held {held}");
    }

    /// A funding that never came to be costs the buyer nothing, and the seller what it risked.
    fn check_unfunded(&self, id: ProposalId, gone: Option<Side>) {
        if gone != Some(Side::Buyer) {
            let statement = self
                .buyer
                .journal
                .books
                .channel(id)
                .expect("it was proposed");
            if self.chain.spender(coin(id)).is_some() {
                assert_eq!(self.buyer.machines[&id].stage(), payer::Stage::Abandoned);
                assert_eq!(statement.balance(Account::Coins), SignedAmount::ZERO);
            }
        }
    }

    /// The channels whose funding was mined and whose end the buyer knows.
    fn ended(&self) -> impl Iterator<Item = (ProposalId, &Truth, &Transaction)> {
        self.truths.iter().filter_map(|(id, truth)| {
            let funding = truth.funding.as_ref()?;
            let payer = self.buyer.machines.get(id)?;
            let is_settled = matches!(
                payer.stage(),
                payer::Stage::Settled | payer::Stage::Abandoned
            );
            let is_mined = self.chain.confirmations(funding.compute_txid()) > 0;
            (is_settled && is_mined).then_some((*id, truth, funding))
        })
    }

    /// The books say of coins what the chain says.
    fn check_coins(&self, ending: Ending) {
        if ending.gone() != Some(Side::Buyer) {
            let mut expected = SignedAmount::ZERO;
            for (id, truth, funding) in self.ended() {
                let fee = self.chain.fee(funding).expect("it was mined");
                let tranche = truth.tranche.as_ref().expect("it was funded");
                let spend = self.chain.spender(tranche.outpoint());
                let back = spend.map_or(Amount::ZERO, |(tx, _)| {
                    // In a batch, what comes back stands opposite to what it comes from.
                    let mut inputs = tx.input.iter().map(|input| input.previous_output);
                    let place = inputs.position(|input| input == tranche.outpoint());
                    let is_alone = tx.input.len() == 1;
                    let ours = tx.output.iter().enumerate().filter(|(at, output)| {
                        output.script_pubkey == *BUYER_CHANGE && (is_alone || Some(*at) == place)
                    });
                    ours.map(|(_, output)| output.value).sum()
                });
                let moved = signed(back) - signed(tranche.capacity()) - signed(fee);
                expected += moved;
                let statement = self
                    .buyer
                    .journal
                    .books
                    .channel(id)
                    .expect("it was proposed");
                assert_eq!(
                    statement.balance(Account::Coins),
                    moved,
                    "books and chain differ"
                );
            }
            self.check_wallet(expected);
        }
        let is_behind = self.truths.values().any(|truth| truth.is_behind);
        if ending.gone() != Some(Side::Seller) && !self.is_forged && !is_behind {
            let outputs = self.chain.mined().flat_map(|(tx, _)| &tx.output);
            let ours = outputs.filter(|output| output.script_pubkey == *SELLER_PAYOUT);
            let received: Amount = ours.map(|output| output.value).sum();
            assert_eq!(
                self.seller.journal.books.totals().received,
                received,
                "books and chain differ"
            );
            // A claim on a funding that never came to be is what was risked on it.
            let risked = self.seller.machines.iter().filter_map(|(id, payee)| {
                let funding = self.truths.get(id)?.funding.as_ref()?;
                let is_out = self.chain.confirmations(funding.compute_txid()) == 0;
                is_out.then_some(payee.held())
            });
            let claims = self.seller.journal.books.totals().claims;
            assert_eq!(claims, risked.sum(), "a claim is left");
        }
    }

    /// Every coin of the buyer's that went out is in a channel's end, with the miners, or back.
    fn check_wallet(&self, expected: SignedAmount) {
        let change = &*FUNDING_CHANGE;
        let mut total = SignedAmount::ZERO;
        for (id, _, funding) in self.ended() {
            let spent = self.chain.prevout(coin(id)).expect("it was minted").value;
            let back = funding.output.iter().filter(|o| o.script_pubkey == *change);
            total += signed(back.map(|output| output.value).sum()) - signed(spent);
        }
        let closes = self.chain.mined().flat_map(|(tx, _)| &tx.output);
        let back = closes.filter(|output| output.script_pubkey == *BUYER_CHANGE);
        total += signed(back.map(|output| output.value).sum());
        assert_eq!(total, expected, "the wallet's coins do not add up");
    }
}

fn signed(amount: Amount) -> SignedAmount {
    amount.to_signed().expect("less than there is money")
}
