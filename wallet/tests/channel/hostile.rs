//! What the other side may try, and that it gains nothing by it.

use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::{Amount, ScriptBuf, Transaction, TxIn, Witness, transaction::Version};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::message::{Depth, Funding, Message, Open, RefusalCode};
use bitmesh_wallet::channel::params::{
    ContractError, FundingError, OpenError, Parties, PayeePolicy,
};
use bitmesh_wallet::channel::payee::{Error, Event, Input, Payee, Stage};
use bitmesh_wallet::channel::payer;
use bitmesh_wallet::channel::voucher::{Voucher, VoucherError};
use bitmesh_wallet::channel::{ChannelId, PartyId, TrancheIndex};

use crate::fixture::*;

fn voucher(total: u64) -> Voucher {
    tranche().sign(&keypair(PAYER), sat(total)).unwrap()
}

fn give(payee: &mut Payee, voucher: Voucher) -> Result<(), Error> {
    payee.handle(Input::Received(Message::Voucher(voucher)), epoch())
}

/// Gives a voucher that must be refused, and checks that nothing came of it.
fn refused(voucher: Voucher) -> Error {
    let mut payee = funded_payee(3);
    give(&mut payee, self::voucher(10_000)).unwrap();
    drain_payee(&mut payee);

    let error = give(&mut payee, voucher).unwrap_err();

    assert_eq!(payee.held(), sat(10_000));
    assert_eq!(payee.credited(), sat(10_000));
    assert_eq!(drain_payee(&mut payee), []);
    error
}

#[test]
fn a_replayed_or_decreasing_voucher_changes_nothing_and_is_answered_with_what_is_held() {
    let mut payee = funded_payee(3);
    give(&mut payee, voucher(10_000)).unwrap();
    drain_payee(&mut payee);

    for total in [10_000, 9_999, 740, 1] {
        give(&mut payee, voucher(total)).unwrap();
        let outputs = drain_payee(&mut payee);
        let [bitmesh_wallet::channel::payee::Output::Send(Message::Depth(Depth { held, .. }))] =
            &outputs[..]
        else {
            panic!("{outputs:?}")
        };
        assert_eq!(held.map(|(total, _)| total), Some(sat(10_000)));
    }
}

#[test]
fn a_forged_voucher_is_refused() {
    let good = voucher(20_000);
    let mut bytes = good.signature.serialize();
    for at in 0..64 {
        bytes[at] ^= 1;
        let signature = Signature::from_slice(&bytes).unwrap();
        let error = refused(Voucher { signature, ..good });
        assert_eq!(
            error,
            Error::Voucher(VoucherError::Signature { total: sat(20_000) })
        );
        bytes[at] ^= 1;
    }
    assert_eq!(
        refused(Voucher {
            total: sat(20_001),
            ..good
        }),
        Error::Voucher(VoucherError::Signature { total: sat(20_001) })
    );
    let others = tranche().sign(&keypair(3), sat(20_000)).unwrap();
    assert!(matches!(
        refused(others),
        Error::Voucher(VoucherError::Signature { .. })
    ));
    assert_eq!(refused(others).refusal(), Some(RefusalCode::Voucher));
}

#[test]
fn a_signature_for_part_does_not_pass_for_the_whole() {
    // The last partial voucher's signature, presented for the full capacity.
    let part = voucher(CAPACITY.to_sat() - 330);

    assert!(matches!(
        refused(Voucher {
            total: CAPACITY,
            ..part
        }),
        Error::Voucher(VoucherError::Signature { .. })
    ));
}

#[test]
fn a_voucher_over_the_capacity_or_in_the_dust_gap_is_refused() {
    let good = voucher(20_000);
    for total in [
        CAPACITY + Amount::ONE_SAT,
        Amount::MAX_MONEY,
        CAPACITY - Amount::ONE_SAT,
    ] {
        let error = refused(Voucher { total, ..good });
        assert!(
            matches!(error, Error::Voucher(VoucherError::Total(_))),
            "{error}"
        );
    }
}

#[test]
fn a_voucher_for_another_channel_or_tranche_is_refused() {
    let good = voucher(20_000);
    let channel = ChannelId::from_bytes([1; 32]);
    let elsewhere = Error::Voucher(VoucherError::Elsewhere);

    assert_eq!(refused(Voucher { channel, ..good }), elsewhere);
    assert_eq!(
        refused(Voucher {
            tranche: TrancheIndex::new(1),
            ..good
        }),
        elsewhere
    );
}

#[test]
fn a_first_voucher_below_what_was_agreed_is_refused() {
    let mut payee = funded_payee(3);

    let error = give(&mut payee, voucher(739)).unwrap_err();

    assert_eq!(
        error,
        Error::BelowFirst {
            got: sat(739),
            min: sat(740)
        }
    );
    assert_eq!(payee.held(), Amount::ZERO);
}

#[test]
fn a_voucher_before_the_funding_or_after_the_close_is_refused() {
    let mut payee = payee();
    assert!(matches!(
        give(&mut payee, voucher(740)),
        Err(Error::Unexpected { .. })
    ));

    let mut payee = funded_payee(3);
    give(&mut payee, voucher(10_000)).unwrap();
    let asked = Input::CloseAsked {
        payout: p2tr(0xaa),
        feerate: ONE,
    };
    payee.handle(asked, epoch()).unwrap();
    assert_eq!(give(&mut payee, voucher(20_000)), Err(Error::Closing));
    assert_eq!(payee.held(), sat(10_000));
}

#[test]
fn any_signature_but_the_payers_is_refused_under_the_payees_own_key_too() {
    // A payee's key signs for the same digest; it must not count as the payer's.
    let own = tranche().sign(&keypair(PAYEE), sat(20_000)).unwrap();

    assert!(matches!(
        refused(own),
        Error::Voucher(VoucherError::Signature { .. })
    ));
}

fn fund(tx: Transaction, vout: u32) -> Result<Payee, Error> {
    let mut payee = payee();
    drain_payee(&mut payee);
    let channel = payee.channel();
    let funding = Funding {
        channel,
        tranche: TrancheIndex::FIRST,
        tx,
        vout,
    };
    let result = payee.handle(
        Input::Received(Message::Funding(Box::new(funding))),
        epoch(),
    );
    if result.is_err() {
        assert_eq!(drain_payee(&mut payee), []);
        assert_eq!(payee.stage(), Stage::Accepted);
    }
    result.map(|()| payee)
}

#[test]
fn funding_that_pays_too_little_too_much_or_another_script_is_refused() {
    let script = contract().scripts().output().clone();
    let refused = |tx, vout| fund(tx, vout).map(drop).unwrap_err();

    for value in [
        CAPACITY - Amount::ONE_SAT,
        CAPACITY + Amount::ONE_SAT,
        Amount::ZERO,
    ] {
        let tx = funding_tx(&script, value);
        let want = CAPACITY;
        assert_eq!(
            refused(tx, 1),
            Error::Funding(FundingError::Value { got: value, want })
        );
    }
    let good = funding_tx(&script, CAPACITY);
    assert_eq!(
        refused(good.clone(), 0),
        Error::Funding(FundingError::Script)
    );
    assert_eq!(
        refused(good.clone(), 2),
        Error::Funding(FundingError::NoOutput { vout: 2 })
    );
    assert_eq!(
        refused(good, u32::MAX),
        Error::Funding(FundingError::NoOutput { vout: u32::MAX })
    );
    // The payer's own key alone, with nothing for the payee.
    let own = funding_tx(&p2tr(PAYER), CAPACITY);
    assert_eq!(refused(own, 1), Error::Funding(FundingError::Script));
    assert_eq!(
        Error::Funding(FundingError::Script).refusal(),
        Some(RefusalCode::Funding)
    );
}

#[test]
fn funding_of_version_2_unsigned_or_malleable_is_refused() {
    let good = funding_tx(contract().scripts().output(), CAPACITY);
    let refused = |tx| fund(tx, 1).map(drop).unwrap_err();

    let mut tx = good.clone();
    tx.version = Version::TWO;
    assert_eq!(
        refused(tx),
        Error::Funding(FundingError::Version { got: 2 })
    );

    let mut tx = good.clone();
    tx.input[0].witness = Witness::new();
    assert_eq!(refused(tx), Error::Funding(FundingError::Unsigned));

    let mut tx = good.clone();
    tx.input.push(TxIn {
        script_sig: ScriptBuf::from_bytes(vec![0x51]),
        witness: Witness::new(),
        ..good.input[0].clone()
    });
    assert_eq!(refused(tx), Error::Funding(FundingError::Unsigned));

    // More inputs than a version 3 transaction can have and be relayed.
    let mut tx = good.clone();
    tx.input = vec![good.input[0].clone(); 250];
    assert!(matches!(
        refused(tx),
        Error::Funding(FundingError::TooHeavy { .. })
    ));

    assert!(fund(good, 1).is_ok());
}

#[test]
fn a_second_funding_is_refused_and_the_first_stands() {
    let good = funding_tx(contract().scripts().output(), CAPACITY);
    let mut payee = fund(good.clone(), 1).unwrap();
    drain_payee(&mut payee);
    let channel = payee.channel();
    let mut other = good;
    other.input[0].previous_output.vout += 1;
    let funding = Funding {
        channel,
        tranche: TrancheIndex::FIRST,
        tx: other,
        vout: 1,
    };

    let message = Message::Funding(Box::new(funding));
    assert!(payee.handle(Input::Received(message), epoch()).is_err());

    assert_eq!(payee.tranche().unwrap().outpoint(), tranche().outpoint());
}

#[test]
fn double_spent_funding_costs_no_more_than_what_was_granted_for_it() {
    use bitmesh_wallet::channel::payee::Sighting;
    let now = epoch();
    let mut payee = funded_payee(0);
    give(&mut payee, voucher(90_000)).unwrap();
    let sighting = Sighting {
        has_confirmed_inputs: true,
        feerate: ONE,
        wanted_feerate: ONE,
    };
    payee.handle(Input::FundingSeen(sighting), now).unwrap();
    let due = payee.poll_timeout().unwrap();
    payee.handle_timeout(due);
    payee
        .handle(Input::ZeroConfGranted { limit: sat(1_000) }, due)
        .unwrap();
    drain_payee(&mut payee);
    assert_eq!(payee.credited(), sat(1_000));

    payee
        .handle(Input::FundingConflicted { confirmations: 0 }, due)
        .unwrap();

    let told = events(&drain_payee(&mut payee));
    assert_eq!(
        told,
        [
            Event::ZeroConfLost,
            Event::FundingConflicted,
            Event::LimitChanged {
                limit: Amount::ZERO
            }
        ]
    );
    assert_eq!(payee.stage(), Stage::Conflicted);
    assert!(!payee.is_serving());
    give(&mut payee, voucher(95_000)).unwrap();
    assert_eq!(payee.credited(), sat(1_000));

    payee
        .handle(Input::FundingConflicted { confirmations: 6 }, due)
        .unwrap();
    assert_eq!(payee.stage(), Stage::Abandoned);
}

#[test]
fn a_grant_beyond_what_was_wanted_or_not_asked_for_is_cut() {
    use bitmesh_wallet::channel::payee::Sighting;
    let now = epoch();
    let mut payee = funded_payee(0);
    payee
        .handle(Input::ZeroConfGranted { limit: CAPACITY }, now)
        .unwrap();
    assert_eq!(payee.limit(), Amount::ZERO);
    let sighting = Sighting {
        has_confirmed_inputs: true,
        feerate: ONE,
        wanted_feerate: ONE,
    };
    payee.handle(Input::FundingSeen(sighting), now).unwrap();
    payee.handle_timeout(payee.poll_timeout().unwrap());
    payee
        .handle(Input::ZeroConfGranted { limit: CAPACITY }, now)
        .unwrap();
    assert_eq!(payee.limit(), sat(1_000));
}

fn accept(open: Open) -> Result<Payee, OpenError> {
    Payee::accept(open, &acceptance(), keypair(PAYEE), PayeePolicy::default())
}

#[test]
fn a_proposal_outside_the_policy_is_refused_by_name() {
    use bitcoin::hashes::Hash;
    let error = |open| accept(open).map(drop).unwrap_err();
    let good = open();

    let chain = bitcoin::BlockHash::all_zeros();
    assert_eq!(
        error(Open {
            chain,
            ..good.clone()
        }),
        OpenError::Chain { got: chain }
    );
    for capacity in [19_999, 10_000_001].map(sat) {
        assert!(matches!(
            error(Open {
                capacity,
                ..good.clone()
            }),
            OpenError::Capacity { .. }
        ));
    }
    for left in [
        0,
        1_007,
        12_961,
        499_999_999 - TIP.get(),
        u32::MAX - TIP.get(),
    ] {
        let expiry = BlockHeight::new(TIP.get() + left);
        assert!(matches!(
            error(Open {
                expiry,
                ..good.clone()
            }),
            OpenError::Expiry { .. }
        ));
    }
    let expiry = BlockHeight::new(1);
    assert!(matches!(
        error(Open {
            expiry,
            ..good.clone()
        }),
        OpenError::Expiry { .. }
    ));
    let payer_key = keypair(PAYEE).x_only_public_key().0;
    assert_eq!(
        error(Open {
            payer_key,
            ..good.clone()
        }),
        OpenError::SameKey
    );
    let change_script = ScriptBuf::new_op_return([1]);
    assert_eq!(
        error(Open {
            change_script,
            ..good.clone()
        }),
        OpenError::ChangeScript
    );
    assert!(accept(good).is_ok());
}

#[test]
fn a_proposal_in_the_name_of_others_is_refused() {
    let stranger = PartyId::from_bytes([9; 32]);
    for open in [
        Open {
            payer: stranger,
            ..open()
        },
        Open {
            payee: stranger,
            ..open()
        },
    ] {
        assert_eq!(accept(open).map(drop), Err(OpenError::Parties));
    }
    let parties = Parties {
        payer: stranger,
        ..parties()
    };
    let acceptance = bitmesh_wallet::channel::payee::Acceptance {
        parties,
        ..acceptance()
    };
    let policy = PayeePolicy::default();
    let result = Payee::accept(open(), &acceptance, keypair(PAYEE), policy);
    assert_eq!(result.map(drop), Err(OpenError::Parties));
}

#[test]
fn a_first_payment_larger_than_the_capacity_is_never_agreed() {
    let acceptance = bitmesh_wallet::channel::payee::Acceptance {
        min_first: CAPACITY + Amount::ONE_SAT,
        ..acceptance()
    };
    let policy = PayeePolicy::default();
    let result = Payee::accept(open(), &acceptance, keypair(PAYEE), policy);
    assert!(matches!(result.map(drop), Err(OpenError::MinFirst { .. })));
}

#[test]
fn a_greedy_or_crossed_answer_is_refused_and_a_proper_one_still_taken() {
    let now = epoch();
    let mut payer = payer(now);
    drain_payer(&mut payer);
    let mut hear = |accept| payer.handle(payer::Input::Received(Message::Accept(accept)), now);
    let good = crate::fixture::accept(&open());

    let mut greedy = good.clone();
    greedy.min_first = sat(1_001);
    let error = hear(greedy).unwrap_err();
    assert_eq!(
        error,
        payer::Error::MinFirst {
            got: sat(1_001),
            max: sat(1_000)
        }
    );

    let mut crossed = good.clone();
    crossed.proposal = bitmesh_wallet::channel::ProposalId::from_bytes([0; 32]);
    let error = hear(crossed).unwrap_err();
    assert_eq!(error, payer::Error::Contract(ContractError::Elsewhere));

    let mut mirrored = good.clone();
    mirrored.payee_key = open().payer_key;
    let error = hear(mirrored).unwrap_err();
    assert_eq!(error, payer::Error::Contract(ContractError::SameKey));

    hear(good.clone()).unwrap();
    hear(good.clone()).unwrap();
    let mut other = good;
    other.payee_key = keypair(77).x_only_public_key().0;
    assert!(matches!(hear(other), Err(payer::Error::Unexpected { .. })));
}

#[test]
fn messages_of_the_wrong_side_are_refused() {
    let mut payee = funded_payee(3);
    let depth = Message::Depth(Depth {
        channel: payee.channel(),
        tranche: TrancheIndex::FIRST,
        confirmations: 3,
        limit: CAPACITY,
        held: None,
    });
    for message in [depth, Message::Accept(crate::fixture::accept(&open()))] {
        let result = payee.handle(Input::Received(message), epoch());
        assert!(matches!(result, Err(Error::Unexpected { .. })));
    }
    let mut payer = payer(epoch());
    for message in [Message::Open(open()), Message::Voucher(voucher(740))] {
        let result = payer.handle(payer::Input::Received(message), epoch());
        assert!(matches!(result, Err(payer::Error::Unexpected { .. })));
    }
}
