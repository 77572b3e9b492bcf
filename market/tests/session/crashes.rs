//! Machines that die at any step, come back from their disks and go on.

use std::time::Duration;

use bitmesh_market::quote::Mode;
use bitmesh_market::session::{CloseReason, Ending, Event, Signatures, buyer, seller};
use bitmesh_market::units::Bytes;
use proptest::prelude::*;

use crate::world::{Deal, KIB, TICK, W, World};

/// How long a process is down.
const DOWN: Duration = Duration::from_secs(1);

/// Keeps everything running and connected, as supervisors and drivers do.
fn tend(world: &mut World) {
    world.tick();
    if world.buyer.machine.is_none() || world.seller.machine.is_none() {
        world.run(DOWN);
        world.restart();
    }
    if !world.is_connected && world.buyer_ending().is_none() {
        world.connect();
    }
}

/// A whole session: a transfer both ways beyond the quota, an extension, the end.
fn whole_session(world: &mut World) -> (Ending, Ending) {
    let quota = Bytes::new(4 * W);
    world.want_down = 2 * W + 77;
    world.want_up = W + 11;
    world.connect();
    for _ in 0..30_000 {
        tend(world);
        let Some(buyer) = &world.buyer.machine else {
            continue;
        };
        let is_drained = world.buyer.truth == 3 * W + 88 || world.is_idle();
        if buyer.ending().is_none() && buyer.quota() < quota && world.buyer.truth > W {
            world.tell_buyer(buyer::Input::Extend { quota });
        } else if buyer.ending().is_none() && is_drained {
            world.tell_buyer(buyer::Input::CloseAsked(CloseReason::Completed));
        }
        if let (Some(buyer), Some(seller)) = (world.buyer_ending(), world.seller_ending()) {
            return (buyer, seller);
        }
    }
    panic!("the session does not end: {world:#?}");
}

fn deal(mode: Mode) -> Deal {
    Deal {
        mode,
        quota: 2 * W,
        max_quota: 8 * W,
        ..Deal::default()
    }
}

#[test]
fn a_buyer_that_dies_at_any_step_comes_back_and_the_books_are_the_same() {
    for mode in [Mode::Prepaid, Mode::Postpaid] {
        let mut calm = World::new(deal(mode));
        whole_session(&mut calm);
        assert!(calm.buyer.steps > 50);
        for step in 0..calm.buyer.steps {
            let mut world = World::new(deal(mode));
            world.buyer.dies_after = Some(step);
            let (buyer, seller) = whole_session(&mut world);
            assert_eq!(buyer.receipt, seller.receipt, "{mode:?}, died at {step}");
            assert_eq!(
                seller.signatures,
                Signatures::Both,
                "{mode:?}, died at {step}"
            );
            assert!(buyer.billed() <= world.cost(world.buyer.truth));
            assert_eq!(world.buyer.disk.vouchered, world.seller.disk.vouchered);
        }
    }
}

#[test]
fn a_seller_that_dies_at_any_step_comes_back_and_the_books_are_the_same() {
    for mode in [Mode::Prepaid, Mode::Postpaid] {
        let mut calm = World::new(deal(mode));
        whole_session(&mut calm);
        assert!(calm.seller.steps > 50);
        for step in 0..calm.seller.steps {
            let mut world = World::new(deal(mode));
            world.seller.dies_after = Some(step);
            let (buyer, seller) = whole_session(&mut world);
            assert_eq!(buyer.receipt, seller.receipt, "{mode:?}, died at {step}");
            assert_eq!(
                buyer.signatures,
                Signatures::Both,
                "{mode:?}, died at {step}"
            );
            assert_eq!(buyer.billed(), world.cost(world.buyer.truth));
            assert_eq!(world.buyer.disk.vouchered, world.seller.disk.vouchered);
        }
    }
}

#[test]
fn a_buyer_with_an_old_disk_takes_its_own_word_from_the_seller() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.want_down = 4 * W;
    while !world.is_idle() {
        tend(&mut world);
    }
    world.run(DOWN);
    let signed = world.buyer.machine.as_ref().unwrap().receipt().unwrap();
    world.crash_buyer();
    world.buyer.disk.records.truncate(3);
    world.restart();
    assert!(world.buyer.machine.as_ref().unwrap().receipt().unwrap().seq < signed.seq);
    world.connect();
    world.run(DOWN);
    let receipt = world.buyer.machine.as_ref().unwrap().receipt().unwrap();
    assert_eq!(receipt.reading, signed.reading);

    world.want_down = W;
    while !world.is_idle() {
        tend(&mut world);
    }
    let (buyer, seller) = world.close();
    assert_eq!(buyer, seller);
    assert_eq!(buyer.signatures, Signatures::Both);
}

#[test]
fn a_session_that_has_ended_is_restored_as_it_ended() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.want_down = W;
    while !world.is_idle() {
        tend(&mut world);
    }
    let (buyer, seller) = world.close();
    world.crash_buyer();
    world.crash_seller();
    world.restart();
    assert_eq!(world.buyer_ending(), Some(buyer));
    assert_eq!(world.seller_ending(), Some(seller));
}

#[test]
fn records_of_another_lease_or_role_do_not_restore() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.want_down = W;
    while !world.is_idle() {
        tend(&mut world);
    }
    let other = Deal {
        quota: 7 * W,
        ..Deal::default()
    }
    .lease();
    let (at, now, patience) = (world.unix_now(), world.now, world.patience);
    let (ours, theirs) = (world.buyer.disk.read(), world.seller.disk.read());
    assert!(buyer::Buyer::restore(other, ours.clone(), patience, at, now).is_err());
    let lease = world.lease.clone();
    assert!(seller::Seller::restore(lease.clone(), ours, patience, at, now).is_err());
    assert!(buyer::Buyer::restore(lease, theirs, patience, at, now).is_err());
}

/// What the weather, the operators and the users do.
#[derive(Clone, Debug)]
enum Turn {
    Run(u64),
    Break,
    BuyerDies(usize),
    SellerDies(usize),
    Want { up: u64, down: u64 },
    Extend(u64),
    Pause,
    Resume,
    Copies(usize),
    Latency(u64),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        6 => (1_u64..200).prop_map(Turn::Run),
        2 => Just(Turn::Break),
        1 => (0_usize..20).prop_map(Turn::BuyerDies),
        1 => (0_usize..20).prop_map(Turn::SellerDies),
        4 => (0..W, 0..3 * W).prop_map(|(up, down)| Turn::Want { up, down }),
        1 => (1..16 * W).prop_map(Turn::Extend),
        1 => Just(Turn::Pause),
        2 => Just(Turn::Resume),
        1 => (1_usize..3).prop_map(Turn::Copies),
        1 => (0_u64..400).prop_map(Turn::Latency),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn honest_sides_end_with_the_same_books_whatever_the_weather(
        is_prepaid in any::<bool>(),
        price in prop_oneof![Just(0), Just(120_000), Just(100_000_000)],
        min_first in prop_oneof![Just(0), Just(740_000)],
        carried in prop_oneof![Just(0), 0_u64..100_000],
        turns in proptest::collection::vec(turn(), 1..40),
    ) {
        let mut world = World::new(Deal {
            mode: if is_prepaid { Mode::Prepaid } else { Mode::Postpaid },
            price,
            min_first,
            carried,
            quota: 6 * W,
            max_quota: 16 * W,
            ..Deal::default()
        });
        world.connect();
        for turn in turns {
            match turn {
                Turn::Run(ticks) => world.run(TICK * u32::try_from(ticks).unwrap()),
                Turn::Break => world.disconnect(),
                Turn::BuyerDies(step) => world.buyer.dies_after = Some(step),
                Turn::SellerDies(step) => world.seller.dies_after = Some(step),
                Turn::Want { up, down } => (world.want_up, world.want_down) = (up, down),
                Turn::Extend(quota) => {
                    world.tell_buyer(buyer::Input::Extend { quota: Bytes::new(quota) });
                }
                Turn::Pause => world.tell_seller(seller::Input::PauseAsked),
                Turn::Resume => world.tell_seller(seller::Input::ResumeAsked),
                Turn::Copies(copies) => world.copies = copies,
                Turn::Latency(ms) => {
                    // Streams keep their order; what is on its way keeps its time.
                    world.disconnect();
                    world.latency = Duration::from_millis(ms);
                }
            }
            tend(&mut world);
        }
        world.buyer.dies_after = None;
        world.seller.dies_after = None;
        world.tell_seller(seller::Input::ResumeAsked);
        for _ in 0..2_000 {
            tend(&mut world);
        }
        world.tell_buyer(buyer::Input::CloseAsked(CloseReason::Completed));
        for _ in 0..7_000 {
            tend(&mut world);
        }
        let (buyer, seller) = (world.buyer_ending().unwrap(), world.seller_ending().unwrap());
        prop_assert_eq!(buyer.receipt.map(|r| r.reading), seller.receipt.map(|r| r.reading));
        prop_assert_eq!(buyer.billed(), seller.billed());
        prop_assert!(buyer.billed() <= world.cost(world.buyer.truth));
        prop_assert_eq!(world.buyer.disk.vouchered, world.seller.disk.vouchered);
        for event in &world.buyer.events {
            prop_assert!(!matches!(event, Event::Ignored(_)), "buyer: {:?}", event);
        }
    }

    #[test]
    fn a_session_costs_the_same_in_one_piece_and_in_a_thousand(
        pieces in proptest::collection::vec(1_u64..60_000, 1..60),
        price in 1_u64..1_000_000_000,
    ) {
        let total: u64 = pieces.iter().sum();
        let mut world = World::new(Deal { price, ..Deal::default() });
        world.connect();
        for piece in pieces {
            world.want_down += piece;
            world.run(TICK * 3);
        }
        world.per_tick = 32 * KIB;
        while !world.is_idle() {
            world.tick();
        }
        let (buyer, seller) = world.close();
        prop_assert_eq!(buyer, seller);
        prop_assert_eq!(buyer.billed(), world.cost(total));
    }
}
