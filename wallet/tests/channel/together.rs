//! Closing together: both machines by hand, and everything a hostile side could try.

use std::time::{Duration, Instant};

use bitcoin::{Amount, FeeRate, Transaction};
use bitmesh_wallet::channel::TrancheIndex;
use bitmesh_wallet::channel::message::{
    Close, CloseAck, CloseDone, ClosePartial, Message, RefusalCode, Refused,
};
use bitmesh_wallet::channel::musig::{PartialSignature, PublicNonce};
use bitmesh_wallet::channel::params::{CLOSE_PATIENCE, CLOSE_RESPITE, PayeePolicy, PayerPolicy};
use bitmesh_wallet::channel::payee::{self, Payee};
use bitmesh_wallet::channel::payer::{self, PayError, Payer};
use bitmesh_wallet::channel::record::{End, Fact, Record};
use bitmesh_wallet::channel::split::{
    CloseFailure, SPLIT_ONE_VBYTES, SPLIT_VBYTES, Split, SplitError,
};
use bitmesh_wallet::channel::tx::BuildError;
use bitmesh_wallet::ledger::Ledger;

use crate::fixture::*;

const PAYOUT: u8 = 0xaa;

/// Both ends of one funded channel, and what each has written down and said.
pub(crate) struct Two {
    now: Instant,
    payer: Payer,
    payee: Payee,
    payer_log: Vec<Record>,
    payee_log: Vec<Record>,
    seed: u8,
    payer_events: Vec<payer::Event>,
    payee_events: Vec<payee::Event>,
    to_payer: Vec<Message>,
    to_payee: Vec<Message>,
    broadcast: Vec<Transaction>,
    feerate: FeeRate,
}

impl Two {
    /// A confirmed channel on which `total` is paid.
    pub(crate) fn paid(total: u64) -> Self {
        let now = epoch();
        let mut two = Self {
            now,
            payer: payer(now),
            payee: payee(),
            payer_log: Vec::new(),
            payee_log: Vec::new(),
            seed: 0,
            payer_events: Vec::new(),
            payee_events: Vec::new(),
            to_payer: Vec::new(),
            to_payee: Vec::new(),
            broadcast: Vec::new(),
            feerate: ONE,
        };
        let accept = two.payee.contract().accept().clone();
        two.tell_payee(payee::Input::TipChanged(TIP));
        two.tell_payer(payer::Input::TipChanged(TIP));
        two.tell_payer(payer::Input::Received(Message::Accept(accept)));
        let tx = Box::new(funding_tx(
            two.payee.contract().scripts().output(),
            CAPACITY,
        ));
        two.tell_payer(payer::Input::FundingSigned { tx, fee: sat(154) });
        two.tell_payer(payer::Input::FundingDepth { confirmations: 3 });
        two.talk();
        two.tell_payee(payee::Input::FundingConfirmed { confirmations: 3 });
        two.talk();
        if total > 0 {
            two.tell_payer(payer::Input::Pay { total: sat(total) });
            two.talk();
        }
        assert_eq!(two.payee.held(), sat(total));
        two.forget();
        two
    }

    fn forget(&mut self) {
        self.payer_events.clear();
        self.payee_events.clear();
        self.to_payer.clear();
        self.to_payee.clear();
        self.broadcast.clear();
    }

    fn fresh(&mut self) -> [u8; 32] {
        self.seed += 1;
        [self.seed; 32]
    }

    fn tell_payer(&mut self, input: payer::Input) {
        let told = self.try_payer(input);
        told.unwrap();
    }

    fn try_payer(&mut self, input: payer::Input) -> Result<(), payer::Error> {
        let told = self.payer.handle(input, self.now);
        self.drain_payer();
        told
    }

    fn drain_payer(&mut self) {
        for output in drain_payer(&mut self.payer) {
            match output {
                payer::Output::Persist(record) => self.payer_log.push(record),
                payer::Output::Send(message) => self.to_payee.push(message),
                payer::Output::Broadcast(tx) => self.broadcast.push(*tx),
                payer::Output::Notify(event) => {
                    self.payer_events.push(event);
                    if event == payer::Event::CloseWanted {
                        self.payer_asks();
                    }
                }
                payer::Output::Fund { .. } | payer::Output::Watch { .. } => {}
            }
        }
    }

    fn tell_payee(&mut self, input: payee::Input) {
        let told = self.try_payee(input);
        told.unwrap();
    }

    fn try_payee(&mut self, input: payee::Input) -> Result<(), payee::Error> {
        let told = self.payee.handle(input, self.now);
        self.drain_payee();
        told
    }

    fn drain_payee(&mut self) {
        for output in drain_payee(&mut self.payee) {
            match output {
                payee::Output::Persist(record) => self.payee_log.push(record),
                payee::Output::Send(message) => self.to_payer.push(message),
                payee::Output::Broadcast(tx) => self.broadcast.push(*tx),
                payee::Output::Notify(event) => {
                    self.payee_events.push(event);
                    if event == payee::Event::SplitDue {
                        let input = payee::Input::SplitChosen {
                            payout: p2tr(PAYOUT),
                            feerate: self.feerate,
                            seed: self.fresh(),
                        };
                        self.tell_payee(input);
                    }
                }
                payee::Output::Watch { .. } => {}
            }
        }
    }

    fn payer_asks(&mut self) {
        let seed = self.fresh();
        self.tell_payer(payer::Input::TogetherAsked { feerate: ONE, seed });
    }

    fn deliver_to_payee(&mut self) {
        let message = self.to_payee.remove(0);
        let _ = self.try_payee(payee::Input::Received(message));
    }

    fn deliver_to_payer(&mut self) {
        let message = self.to_payer.remove(0);
        let _ = self.try_payer(payer::Input::Received(message));
    }

    /// Delivers everything until nobody has anything to say.
    fn talk(&mut self) {
        while !(self.to_payee.is_empty() && self.to_payer.is_empty()) {
            if self.to_payee.is_empty() {
                self.deliver_to_payer();
            } else {
                self.deliver_to_payee();
            }
        }
    }

    fn restart_payer(&mut self) {
        let (log, policy) = (self.payer_log.clone(), PayerPolicy::default());
        self.payer = Payer::restore(log, keypair(PAYER), policy, self.now).unwrap();
        self.drain_payer();
        self.tell_payer(payer::Input::TipChanged(TIP));
        self.tell_payer(payer::Input::FundingDepth { confirmations: 3 });
    }

    fn restart_payee(&mut self) {
        let (log, policy) = (self.payee_log.clone(), PayeePolicy::default());
        self.payee = Payee::restore(log, keypair(PAYEE), policy).unwrap();
        self.drain_payee();
        self.tell_payee(payee::Input::TipChanged(TIP));
        self.tell_payee(payee::Input::FundingConfirmed { confirmations: 3 });
    }

    fn sleep(&mut self, time: Duration) {
        self.now += time;
        self.payer.handle_timeout(self.now);
        self.drain_payer();
        self.payee.handle_timeout(self.now);
        self.drain_payee();
    }

    /// The one close that both have, checked as a node would.
    pub(crate) fn closed(&self) -> Transaction {
        assert_eq!(self.payer.stage(), payer::Stage::Ending);
        assert_eq!(self.payee.stage(), payee::Stage::Closing);
        let closing = |log: &[Record]| {
            log.iter().find_map(|record| match &record.fact {
                Fact::Closing { tx } => Some((**tx).clone()),
                _ => None,
            })
        };
        let tx = closing(&self.payee_log).expect("the payee has a close");
        assert_eq!(closing(&self.payer_log), Some(tx.clone()));
        assert!(self.broadcast.iter().filter(|it| **it == tx).count() >= 2);
        check_spend(&tranche(), &tx, TIP.get()).unwrap();
        tx
    }

    /// Buries `tx`, and returns what both and their books say of it.
    fn bury(&mut self, tx: &Transaction) {
        let tip = bitmesh_wallet::channel::deadline::BlockHeight::new(TIP.get() + 6);
        let height = Some(TIP);
        let boxed = Box::new(tx.clone());
        self.tell_payer(payer::Input::Spent {
            tx: boxed.clone(),
            height,
        });
        self.tell_payee(payee::Input::Spent { tx: boxed, height });
        self.tell_payer(payer::Input::TipChanged(tip));
        self.tell_payee(payee::Input::TipChanged(tip));
        let settlement = self.payer.settlement().unwrap();
        assert_eq!(self.payee.settlement(), Some(settlement));
        assert_eq!(settlement.end, End::Together);
        for log in [&self.payer_log, &self.payee_log] {
            assert!(Ledger::from_records(log).unwrap().totals().adds_up());
        }
    }

    /// The attempt up to the split on offer, and that.
    fn offered(&mut self) -> CloseAck {
        self.payer_asks();
        self.deliver_to_payee();
        match self.to_payer.remove(0) {
            Message::CloseAck(ack) => *ack,
            other => panic!("{other:?}"),
        }
    }

    /// The attempt up to the payer's half, and that.
    fn half(&mut self) -> ClosePartial {
        let ack = self.offered();
        self.tell_payer(payer::Input::Received(Message::CloseAck(Box::new(ack))));
        match self.to_payee.remove(0) {
            Message::ClosePartial(half) => half,
            other => panic!("{other:?}"),
        }
    }

    /// A whole attempt, and what was said in it: the payer's nonce, the payee's, the payer's half.
    pub(crate) fn said(&mut self) -> (Close, CloseAck, ClosePartial) {
        self.payer_asks();
        let Message::Close(close) = self.to_payee[0].clone() else {
            panic!("{:?}", self.to_payee);
        };
        self.deliver_to_payee();
        let Message::CloseAck(ack) = self.to_payer[0].clone() else {
            panic!("{:?}", self.to_payer);
        };
        self.deliver_to_payer();
        let Message::ClosePartial(half) = self.to_payee[0].clone() else {
            panic!("{:?}", self.to_payee);
        };
        self.talk();
        (*close, *ack, half)
    }

    fn payer_failure(&self) -> Option<CloseFailure> {
        self.payer_events.iter().find_map(|event| match event {
            payer::Event::CloseFailed { failure } => Some(*failure),
            _ => None,
        })
    }

    fn payee_failure(&self) -> Option<CloseFailure> {
        self.payee_events.iter().find_map(|event| match event {
            payee::Event::CloseFailed { failure } => Some(*failure),
            _ => None,
        })
    }

    fn pay(&mut self, total: u64) -> Result<(), payer::Error> {
        self.try_payer(payer::Input::Pay { total: sat(total) })
    }
}

#[test]
fn both_sides_close_together_when_the_payer_asks() {
    let mut two = Two::paid(40_000);

    two.payer_asks();
    two.talk();

    let tx = two.closed();
    assert_eq!(tx.input[0].witness.len(), 1);
    assert_eq!(tx.vsize() as u64, SPLIT_VBYTES);
    assert_eq!(tx.output[0].value, sat(60_000));
    assert_eq!(tx.output[0].script_pubkey, p2tr(0xcb));
    assert_eq!(tx.output[1].value, sat(40_000 - SPLIT_VBYTES));
    assert_eq!(tx.output[1].script_pubkey, p2tr(PAYOUT));
    two.bury(&tx);
    let books = |log: &[Record]| Ledger::from_records(log).unwrap().totals();
    let (paid, earned) = (books(&two.payer_log), books(&two.payee_log));
    assert_eq!((paid.paid, paid.returned), (sat(40_000), sat(60_000)));
    assert_eq!(earned.received, sat(40_000 - SPLIT_VBYTES));
    assert_eq!(earned.close_fees, sat(SPLIT_VBYTES));
}

#[test]
fn both_sides_close_together_when_the_payee_asks() {
    let mut two = Two::paid(40_000);

    two.tell_payee(payee::Input::TogetherAsked);
    two.talk();

    let tx = two.closed();
    two.bury(&tx);
}

#[test]
fn when_both_ask_at_once_they_close_once() {
    let mut two = Two::paid(40_000);

    two.tell_payee(payee::Input::TogetherAsked);
    two.payer_asks();
    two.talk();

    two.closed();
    let begun = two.payee_events.iter();
    let begun = begun.filter(|event| **event == payee::Event::SplitDue);
    assert_eq!(begun.count(), 1);
}

#[test]
fn a_channel_on_which_nothing_was_paid_returns_to_the_payer_who_pays_the_fee() {
    let mut two = Two::paid(0);

    two.payer_asks();
    two.talk();

    let tx = two.closed();
    assert_eq!(tx.vsize() as u64, SPLIT_ONE_VBYTES);
    assert_eq!(tx.output.len(), 1);
    assert_eq!(tx.output[0].value, CAPACITY - sat(SPLIT_ONE_VBYTES));
    two.bury(&tx);
    let settlement = two.payer.settlement().unwrap();
    assert_eq!(settlement.payer_fee(), sat(SPLIT_ONE_VBYTES));
    assert_eq!(settlement.payee_fee(), Amount::ZERO);
    assert_eq!(settlement.paid(), Amount::ZERO);
}

#[test]
fn a_channel_that_is_paid_out_has_one_output_and_no_change() {
    let mut two = Two::paid(100_000);

    two.payer_asks();
    two.talk();

    let tx = two.closed();
    assert_eq!(tx.vsize() as u64, SPLIT_ONE_VBYTES);
    assert_eq!(tx.output[0].value, CAPACITY - sat(SPLIT_ONE_VBYTES));
    assert_eq!(tx.output[0].script_pubkey, p2tr(PAYOUT));
    two.bury(&tx);
    assert_eq!(two.payee.settlement().unwrap().paid(), CAPACITY);
}

#[test]
fn a_voucher_that_was_lost_on_its_way_is_paid_out_all_the_same() {
    let mut two = Two::paid(40_000);
    two.pay(50_000).unwrap();
    two.to_payee.clear();

    two.payer_asks();
    two.talk();

    let tx = two.closed();
    assert_eq!(tx.output[0].value, sat(50_000));
    assert_eq!(two.payee.held(), sat(50_000));
}

#[test]
fn nothing_is_promised_or_credited_while_a_close_is_being_signed() {
    let mut two = Two::paid(40_000);
    two.pay(41_000).unwrap();
    let late = two.to_payee.remove(0);
    two.tell_payee(payee::Input::Received(late));
    two.forget();
    let more = tranche().sign(&keypair(PAYER), sat(45_000)).unwrap();

    two.offered();

    let paid = two.pay(42_000);
    assert_eq!(paid, Err(payer::Error::Pay(PayError::Closing)));
    let told = two.try_payee(payee::Input::Received(Message::Voucher(more)));
    assert_eq!(told, Err(payee::Error::Frozen));
    assert_eq!(two.payee.held(), sat(41_000));
    assert!(!two.payee.is_serving());

    // Nobody goes on: both thaw, and the lease with them.
    two.sleep(CLOSE_PATIENCE);
    assert_eq!(two.payer_failure(), Some(CloseFailure::Silent));
    assert_eq!(two.payee_failure(), Some(CloseFailure::Silent));
    two.forget();
    two.pay(42_000).unwrap();
    two.talk();
    assert_eq!(two.payee.credited(), sat(42_000));
    assert!(two.payee.is_serving());
}

#[test]
fn a_payer_whose_half_is_out_never_pays_again_even_after_a_restart() {
    let mut two = Two::paid(40_000);
    two.half();

    two.sleep(CLOSE_PATIENCE);
    two.restart_payer();

    assert_eq!(two.payer.stage(), payer::Stage::Ending);
    assert_eq!(two.payer.spendable(), Amount::ZERO);
    let paid = two.pay(50_000);
    assert_eq!(paid, Err(payer::Error::Pay(PayError::NotOpen)));
}

#[test]
fn whoever_crashes_wherever_the_channel_ends() {
    /// Which side is restarted, and after how many messages.
    #[derive(Clone, Copy, Debug)]
    enum Crash {
        Payer,
        Payee,
        Both,
    }
    for crash in [Crash::Payer, Crash::Payee, Crash::Both] {
        for after in 0..6 {
            for asks in [true, false] {
                let mut two = Two::paid(40_000);
                match asks {
                    true => two.payer_asks(),
                    false => two.tell_payee(payee::Input::TogetherAsked),
                }
                for _ in 0..after {
                    match (two.to_payee.is_empty(), two.to_payer.is_empty()) {
                        (false, _) => two.deliver_to_payee(),
                        (true, false) => two.deliver_to_payer(),
                        (true, true) => {}
                    }
                }
                // What is on its way is lost with it.
                two.to_payee.clear();
                two.to_payer.clear();
                if !matches!(crash, Crash::Payee) {
                    two.restart_payer();
                }
                if !matches!(crash, Crash::Payer) {
                    two.restart_payee();
                }
                two.sleep(CLOSE_PATIENCE);
                two.to_payee.clear();
                two.to_payer.clear();
                two.sleep(CLOSE_RESPITE);
                two.tell_payer(payer::Input::Reconnected);
                two.payer_asks_if_open();
                two.talk();

                let tx = two.closed();
                two.bury(&tx);
                assert_eq!(two.payee.settlement().unwrap().paid(), sat(40_000));
                assert_eq!(two.payee.held(), sat(40_000), "{crash:?} {after} {asks}");
            }
        }
    }
}

impl Two {
    fn payer_asks_if_open(&mut self) {
        let seed = self.fresh();
        let _ = self.try_payer(payer::Input::TogetherAsked { feerate: ONE, seed });
    }
}

#[test]
fn a_payee_that_has_the_close_says_so_as_often_as_it_is_asked() {
    let mut two = Two::paid(40_000);
    let half = two.half();
    two.tell_payee(payee::Input::Received(Message::ClosePartial(half)));
    two.to_payer.clear();

    two.restart_payee();
    two.tell_payee(payee::Input::Received(Message::ClosePartial(half)));

    assert!(matches!(two.to_payer[..], [Message::CloseDone(_)]));
    two.talk();
    two.closed();
}

#[test]
fn a_payer_without_memory_of_the_attempt_takes_the_whole_signature() {
    let mut two = Two::paid(40_000);
    let half = two.half();
    two.restart_payer();

    two.tell_payee(payee::Input::Received(Message::ClosePartial(half)));
    two.talk();

    two.closed();
}

// Hostile sides.

#[test]
fn a_split_that_gives_the_payee_more_than_was_promised_is_not_signed() {
    let mut two = Two::paid(40_000);
    let mut ack = two.offered();
    ack.split.total = sat(40_001);

    two.tell_payer(payer::Input::Received(Message::CloseAck(Box::new(ack))));

    assert_eq!(
        two.payer_failure(),
        Some(CloseFailure::Split(SplitError::OverPromised {
            total: sat(40_001),
            promised: sat(40_000)
        }))
    );
    let signed = |record: &Record| matches!(record.fact, Fact::Splitting { .. });
    assert!(!two.payer_log.iter().any(signed));
    // The payee hears that, and gives up at once.
    two.talk();
    assert_eq!(
        two.payee_failure(),
        Some(CloseFailure::Refused(RefusalCode::Split))
    );
    two.pay(41_000).unwrap();
}

#[test]
fn fees_beyond_bounds_are_not_signed_by_whom_they_would_harm() {
    let tranche = tranche();
    let rate = |sat_per_vb| FeeRate::from_sat_per_vb(sat_per_vb).unwrap();
    let split = |total, feerate| Split::new(&tranche, sat(total), &p2tr(PAYOUT), feerate).unwrap();
    let check =
        |split: &Split, estimate| split.check_for_payer(&tranche, sat(40_000), rate(estimate));
    let is_fee = |checked| matches!(checked, Err(SplitError::Fee { .. }));

    // The payer pays: not more than four times what it thinks is needed, and not less than a quarter.
    assert_eq!(check(&split(0, rate(40)), 10), Ok(()));
    assert!(is_fee(check(&split(0, rate(41)), 10)));
    assert!(is_fee(check(&split(0, rate(2)), 10)));
    // The payee pays: what it burns is its own, but it must be mined some day.
    assert_eq!(check(&split(40_000, rate(200)), 10), Ok(()));
    assert_eq!(check(&split(40_000, rate(3)), 10), Ok(()));
    assert!(is_fee(check(&split(40_000, rate(2)), 10)));
    // Never below what nodes relay.
    let free = Split {
        fee: sat(153),
        ..split(40_000, rate(1))
    };
    assert!(is_fee(check(&free, 1)));
}

#[test]
fn a_payee_is_not_made_to_close_by_a_payer_where_the_fee_takes_more_than_half() {
    let mut two = Two::paid(2_000);
    two.feerate = FeeRate::from_sat_per_vb(7).unwrap();

    two.payer_asks();
    two.talk();

    let fee = sat(7 * SPLIT_VBYTES);
    assert_eq!(
        two.payee_failure(),
        Some(CloseFailure::NotWorthIt {
            fee,
            total: sat(2_000)
        })
    );
    assert_eq!(
        two.payer_failure(),
        Some(CloseFailure::Refused(RefusalCode::Split))
    );
    two.pay(2_001).unwrap();
    two.talk();

    // Its own operator may.
    two.sleep(CLOSE_RESPITE);
    two.forget();
    two.tell_payee(payee::Input::TogetherAsked);
    two.talk();
    two.closed();
}

#[test]
fn a_payee_that_asks_since_the_expiry_is_near_does_not_sign_away_more_than_half() {
    let mut two = Two::paid(2_000);
    two.feerate = FeeRate::from_sat_per_vb(7).unwrap();

    two.tell_payee(payee::Input::CooperationAsked);
    two.talk();

    let failure = two.payee_failure();
    assert!(
        matches!(failure, Some(CloseFailure::NotWorthIt { .. })),
        "{failure:?}"
    );
    assert_eq!(two.payee.stage(), payee::Stage::Open);

    // It asks again when the rate has fallen.
    two.sleep(CLOSE_RESPITE);
    two.forget();
    two.feerate = ONE;
    two.tell_payee(payee::Input::CooperationAsked);
    two.talk();
    let tx = two.closed();
    two.bury(&tx);
}

#[test]
fn what_the_operator_asks_for_is_not_held_back_by_what_the_expiry_asks_for() {
    for asks_first in [payee::Input::TogetherAsked, payee::Input::CooperationAsked] {
        let mut two = Two::paid(2_000);
        two.feerate = FeeRate::from_sat_per_vb(7).unwrap();

        two.tell_payee(asks_first);
        two.tell_payee(payee::Input::TogetherAsked);
        two.tell_payee(payee::Input::CooperationAsked);
        two.talk();

        two.closed();
    }
}

#[test]
fn a_payout_that_would_be_dust_is_not_offered() {
    let split = Split::new(
        &tranche(),
        sat(740),
        &p2tr(PAYOUT),
        FeeRate::from_sat_per_vb(3).unwrap(),
    );
    assert!(matches!(split, Err(BuildError::Dust { .. })), "{split:?}");
}

#[test]
fn payouts_to_the_payers_own_script_or_to_no_taproot_are_not_signed() {
    let tranche = tranche();
    let with = |payout| Split {
        total: sat(40_000),
        payout,
        fee: sat(200),
    };
    let bare = bitcoin::ScriptBuf::from_bytes(vec![0x51]);
    for payout in [p2tr(0xcb), bare, bitcoin::ScriptBuf::new()] {
        let checked = with(payout).check_for_payer(&tranche, sat(40_000), ONE);
        assert_eq!(checked, Err(SplitError::Payout));
    }
}

#[test]
fn a_second_split_for_one_nonce_is_not_signed() {
    let mut two = Two::paid(40_000);
    let ack = two.offered();
    let first = Message::CloseAck(Box::new(ack.clone()));
    two.tell_payer(payer::Input::Received(first.clone()));
    let half = two.to_payee.remove(0);

    // The same again is answered with the same.
    two.tell_payer(payer::Input::Received(first));
    assert_eq!(two.to_payee, [half]);
    two.to_payee.clear();

    // Any other is not answered, be it a better one.
    let mut other = ack.clone();
    other.split.total = sat(39_000);
    let mut theirs = ack.nonce.serialize();
    theirs[..33].copy_from_slice(&ack.nonce.serialize()[33..]);
    let mut renonced = ack;
    renonced.nonce = PublicNonce::from_byte_array(&theirs).unwrap();
    for ack in [other, renonced] {
        let told = two.try_payer(payer::Input::Received(Message::CloseAck(Box::new(ack))));
        assert!(
            matches!(told, Err(payer::Error::Unexpected { .. })),
            "{told:?}"
        );
    }
    assert!(two.to_payee.is_empty());
}

#[test]
fn a_replayed_nonce_of_the_payer_gets_a_fresh_one_of_the_payee_each_time() {
    let mut two = Two::paid(40_000);
    two.payer_asks();
    let close = two.to_payee.remove(0);
    let mut nonces = Vec::new();
    for _ in 0..4 {
        two.tell_payee(payee::Input::Received(close.clone()));
        let Message::CloseAck(ack) = two.to_payer.remove(0) else {
            panic!("no split")
        };
        // Said twice within one attempt, it is the same.
        two.tell_payee(payee::Input::Received(close.clone()));
        assert_eq!(two.to_payer.remove(0), Message::CloseAck(ack.clone()));
        nonces.push(ack.nonce.serialize());
        two.sleep(CLOSE_PATIENCE);
        two.to_payer.clear();
    }
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), 4);
}

#[test]
fn even_a_repeated_seed_gives_the_payee_another_nonce_for_another_split() {
    let mut nonces = Vec::new();
    for payout in [1, 2] {
        let mut two = Two::paid(40_000);
        two.payer_asks();
        let close = two.to_payee.remove(0);
        two.payee
            .handle(payee::Input::Received(close), two.now)
            .unwrap();
        let chosen = payee::Input::SplitChosen {
            payout: p2tr(payout),
            feerate: ONE,
            seed: [9; 32],
        };
        two.payee.handle(chosen, two.now).unwrap();
        let acks = drain_payee(&mut two.payee).into_iter();
        nonces.extend(acks.filter_map(|output| match output {
            payee::Output::Send(Message::CloseAck(ack)) => Some(ack.nonce),
            _ => None,
        }));
    }
    assert_eq!(nonces.len(), 2);
    assert_ne!(nonces[0], nonces[1]);
}

#[test]
fn a_wrong_half_costs_no_nonce_and_the_right_one_still_closes() {
    let mut two = Two::paid(40_000);
    let half = two.half();
    let mut bytes = half.partial.serialize();
    bytes[31] ^= 1;
    let wrong = ClosePartial {
        partial: PartialSignature::from_byte_array(&bytes).unwrap(),
        ..half
    };
    let elsewhere = ClosePartial {
        attempt: bitmesh_wallet::channel::AttemptId::from_bytes([1; 32]),
        ..half
    };

    for _ in 0..100 {
        let told = two.try_payee(payee::Input::Received(Message::ClosePartial(wrong)));
        assert_eq!(told, Err(payee::Error::Partial));
    }
    let told = two.try_payee(payee::Input::Received(Message::ClosePartial(elsewhere)));
    assert_eq!(told, Err(payee::Error::NoAttempt));
    assert!(two.broadcast.is_empty());

    two.tell_payee(payee::Input::Received(Message::ClosePartial(half)));
    two.talk();
    two.closed();
}

#[test]
fn a_half_for_a_wrong_nonce_is_worth_nothing() {
    let mut two = Two::paid(40_000);
    let mut ack = two.offered();
    // Somebody changes the payee's nonce on the way: two valid points in another order.
    let bytes = ack.nonce.serialize();
    let mut swapped = bytes;
    swapped[..33].copy_from_slice(&bytes[33..]);
    swapped[33..].copy_from_slice(&bytes[..33]);
    ack.nonce = PublicNonce::from_byte_array(&swapped).unwrap();
    two.tell_payer(payer::Input::Received(Message::CloseAck(Box::new(ack))));
    let Message::ClosePartial(half) = two.to_payee.remove(0) else {
        panic!("no half")
    };

    let told = two.try_payee(payee::Input::Received(Message::ClosePartial(half)));

    assert_eq!(told, Err(payee::Error::Partial));
}

#[test]
fn a_close_that_is_not_signed_by_both_is_not_believed() {
    let mut two = Two::paid(40_000);
    let split = Split::new(&tranche(), sat(100_000), &p2tr(PAYOUT), ONE).unwrap();
    let signature = tranche()
        .sign(&keypair(PAYEE), sat(40_000))
        .unwrap()
        .signature;
    let done = CloseDone {
        channel: contract().id(),
        tranche: TrancheIndex::FIRST,
        split,
        signature,
    };

    let told = two.try_payer(payer::Input::Received(Message::CloseDone(done)));

    assert_eq!(told, Err(payer::Error::Signature));
    assert!(two.broadcast.is_empty());
    assert_eq!(two.payer.stage(), payer::Stage::Open);
}

#[test]
fn a_flood_of_closes_makes_one_nonce_a_second_and_writes_nothing() {
    let mut two = Two::paid(40_000);
    two.payer_asks();
    let Message::Close(close) = two.to_payee.remove(0) else {
        panic!("no close")
    };
    let close = *close;
    let (written, mut refused) = (two.payee_log.len(), 0);

    // Ten seconds, a thousand attempts with a nonce of their own each.
    for step in 0..1_000u32 {
        let mut other = Two::paid(40_000);
        if step < 32 {
            other.seed = u8::try_from(step * 2).unwrap();
            other.payer_asks();
        }
        let nonce = match other.to_payee.pop() {
            Some(Message::Close(close)) => close.nonce,
            _ => close.nonce,
        };
        let flood = Close { nonce, ..close };
        if two
            .try_payee(payee::Input::Received(Message::Close(Box::new(flood))))
            .is_err()
        {
            refused += 1;
        }
        two.now += Duration::from_millis(10);
    }

    assert!(refused >= 30, "{refused}");
    let begun = two.payee_events.iter();
    let begun = begun.filter(|event| **event == payee::Event::SplitDue);
    assert!(begun.count() <= 11);
    assert_eq!(two.payee_log.len(), written);
}

#[test]
fn closes_of_unknown_unfunded_or_ended_channels_are_refused() {
    let mut two = Two::paid(40_000);
    two.payer_asks();
    let Message::Close(close) = two.to_payee.remove(0) else {
        panic!("no close")
    };
    let close = *close;
    let elsewhere = Close {
        channel: bitmesh_wallet::channel::ChannelId::from_bytes([3; 32]),
        ..close
    };
    let unexpected = |told| matches!(told, Err(payee::Error::Unexpected { .. }));
    let close_of = |close: Close| payee::Input::Received(Message::Close(Box::new(close)));

    assert!(unexpected(two.try_payee(close_of(elsewhere))));
    assert!(unexpected(payee().handle(close_of(close), two.now)));
    // Closed alone already: it is too late for this.
    let alone = payee::Input::CloseAsked {
        payout: p2tr(PAYOUT),
        feerate: ONE,
    };
    two.tell_payee(alone);
    assert_eq!(two.try_payee(close_of(close)), Err(payee::Error::Closing));

    let mut settled = Two::paid(40_000);
    settled.payer_asks();
    settled.talk();
    let tx = settled.closed();
    settled.bury(&tx);
    assert!(unexpected(settled.try_payee(close_of(close))));
    let seed = [1; 32];
    let told = settled.try_payer(payer::Input::TogetherAsked { feerate: ONE, seed });
    assert_eq!(
        told,
        Err(payer::Error::Close(payer::CloseError::NothingLocked))
    );
}

#[test]
fn a_payee_that_closes_alone_in_the_middle_of_it_gives_nothing_away() {
    let mut two = Two::paid(40_000);
    let half = two.half();

    two.tell_payee(payee::Input::CloseAsked {
        payout: p2tr(PAYOUT),
        feerate: ONE,
    });

    let told = two.try_payee(payee::Input::Received(Message::ClosePartial(half)));
    assert_eq!(told, Err(payee::Error::NoAttempt));
    assert_eq!(two.payee.stage(), payee::Stage::Closing);
}

#[test]
fn a_peer_that_is_gone_ends_the_attempt_at_once() {
    let mut two = Two::paid(40_000);
    two.tell_payee(payee::Input::TogetherAsked);
    two.payer_asks();

    two.tell_payee(payee::Input::Unreachable);
    two.tell_payer(payer::Input::Unreachable);

    assert_eq!(two.payee_failure(), Some(CloseFailure::Unreachable));
    assert_eq!(two.payer_failure(), Some(CloseFailure::Unreachable));
    assert_eq!(two.payer.stage(), payer::Stage::Open);
}

#[test]
fn a_refusal_of_the_payer_is_taken_only_while_they_close_together() {
    let mut two = Two::paid(40_000);
    let refused = Message::Refused(Refused {
        subject: *contract().id().as_bytes(),
        code: RefusalCode::Attempt,
    });

    let told = two.try_payee(payee::Input::Received(refused));

    assert!(matches!(told, Err(payee::Error::Unexpected { .. })));
}
