//! A channel's life, step by step, and what its transactions weigh.

use bitcoin::psbt::Psbt;
use bitcoin::secp256k1::Secp256k1;
use bitcoin::sighash::SighashCache;
use bitcoin::{Amount, FeeRate, Transaction};
use bitmesh_wallet::channel::deadline::{BlockHeight, Margins, Phase};
use bitmesh_wallet::channel::exposure::{
    ExposureTable, ExposureTableError, LOST_FOR, Step, ZeroConfBudget,
};
use bitmesh_wallet::channel::message::{Depth, Message};
use bitmesh_wallet::channel::params::{PayeePolicy, PayerPolicy};
use bitmesh_wallet::channel::payee::{self, Payee, Sighting};
use bitmesh_wallet::channel::payer::{self, PayError, Payer};
use bitmesh_wallet::channel::record::{End, Fact, Record};
use bitmesh_wallet::channel::tx::{self, BuildError, LifeCycle};
use bitmesh_wallet::channel::{ProposalId, TrancheIndex};

use crate::fixture::*;

fn close_with(total: Amount, feerate: FeeRate) -> Result<Transaction, BuildError> {
    let tranche = tranche();
    let voucher = tranche.sign(&keypair(PAYER), total).unwrap();
    tx::commitment(&tranche, &voucher, &keypair(PAYEE), &p2tr(0xaa), feerate)
}

#[test]
fn transactions_weigh_what_the_table_says() {
    let tranche = tranche();
    let part = close_with(sat(50_000), ONE).unwrap();
    let full = close_with(CAPACITY, ONE).unwrap();
    let refund = tx::refund(&tranche, &keypair(PAYER), &p2tr(0xaa), ONE).unwrap();

    for (tx, vbytes) in [
        (&part, tx::CLOSE_VBYTES),
        (&full, tx::CLOSE_FULL_VBYTES),
        (&refund, tx::REFUND_VBYTES),
    ] {
        assert_eq!(tx.vsize() as u64, vbytes);
    }
    assert_eq!(part.output[0].value, CAPACITY - sat(50_000));
    assert_eq!(part.output[0].script_pubkey, *tranche.change_script());
    assert_eq!(part.output[1].value, sat(50_000 - tx::CLOSE_VBYTES));
    assert_eq!(full.output[0].value, CAPACITY - sat(tx::CLOSE_FULL_VBYTES));
    assert_eq!(refund.output[0].value, CAPACITY - sat(tx::REFUND_VBYTES));
}

#[test]
fn every_spend_passes_the_second_implementation() {
    let tranche = tranche();
    for total in [536, 740, 50_000, 99_670, 100_000].map(sat) {
        for rate in [1, 2] {
            let rate = FeeRate::from_sat_per_vb(rate).unwrap();
            if let Ok(tx) = close_with(total, rate) {
                check_spend(&tranche, &tx, TIP.get()).unwrap();
            }
        }
    }
    let refund = tx::refund(&tranche, &keypair(PAYER), &p2tr(0xaa), ONE).unwrap();
    assert_eq!(
        check_spend(&tranche, &refund, EXPIRY.get()),
        Err("non-final".into())
    );
    check_spend(&tranche, &refund, EXPIRY.get() + 1).unwrap();
}

#[test]
fn the_payee_cannot_touch_the_change() {
    let tranche = tranche();
    let mut tx = close_with(sat(50_000), ONE).unwrap();
    tx.output[0].value -= Amount::ONE_SAT;
    assert_eq!(
        check_spend(&tranche, &tx, TIP.get()),
        Err("invalid Schnorr signature".into())
    );

    let mut tx = close_with(sat(50_000), ONE).unwrap();
    tx.output.remove(0);
    assert_eq!(
        check_spend(&tranche, &tx, TIP.get()),
        Err("invalid Schnorr signature".into())
    );
}

#[test]
fn a_third_party_cannot_redirect_a_close_that_pays_everything_out() {
    let tranche = tranche();
    let mut tx = close_with(CAPACITY, ONE).unwrap();
    tx.output[0].script_pubkey = p2tr(0xee);

    assert_eq!(
        check_spend(&tranche, &tx, TIP.get()),
        Err("invalid Schnorr signature".into())
    );
}

#[test]
fn a_close_that_would_leave_dust_is_not_made() {
    let error = close_with(sat(534), ONE).unwrap_err();
    assert_eq!(
        error,
        BuildError::Dust {
            value: sat(534),
            fee: sat(205),
            dust: sat(330)
        }
    );
    assert!(close_with(sat(535), ONE).is_ok());
    assert!(close_with(sat(4_429), FeeRate::from_sat_per_vb(20).unwrap()).is_err());
    assert!(close_with(sat(4_430), FeeRate::from_sat_per_vb(20).unwrap()).is_ok());
    assert!(matches!(
        close_with(CAPACITY, FeeRate::MAX),
        Err(BuildError::FeeRate { .. })
    ));
}

#[test]
fn a_close_is_not_made_from_a_voucher_of_another_total() {
    let tranche = tranche();
    let mut voucher = tranche.sign(&keypair(PAYER), sat(50_000)).unwrap();
    voucher.total = sat(50_001);

    let close = tx::commitment(&tranche, &voucher, &keypair(PAYEE), &p2tr(0xaa), ONE);

    assert_eq!(close, Err(BuildError::Voucher));
}

#[test]
fn external_signers_finalise_to_the_same_transactions() {
    use bitcoin::sighash::{Prevouts, TapSighashType};
    use miniscript::psbt::PsbtExt;
    let secp = Secp256k1::new();
    let tranche = tranche();
    let voucher = tranche.sign(&keypair(PAYER), sat(50_000)).unwrap();
    let sign = |mut psbt: Psbt, seed: u8| {
        let (_, (script, version)) = psbt.inputs[0].tap_scripts.first_key_value().unwrap();
        let leaf = bitcoin::TapLeafHash::from_script(script, *version);
        let digest = SighashCache::new(&psbt.unsigned_tx)
            .taproot_script_spend_signature_hash(
                0,
                &Prevouts::All(&[tranche.prevout()]),
                leaf,
                TapSighashType::Default,
            )
            .unwrap();
        let keypair = keypair(seed);
        let signature = bitcoin::taproot::Signature {
            signature: secp.sign_schnorr_no_aux_rand(&digest.into(), &keypair),
            sighash_type: TapSighashType::Default,
        };
        let key = (keypair.x_only_public_key().0, leaf);
        psbt.inputs[0].tap_script_sigs.insert(key, signature);
        psbt.finalize(&secp)
            .map_err(|(_, errors)| errors)
            .unwrap()
            .extract_tx()
            .unwrap()
    };

    let close = tx::commitment_psbt(&tranche, &voucher, &p2tr(0xaa), ONE).unwrap();
    let refund = tx::refund_psbt(&tranche, &p2tr(0xaa), ONE).unwrap();

    assert_eq!(
        sign(close, PAYEE),
        tx::commitment(&tranche, &voucher, &keypair(PAYEE), &p2tr(0xaa), ONE).unwrap()
    );
    assert_eq!(
        sign(refund, PAYER),
        tx::refund(&tranche, &keypair(PAYER), &p2tr(0xaa), ONE).unwrap()
    );
}

#[test]
fn costs_are_those_of_the_economics_table() {
    for (rate, open, close, refund, first) in [
        (1, 154, 205, 138, 740),
        (5, 770, 1_025, 690, 2_380),
        (20, 3_080, 4_100, 2_760, 8_530),
    ] {
        let rate = FeeRate::from_sat_per_vb(rate).unwrap();
        let costs = LifeCycle::estimate(rate).unwrap();
        assert_eq!(
            (costs.open, costs.close, costs.refund),
            (sat(open), sat(close), sat(refund))
        );
        assert_eq!(costs.total(), Some(sat(open + close)));
        assert_eq!(tx::min_first_payment(rate), Some(sat(first)));
    }
    assert_eq!(LifeCycle::estimate(FeeRate::MAX), None);
    assert_eq!(tx::min_first_payment(FeeRate::MAX), None);
}

#[test]
fn deadlines_fall_on_their_heights() {
    let margins = Margins::default();
    assert!(margins.is_ordered());
    for (left, phase) in [
        (433, Phase::Serve),
        (432, Phase::Propose),
        (289, Phase::Propose),
        (288, Phase::Stop),
        (217, Phase::Stop),
        (216, Phase::Cooperate),
        (145, Phase::Cooperate),
        (144, Phase::Close),
        (101, Phase::Close),
        (100, Phase::Raise),
        (37, Phase::Raise),
        (36, Phase::Last),
        (1, Phase::Last),
        (0, Phase::Expired),
    ] {
        let tip = BlockHeight::new(EXPIRY.get() - left);
        assert_eq!(margins.phase(EXPIRY, tip), phase, "{left} left");
    }
    assert_eq!(
        margins.phase(EXPIRY, BlockHeight::new(u32::MAX)),
        Phase::Expired
    );
}

#[test]
fn the_next_deadline_is_where_the_phase_changes() {
    let margins = Margins::default();
    let mut tip = TIP;
    let mut phases = Vec::new();
    while let Some((height, phase)) = margins.next(EXPIRY, tip) {
        assert_eq!(margins.phase(EXPIRY, height), phase);
        assert!(margins.phase(EXPIRY, BlockHeight::new(height.get() - 1)) < phase);
        phases.push(phase);
        tip = height;
    }
    assert_eq!(
        phases,
        [
            Phase::Propose,
            Phase::Stop,
            Phase::Cooperate,
            Phase::Close,
            Phase::Raise,
            Phase::Last,
            Phase::Expired
        ]
    );

    let equal = Margins {
        propose: 10,
        stop: 5,
        cooperate: 5,
        close: 5,
        raise: 2,
        last: 1,
    };
    let (height, phase) = equal
        .next(EXPIRY, BlockHeight::new(EXPIRY.get() - 7))
        .unwrap();
    assert_eq!((height.get(), phase), (EXPIRY.get() - 5, Phase::Close));
}

#[test]
fn exposure_grows_with_depth() {
    let table = ExposureTable::default();
    let limits = [0, 1, 2, 3, 100].map(|depth| table.limit(depth));
    let all = Amount::MAX_MONEY;
    assert_eq!(limits, [sat(1_000), sat(50_000), sat(250_000), all, all]);
    assert_eq!(table.final_depth(), 3);

    let step = |confirmations, limit| Step {
        confirmations,
        limit: sat(limit),
    };
    let confirmed_only = ExposureTable::new(vec![step(2, 5)]).unwrap();
    assert_eq!(confirmed_only.limit(1), Amount::ZERO);
    assert_eq!(confirmed_only.limit(2), sat(5));
    for wrong in [vec![step(1, 5), step(1, 6)], vec![step(1, 5), step(2, 4)]] {
        assert_eq!(
            ExposureTable::new(wrong),
            Err(ExposureTableError::Order { index: 1 })
        );
    }
    assert_eq!(
        ExposureTable::new(Vec::new()),
        Err(ExposureTableError::Length { got: 0 })
    );
    assert!(ExposureTable::new((0..9).map(|n| step(n, u64::from(n))).collect()).is_err());
}

#[test]
fn the_zero_conf_budget_is_never_exceeded_and_losses_count_for_a_day() {
    let id = |n| ProposalId::from_bytes([n; 32]);
    let mut budget = ZeroConfBudget::default();
    for n in 0..5 {
        assert_eq!(budget.grant(id(n), sat(1_000)), sat(1_000));
    }
    assert_eq!(budget.grant(id(5), sat(1_000)), Amount::ZERO);
    assert_eq!(budget.grant(id(0), sat(400)), sat(400));
    assert_eq!(budget.grant(id(5), sat(1_000)), sat(600));

    budget.release(id(1));
    budget.release(id(1));
    assert_eq!(budget.left(), sat(1_000));

    budget.lost(id(2), TIP);
    budget.tip_changed(BlockHeight::new(TIP.get() + LOST_FOR - 1));
    assert_eq!(budget.left(), sat(1_000));
    budget.tip_changed(BlockHeight::new(TIP.get() + LOST_FOR));
    assert_eq!(budget.left(), sat(2_000));
}

fn sound() -> Sighting {
    Sighting {
        has_confirmed_inputs: true,
        feerate: ONE,
        wanted_feerate: ONE,
    }
}

fn pay(payee: &mut Payee, total: u64) -> Vec<payee::Event> {
    let voucher = tranche().sign(&keypair(PAYER), sat(total)).unwrap();
    let message = Message::Voucher(voucher);
    payee
        .handle(payee::Input::Received(message), epoch())
        .unwrap();
    events(&drain_payee(payee))
}

#[test]
fn unconfirmed_funding_counts_after_ten_seconds_and_within_the_budget() {
    use payee::{Event, Input};
    let t0 = epoch();
    let mut payee = funded_payee(0);
    assert_eq!(pay(&mut payee, 5_000), []);

    payee.handle(Input::FundingSeen(sound()), t0).unwrap();
    let due = payee.poll_timeout().unwrap();
    assert_eq!(due, t0 + PayeePolicy::default().min_mempool_age);
    payee.handle_timeout(due - SOON);
    assert_eq!(drain_payee(&mut payee), []);

    payee.handle_timeout(due);
    assert_eq!(
        events(&drain_payee(&mut payee)),
        [Event::ZeroConfDue { want: sat(1_000) }]
    );
    assert_eq!(payee.poll_timeout(), None);

    payee
        .handle(Input::ZeroConfGranted { limit: sat(900) }, due)
        .unwrap();
    assert_eq!(
        events(&drain_payee(&mut payee)),
        [
            Event::LimitChanged { limit: sat(900) },
            Event::Credited { total: sat(900) }
        ]
    );

    payee
        .handle(Input::FundingConfirmed { confirmations: 1 }, due)
        .unwrap();
    assert_eq!(
        events(&drain_payee(&mut payee)),
        [
            Event::ZeroConfReleased,
            Event::LimitChanged { limit: sat(50_000) },
            Event::Credited { total: sat(5_000) },
        ]
    );
}

#[test]
fn unsound_unconfirmed_funding_never_counts() {
    let low = FeeRate::from_sat_per_kwu(249);
    for sighting in [
        Sighting {
            has_confirmed_inputs: false,
            ..sound()
        },
        Sighting {
            feerate: low,
            ..sound()
        },
    ] {
        let mut payee = funded_payee(0);
        payee
            .handle(payee::Input::FundingSeen(sighting), epoch())
            .unwrap();
        assert_eq!(payee.poll_timeout(), None);
        payee
            .handle(payee::Input::ZeroConfGranted { limit: sat(1_000) }, epoch())
            .unwrap();
        assert_eq!(payee.limit(), Amount::ZERO);
    }
}

#[test]
fn a_node_without_a_mempool_serves_on_confirmed_funding_only() {
    let steps = ExposureTable::default().steps()[1..].to_vec();
    let exposure = ExposureTable::new(steps).unwrap();
    let policy = PayeePolicy {
        exposure,
        ..PayeePolicy::default()
    };
    let mut payee = Payee::accept(open(), &acceptance(), keypair(PAYEE), policy).unwrap();
    let tx = funding_tx(payee.contract().scripts().output(), CAPACITY);
    let (channel, tranche) = (payee.channel(), TrancheIndex::FIRST);
    let funding = bitmesh_wallet::channel::message::Funding {
        channel,
        tranche,
        tx,
        vout: 1,
    };
    let message = Message::Funding(Box::new(funding));
    payee
        .handle(payee::Input::Received(message), epoch())
        .unwrap();

    payee
        .handle(payee::Input::FundingSeen(sound()), epoch())
        .unwrap();

    assert_eq!(payee.poll_timeout(), None);
}

#[test]
fn credit_follows_the_depth_of_the_funding() {
    use payee::{Event, Input};
    let mut payee = funded_payee(1);
    assert_eq!(pay(&mut payee, 740), [Event::Credited { total: sat(740) }]);
    assert_eq!(
        pay(&mut payee, 60_000),
        [Event::Credited { total: sat(50_000) }]
    );
    assert_eq!(pay(&mut payee, 61_000), []);

    payee
        .handle(Input::FundingConfirmed { confirmations: 2 }, epoch())
        .unwrap();

    let outputs = drain_payee(&mut payee);
    assert_eq!(
        events(&outputs),
        [
            Event::LimitChanged { limit: CAPACITY },
            Event::Credited { total: sat(61_000) }
        ]
    );
    assert!(outputs.iter().any(|output| matches!(
        output,
        payee::Output::Send(Message::Depth(Depth { limit, .. })) if *limit == CAPACITY
    )));
}

#[test]
fn a_reorganisation_takes_no_credit_back_and_gives_none() {
    let mut payee = funded_payee(3);
    pay(&mut payee, 60_000);
    payee
        .handle(payee::Input::FundingConfirmed { confirmations: 1 }, epoch())
        .unwrap();
    drain_payee(&mut payee);

    assert_eq!(pay(&mut payee, 61_000), []);

    assert_eq!(payee.credited(), sat(60_000));
    assert_eq!(payee.limit(), sat(50_000));
    assert_eq!(payee.held(), sat(61_000));
}

#[test]
fn a_late_expiry_stops_service_then_asks_for_the_close_until_it_is_made() {
    use payee::{Event, Input, Output};
    let mut payee = funded_payee(3);
    pay(&mut payee, 60_000);
    let mut at = |left| {
        let tip = BlockHeight::new(EXPIRY.get() - left);
        payee.handle(Input::TipChanged(tip), epoch()).unwrap();
        events(&drain_payee(&mut payee))
    };
    assert_eq!(at(433), []);
    assert_eq!(at(289), [Event::RolloverDue { blocks_left: 289 }]);
    assert_eq!(at(288), [Event::ServiceStopped]);
    assert_eq!(at(287), []);
    let due = |blocks_left| Event::CloseDue {
        held: sat(60_000),
        blocks_left,
    };
    assert_eq!(at(144), [due(144)]);
    assert_eq!(at(143), [due(143)]);
    assert!(!payee.is_serving());

    payee
        .handle(
            Input::CloseAsked {
                payout: p2tr(0xaa),
                feerate: ONE,
            },
            epoch(),
        )
        .unwrap();
    let outputs = drain_payee(&mut payee);
    let [
        Output::Persist(Record {
            fact: Fact::Closing { tx },
            ..
        }),
        Output::Broadcast(sent),
        ..,
    ] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(tx, sent);
    check_spend(&tranche(), tx, TIP.get()).unwrap();

    // Until it is seen, it goes out again with every block.
    let tip = BlockHeight::new(EXPIRY.get() - 142);
    payee.handle(Input::TipChanged(tip), epoch()).unwrap();
    assert_eq!(drain_payee(&mut payee), [Output::Broadcast(tx.clone())]);
}

#[test]
fn a_payee_that_comes_back_late_closes_first() {
    use payee::{Event, Input};
    let mut log = Vec::new();
    let mut payee = payee();
    let mut keep = |payee: &mut Payee| {
        let outputs = drain_payee(payee);
        let record = |output: &payee::Output| match output {
            payee::Output::Persist(record) => Some(record.clone()),
            _ => None,
        };
        log.extend(outputs.iter().filter_map(record));
    };
    keep(&mut payee);
    let tx = funding_tx(payee.contract().scripts().output(), CAPACITY);
    let (channel, tranche) = (payee.channel(), TrancheIndex::FIRST);
    let funding = bitmesh_wallet::channel::message::Funding {
        channel,
        tranche,
        tx,
        vout: 1,
    };
    payee
        .handle(
            payee::Input::Received(Message::Funding(Box::new(funding))),
            epoch(),
        )
        .unwrap();
    let voucher = self::tranche().sign(&keypair(PAYER), sat(5_000)).unwrap();
    payee
        .handle(payee::Input::Received(Message::Voucher(voucher)), epoch())
        .unwrap();
    keep(&mut payee);

    let mut payee = Payee::restore(log, keypair(PAYEE), PayeePolicy::default()).unwrap();
    drain_payee(&mut payee);
    payee
        .handle(
            Input::TipChanged(BlockHeight::new(EXPIRY.get() - 200)),
            epoch(),
        )
        .unwrap();

    assert_eq!(
        events(&drain_payee(&mut payee)),
        [
            Event::ServiceStopped,
            Event::CloseDue {
                held: sat(5_000),
                blocks_left: 200
            }
        ]
    );
}

/// A payer whose channel is funded, at tip [`TIP`], with nothing left to do.
fn funded_payer(limit: u64) -> Payer {
    let now = epoch();
    let mut payer = payer(now);
    payer.handle(payer::Input::TipChanged(TIP), now).unwrap();
    payer
        .handle(
            payer::Input::Received(Message::Accept(accept(&open()))),
            now,
        )
        .unwrap();
    let tx = Box::new(funding_tx(contract().scripts().output(), CAPACITY));
    payer
        .handle(payer::Input::FundingSigned { tx, fee: sat(154) }, now)
        .unwrap();
    let depth = Depth {
        channel: contract().id(),
        tranche: TrancheIndex::FIRST,
        confirmations: 0,
        limit: sat(limit),
        held: None,
    };
    payer
        .handle(payer::Input::Received(Message::Depth(depth)), now)
        .unwrap();
    drain_payer(&mut payer);
    payer
}

fn paid(payer: &mut Payer, total: u64) -> Result<Amount, payer::Error> {
    payer.handle(payer::Input::Pay { total: sat(total) }, epoch())?;
    let outputs = drain_payer(payer);
    match payer_events(&outputs)[..] {
        [payer::Event::Paid { total }] => Ok(total),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_promise_is_written_down_before_the_voucher_leaves() {
    let mut payer = funded_payer(100_000);

    payer
        .handle(payer::Input::Pay { total: sat(800) }, epoch())
        .unwrap();

    let outputs = drain_payer(&mut payer);
    let [
        payer::Output::Persist(Record {
            fact: Fact::Promised { total, .. },
            ..
        }),
        payer::Output::Send(Message::Voucher(voucher)),
        payer::Output::Notify(payer::Event::Paid { .. }),
    ] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(*total, voucher.total);
}

#[test]
fn the_first_payment_and_the_dust_gap_round_up() {
    let mut payer = funded_payer(100_000);
    assert_eq!(paid(&mut payer, 1), Ok(sat(740)));
    assert_eq!(paid(&mut payer, 1), Ok(sat(740)));
    assert_eq!(paid(&mut payer, 741), Ok(sat(741)));
    assert_eq!(paid(&mut payer, 99_671), Ok(CAPACITY));
    assert_eq!(payer.spendable(), Amount::ZERO);
    let error = paid(&mut payer, 100_001).unwrap_err();
    assert!(
        matches!(error, payer::Error::Pay(PayError::Total(_))),
        "{error}"
    );
}

#[test]
fn the_first_payment_is_made_at_any_depth_and_no_more_than_is_credited() {
    let mut payer = funded_payer(0);
    assert_eq!(paid(&mut payer, 1), Ok(sat(740)));
    let error = paid(&mut payer, 741).unwrap_err();
    let over = PayError::OverLimit {
        total: sat(741),
        limit: sat(740),
    };
    assert_eq!(error, payer::Error::Pay(over));

    // The payee is asked again, in case its last word got lost.
    let due = payer.poll_timeout().unwrap();
    payer.handle_timeout(due);
    let outputs = drain_payer(&mut payer);
    assert!(
        matches!(outputs[..], [payer::Output::Send(Message::Voucher(_))]),
        "{outputs:?}"
    );
}

#[test]
fn nothing_is_paid_near_the_expiry_or_without_a_known_height() {
    let mut payer = funded_payer(100_000);
    let tip = BlockHeight::new(EXPIRY.get() - 288);
    payer
        .handle(payer::Input::TipChanged(tip), epoch())
        .unwrap();
    assert_eq!(
        payer_events(&drain_payer(&mut payer)),
        [payer::Event::PaymentsStopped]
    );
    let error = paid(&mut payer, 800).unwrap_err();
    assert_eq!(error, payer::Error::Pay(PayError::Stopped { margin: 288 }));
    assert_eq!(payer.spendable(), Amount::ZERO);
}

#[test]
fn the_payer_takes_everything_back_at_the_expiry_and_not_before() {
    use payer::{Event, Input, Output, RefundError};
    let mut payer = funded_payer(100_000);
    paid(&mut payer, 10_000).unwrap();
    let before = BlockHeight::new(EXPIRY.get() - 1);
    payer.handle(Input::TipChanged(before), epoch()).unwrap();
    drain_payer(&mut payer);
    let error = payer
        .handle(Input::RefundAsked { feerate: ONE }, epoch())
        .unwrap_err();
    assert_eq!(
        error,
        payer::Error::Refund(RefundError::TooEarly { expiry: EXPIRY })
    );

    payer.handle(Input::TipChanged(EXPIRY), epoch()).unwrap();
    assert_eq!(payer_events(&drain_payer(&mut payer)), [Event::RefundDue]);
    payer
        .handle(Input::RefundAsked { feerate: ONE }, epoch())
        .unwrap();
    let outputs = drain_payer(&mut payer);
    let [
        Output::Persist(Record {
            fact: Fact::Refunding { .. },
            ..
        }),
        Output::Broadcast(tx),
    ] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    check_spend(&tranche(), tx, EXPIRY.get() + 1).unwrap();
    assert_eq!(tx.output[0].script_pubkey, *tranche().change_script());

    let height = Some(BlockHeight::new(EXPIRY.get() + 1));
    payer
        .handle(
            Input::Spent {
                tx: tx.clone(),
                height,
            },
            epoch(),
        )
        .unwrap();
    payer
        .handle(
            Input::TipChanged(BlockHeight::new(EXPIRY.get() + 6)),
            epoch(),
        )
        .unwrap();
    let settlement = payer.settlement().unwrap();
    assert_eq!(settlement.end, End::Refund);
    assert_eq!(
        (settlement.returned, settlement.fee),
        (sat(99_862), sat(138))
    );
}

#[test]
fn both_sides_read_the_same_settlement_from_the_close() {
    let mut payer = funded_payer(100_000);
    let mut payee = funded_payee(3);
    paid(&mut payer, 40_000).unwrap();
    pay(&mut payee, 40_000);
    let asked = payee::Input::CloseAsked {
        payout: p2tr(0xaa),
        feerate: ONE,
    };
    payee.handle(asked, epoch()).unwrap();
    let outputs = drain_payee(&mut payee);
    let payee::Output::Broadcast(tx) = &outputs[1] else {
        panic!("{outputs:?}")
    };

    let height = Some(BlockHeight::new(TIP.get() + 1));
    let buried = BlockHeight::new(TIP.get() + 6);
    payer
        .handle(
            payer::Input::Spent {
                tx: tx.clone(),
                height: None,
            },
            epoch(),
        )
        .unwrap();
    payer
        .handle(
            payer::Input::Spent {
                tx: tx.clone(),
                height,
            },
            epoch(),
        )
        .unwrap();
    payee
        .handle(
            payee::Input::Spent {
                tx: tx.clone(),
                height,
            },
            epoch(),
        )
        .unwrap();
    let almost = BlockHeight::new(TIP.get() + 5);
    payer
        .handle(payer::Input::TipChanged(almost), epoch())
        .unwrap();
    assert_eq!(payer.settlement(), None);
    payer
        .handle(payer::Input::TipChanged(buried), epoch())
        .unwrap();
    payee
        .handle(payee::Input::TipChanged(buried), epoch())
        .unwrap();

    let settlement = payer.settlement().unwrap();
    assert_eq!(payee.settlement(), Some(settlement));
    assert_eq!(settlement.paid(), sat(40_000));
    assert_eq!(settlement.returned, sat(60_000));
    assert_eq!(
        (settlement.received, settlement.fee),
        (sat(39_795), sat(205))
    );
}

#[test]
fn a_payer_restored_from_an_old_backup_catches_up_with_proof_only() {
    let mut payer = funded_payer(100_000);
    let voucher = tranche().sign(&keypair(PAYER), sat(30_000)).unwrap();
    let depth = |total, signature| {
        Message::Depth(Depth {
            channel: contract().id(),
            tranche: TrancheIndex::FIRST,
            confirmations: 3,
            limit: CAPACITY,
            held: Some((total, signature)),
        })
    };

    let forged = depth(sat(30_001), voucher.signature);
    let error = payer
        .handle(payer::Input::Received(forged), epoch())
        .unwrap_err();
    assert!(matches!(error, payer::Error::Claim(_)));
    assert_eq!(payer.promised(), Amount::ZERO);

    let shown = depth(sat(30_000), voucher.signature);
    payer
        .handle(payer::Input::Received(shown), epoch())
        .unwrap();
    assert_eq!(payer.promised(), sat(30_000));
    assert_eq!(
        payer_events(&drain_payer(&mut payer)),
        [payer::Event::CaughtUp { total: sat(30_000) }]
    );
}

#[test]
fn a_payee_whose_backup_is_older_than_the_funding_is_shown_it_again() {
    use bitmesh_wallet::channel::message::Refused;
    let now = epoch();
    let mut payer = funded_payer(100_000);
    paid(&mut payer, 30_000).unwrap();
    let voucher = tranche().sign(&keypair(PAYER), sat(30_000)).unwrap();
    let depth = Depth {
        channel: contract().id(),
        tranche: TrancheIndex::FIRST,
        confirmations: 3,
        limit: CAPACITY,
        held: Some((voucher.total, voucher.signature)),
    };
    payer
        .handle(payer::Input::Received(Message::Depth(depth)), now)
        .unwrap();
    assert_eq!(payer.acknowledged(), sat(30_000));
    drain_payer(&mut payer);
    // The payee agreed to the channel, and knows nothing any more of what came after.
    let mut payee = payee();
    drain_payee(&mut payee);
    let last = |payer: &mut Payer| match drain_payer(payer).pop() {
        Some(payer::Output::Send(message)) => message,
        other => panic!("{other:?}"),
    };

    payer.handle(payer::Input::Reconnected, now).unwrap();
    let voucher = last(&mut payer);
    assert!(matches!(voucher, Message::Voucher(_)));
    let error = payee.handle(payee::Input::Received(voucher), now);
    let refused = Message::Refused(Refused {
        subject: *payee.channel().as_bytes(),
        code: error.unwrap_err().refusal().unwrap(),
    });
    payer.handle(payer::Input::Received(refused), now).unwrap();
    drain_payer(&mut payer);
    payer.handle_timeout(payer.poll_timeout().unwrap());
    let funding = last(&mut payer);
    payee.handle(payee::Input::Received(funding), now).unwrap();
    let depth = drain_payee(&mut payee).into_iter().find_map(|it| match it {
        payee::Output::Send(message) => Some(message),
        _ => None,
    });
    payer
        .handle(payer::Input::Received(depth.unwrap()), now)
        .unwrap();
    let voucher = last(&mut payer);
    payee.handle(payee::Input::Received(voucher), now).unwrap();

    assert_eq!(payee.held(), sat(30_000));
}

#[test]
fn an_unanswered_message_is_sent_again_ever_more_slowly() {
    let t0 = epoch();
    let mut payer = payer(t0);
    drain_payer(&mut payer);
    let mut waits = Vec::new();
    let mut last = t0;
    for _ in 0..7 {
        let due = payer.poll_timeout().unwrap();
        waits.push((due - last).as_secs());
        payer.handle_timeout(due);
        let outputs = drain_payer(&mut payer);
        assert!(matches!(
            outputs[..],
            [payer::Output::Send(Message::Open(_))]
        ));
        last = due;
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn a_refused_proposal_is_abandoned_without_a_trace_of_money() {
    let mut payer = payer(epoch());
    drain_payer(&mut payer);
    let refused = bitmesh_wallet::channel::message::Refused {
        subject: *payer.proposal().as_bytes(),
        code: bitmesh_wallet::channel::message::RefusalCode::Capacity,
    };
    payer
        .handle(payer::Input::Received(Message::Refused(refused)), epoch())
        .unwrap();

    assert_eq!(payer.stage(), payer::Stage::Abandoned);
    assert_eq!(payer.poll_timeout(), None);
    assert!(drain_payer(&mut payer).iter().any(|output| matches!(
        output,
        payer::Output::Persist(Record {
            fact: Fact::Abandoned,
            ..
        })
    )));
}

#[test]
fn records_of_another_channel_or_key_do_not_restore() {
    let now = epoch();
    let mut payer = payer(now);
    let mut records: Vec<Record> = drain_payer(&mut payer)
        .into_iter()
        .filter_map(|output| match output {
            payer::Output::Persist(record) => Some(record),
            _ => None,
        })
        .collect();
    let restore = |records: &[Record], seed| {
        Payer::restore(records.to_vec(), keypair(seed), PayerPolicy::default(), now).map(drop)
    };
    assert_eq!(restore(&[], PAYER), Err(payer::RestoreError::NoProposal));
    assert_eq!(restore(&records, PAYEE), Err(payer::RestoreError::Key));
    assert_eq!(restore(&records, PAYER), Ok(()));

    let proposal = payer.proposal();
    let fact = Fact::Promised {
        tranche: TrancheIndex::FIRST,
        total: sat(1),
    };
    records.push(Record { proposal, fact });
    assert_eq!(
        restore(&records, PAYER),
        Err(payer::RestoreError::Record { index: 1 })
    );
}

#[test]
fn a_proposal_can_be_given_up_until_it_is_funded() {
    use payer::{Error, Input};
    let mut payer = payer(epoch());
    payer.handle(Input::AbandonAsked, epoch()).unwrap();
    assert_eq!(payer.stage(), payer::Stage::Abandoned);

    let mut payer = funded_payer(0);
    assert_eq!(
        payer.handle(Input::AbandonAsked, epoch()),
        Err(Error::Funded)
    );
    assert_eq!(payer.stage(), payer::Stage::Funded);
}

#[test]
fn a_proposal_that_was_never_answered_ends_before_its_expiry() {
    let mut payer = payer(epoch());
    drain_payer(&mut payer);
    let tip = BlockHeight::new(EXPIRY.get() - 288);

    payer
        .handle(payer::Input::TipChanged(tip), epoch())
        .unwrap();

    assert_eq!(payer.stage(), payer::Stage::Abandoned);
    assert_eq!(payer.poll_timeout(), None);
}

#[test]
fn a_refusal_that_overtook_the_funding_does_not_keep_it_from_being_sent_again() {
    use bitmesh_wallet::channel::message::{RefusalCode, Refused};
    let now = epoch();
    let mut payer = payer(now);
    payer
        .handle(
            payer::Input::Received(Message::Accept(accept(&open()))),
            now,
        )
        .unwrap();
    let tx = Box::new(funding_tx(contract().scripts().output(), CAPACITY));
    payer
        .handle(payer::Input::FundingSigned { tx, fee: sat(154) }, now)
        .unwrap();
    drain_payer(&mut payer);
    let subject = *contract().id().as_bytes();
    let refused = Message::Refused(Refused {
        subject,
        code: RefusalCode::Unknown,
    });
    payer.handle(payer::Input::Received(refused), now).unwrap();
    drain_payer(&mut payer);

    payer.handle_timeout(payer.poll_timeout().unwrap());

    let outputs = drain_payer(&mut payer);
    assert!(
        matches!(outputs[..], [payer::Output::Send(Message::Funding(_))]),
        "{outputs:?}"
    );
}

#[test]
fn a_funding_that_no_mempool_took_is_broadcast_again_with_every_block_until_it_is_mined() {
    let mut payer = funded_payer(1_000);
    let now = epoch();
    let funding = funding_tx(contract().scripts().output(), CAPACITY);
    let mut broadcasts = |input| {
        payer.handle(input, now).unwrap();
        let is_funding = |output: &payer::Output| match output {
            payer::Output::Broadcast(tx) => **tx == funding,
            _ => false,
        };
        drain_payer(&mut payer).iter().any(is_funding)
    };
    let tip = |height| payer::Input::TipChanged(BlockHeight::new(height));

    assert!(broadcasts(tip(TIP.get() + 1)));
    assert!(broadcasts(tip(TIP.get() + 2)));

    broadcasts(payer::Input::FundingDepth { confirmations: 1 });
    assert!(!broadcasts(tip(TIP.get() + 3)));
    broadcasts(payer::Input::FundingDepth { confirmations: 0 });
    assert!(!broadcasts(tip(EXPIRY.get() - 288)), "too late to be used");
}
