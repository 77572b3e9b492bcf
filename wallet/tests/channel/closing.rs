//! Closing many channels at once, and what is bid for it, block by block.

use bitcoin::{Amount, FeeRate, Transaction};
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::batch::{self, BatchError, MAX_CHANNELS, Member};
use bitmesh_wallet::channel::closing::{By, Claim, Close, Outputs, Plan, Standing, all, plan};
use bitmesh_wallet::channel::deadline::{BlockHeight, Margins};
use bitmesh_wallet::channel::message::{Close as CloseWish, Message, RefusalCode};
use bitmesh_wallet::channel::musig::PublicNonce;
use bitmesh_wallet::channel::params::{Contract, PayeePolicy, Tranche};
use bitmesh_wallet::channel::payee::{self, CloseError, Payee};
use bitmesh_wallet::channel::record::{End, Fact, Record};
use bitmesh_wallet::channel::tx;
use bitmesh_wallet::channel::voucher::Voucher;
use bitmesh_wallet::ledger::Ledger;

use crate::fixture::*;

/// A tranche of a channel of its own, by the same two keys.
fn tranche_of(number: u8) -> Tranche {
    let mut open = open();
    open.nonce = [number; 16];
    let contract = Contract::new(open.clone(), accept(&open)).unwrap();
    let mut funding = funding_tx(contract.scripts().output(), CAPACITY);
    funding.input[0].previous_output.vout = u32::from(number);
    contract.fund(&funding, 1).unwrap()
}

fn vouchers(totals: &[u64]) -> Vec<(Tranche, Voucher)> {
    let numbered = totals.iter().zip(1..);
    numbered
        .map(|(total, number)| {
            let tranche = tranche_of(number);
            let voucher = tranche.sign(&keypair(PAYER), sat(*total)).unwrap();
            (tranche, voucher)
        })
        .collect()
}

fn close_all(vouchers: &[(Tranche, Voucher)], feerate: FeeRate) -> Result<Transaction, BatchError> {
    let payee = keypair(PAYEE);
    let members: Vec<_> = vouchers
        .iter()
        .map(|(tranche, voucher)| Member {
            tranche,
            voucher,
            payee: &payee,
        })
        .collect();
    batch::commitments(&members, &p2tr(0xaa), feerate)
}

fn paid(tx: &Transaction) -> Amount {
    tx.output.iter().map(|output| output.value).sum()
}

const FULL: u64 = 100_000;

#[test]
fn one_channel_alone_closes_as_it_always_did() {
    for total in [50_000, FULL] {
        let vouchers = vouchers(&[total]);
        let (tranche, voucher) = &vouchers[0];
        let alone = tx::commitment(tranche, voucher, &keypair(PAYEE), &p2tr(0xaa), ONE).unwrap();

        assert_eq!(close_all(&vouchers, ONE).unwrap(), alone);
    }
}

#[test]
fn each_payers_change_stands_opposite_its_input_and_full_channels_follow() {
    let vouchers = vouchers(&[FULL, 10_000, FULL, 20_000]);

    let tx = close_all(&vouchers, ONE).unwrap();

    let order = [1, 3, 0, 2].map(|at: usize| vouchers[at].0.outpoint());
    let spent: Vec<_> = tx.input.iter().map(|i| i.previous_output).collect();
    assert_eq!(spent, order);
    assert_eq!(tx.output.len(), 3);
    assert_eq!(tx.output[0].value, sat(90_000));
    assert_eq!(tx.output[1].value, sat(80_000));
    assert_eq!(tx.output[2].script_pubkey, p2tr(0xaa));
}

#[test]
fn a_batch_weighs_what_the_table_says() {
    for (count, vbytes) in [(1, 205), (2, 355), (8, 1_260), (60, 9_099)] {
        let tx = close_all(&vouchers(&vec![10_000; count]), ONE).unwrap();

        assert_eq!(tx.vsize(), vbytes, "{count} channels");
        assert!(tx.weight() <= tx::MAX_WEIGHT);
        let fee = sat(100_000 * count as u64) - paid(&tx);
        assert_eq!(fee, sat(vbytes as u64));
    }
}

#[test]
fn what_makes_no_transaction_is_named() {
    let twelve = vouchers(&[10_000; MAX_CHANNELS + 1]);
    assert_eq!(close_all(&[], ONE), Err(BatchError::Count { got: 0 }));
    let got = MAX_CHANNELS + 1;
    assert_eq!(close_all(&twelve, ONE), Err(BatchError::Count { got }));

    let mut twice = vouchers(&[10_000, 10_000]);
    twice[1] = twice[0].clone();
    assert_eq!(close_all(&twice, ONE), Err(BatchError::Twice { index: 1 }));

    let mut forged = vouchers(&[10_000, 10_000]);
    forged[1].1.total = sat(10_001);
    assert_eq!(
        close_all(&forged, ONE),
        Err(BatchError::Voucher { index: 1 })
    );

    let rate = FeeRate::from_sat_per_vb(10).unwrap();
    let uneven = close_all(&vouchers(&[50_000, 900]), rate);
    assert!(
        matches!(uneven, Err(BatchError::Worthless { index: 1, .. })),
        "{uneven:?}"
    );
}

#[test]
fn the_shares_of_a_fee_add_up_to_it() {
    for totals in [vec![10_000; 7], vec![10_000, FULL, 20_000], vec![FULL; 11]] {
        for rate in [1, 3, 7] {
            let rate = FeeRate::from_sat_per_vb(rate).unwrap();
            let parts = vouchers(&totals);
            let tx = close_all(&parts, rate).unwrap();
            let spent = CAPACITY * totals.len() as u64;

            let shares: Vec<_> = parts
                .iter()
                .map(|(tranche, _)| tranche.fee_share(&tx, spent))
                .collect();

            assert_eq!(shares.iter().copied().sum::<Amount>(), spent - paid(&tx));
            let alone = rate.fee_vb(tx::CLOSE_VBYTES).unwrap();
            assert!(shares.iter().all(|share| *share <= alone), "{shares:?}");
        }
    }
}

/// Two payees whose channels are funded, deep, and paid on.
fn two_payees() -> Vec<Payee> {
    [1, 2]
        .map(|number| {
            let mut open = open();
            open.nonce = [number; 16];
            let policy = PayeePolicy::default();
            let mut payee = Payee::accept(open, &acceptance(), keypair(PAYEE), policy).unwrap();
            let tranche = tranche_of(number);
            let mut tx = funding_tx(payee.contract().scripts().output(), CAPACITY);
            tx.input[0].previous_output.vout = u32::from(number);
            let funding = bitmesh_wallet::channel::message::Funding {
                channel: payee.channel(),
                tranche: tranche.index(),
                tx,
                vout: 1,
            };
            let voucher = tranche.sign(&keypair(PAYER), sat(10_000)).unwrap();
            for input in [
                payee::Input::Received(Message::Funding(Box::new(funding))),
                payee::Input::FundingConfirmed { confirmations: 6 },
                payee::Input::Received(Message::Voucher(voucher)),
            ] {
                payee.handle(input, epoch()).unwrap();
            }
            payee
        })
        .into()
}

fn outputs(payees: &[Payee]) -> Outputs {
    let mut outputs = Outputs::new();
    for payee in payees {
        let outpoint = payee.tranche().unwrap().outpoint();
        outputs.insert(outpoint, CAPACITY, payee.taken_by());
    }
    outputs
}

fn claims(payees: &[Payee]) -> Vec<Claim> {
    let outputs = outputs(payees);
    payees.iter().filter_map(|it| it.claim(&outputs)).collect()
}

fn records(outputs: &[payee::Output]) -> Vec<Record> {
    let record = |output: &payee::Output| match output {
        payee::Output::Persist(record) => Some(record.clone()),
        _ => None,
    };
    outputs.iter().filter_map(record).collect()
}

fn batch_of(payees: &[Payee], rate: u64) -> Transaction {
    let members: Vec<_> = payees.iter().map(|it| it.member().unwrap()).collect();
    let rate = FeeRate::from_sat_per_vb(rate).unwrap();
    batch::commitments(&members, &p2tr(0xaa), rate).unwrap()
}

#[test]
fn a_payee_takes_only_a_transaction_that_pays_out_its_best_voucher() {
    let mut payees = two_payees();
    let now = epoch();
    let good = batch_of(&payees, 1);
    let mut stolen = good.clone();
    stolen.output[0].value -= sat(1);
    let mut elsewhere = good.clone();
    elsewhere.input.remove(0);

    for wrong in [stolen, elsewhere] {
        let tx = Box::new(wrong);
        let told = payees[0].handle(payee::Input::CloseInBatch { tx }, now);
        assert_eq!(told, Err(payee::Error::Close(CloseError::Elsewhere)));
    }
    let tx = Box::new(good);
    let told = payees[0].handle(payee::Input::CloseInBatch { tx }, now);
    assert_eq!(told, Ok(()));
}

#[test]
fn a_batch_is_written_down_first_and_made_again_after_a_restart() {
    let mut payees = two_payees();
    let (tx, now) = (Box::new(batch_of(&payees, 1)), epoch());
    let before = drain_payee(&mut payees[0]);
    let close = payee::Input::CloseInBatch { tx: tx.clone() };
    payees[0].handle(close, now).unwrap();
    let outputs = drain_payee(&mut payees[0]);
    let written = outputs.iter().position(
        |it| matches!(it, payee::Output::Persist(record) if record.fact == Fact::Closing { tx: tx.clone() }),
    );
    let sent = outputs
        .iter()
        .position(|it| *it == payee::Output::Broadcast(tx.clone()));
    assert!(written.unwrap() < sent.unwrap());

    let journal = [records(&before), records(&outputs)].concat();
    let bytes: Vec<_> = journal.iter().map(Record::to_bytes).collect();
    let journal = bytes.iter().map(|it| Record::from_bytes(it).unwrap());
    let mut restored = Payee::restore(journal, keypair(PAYEE), PayeePolicy::default()).unwrap();

    assert!(drain_payee(&mut restored).contains(&payee::Output::Broadcast(tx.clone())));
    assert_eq!(restored.closes_with(), Some(&*tx));
}

#[test]
fn the_books_of_channels_that_ended_in_a_batch_add_up_to_the_sat() {
    let mut payees = two_payees();
    let (tx, now) = (Box::new(batch_of(&payees, 7)), epoch());
    let spent = outputs(&payees).spent_in(&tx).unwrap();
    let height = Some(BlockHeight::new(TIP.get() + 10));

    let mut ledger = Ledger::new();
    for payee in &mut payees {
        for input in [
            payee::Input::CloseInBatch { tx: tx.clone() },
            payee::Input::SpentInBatch {
                tx: tx.clone(),
                height,
                spent,
            },
            payee::Input::TipChanged(BlockHeight::new(TIP.get() + 15)),
        ] {
            payee.handle(input, now).unwrap();
        }
        for record in records(&drain_payee(payee)) {
            ledger.post(&record).unwrap();
        }
    }

    let totals = ledger.totals();
    assert!(totals.adds_up(), "{totals:?}");
    assert_eq!(totals.earned, sat(20_000));
    assert_eq!(totals.received, tx.output.last().unwrap().value);
    assert_eq!(totals.close_fees, sat(20_000) - totals.received);
    assert_eq!(totals.lost, Amount::ZERO);
}

/// The payer of `payee` wants to end its channel together.
fn wish_of_payer(payee: &Payee) -> payee::Input {
    let tranche = payee.tranche().unwrap();
    let points = [PAYER, PAYEE].map(|key| keypair(key).public_key().serialize());
    let nonce: [u8; 66] = points.concat().try_into().unwrap();
    let close = CloseWish {
        channel: tranche.channel(),
        tranche: tranche.index(),
        nonce: PublicNonce::from_byte_array(&nonce).unwrap(),
        promised: None,
        next: None,
    };
    payee::Input::Received(Message::Close(Box::new(close)))
}

#[test]
fn a_payer_that_wants_to_close_together_does_not_keep_its_channel_out_of_a_batch() {
    let mut payees = two_payees();
    let now = epoch();
    let wish = wish_of_payer(&payees[0]);
    payees[0].handle(wish, now).unwrap();
    assert!(drain_payee(&mut payees[0]).contains(&payee::Output::Notify(payee::Event::SplitDue)));

    let due = BlockHeight::new(EXPIRY.get() - Margins::default().close);
    let plan = plan(&claims(&payees), due, 1, &Margins::default());
    assert_eq!(plan.closes.len(), 1);
    assert_eq!(plan.closes[0].members.len(), 2);
    let tx = Box::new(batch_of(&payees, 1));
    for payee in &mut payees {
        let tx = tx.clone();
        payee
            .handle(payee::Input::CloseInBatch { tx }, now)
            .unwrap();
        drain_payee(payee);
    }

    // The attempt is over: its answer comes too late, and nothing more waits for its payer.
    let chosen = payee::Input::SplitChosen {
        payout: p2tr(0xaa),
        feerate: ONE,
        seed: [1; 32],
    };
    payees[0].handle(chosen, now).unwrap();
    assert_eq!(drain_payee(&mut payees[0]), []);
    assert_eq!(payees[0].poll_timeout(), None);
    assert_eq!(payees[0].closes_with(), Some(&*tx));
}

#[test]
fn a_payer_whose_channel_ends_in_a_batch_is_refused_when_it_wants_to_close_together() {
    let mut payees = two_payees();
    let (tx, now) = (Box::new(batch_of(&payees, 1)), epoch());
    for payee in &mut payees {
        let tx = tx.clone();
        payee
            .handle(payee::Input::CloseInBatch { tx }, now)
            .unwrap();
        drain_payee(payee);
    }

    let wish = wish_of_payer(&payees[0]);
    let told = payees[0].handle(wish, now);

    assert_eq!(told, Err(payee::Error::Closing));
    assert_eq!(payee::Error::Closing.refusal(), Some(RefusalCode::Closing));
    assert_eq!(drain_payee(&mut payees[0]), []);
    assert_eq!(payees[0].closes_with(), Some(&*tx));
}

#[test]
fn a_batch_is_made_again_without_a_channel_that_its_payer_took_back() {
    let mut payees = two_payees();
    let now = epoch();
    let close = |payees: &mut Vec<Payee>, tx: &Transaction| {
        for payee in payees {
            let tx = Box::new(tx.clone());
            payee
                .handle(payee::Input::CloseInBatch { tx }, now)
                .unwrap();
        }
    };
    let tx = batch_of(&payees, 1);
    close(&mut payees, &tx);
    let margins = Margins::default();
    let standing = plan(&claims(&payees), EXPIRY, 1, &margins);
    let txid = tx.compute_txid();
    assert!(standing.closes.iter().all(|it| it.replaces == Some(txid)));

    let tranche = payees[0].tranche().unwrap();
    let refund = tx::refund(tranche, &keypair(PAYER), &p2tr(0xcb), ONE).unwrap();
    let spent = payee::Input::Spent {
        tx: Box::new(refund),
        height: Some(EXPIRY),
    };
    payees[0].handle(spent, now).unwrap();

    let rest = plan(&claims(&payees), EXPIRY, 1, &margins);
    assert_eq!(rest.waiting, []);
    let [
        Close {
            members, replaces, ..
        },
    ] = &rest.closes[..]
    else {
        panic!("{rest:?}");
    };
    assert_eq!(*members, [payees[1].proposal()]);
    assert_eq!(*replaces, None);
}

#[test]
fn what_is_due_before_the_close_is_said_in_its_time_and_repeated() {
    let mut payee = two_payees().remove(0);
    drain_payee(&mut payee);
    let said = |payee: &mut Payee, left: u32| {
        let tip = BlockHeight::new(EXPIRY.get() - left);
        payee
            .handle(payee::Input::TipChanged(tip), epoch())
            .unwrap();
        events(&drain_payee(payee))
    };

    assert_eq!(said(&mut payee, 433), []);
    for blocks_left in [432, 431, 289] {
        let due = payee::Event::RolloverDue { blocks_left };
        assert_eq!(said(&mut payee, blocks_left), [due]);
    }
    assert_eq!(said(&mut payee, 288), [payee::Event::ServiceStopped]);
    assert_eq!(said(&mut payee, 217), []);
    for blocks_left in [216, 145] {
        let due = payee::Event::CooperationDue { blocks_left };
        assert_eq!(said(&mut payee, blocks_left), [due]);
    }
    for blocks_left in [144, 100, 36, 0] {
        let held = sat(10_000);
        let due = payee::Event::CloseDue { held, blocks_left };
        assert_eq!(said(&mut payee, blocks_left), [due]);
    }
}

fn claim(number: u8, total: u64) -> Claim {
    Claim {
        channel: ProposalId::from_bytes([number; 32]),
        total: sat(total),
        is_full: false,
        expiry: EXPIRY,
        can_join: true,
        is_due: false,
        standing: None,
    }
}

fn planned(claims: &[Claim], left: u32, going: u64) -> Plan {
    let tip = BlockHeight::new(EXPIRY.get() - left);
    plan(claims, tip, going, &Margins::default())
}

/// The claim, once it is closed at `rate`.
fn closed(claim: Claim, rate: u64, vbytes: u64) -> Claim {
    let standing = Some(Standing {
        txid: tranche_of(9).outpoint().txid,
        fee: sat(rate * vbytes),
        vbytes,
        by: By::Payee,
    });
    Claim { standing, ..claim }
}

fn bid(claims: &[Claim], left: u32, going: u64) -> Option<u64> {
    let plan = planned(claims, left, going);
    plan.closes.first().map(|close| close.feerate)
}

#[test]
fn nothing_is_closed_before_its_time_and_all_that_is_due_goes_in_one_batch() {
    let claims = [claim(1, 50_000), claim(2, 40_000), claim(3, 60_000)];
    assert_eq!(planned(&claims, 145, 1), Plan::default());

    let plan = planned(&claims, 144, 5);

    assert_eq!(plan.waiting, []);
    let [close] = &plan.closes[..] else {
        panic!("{plan:?}");
    };
    assert_eq!((close.members.len(), close.feerate), (3, 5));
}

#[test]
fn no_batch_has_more_channels_than_are_relayed_and_unconfirmed_funding_goes_alone() {
    let mut claims: Vec<_> = (0..130).map(|number| claim(number, 50_000)).collect();
    claims[7].can_join = false;

    let plan = planned(&claims, 144, 1);

    let mut sizes: Vec<_> = plan.closes.iter().map(|it| it.members.len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 9, 60, 60]);
    let alone = plan.closes.iter().find(|it| it.members.len() == 1).unwrap();
    assert_eq!(alone.members, [claims[7].channel]);
}

#[test]
fn bids_rise_by_half_every_six_blocks_up_to_a_quarter_and_then_half_of_the_claim() {
    let fresh = [claim(1, 100_000)];
    let rates = [
        (144, 4),
        (101, 4),
        (100, 6),
        (95, 6),
        (94, 9),
        (88, 14),
        (82, 21),
        (76, 32),
        (70, 48),
        (64, 72),
        (58, 108),
        // A quarter: 25,000 sat for 205 vB.
        (52, 121),
        (37, 121),
        // Half.
        (36, 243),
        (0, 243),
    ];
    for (left, rate) in rates {
        assert_eq!(bid(&fresh, left, 4), Some(rate), "{left} left");
    }
}

#[test]
fn a_bid_follows_from_the_height_alone_so_a_restart_changes_nothing() {
    let fresh = claim(1, 100_000);
    let mut standing = fresh;
    for left in (0..=144).rev() {
        if let Some(rate) = bid(&[standing], left, 4) {
            assert_eq!(Some(rate), bid(&[fresh], left, 4), "{left} left");
            standing = closed(fresh, rate, 205);
        }
        assert_eq!(bid(&[standing], left, 4), None, "said twice at {left}");
    }
    assert_eq!(standing.standing.unwrap().rate(), 243);
}

#[test]
fn a_replacement_pays_a_quarter_more_and_at_least_a_satoshi_for_each_byte() {
    let fresh = claim(1, 1_000_000);
    for rate in 1..300 {
        let next = bid(&[closed(fresh, rate, 205)], 88, 20);
        assert!(
            next.is_none_or(|next| next > rate && next * 4 >= rate * 5),
            "{rate} {next:?}"
        );
    }
    // The estimate moved a little: no reason to send everything again. It jumped: a reason.
    assert_eq!(bid(&[closed(fresh, 20, 205)], 120, 24), None);
    assert_eq!(bid(&[closed(fresh, 20, 205)], 120, 25), Some(25));
    assert_eq!(bid(&[closed(fresh, 20, 205)], 120, 3), None);
}

#[test]
fn a_fee_spike_makes_a_small_claim_wait_and_it_is_closed_when_it_is_worth_it_again() {
    let small = [claim(1, 1_000)];

    let spike = planned(&small, 144, 30);
    assert_eq!(spike.closes, []);
    let [waiting] = &spike.waiting[..] else {
        panic!("{spike:?}");
    };
    assert_eq!((waiting.total, waiting.fee), (sat(1_000), sat(6_150)));
    assert_eq!(planned(&small, 37, 3).closes, []);

    assert_eq!(bid(&small, 120, 2), Some(2));
    // At the last, half is bid whatever the rate: it costs nothing unless it is mined.
    assert_eq!(bid(&small, 36, 30), Some(2));
    assert_eq!(planned(&small, 36, 30).waiting, []);
    // What could not even pay 1 sat/vB with half of it waits for ever.
    assert_eq!(planned(&[claim(1, 409)], 36, 1).closes, []);
}

#[test]
fn no_bid_is_ever_above_half_of_a_claim_or_below_one() {
    for total in [535, 740, 1_000, 4_430, 20_000, 1_000_000] {
        for left in [0, 1, 36, 37, 70, 100, 144] {
            for going in [0, 1, 2, 20, 500, u64::MAX] {
                let Some(rate) = bid(&[claim(1, total)], left, going) else {
                    continue;
                };
                assert!(rate >= 1);
                assert!(
                    rate * tx::CLOSE_VBYTES * 2 <= total,
                    "{total} {left} {going} {rate}"
                );
            }
        }
    }
}

#[test]
fn a_small_claim_neither_holds_a_bid_down_nor_is_dragged_along() {
    let (small, large) = (claim(1, 1_000), claim(2, 1_000_000));

    let plan = planned(&[small, large], 58, 1);

    let bids: Vec<_> = plan
        .closes
        .iter()
        .map(|close| (close.members.clone(), close.feerate))
        .collect();
    assert_eq!(bids, [(vec![large.channel], 41), (vec![small.channel], 1)]);

    // In one close already: the large one leaves it behind, and the small one closes by itself.
    let both = [small, large].map(|claim| closed(claim, 2, 355));
    let plan = planned(&both, 58, 1);
    let txid = both[0].standing.unwrap().txid;
    assert_eq!(plan.closes[0].members, [large.channel]);
    assert_eq!(plan.closes[0].replaces, Some(txid));
    assert_eq!(plan.closes[1].members, [small.channel]);
}

#[test]
fn after_the_expiry_a_refund_is_outbid_as_long_as_that_leaves_half() {
    let refund = |fee: u64| {
        let standing = Some(Standing {
            txid: tranche_of(9).outpoint().txid,
            fee: sat(fee),
            vbytes: tx::REFUND_VBYTES,
            by: By::Payer,
        });
        Claim {
            standing,
            ..claim(1, 10_000)
        }
    };
    // 1,380 sat and one more for each of 205 vB are less than 24 sat/vB, which is half of the claim.
    assert_eq!(bid(&[refund(1_380)], 0, 1), Some(24));
    assert_eq!(bid(&[refund(138 * 23)], 0, 1), Some(24));
    let lost = planned(&[refund(138 * 24)], 0, 1);
    assert_eq!(lost.closes, []);
    assert_eq!(lost.waiting.len(), 1);
}

#[test]
fn what_the_operator_closed_early_is_left_as_it_was_asked_for() {
    let early = closed(claim(1, 50_000), 1, 205);
    assert_eq!(planned(&[early], 1_000, 20), Plan::default());
    assert_eq!(bid(&[early], 144, 20), Some(20));
}

#[test]
fn closing_all_leaves_out_what_it_would_eat_and_what_is_closing() {
    let claims = [
        claim(1, 50_000),
        claim(2, 50_000),
        claim(3, 3_000),
        closed(claim(4, 50_000), 1, 205),
    ];

    let plan = all(&claims, 10);

    let left: Vec<_> = plan.waiting.iter().map(|it| it.channel).collect();
    assert_eq!(left, [claims[2].channel]);
    let [close] = &plan.closes[..] else {
        panic!("{plan:?}");
    };
    assert_eq!((close.members.len(), close.feerate), (2, 10));
}

#[test]
fn a_batch_returns_to_each_payer_what_it_says() {
    let payees = two_payees();
    let tx = batch_of(&payees, 1);
    for payee in &payees {
        let settlement = payee.tranche().unwrap().settlement(&tx, None).unwrap();
        assert_eq!(settlement.end, End::Commitment);
        assert_eq!(settlement.returned, CAPACITY - sat(10_000));
        assert_eq!(settlement.paid(), sat(10_000));
        let borne = settlement.bear(sat(178));
        assert_eq!((borne.received, borne.fee), (sat(9_822), sat(178)));
        assert_eq!(borne.paid(), settlement.paid());
    }
}
