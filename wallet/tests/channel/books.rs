//! The ledger over the records of whole lives.

use bitcoin::hashes::Hash;
use bitcoin::{Amount, SignedAmount, Txid};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::record::{End, Fact, Record, Settlement};
use bitmesh_wallet::channel::{ProposalId, TrancheIndex};
use bitmesh_wallet::ledger::{Account, Ledger, LedgerError, Role, Totals};
use proptest::prelude::*;

use crate::fixture::*;

fn record(fact: Fact) -> Record {
    Record {
        proposal: contract().proposal(),
        fact,
    }
}

fn proposed() -> Fact {
    Fact::Proposed {
        open: open(),
        key_index: 0,
        max_min_first: sat(1_000),
        from: None,
    }
}

fn agreed() -> Fact {
    Fact::Agreed {
        accept: accept(&open()),
        open: open(),
        key_index: 0,
        from: None,
    }
}

fn funded(fee: u64) -> Fact {
    let tx = Box::new(funding_tx(contract().scripts().output(), CAPACITY));
    Fact::Funded {
        tranche: TrancheIndex::FIRST,
        tx,
        vout: 1,
        fee: sat(fee),
    }
}

fn promised(total: u64) -> Fact {
    Fact::Promised {
        tranche: TrancheIndex::FIRST,
        total: sat(total),
    }
}

fn held(total: u64) -> Fact {
    let signature = tranche()
        .sign(&keypair(PAYER), sat(total))
        .unwrap()
        .signature;
    Fact::Held {
        tranche: TrancheIndex::FIRST,
        total: sat(total),
        signature,
    }
}

fn settled(end: End, returned: u64, received: u64, fee: u64) -> Fact {
    let (returned, received, fee) = (sat(returned), sat(received), sat(fee));
    let (txid, height) = (Txid::from_byte_array([1; 32]), BlockHeight::new(1));
    Fact::Settled(Settlement {
        end,
        txid,
        height,
        returned,
        received,
        fee,
    })
}

fn books(facts: Vec<Fact>) -> Result<Ledger, LedgerError> {
    let records: Vec<Record> = facts.into_iter().map(record).collect();
    Ledger::from_records(&records)
}

#[test]
fn a_channel_that_was_closed_leaves_what_was_paid_and_what_came_back() {
    let close = || settled(End::Commitment, 60_000, 39_795, 205);
    let payer = books(vec![
        proposed(),
        funded(154),
        promised(740),
        promised(40_000),
        close(),
    ]);
    let payee = books(vec![agreed(), funded(0), held(740), held(40_000), close()]);

    assert_eq!(
        payer.unwrap().totals(),
        Totals {
            funded: CAPACITY,
            paid: sat(40_000),
            returned: sat(60_000),
            funding_fees: sat(154),
            ..Totals::default()
        }
    );
    assert_eq!(
        payee.unwrap().totals(),
        Totals {
            earned: sat(40_000),
            received: sat(39_795),
            close_fees: sat(205),
            ..Totals::default()
        }
    );
}

#[test]
fn an_open_channel_shows_what_is_locked_and_what_is_claimed() {
    let payer = books(vec![proposed(), funded(154), promised(740)]).unwrap();
    let payee = books(vec![agreed(), funded(0), held(740)]).unwrap();

    assert_eq!(payer.totals().locked, sat(99_260));
    assert_eq!(payer.totals().paid, sat(740));
    assert_eq!(payee.totals().claims, sat(740));
    let statement = payer.channel(contract().proposal()).unwrap();
    assert_eq!(statement.role(), Role::Payer);
    assert_eq!(
        statement.balance(Account::Coins),
        SignedAmount::from_sat(-100_154)
    );
    assert!(!statement.is_ended());
}

#[test]
fn a_refund_gives_back_what_was_promised_and_the_payee_lost_its_claim() {
    let refund = || settled(End::Refund, 99_862, 0, 138);
    let payer = books(vec![proposed(), funded(154), promised(40_000), refund()]).unwrap();
    let payee = books(vec![agreed(), funded(0), held(40_000), refund()]).unwrap();

    let totals = payer.totals();
    assert_eq!((totals.paid, totals.refunded), (Amount::ZERO, sat(99_862)));
    assert_eq!(totals.refund_fees, sat(138));
    assert!(totals.adds_up());
    assert_eq!(payee.totals().lost, sat(40_000));
    assert!(payee.totals().adds_up());
}

#[test]
fn a_payer_is_told_less_was_paid_when_the_last_voucher_was_not_used() {
    let close = settled(End::Commitment, 61_000, 38_795, 205);
    let books = books(vec![proposed(), funded(154), promised(40_000), close]).unwrap();

    assert_eq!(books.totals().paid, sat(39_000));
    assert!(books.totals().adds_up());
    let statement = books.channel(contract().proposal()).unwrap();
    let balance = |account| statement.balance(account).to_sat();
    assert_eq!(balance(Account::Counterparty), 40_000);
    assert_eq!(balance(Account::Unclaimed), -1_000);
}

#[test]
fn a_payer_with_lost_records_sees_that_more_was_taken_than_it_knows_to_have_signed() {
    let close = settled(End::Commitment, 60_000, 39_795, 205);
    let books = books(vec![proposed(), funded(154), promised(740), close]).unwrap();

    let statement = books.channel(contract().proposal()).unwrap();
    assert_eq!(statement.balance(Account::Unclaimed).to_sat(), 39_260);
    assert_eq!(books.totals().paid, sat(40_000));
    assert!(books.totals().adds_up());
}

#[test]
fn an_abandoned_channel_costs_nothing() {
    let payer = books(vec![
        proposed(),
        funded(154),
        promised(740),
        Fact::Abandoned,
    ])
    .unwrap();
    let statement = payer.channel(contract().proposal()).unwrap();

    assert_eq!(statement.balance(Account::Coins), SignedAmount::ZERO);
    assert_eq!(payer.totals().funding_fees, Amount::ZERO);
    assert!(payer.totals().adds_up());
    let payee = books(vec![agreed(), funded(0), held(740), Fact::Abandoned]).unwrap();
    assert_eq!(payee.totals().lost, sat(740));
    assert!(
        books(vec![proposed(), Fact::Abandoned])
            .unwrap()
            .totals()
            .adds_up()
    );
}

#[test]
fn records_that_contradict_one_another_are_refused_and_change_nothing() {
    let channel = contract().proposal();
    let order = LedgerError::Order { channel };
    assert_eq!(
        books(vec![promised(1)]).unwrap_err(),
        LedgerError::Unknown { channel }
    );
    assert_eq!(books(vec![proposed(), proposed()]).unwrap_err(), order);
    assert_eq!(books(vec![proposed(), promised(1)]).unwrap_err(), order);
    assert_eq!(
        books(vec![proposed(), funded(1), funded(1)]).unwrap_err(),
        order
    );
    assert_eq!(
        books(vec![proposed(), funded(1), held(740)]).unwrap_err(),
        order
    );
    let lower = vec![proposed(), funded(1), promised(2), promised(1)];
    assert_eq!(books(lower).unwrap_err(), order);
    let after = vec![proposed(), Fact::Abandoned, Fact::Abandoned];
    assert_eq!(books(after).unwrap_err(), LedgerError::Ended { channel });
    let wrong = settled(End::Commitment, 60_000, 39_795, 204);
    let error = books(vec![proposed(), funded(1), promised(40_000), wrong]).unwrap_err();
    assert!(
        matches!(
            error,
            LedgerError::Imbalance {
                account: Account::Locked,
                ..
            }
        ),
        "{error}"
    );

    let mut books = books(vec![proposed(), funded(154), promised(740)]).unwrap();
    let before = books.totals();
    books.post(&record(promised(739))).unwrap_err();
    assert_eq!(books.totals(), before);
}

#[test]
fn a_close_younger_than_the_backup_pays_what_the_books_did_not_know_of() {
    let close = settled(End::Commitment, 60_000, 39_795, 205);

    let books = books(vec![agreed(), funded(0), held(30_000), close]).unwrap();

    let totals = books.totals();
    assert!(totals.adds_up());
    assert_eq!(totals.earned, sat(40_000));
    assert_eq!(totals.received, sat(39_795));
    assert_eq!((totals.claims, totals.lost), (sat(0), sat(0)));
}

#[test]
fn a_payee_counts_what_a_close_younger_than_its_backup_paid() {
    use bitmesh_wallet::channel::params::PayeePolicy;
    use bitmesh_wallet::channel::payee::{self, Payee};
    let records = |facts: Vec<Fact>| facts.into_iter().map(record).collect::<Vec<_>>();
    let restore = |records: Vec<Record>| {
        Payee::restore(records, keypair(PAYEE), PayeePolicy::default()).unwrap()
    };
    let mut log = records(vec![agreed(), funded(0), held(30_000)]);
    let mut payee = restore(log.clone());
    let voucher = tranche().sign(&keypair(PAYER), sat(40_000)).unwrap();
    let payout = p2tr(0xaa);
    let close = bitmesh_wallet::channel::tx::commitment(
        &tranche(),
        &voucher,
        &keypair(PAYEE),
        &payout,
        ONE,
    );

    let (tx, height) = (Box::new(close.unwrap()), Some(TIP));
    let spent = payee::Input::Spent { tx, height };
    payee.handle(spent, epoch()).unwrap();
    let buried = BlockHeight::new(TIP.get() + 5);
    payee
        .handle(payee::Input::TipChanged(buried), epoch())
        .unwrap();

    assert_eq!(payee.stage(), payee::Stage::Settled);
    assert_eq!(payee.held(), sat(40_000));
    log.extend(
        drain_payee(&mut payee)
            .into_iter()
            .filter_map(|it| match it {
                payee::Output::Persist(record) => Some(record),
                _ => None,
            }),
    );
    assert_eq!(restore(log.clone()).held(), sat(40_000));
    assert_eq!(
        Ledger::from_records(&log).unwrap().totals().earned,
        sat(40_000)
    );
}

proptest! {
    /// Whatever the amounts, both books add up after every record, and what the payer paid is what
    /// the payee earned.
    #[test]
    fn both_books_add_up_after_every_record(
        steps in prop::collection::vec(1u64..9_000, 1..12),
        fee in 0u64..5_000,
        close_fee in 205u64..4_000,
        refunds in any::<bool>(),
    ) {
        let (mut payer, mut payee) = (Ledger::new(), Ledger::new());
        let mut total = 0;
        let mut facts = vec![(proposed(), agreed()), (funded(fee), funded(0))];
        for step in steps {
            total = (total + step).min(99_670);
            facts.push((promised(total), held(total)));
        }
        let close_fee = close_fee.min(total);
        let end = || match refunds {
            true => settled(End::Refund, 100_000 - close_fee, 0, close_fee),
            false => settled(End::Commitment, 100_000 - total, total - close_fee, close_fee),
        };
        facts.push((end(), end()));

        for (ours, theirs) in facts {
            payer.post(&record(ours)).unwrap();
            payee.post(&record(theirs)).unwrap();
            prop_assert!(payer.totals().adds_up());
            prop_assert!(payee.totals().adds_up());
        }

        let (payer, payee) = (payer.totals(), payee.totals());
        prop_assert_eq!(payer.locked + payee.claims, Amount::ZERO);
        let paid = if refunds { 0 } else { total };
        prop_assert_eq!(payer.paid, sat(paid));
        prop_assert_eq!(payee.received + payee.close_fees, sat(paid));
    }
}

#[test]
fn channels_add_up_together() {
    let mut ledger = books(vec![proposed(), funded(154), promised(740)]).unwrap();
    let proposal = ProposalId::from_bytes([9; 32]);
    for fact in [agreed(), funded(0), held(5_000)] {
        ledger.post(&Record { proposal, fact }).unwrap();
    }

    let totals = ledger.totals();

    assert_eq!((totals.paid, totals.claims), (sat(740), sat(5_000)));
    assert!(totals.adds_up());
}
