use proptest::prelude::*;

use super::*;

const WINDOW: u64 = 256 * 1024;

fn any_credit() -> impl Strategy<Value = Credit> {
    (
        prop_oneof![Just(0), 1_u64..1_000, 1_000_u64..100_000_000_000],
        any::<bool>(),
        WINDOW..1_000_000_000,
        1_u64..100_000_000_000_000,
        0_u64..10_000_000,
        0_u64..100_000_000,
    )
        .prop_map(|(price, is_prepaid, window, quota, first, paid)| Credit {
            price: Price::from_msat_per_gb(price),
            mode: if is_prepaid {
                Mode::Prepaid
            } else {
                Mode::Postpaid
            },
            window: Bytes::new(window),
            quota: Bytes::new(quota),
            first: Msat::from_msat(first),
            paid: Msat::from_msat(paid),
            has_ended: false,
        })
}

proptest! {
    #[test]
    fn a_payment_is_due_from_the_reading_at_which_it_was_announced(
        credit in any_credit(),
        used in 0_u64..200_000_000_000_000,
    ) {
        let used = Bytes::new(used);
        let is_announced = credit.next_payment_at().is_some_and(|at| used >= at);
        prop_assert_eq!(credit.due(used).is_some(), is_announced);
        if let Some(at) = credit.next_payment_at() {
            prop_assert!(credit.due(at).is_some());
            prop_assert!(at.is_zero() || credit.due(Bytes::new(at.get() - 1)).is_none());
        }
    }

    #[test]
    fn what_is_due_is_never_more_than_a_window_ahead_or_the_first_payment(
        credit in any_credit(),
        used in 0_u64..200_000_000_000_000,
    ) {
        let used = Bytes::new(used);
        let ahead = match credit.mode {
            Mode::Prepaid => used.saturating_add(credit.window),
            Mode::Postpaid => used,
        };
        let most = credit.cost(ahead.min(credit.quota)).unwrap().max(credit.first);
        for total in [credit.due(used), credit.top_up(used), credit.owed(used)].into_iter().flatten() {
            prop_assert!(total > credit.paid);
            prop_assert!(total <= most);
        }
    }

    #[test]
    fn a_payment_that_is_due_lets_at_least_half_a_window_flow(
        mut credit in any_credit(),
        used in 0_u64..100_000_000_000_000,
    ) {
        let used = Bytes::new(used).min(credit.quota);
        if let Some(total) = credit.due(used) {
            credit.on_paid(total);
            prop_assert!(credit.due(used).is_none());
            let half = Bytes::new(credit.window.get() / 2);
            prop_assert!(credit.buyer_limit() >= used.saturating_add(half).min(credit.quota));
        }
    }

    #[test]
    fn a_seller_is_never_further_than_its_credit_and_a_window_beyond_the_signature(
        credit in any_credit(),
        signed in 0_u64..100_000_000_000_000,
    ) {
        let signed = Bytes::new(signed);
        let limit = credit.seller_limit(signed);
        prop_assert!(limit <= credit.quota);
        prop_assert!(limit <= signed.saturating_add(credit.window));
        let unpaid = match credit.mode {
            Mode::Prepaid => Bytes::ZERO,
            Mode::Postpaid => credit.window,
        };
        prop_assert!(limit <= credit.price.bytes_for(credit.paid).saturating_add(unpaid));
    }

    #[test]
    fn an_older_total_or_quota_changes_nothing(
        credit in any_credit(),
        less in 0_u64..1_000_000,
    ) {
        let mut later = credit.clone();
        later.on_paid(Msat::from_msat(credit.paid.msat().saturating_sub(less)));
        later.extend(Bytes::new(credit.quota.get().saturating_sub(less)));
        prop_assert_eq!((later.paid, later.quota), (credit.paid, credit.quota));
    }
}
