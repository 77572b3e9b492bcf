//! What holds for every capacity, total and fee rate, and whatever the payee says.

use bitcoin::{Amount, FeeRate};
use bitmesh_wallet::channel::message::{Depth, Message};
use bitmesh_wallet::channel::params::{Contract, Tranche};
use bitmesh_wallet::channel::payer::{self, Payer};
use bitmesh_wallet::channel::record::{End, Fact};
use bitmesh_wallet::channel::tx::{self, BuildError};
use bitmesh_wallet::channel::voucher::Legal;
use bitmesh_wallet::channel::{TrancheIndex, message::Open};
use proptest::prelude::*;

use crate::fixture::*;

fn tranche_of(capacity: Amount) -> Tranche {
    let open = Open { capacity, ..open() };
    let accept = accept(&open);
    let contract = Contract::new(open, accept).unwrap();
    contract
        .fund(&funding_tx(contract.scripts().output(), capacity), 1)
        .unwrap()
}

/// Totals, often near the edges.
fn totals(capacity: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        0..=capacity + 400,
        capacity - 400..=capacity + 10,
        0..=1_000u64,
    ]
}

fn cases() -> impl Strategy<Value = (u64, u64)> {
    (20_000u64..10_000_000).prop_flat_map(|capacity| (Just(capacity), totals(capacity)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// I1 and I2: a total is signed for if and only if its close would be valid, and then the close
    /// is, at any fee rate it can bear, and gives the payer exactly its change.
    #[test]
    fn a_voucher_is_legal_exactly_if_its_close_is_valid(
        (capacity, total) in cases(),
        rate in 250u64..20_000,
    ) {
        let tranche = tranche_of(sat(capacity));
        let change = capacity.checked_sub(total);
        let is_legal = total > 0 && change.is_some_and(|change| change == 0 || change >= 330);
        let voucher = tranche.sign(&keypair(PAYER), sat(total));
        prop_assert_eq!(voucher.is_ok(), is_legal);
        let Ok(voucher) = voucher else { return Ok(()) };
        prop_assert!(tranche.verify(&voucher).is_ok());

        let rate = FeeRate::from_sat_per_kwu(rate);
        match tx::commitment(&tranche, &voucher, &keypair(PAYEE), &p2tr(0xaa), rate) {
            Ok(close) => {
                prop_assert_eq!(check_spend(&tranche, &close, TIP.get()), Ok(()));
                let settlement = tranche.settlement(&close, None).unwrap();
                prop_assert_eq!(settlement.end, End::Commitment);
                prop_assert_eq!(settlement.paid(), sat(total));
                prop_assert_eq!(settlement.returned, sat(capacity - total));
                prop_assert_eq!(settlement.received + settlement.fee, sat(total));
                prop_assert!(settlement.fee >= rate * close.weight());
                prop_assert!(settlement.fee <= rate.fee_vb(close.vsize() as u64 + 1).unwrap());
            }
            Err(BuildError::Dust { value, fee, dust }) => {
                prop_assert!(value < fee + dust);
                prop_assert_eq!(value, sat(total));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    /// Rounding up to a legal total costs the payer less than dust and nothing where it need not.
    #[test]
    fn rounding_up_gives_the_next_legal_total((capacity, total) in cases()) {
        let tranche = tranche_of(sat(capacity));
        match tranche.legal_at_least(sat(total)) {
            Ok(next) => {
                prop_assert!(tranche.legal(next).is_ok());
                prop_assert!(next >= sat(total) && next - sat(total) < tx::DUST_P2TR);
                prop_assert!(tranche.legal(sat(total)).is_err() || next == sat(total));
            }
            Err(_) => prop_assert!(total == 0 || total > capacity),
        }
    }

    /// I4: whatever is asked for and whatever the payee claims, everything a payer ever signs is at
    /// most the capacity, written down first, and never less than before.
    #[test]
    fn a_payer_never_signs_more_than_the_capacity(
        steps in prop::collection::vec(
            (totals(100_000), any::<bool>(), 0u64..200_000, any::<bool>()),
            1..40,
        ),
    ) {
        let now = epoch();
        let mut payer = ready();
        let (mut written, mut signed) = (Amount::ZERO, Amount::ZERO);
        for (total, pays, limit, forges) in steps {
            let input = match pays {
                true => payer::Input::Pay { total: sat(total) },
                false => {
                    let signer = if forges { PAYEE } else { PAYER };
                    let voucher = tranche().sign(&keypair(signer), sat(total));
                    let held = voucher.ok().map(|voucher| (voucher.total, voucher.signature));
                    payer::Input::Received(Message::Depth(Depth {
                        channel: contract().id(),
                        tranche: TrancheIndex::FIRST,
                        confirmations: 0,
                        limit: sat(limit),
                        held: held.filter(|(total, _)| forges || *total <= written),
                    }))
                }
            };
            let _ = payer.handle(input, now);
            for output in drain_payer(&mut payer) {
                match output {
                    payer::Output::Persist(record) => {
                        let Fact::Promised { total, .. } = record.fact else { continue };
                        prop_assert!(total > written);
                        written = total;
                    }
                    payer::Output::Send(Message::Voucher(voucher)) => {
                        prop_assert!(voucher.total <= written);
                        prop_assert!(voucher.total >= signed);
                        prop_assert!(voucher.total <= CAPACITY);
                        prop_assert!(tranche().verify(&voucher).is_ok());
                        signed = voucher.total;
                    }
                    _ => {}
                }
            }
        }
        prop_assert_eq!(payer.promised(), written);
    }
}

/// A payer whose channel is funded, with nothing left to do.
fn ready() -> Payer {
    let now = epoch();
    let mut payer = payer(now);
    let accept = Message::Accept(accept(&open()));
    let tx = Box::new(funding_tx(contract().scripts().output(), CAPACITY));
    for input in [
        payer::Input::TipChanged(TIP),
        payer::Input::Received(accept),
        payer::Input::FundingSigned { tx, fee: sat(154) },
    ] {
        payer.handle(input, now).unwrap();
    }
    drain_payer(&mut payer);
    payer
}

#[test]
fn the_sighash_follows_from_what_is_left() {
    let tranche = tranche();
    let sighash = |total| tranche.legal(total).map(Legal::sighash_type).unwrap() as u8;

    assert_eq!(sighash(sat(1)), 0x83);
    assert_eq!(sighash(CAPACITY - tx::DUST_P2TR), 0x83);
    assert_eq!(sighash(CAPACITY), 0x82);
}
