//! Carrying a channel over into the next: one transaction that pays out and funds, and everything a
//! hostile side could try.

use std::time::{Duration, Instant};

use bitcoin::{Amount, FeeRate, ScriptBuf, Transaction};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::exposure::{ExposureTable, Step};
use bitmesh_wallet::channel::message::{
    Close, CloseAck, Funding, MAX_SMALL_MESSAGE_BYTES, Message, RefusalCode, Refused, Renew,
};
use bitmesh_wallet::channel::params::{
    CLOSE_PATIENCE, CLOSE_RESPITE, Contract, PayeePolicy, PayerPolicy,
};
use bitmesh_wallet::channel::payee::{self, Acceptance, Payee};
use bitmesh_wallet::channel::payer::{self, CloseError, Payer, Proposal};
use bitmesh_wallet::channel::record::{End, Fact, Record, compact};
use bitmesh_wallet::channel::split::{CloseFailure, SPLIT_VBYTES, Split, SplitError};
use bitmesh_wallet::channel::tx::{DUST_P2TR, ROLLOVER_CHANGE_VBYTES};
use bitmesh_wallet::channel::{ProposalId, TrancheIndex};
use bitmesh_wallet::ledger::{Account, Ledger};

use crate::fixture::*;

const PAYOUT: u8 = 0xaa;
/// The payer's key of the next channel. The payee's is the one it has.
const NEXT_PAYER: u8 = 3;
const NEXT_EXPIRY: u32 = EXPIRY.get() + 2_000;

/// Both ends of a channel, and of the one that is to follow it.
struct Four {
    now: Instant,
    payer: Payer,
    payee: Payee,
    next_payer: Payer,
    next_payee: Payee,
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

fn next_proposal(capacity: Amount) -> Proposal {
    Proposal {
        nonce: [8; 16],
        capacity,
        expiry: BlockHeight::new(NEXT_EXPIRY),
        change_script: p2tr(0xce),
        key_index: 5,
        from: Some(open().proposal()),
        ..proposal()
    }
}

fn next_machines(capacity: Amount, payee_key: u8, now: Instant) -> (Payer, Payee) {
    let (policy, proposal) = (PayerPolicy::default(), next_proposal(capacity));
    let next_payer = Payer::propose(proposal, keypair(NEXT_PAYER), policy, now);
    let acceptance = Acceptance {
        from: Some(open().proposal()),
        ..acceptance()
    };
    let policy = PayeePolicy::default();
    let open = next_payer.open().clone();
    let next_payee = Payee::accept(open, &acceptance, keypair(payee_key), policy).unwrap();
    (next_payer, next_payee)
}

impl Four {
    /// A confirmed channel on which `total` is paid, and agreement on one of `capacity` that follows.
    fn paid(total: u64, capacity: u64) -> Self {
        let now = epoch();
        let (next_payer, next_payee) = next_machines(sat(capacity), PAYEE, now);
        let mut four = Self {
            now,
            payer: payer(now),
            payee: payee(),
            next_payer,
            next_payee,
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
        let accept = four.payee.contract().accept().clone();
        four.tell_payee(payee::Input::TipChanged(TIP));
        four.tell_payer(payer::Input::TipChanged(TIP));
        four.tell_payer(payer::Input::Received(Message::Accept(accept)));
        let script = four.payee.contract().scripts().output();
        let tx = Box::new(funding_tx(script, CAPACITY));
        four.tell_payer(payer::Input::FundingSigned { tx, fee: sat(154) });
        four.tell_payer(payer::Input::FundingDepth { confirmations: 3 });
        four.talk();
        four.tell_payee(payee::Input::FundingConfirmed { confirmations: 3 });
        four.talk();
        if total > 0 {
            four.tell_payer(payer::Input::Pay { total: sat(total) });
            four.talk();
        }
        assert_eq!(four.payee.held(), sat(total));
        for input in [
            payer::Input::TipChanged(TIP),
            payer::Input::Received(Message::Accept(four.next_payee.contract().accept().clone())),
        ] {
            four.next_payer.handle(input, now).unwrap();
        }
        four.drain();
        four.forget();
        four
    }

    /// A rollover that the payee has made, and the payer does not hear of.
    fn with_the_last_word_lost() -> (Self, Transaction) {
        let mut four = Self::paid(40_000, 60_000);
        let ack = four.offered();
        four.tell_payer(payer::Input::Received(Message::CloseAck(Box::new(ack))));
        four.deliver_to_payee();
        let tx = four.payee.closes_with().unwrap().clone();
        four.to_payer.clear();
        (four, tx)
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

    fn next(&self) -> Contract {
        self.next_payer.contract().unwrap().clone()
    }

    fn is_of_next(&self, message: &Message) -> bool {
        let subject = message.subject();
        subject == *self.next_payee.channel().as_bytes()
            || subject == *self.next_payer.proposal().as_bytes()
    }

    fn try_payer(&mut self, input: payer::Input) -> Result<(), payer::Error> {
        let told = self.payer.handle(input, self.now);
        self.drain();
        told
    }

    fn tell_payer(&mut self, input: payer::Input) {
        self.try_payer(input).unwrap();
    }

    fn try_payee(&mut self, input: payee::Input) -> Result<(), payee::Error> {
        let told = self.payee.handle(input, self.now);
        self.drain();
        told
    }

    fn tell_payee(&mut self, input: payee::Input) {
        self.try_payee(input).unwrap();
    }

    /// Performs what all four want done, as a node would: what ends a channel funds the next.
    fn drain(&mut self) {
        let mut idle = false;
        while !idle {
            idle = true;
            let outputs = drain_payer(&mut self.payer).into_iter();
            let next = drain_payer(&mut self.next_payer);
            for output in outputs.chain(next) {
                idle = false;
                match output {
                    payer::Output::Persist(record) => self.payer_log.push(record),
                    payer::Output::Send(message) => self.to_payee.push(message),
                    payer::Output::Broadcast(tx) => {
                        let input = payer::Input::FundingSigned {
                            tx: tx.clone(),
                            fee: Amount::ZERO,
                        };
                        let _ = self.next_payer.handle(input, self.now);
                        self.broadcast.push(*tx);
                    }
                    payer::Output::Notify(event) => {
                        self.payer_events.push(event);
                        if event == payer::Event::CloseWanted {
                            let (feerate, seed) = (ONE, self.fresh());
                            let input = payer::Input::TogetherAsked { feerate, seed };
                            self.payer.handle(input, self.now).unwrap();
                        }
                    }
                    payer::Output::Watch { .. } | payer::Output::Fund { .. } => {}
                }
            }
            let outputs = drain_payee(&mut self.payee).into_iter();
            let next = drain_payee(&mut self.next_payee);
            for output in outputs.chain(next) {
                idle = false;
                match output {
                    payee::Output::Persist(record) => self.payee_log.push(record),
                    payee::Output::Send(message) => self.to_payer.push(message),
                    payee::Output::Broadcast(tx) => {
                        self.fund_next_payee(&tx);
                        self.broadcast.push(*tx);
                    }
                    payee::Output::Notify(event) => {
                        self.payee_events.push(event);
                        self.answer(event);
                    }
                    payee::Output::Watch { .. } => {}
                }
            }
        }
    }

    fn fund_next_payee(&mut self, tx: &Transaction) {
        let script = self.next_payee.contract().scripts().output();
        let vout = tx.output.iter().position(|o| o.script_pubkey == *script);
        if let Some(vout) = vout {
            let funding = Funding {
                channel: self.next_payee.channel(),
                tranche: TrancheIndex::FIRST,
                tx: tx.clone(),
                vout: vout as u32,
            };
            let message = Message::Funding(Box::new(funding));
            let _ = self
                .next_payee
                .handle(payee::Input::Received(message), self.now);
        }
    }

    fn answer(&mut self, event: payee::Event) {
        let (payout, feerate) = (p2tr(PAYOUT), self.feerate);
        let input = match event {
            payee::Event::SplitDue => payee::Input::SplitChosen {
                payout,
                feerate,
                seed: self.fresh(),
            },
            payee::Event::RolloverWanted { next } if next == self.next_payee.channel() => {
                payee::Input::RolloverChosen {
                    payout,
                    feerate,
                    seed: self.fresh(),
                    next: self.next_payee.contract().output(),
                }
            }
            payee::Event::RolloverWanted { .. } => payee::Input::RolloverUnknown,
            _ => return,
        };
        self.payee.handle(input, self.now).unwrap();
    }

    fn roll_into(&mut self, next: Contract) -> Result<(), payer::Error> {
        let (feerate, seed, next) = (ONE, self.fresh(), Box::new(next));
        self.try_payer(payer::Input::RolloverAsked {
            feerate,
            seed,
            next,
        })
    }

    fn roll(&mut self) {
        self.roll_into(self.next()).unwrap();
    }

    fn deliver_to_payee(&mut self) {
        let message = self.to_payee.remove(0);
        let is_next = self.is_of_next(&message);
        let input = payee::Input::Received(message);
        let told = match is_next {
            true => self.next_payee.handle(input, self.now),
            false => self.payee.handle(input, self.now),
        };
        self.drain();
        if let Some(code) = told.err().and_then(|error| error.refusal()) {
            let subject = *self.payee.channel().as_bytes();
            self.to_payer
                .push(Message::Refused(Refused { subject, code }));
        }
    }

    fn deliver_to_payer(&mut self) {
        let message = self.to_payer.remove(0);
        let is_next = self.is_of_next(&message);
        let input = payer::Input::Received(message);
        let _ = match is_next {
            true => self.next_payer.handle(input, self.now),
            false => self.payer.handle(input, self.now),
        };
        self.drain();
    }

    fn talk(&mut self) {
        while !(self.to_payee.is_empty() && self.to_payer.is_empty()) {
            if self.to_payee.is_empty() {
                self.deliver_to_payer();
            } else {
                self.deliver_to_payee();
            }
        }
    }

    fn sleep(&mut self, time: Duration) {
        self.now += time;
        self.payer.handle_timeout(self.now);
        self.payee.handle_timeout(self.now);
        self.drain();
    }

    fn records_of(log: &[Record], proposal: ProposalId) -> Vec<Record> {
        let own = log.iter().filter(|record| record.proposal == proposal);
        own.cloned().collect()
    }

    fn restart_payer(&mut self) {
        let log = Self::records_of(&self.payer_log, self.payer.proposal());
        self.payer = Payer::restore(log, keypair(PAYER), PayerPolicy::default(), self.now).unwrap();
        let log = Self::records_of(&self.payer_log, self.next_payer.proposal());
        let policy = PayerPolicy::default();
        self.next_payer = Payer::restore(log, keypair(NEXT_PAYER), policy, self.now).unwrap();
        self.drain();
        self.tell_payer(payer::Input::TipChanged(TIP));
        self.tell_payer(payer::Input::FundingDepth { confirmations: 3 });
    }

    fn restart_payee(&mut self) {
        let log = Self::records_of(&self.payee_log, self.payee.proposal());
        self.payee = Payee::restore(log, keypair(PAYEE), PayeePolicy::default()).unwrap();
        self.drain();
        self.tell_payee(payee::Input::TipChanged(TIP));
        self.tell_payee(payee::Input::FundingConfirmed { confirmations: 3 });
    }

    /// The one rollover that both have, checked as a node would, with the next channel on top of it.
    fn rolled(&self) -> Transaction {
        assert_eq!(self.payer.stage(), payer::Stage::Ending);
        assert_eq!(self.payee.stage(), payee::Stage::Closing);
        let closing = |log: &[Record]| {
            log.iter().find_map(|record| match &record.fact {
                Fact::Closing { tx } => Some((**tx).clone()),
                _ => None,
            })
        };
        let tx = closing(&self.payee_log).expect("the payee has a rollover");
        assert_eq!(closing(&self.payer_log), Some(tx.clone()));
        check_spend(&tranche(), &tx, TIP.get()).unwrap();
        let next = self.next_payer.tranche().expect("the next one is funded");
        assert_eq!(self.next_payee.tranche(), Some(next));
        assert_eq!(next.outpoint().txid, tx.compute_txid());
        assert_eq!(next.prevout(), self.next().output());
        tx
    }

    /// Buries `tx`, and returns what both books say.
    fn bury(&mut self, tx: &Transaction) -> (Ledger, Ledger) {
        let (height, boxed) = (Some(TIP), Box::new(tx.clone()));
        self.tell_payer(payer::Input::Spent {
            tx: boxed.clone(),
            height,
        });
        self.tell_payee(payee::Input::Spent { tx: boxed, height });
        let tip = BlockHeight::new(TIP.get() + 6);
        self.tell_payer(payer::Input::TipChanged(tip));
        self.tell_payee(payee::Input::TipChanged(tip));
        assert!(self.payer.settlement().is_some());
        assert_eq!(self.payee.settlement(), self.payer.settlement());
        self.books()
    }

    /// The books of both, which add up after every record and are the same when compacted.
    fn books(&self) -> (Ledger, Ledger) {
        let books = [&self.payer_log, &self.payee_log].map(|log| {
            let mut ledger = Ledger::new();
            for record in log {
                ledger.post(record).unwrap();
                assert!(ledger.totals().adds_up(), "{record:?}");
            }
            let small = Ledger::from_records(&compact(log.clone())).unwrap();
            assert_eq!(small.totals(), ledger.totals());
            ledger
        });
        books.into()
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

    /// The channel pays as before.
    fn pays_on(&mut self, total: u64) {
        self.sleep(CLOSE_RESPITE);
        self.tell_payer(payer::Input::Pay { total: sat(total) });
        self.talk();
        assert_eq!(self.payee.held(), sat(total));
    }

    /// The attempt up to the split on offer, and that.
    fn offered(&mut self) -> CloseAck {
        self.roll();
        self.deliver_to_payee();
        match self.to_payer.remove(0) {
            Message::CloseAck(ack) => *ack,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn one_transaction_pays_the_payee_and_funds_the_next_channel_with_the_rest() {
    let mut four = Four::paid(40_000, 60_000);

    four.roll();
    four.talk();

    let tx = four.rolled();
    assert_eq!(tx.vsize() as u64, SPLIT_VBYTES);
    assert_eq!(tx.output.len(), 2);
    assert_eq!(tx.output[0], four.next().output());
    assert_eq!(tx.output[1].value, sat(40_000 - SPLIT_VBYTES));
    assert_eq!(tx.output[1].script_pubkey, p2tr(PAYOUT));
    let (paid, earned) = four.bury(&tx);
    let settlement = four.payer.settlement().unwrap();
    assert_eq!(settlement.end, End::Together);
    assert_eq!(settlement.returned, sat(60_000));
    let (paid, earned) = (paid.totals(), earned.totals());
    assert_eq!((paid.paid, paid.locked), (sat(40_000), sat(60_000)));
    assert_eq!(paid.funding_fees, sat(154), "the fee is the payee's");
    assert_eq!(earned.received, sat(40_000 - SPLIT_VBYTES));
    assert_eq!(earned.close_fees, sat(SPLIT_VBYTES));
}

#[test]
fn nothing_is_locked_twice_while_the_rollover_is_not_buried() {
    let mut four = Four::paid(40_000, 60_000);
    let coins = |ledger: &Ledger, four: &Four| {
        let of = |proposal| {
            let channel = ledger.channel(proposal).unwrap();
            channel.balance(Account::Coins).to_sat()
        };
        of(four.payer.proposal()) + of(four.next_payer.proposal())
    };
    let before = four.books().0.totals();

    four.roll();
    four.talk();

    let (after, _) = four.books();
    assert_eq!(after.totals().locked, before.locked);
    assert_eq!(coins(&after, &four), -100_154);
    let tx = four.rolled();
    let (buried, _) = four.bury(&tx);
    assert_eq!(buried.totals().locked, before.locked);
    assert_eq!(coins(&buried, &four), -100_154);
}

#[test]
fn a_smaller_next_channel_leaves_change() {
    let mut four = Four::paid(40_000, 50_000);

    four.roll();
    four.talk();

    let tx = four.rolled();
    assert_eq!(tx.vsize() as u64, ROLLOVER_CHANGE_VBYTES);
    let values: Vec<_> = tx.output.iter().map(|output| output.value).collect();
    let payout = sat(40_000 - ROLLOVER_CHANGE_VBYTES);
    assert_eq!(values, [sat(50_000), sat(10_000), payout]);
    assert_eq!(tx.output[1].script_pubkey, p2tr(0xcb));
    let (paid, _) = four.bury(&tx);
    assert_eq!(four.payer.settlement().unwrap().returned, sat(60_000));
    let paid = paid.totals();
    assert_eq!((paid.locked, paid.returned), (sat(50_000), sat(60_000)));
}

#[test]
fn what_does_not_follow_from_the_channel_is_not_begun() {
    let refused = |four: &mut Four, next| {
        let told = four.roll_into(next);
        assert!(four.to_payee.is_empty());
        assert!(
            !four
                .payer_log
                .iter()
                .any(|it| matches!(it.fact, Fact::Splitting { .. }))
        );
        match told {
            Err(payer::Error::Close(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let mut unpaid = Four::paid(0, 60_000);
    let next = unpaid.next();
    assert_eq!(refused(&mut unpaid, next), CloseError::Unpaid);

    for capacity in [60_001, 60_000 - 329, 60_000 - 1] {
        let mut four = Four::paid(40_000, capacity);
        let next = four.next();
        assert_eq!(refused(&mut four, next), CloseError::Next, "{capacity}");
    }
    assert!(
        Four::paid(40_000, 60_000 - DUST_P2TR.to_sat())
            .roll_into(Four::paid(40_000, 60_000 - DUST_P2TR.to_sat()).next())
            .is_ok()
    );

    // Words alone find the next channel by the payee's key of this one.
    let mut four = Four::paid(40_000, 60_000);
    let (_, other) = next_machines(sat(60_000), 9, four.now);
    let next = other.contract().clone();
    assert_eq!(refused(&mut four, next), CloseError::Next);

    let mut four = Four::paid(40_000, 60_000);
    let (feerate, seed) = (ONE, [9; 32]);
    four.tell_payer(payer::Input::TogetherAsked { feerate, seed });
    four.to_payee.clear();
    let next = four.next();
    assert_eq!(refused(&mut four, next), CloseError::Closing);
}

#[test]
fn a_next_channel_that_was_never_agreed_on_is_refused_and_the_channel_pays_on() {
    let mut four = Four::paid(40_000, 60_000);
    let (mut stranger, other) = next_machines(sat(59_000), PAYEE, four.now);
    let accept = Message::Accept(other.contract().accept().clone());
    stranger
        .handle(payer::Input::Received(accept), four.now)
        .unwrap();

    four.roll_into(stranger.contract().unwrap().clone())
        .unwrap();
    four.talk();

    let refused = CloseFailure::Refused(RefusalCode::Unknown);
    assert_eq!(four.payer_failure(), Some(refused));
    assert_eq!(four.payee_failure(), Some(CloseFailure::NoNext));
    four.pays_on(41_000);
}

#[test]
fn a_half_for_another_output_than_the_one_agreed_on_is_worth_nothing() {
    let mut four = Four::paid(40_000, 60_000);
    four.feerate = FeeRate::from_sat_per_vb(2).unwrap();
    let agreed = four.next();
    let (mut stranger, other) = next_machines(sat(59_000), PAYEE, four.now);
    let accept = Message::Accept(other.contract().accept().clone());
    stranger
        .handle(payer::Input::Received(accept), four.now)
        .unwrap();

    // It signs for an output of its own, and says that it is the one agreed on.
    four.roll_into(stranger.contract().unwrap().clone())
        .unwrap();
    let Message::Close(close) = four.to_payee.remove(0) else {
        panic!("no attempt");
    };
    let lie = Close {
        next: Some(agreed.id()),
        ..*close
    };
    let said = Message::Close(Box::new(lie));
    four.tell_payee(payee::Input::Received(said));
    let Message::CloseAck(ack) = four.to_payer.remove(0) else {
        panic!("no split");
    };
    let ack = CloseAck {
        attempt: close.attempt(),
        ..*ack
    };
    four.tell_payer(payer::Input::Received(Message::CloseAck(Box::new(ack))));
    let Message::ClosePartial(mut half) = four.to_payee.remove(0) else {
        panic!("no half");
    };
    half.attempt = lie.attempt();
    let told = four.try_payee(payee::Input::Received(Message::ClosePartial(half)));

    assert_eq!(told, Err(payee::Error::Partial));
    assert_eq!(four.payee.closes_with(), None);
    assert!(four.next_payee.tranche().is_none());
    assert!(four.broadcast.is_empty());
}

#[test]
fn a_split_that_does_not_make_up_the_next_channel_is_not_signed() {
    let mut four = Four::paid(40_000, 60_000);
    let good = four.offered();
    let ground = tranche().carried_into(four.next().output());
    let check = |split: &Split| split.check_for_payer(&ground, sat(40_000), ONE);
    assert_eq!(check(&good.split), Ok(()));

    // A lower total leaves change, which is the payer's; a higher one takes from the next channel.
    let total = |total| Split {
        total: sat(total),
        ..good.split.clone()
    };
    assert!(matches!(
        check(&total(40_001)),
        Err(SplitError::OverPromised { .. })
    ));
    assert!(matches!(
        check(&total(39_999)),
        Err(SplitError::Next { .. })
    ));
    assert_eq!(
        check(&total(39_000)),
        Err(SplitError::Fee {
            fee: sat(154),
            min: sat(ROLLOVER_CHANGE_VBYTES),
            max: sat(39_000)
        })
    );
    let everything = Split {
        total: CAPACITY,
        ..good.split.clone()
    };
    assert!(everything.transaction(&ground).is_err());
    let nothing = Split {
        total: Amount::ZERO,
        payout: ScriptBuf::new(),
        fee: sat(154),
    };
    assert!(matches!(
        nothing.transaction(&ground),
        Err(SplitError::Next { .. })
    ));
    let own = Split {
        payout: four.next().output().script_pubkey,
        ..good.split.clone()
    };
    assert_eq!(own.transaction(&ground), Err(SplitError::Payout));
}

#[test]
fn a_payer_that_is_silent_or_gone_freezes_the_channel_for_the_patience_at_most() {
    let mut four = Four::paid(40_000, 60_000);
    four.offered();
    let voucher = tranche().sign(&keypair(PAYER), sat(50_000)).unwrap();
    let told = four.try_payee(payee::Input::Received(Message::Voucher(voucher)));
    assert_eq!(told, Err(payee::Error::Frozen));

    four.sleep(CLOSE_PATIENCE);

    assert_eq!(four.payee_failure(), Some(CloseFailure::Silent));
    assert_eq!(four.payer_failure(), Some(CloseFailure::Silent));
    four.to_payee.clear();
    four.pays_on(50_000);
    // Nothing binds the payee: what comes too late makes no rollover.
    assert_eq!(four.payee.closes_with(), None);
}

#[test]
fn a_rollover_whose_last_word_was_lost_is_learned_after_a_restart() {
    let (mut four, tx) = Four::with_the_last_word_lost();

    four.restart_payer();
    assert!(four.next_payer.tranche().is_none());
    four.tell_payer(payer::Input::Reconnected);
    four.talk();

    assert_eq!(four.rolled(), tx);
    four.bury(&tx);
}

#[test]
fn a_payee_says_after_a_restart_what_it_has_rolled_over() {
    let (mut four, tx) = Four::with_the_last_word_lost();

    four.restart_payee();
    assert_eq!(Split::read(&tranche(), &tx).unwrap().0.total, sat(40_000));
    four.sleep(CLOSE_RESPITE * 3);
    four.talk();

    assert_eq!(four.rolled(), tx);
}

#[test]
fn a_payer_that_sees_the_rollover_on_the_chain_needs_no_word_of_the_payees() {
    let mut four = Four::paid(40_000, 60_000);
    let ack = four.offered();
    four.tell_payer(payer::Input::Received(Message::CloseAck(Box::new(ack))));
    four.deliver_to_payee();
    let tx = four.payee.closes_with().unwrap().clone();
    four.to_payer.clear();
    four.restart_payer();
    four.to_payee.clear();

    let input = payer::Input::FundingSigned {
        tx: Box::new(tx.clone()),
        fee: Amount::ZERO,
    };
    four.next_payer.handle(input, four.now).unwrap();
    four.drain();
    let (books, _) = four.bury(&tx);

    assert_eq!(four.next_payer.tranche().unwrap().capacity(), sat(60_000));
    assert_eq!(books.totals().locked, sat(60_000));
}

#[test]
fn a_payee_carries_nothing_over_that_is_not_deep_or_about_to_be_closed() {
    let refused = |four: &mut Four| {
        four.roll();
        let message = four.to_payee.remove(0);
        four.try_payee(payee::Input::Received(message)).unwrap_err()
    };
    let mut shallow = Four::paid(40_000, 60_000);
    shallow.tell_payee(payee::Input::FundingConfirmed { confirmations: 2 });
    assert!(!shallow.payee.may_roll_over());
    assert_eq!(refused(&mut shallow), payee::Error::Frozen);

    let mut late = Four::paid(40_000, 60_000);
    let tip = BlockHeight::new(EXPIRY.get() - 145);
    late.tell_payee(payee::Input::TipChanged(tip));
    assert!(late.payee.may_roll_over());
    let tip = BlockHeight::new(EXPIRY.get() - 144);
    late.tell_payee(payee::Input::TipChanged(tip));
    assert!(!late.payee.may_roll_over());
    assert_eq!(refused(&mut late), payee::Error::Closing);

    let mut closing = Four::paid(40_000, 60_000);
    closing.tell_payee(payee::Input::TogetherAsked);
    closing.to_payer.clear();
    assert_eq!(refused(&mut closing), payee::Error::Closing);
}

#[test]
fn a_rollover_that_would_cost_the_payee_more_than_half_is_refused() {
    let mut four = Four::paid(2_000, 98_000);
    four.feerate = FeeRate::from_sat_per_vb(7).unwrap();

    four.roll();
    four.talk();

    let failure = four.payee_failure();
    assert!(matches!(failure, Some(CloseFailure::NotWorthIt { .. })));
    let refused = CloseFailure::Refused(RefusalCode::Split);
    assert_eq!(four.payer_failure(), Some(refused));
    four.pays_on(2_100);
}

#[test]
fn an_unconfirmed_rollover_is_trusted_as_far_as_one_in_a_block() {
    let mut four = Four::paid(40_000, 60_000);
    four.roll();
    four.talk();
    four.payee_events.clear();
    let now = four.now;
    let next = &mut four.next_payee;
    assert_eq!(next.limit(), Amount::ZERO);

    next.handle(payee::Input::RolloverSeen, now).unwrap();
    let limit = sat(50_000);
    assert_eq!(next.limit(), limit);
    let told = events(&drain_payee(next));
    assert_eq!(told, [payee::Event::LimitChanged { limit }]);

    // No budget is asked, and nothing is trusted that is gone.
    next.handle_timeout(now + CLOSE_PATIENCE);
    assert_eq!(drain_payee(next), []);
    next.handle(payee::Input::FundingDropped, now).unwrap();
    assert_eq!(next.limit(), Amount::ZERO);
    next.handle(payee::Input::RolloverSeen, now).unwrap();
    assert_eq!(next.limit(), limit);
    let conflict = payee::Input::FundingConflicted { confirmations: 0 };
    next.handle(conflict, now).unwrap();
    assert_eq!(next.limit(), Amount::ZERO);
}

#[test]
fn whoever_trusts_nothing_unconfirmed_does_not_trust_a_rollover() {
    let step = |confirmations, limit| Step {
        confirmations,
        limit,
    };
    let steps = vec![step(0, Amount::ZERO), step(1, sat(50_000))];
    let policy = PayeePolicy {
        exposure: ExposureTable::new(steps).unwrap(),
        ..PayeePolicy::default()
    };
    let mut payee = Payee::accept(open(), &acceptance(), keypair(PAYEE), policy).unwrap();
    let funding = Funding {
        channel: payee.channel(),
        tranche: TrancheIndex::FIRST,
        tx: funding_tx(payee.contract().scripts().output(), CAPACITY),
        vout: 1,
    };
    let message = Message::Funding(Box::new(funding));
    for input in [payee::Input::Received(message), payee::Input::RolloverSeen] {
        payee.handle(input, epoch()).unwrap();
    }

    assert_eq!(payee.limit(), Amount::ZERO);
}

#[test]
fn the_payer_is_reminded_from_three_days_before_the_expiry_until_payments_stop() {
    let mut four = Four::paid(40_000, 60_000);
    let said = |four: &mut Four, left: u32| {
        four.payer_events.clear();
        let tip = BlockHeight::new(EXPIRY.get() - left);
        four.tell_payer(payer::Input::TipChanged(tip));
        four.payer_events.clone()
    };

    assert_eq!(said(&mut four, 433), []);
    for blocks_left in [432, 431, 289] {
        let due = payer::Event::RolloverDue { blocks_left };
        assert_eq!(said(&mut four, blocks_left), [due]);
    }
    assert_eq!(said(&mut four, 288), [payer::Event::PaymentsStopped]);

    let mut unpaid = Four::paid(0, 60_000);
    assert_eq!(said(&mut unpaid, 400), []);
}

#[test]
fn where_something_else_ends_the_channel_after_all_the_books_come_out() {
    // The payee replaces its own rollover, as it may when no block takes it up.
    for abandoned_first in [true, false] {
        let mut four = Four::paid(40_000, 60_000);
        four.roll();
        four.talk();
        four.rolled();
        let feerate = FeeRate::from_sat_per_vb(20).unwrap();
        four.tell_payee(payee::Input::CloseAsked {
            payout: p2tr(PAYOUT),
            feerate,
        });
        let close = four.payee.closes_with().unwrap().clone();

        let conflict = payer::Input::FundingConflicted { confirmations: 6 };
        if abandoned_first {
            four.next_payer.handle(conflict, four.now).unwrap();
            four.drain();
            four.bury(&close);
        } else {
            four.bury(&close);
            four.next_payer.handle(conflict, four.now).unwrap();
            four.drain();
        }

        let (paid, _) = four.books();
        let totals = paid.totals();
        assert_eq!((totals.locked, totals.paid), (Amount::ZERO, sat(40_000)));
        for proposal in [four.payer.proposal(), four.next_payer.proposal()] {
            let channel = paid.channel(proposal).unwrap();
            assert!(channel.is_ended());
            assert_eq!(channel.balance(Account::Locked).to_sat(), 0);
        }
        let spent = paid.channel(four.payer.proposal()).unwrap();
        assert_eq!(spent.balance(Account::Coins).to_sat(), -40_154);
        let next = paid.channel(four.next_payer.proposal()).unwrap();
        assert_eq!(next.balance(Account::Coins).to_sat(), 0);
    }
}

#[test]
fn messages_and_records_of_rollovers_have_one_encoding_and_fit() {
    let mut four = Four::paid(40_000, 60_000);
    four.roll();
    let roll = four.to_payee[0].clone();
    let renew = Message::Renew(Box::new(Renew {
        from: four.payer.proposal(),
        open: four.next_payer.open().clone(),
    }));
    for message in [&roll, &renew] {
        let bytes = message.to_bytes();
        assert!(bytes.len() <= MAX_SMALL_MESSAGE_BYTES, "{}", bytes.len());
        assert_eq!(Message::from_bytes(&bytes).as_ref(), Ok(message));
        assert!(Message::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
    }
    // The capacity takes three bytes here, and nine at most.
    assert_eq!(renew.to_bytes().len() + 6, 244);
    assert_eq!((roll.to_bytes()[1], renew.to_bytes()[1]), (17, 16));

    four.talk();
    let logs = four.payer_log.iter().chain(&four.payee_log);
    let mut kinds = Vec::new();
    for record in logs {
        let bytes = record.to_bytes();
        assert_eq!(Record::from_bytes(&bytes).as_ref(), Ok(record));
        kinds.push(bytes[35]);
    }
    for kind in [16, 17, 18] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
}

#[test]
fn a_proposal_that_follows_a_channel_names_it_and_is_never_funded_from_coins() {
    let (mut next_payer, next_payee) = next_machines(sat(60_000), PAYEE, epoch());
    let outputs = drain_payer(&mut next_payer);
    let renew = outputs.iter().find_map(|output| match output {
        payer::Output::Send(Message::Renew(renew)) => Some(renew.clone()),
        _ => None,
    });
    assert_eq!(renew.unwrap().from, open().proposal());
    let log: Vec<_> = outputs
        .into_iter()
        .filter_map(|output| match output {
            payer::Output::Persist(record) => Some(record),
            _ => None,
        })
        .collect();
    let accept = Message::Accept(next_payee.contract().accept().clone());
    next_payer
        .handle(payer::Input::Received(accept), epoch())
        .unwrap();
    let outputs = drain_payer(&mut next_payer);
    assert!(
        !outputs
            .iter()
            .any(|it| matches!(it, payer::Output::Fund { .. }))
    );
    let accepted = outputs.into_iter().filter_map(|output| match output {
        payer::Output::Persist(record) => Some(record),
        _ => None,
    });
    let log: Vec<_> = log.into_iter().chain(accepted).collect();

    let policy = PayerPolicy::default();
    let mut restored = Payer::restore(log, keypair(NEXT_PAYER), policy, epoch()).unwrap();

    assert_eq!(restored.carried_from(), Some(open().proposal()));
    let outputs = drain_payer(&mut restored);
    assert!(
        !outputs
            .iter()
            .any(|it| matches!(it, payer::Output::Fund { .. }))
    );
}
