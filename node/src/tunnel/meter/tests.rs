//! Tests of the meter: pure where nothing waits, on a paused clock where something does.

use std::sync::Arc;

use futures::FutureExt;
use proptest::prelude::*;

use super::*;

fn meter(limit: u64) -> Meter {
    let meter = Meter::new(Reading::default());
    meter.set_limit(Bytes::new(limit));
    meter
}

fn total(meter: &Meter) -> u64 {
    meter.reading().total().get()
}

fn take(meter: &Meter, direction: Direction, max: u64) -> u64 {
    let Some(credit) = meter.try_reserve(direction, max) else {
        return 0;
    };
    let len = credit.len();
    credit.commit(len);
    len
}

#[test]
fn nothing_flows_before_a_limit_is_set() {
    let meter = Meter::new(Reading::new(Bytes::new(3), Bytes::new(4)));

    assert_eq!(take(&meter, Direction::Up, 1), 0);
    assert_eq!(meter.charge(Direction::Down, 1), 0);
    assert_eq!(meter.reading(), Reading::new(Bytes::new(3), Bytes::new(4)));
}

#[test]
fn the_last_reservation_is_cut_at_the_limit() {
    let meter = meter(100);

    assert_eq!(take(&meter, Direction::Up, 64), 64);
    assert_eq!(take(&meter, Direction::Down, 64), 36);
    assert_eq!(take(&meter, Direction::Down, 64), 0);

    assert_eq!(
        meter.reading(),
        Reading::new(Bytes::new(64), Bytes::new(36))
    );
}

#[test]
fn credit_that_is_not_used_goes_back() {
    let meter = meter(100);

    meter.try_reserve(Direction::Up, 80).unwrap().commit(30);
    drop(meter.try_reserve(Direction::Up, 70).unwrap());

    assert_eq!(total(&meter), 30);
    assert_eq!(take(&meter, Direction::Up, 100), 70);
}

#[test]
fn a_limit_that_is_lowered_stops_flows_and_takes_nothing_back() {
    let meter = meter(100);
    take(&meter, Direction::Up, 60);

    meter.set_limit(Bytes::new(10));

    assert_eq!(take(&meter, Direction::Up, 1), 0);
    assert_eq!(total(&meter), 60);
}

#[test]
fn what_is_owed_is_counted_before_anything_else_once_the_limit_rises() {
    let meter = meter(10);

    meter.owe(Direction::Up, 25);
    assert_eq!(total(&meter), 10);

    meter.set_limit(Bytes::new(20));
    assert_eq!(take(&meter, Direction::Down, 1), 0);
    meter.set_limit(Bytes::new(30));
    assert_eq!(take(&meter, Direction::Down, 100), 5);
    assert_eq!(meter.reading(), Reading::new(Bytes::new(25), Bytes::new(5)));
}

#[test]
fn what_cannot_be_cut_goes_on_a_single_byte_and_owes_the_rest() {
    let meter = meter(1);

    assert!(meter.try_take_whole(Direction::Up, 64));
    assert!(!meter.try_take_whole(Direction::Up, 64));
    assert_eq!(total(&meter), 1);

    meter.set_limit(Bytes::new(1000));
    assert_eq!(total(&meter), 64);
}

#[test]
fn a_mark_is_told_once_also_if_it_was_passed_before_anyone_asked() {
    let meter = meter(100);
    meter.set_mark(Bytes::new(50));
    take(&meter, Direction::Up, 49);
    assert_eq!(meter.marked().now_or_never(), None);

    take(&meter, Direction::Up, 1);
    let told = meter.marked().now_or_never();
    assert_eq!(told, Some(Reading::new(Bytes::new(50), Bytes::ZERO)));

    take(&meter, Direction::Up, 10);
    assert_eq!(meter.marked().now_or_never(), None);
}

#[test]
fn a_mark_that_is_behind_is_told_at_once_and_a_new_one_replaces_the_old() {
    let meter = meter(100);
    take(&meter, Direction::Down, 10);

    meter.set_mark(Bytes::new(5));
    meter.set_mark(Bytes::new(20));
    assert_eq!(meter.marked().now_or_never(), None);

    meter.set_mark(Bytes::new(10));
    assert!(meter.marked().now_or_never().is_some());
}

#[tokio::test]
async fn waiters_are_served_in_the_order_they_came() {
    let meter = Arc::new(meter(0));
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for name in 0..10 {
        let (meter, order) = (Arc::clone(&meter), Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            let credit = meter.reserve(Direction::Down, 10).await;
            order.lock().unwrap().push(name);
            credit.commit(10);
        }));
        tokio::task::yield_now().await;
    }

    for step in 1..=10 {
        meter.set_limit(Bytes::new(step * 10));
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
    for task in tasks {
        task.await.unwrap();
    }

    assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
    assert_eq!(total(&meter), 100);
}

#[tokio::test]
async fn nobody_overtakes_those_who_wait() {
    let meter = Arc::new(meter(0));
    let waiter = Arc::clone(&meter);
    let waiting = tokio::spawn(async move { waiter.reserve(Direction::Down, 10).await.commit(10) });
    tokio::task::yield_now().await;
    assert!(meter.is_starved());

    meter.set_limit(Bytes::new(10));
    assert_eq!(take(&meter, Direction::Up, 10), 0);

    waiting.await.unwrap();
    assert_eq!(meter.reading(), Reading::new(Bytes::ZERO, Bytes::new(10)));
}

#[tokio::test]
async fn a_waiter_that_leaves_does_not_take_the_wakeup_with_it() {
    let meter = Arc::new(meter(0));
    let (first, second) = (Arc::clone(&meter), Arc::clone(&meter));
    let leaving = tokio::spawn(async move { first.reserve(Direction::Up, 5).await.commit(5) });
    tokio::task::yield_now().await;
    let staying = tokio::spawn(async move { second.reserve(Direction::Up, 5).await.commit(5) });
    tokio::task::yield_now().await;

    meter.set_limit(Bytes::new(5));
    leaving.abort();
    let left = leaving.await.is_err();

    meter.set_limit(Bytes::new(if left { 5 } else { 10 }));
    staying.await.unwrap();
    assert!(!meter.is_starved());
}

#[test]
fn threads_that_contend_never_pass_the_limit_and_reach_it_exactly() {
    const LIMIT: u64 = 1_000_003;
    let meter = meter(0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let meter = &meter;
            scope.spawn(move || {
                let direction = if thread % 2 == 0 {
                    Direction::Up
                } else {
                    Direction::Down
                };
                let mut rng = thread.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                while total(meter) < LIMIT {
                    rng ^= rng << 13;
                    rng ^= rng >> 7;
                    rng ^= rng << 17;
                    match rng % 4 {
                        0 => meter.owe(direction, rng % 300),
                        1 => drop(meter.try_reserve(direction, 1 + rng % 500)),
                        _ => drop(take(meter, direction, 1 + rng % 500)),
                    }
                    let now = total(meter);
                    assert!(now <= meter.limit().get(), "{now}");
                }
            });
        }
        for limit in (0..=LIMIT).step_by(1000).chain([LIMIT]) {
            meter.set_limit(Bytes::new(limit));
            std::thread::yield_now();
        }
    });
    assert_eq!(total(&meter), LIMIT);
}

#[derive(Clone, Debug)]
enum Step {
    Take(Direction, u64, u64),
    Charge(Direction, u64),
    Owe(Direction, u64),
    SetLimit(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let direction = prop_oneof![Just(Direction::Up), Just(Direction::Down)];
    let bytes = 0..2000u64;
    prop_oneof![
        (direction.clone(), 1..2000u64, bytes.clone()).prop_map(|(d, n, m)| Step::Take(d, n, m)),
        (direction.clone(), bytes.clone()).prop_map(|(d, n)| Step::Charge(d, n)),
        (direction, bytes).prop_map(|(d, n)| Step::Owe(d, n)),
        (0..20_000u64).prop_map(Step::SetLimit),
    ]
}

proptest! {
    #[test]
    fn the_total_is_what_was_used_and_never_above_the_highest_limit(
        steps in prop::collection::vec(any_step(), 0..60),
    ) {
        let meter = Meter::new(Reading::default());
        let (mut used, mut owed, mut highest) = (0, 0, 0);
        let mut before = meter.reading();
        for step in steps {
            match step {
                Step::Take(direction, max, wanted) => {
                    if let Some(credit) = meter.try_reserve(direction, max) {
                        let len = credit.len().min(wanted);
                        credit.commit(len);
                        used += len;
                    }
                }
                Step::Charge(direction, delta) => used += meter.charge(direction, delta),
                Step::Owe(direction, delta) => {
                    meter.owe(direction, delta);
                    owed += delta;
                }
                Step::SetLimit(limit) => {
                    meter.set_limit(Bytes::new(limit));
                    highest = highest.max(limit);
                }
            }
            let now = meter.reading();
            prop_assert!(now.total().get() <= highest);
            prop_assert!(now.total().get() <= used + owed);
            prop_assert!(now.covers(before), "counts only grow");
            before = now;
        }
        meter.set_limit(Bytes::MAX);
        prop_assert_eq!(meter.reading().total().get(), used + owed);
    }
}
