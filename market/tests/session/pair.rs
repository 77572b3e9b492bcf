//! Honest machines on a good and on a bad day.

use std::time::Duration;

use bitmesh_market::quote::Mode;
use bitmesh_market::session::{
    CloseReason, Event, PauseReason, PayFailure, Signatures, buyer, seller,
};
use bitmesh_market::units::{Bytes, Msat};

use crate::world::{Deal, KIB, W, World};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn both_modes(test: impl Fn(Deal)) {
    for mode in [Mode::Prepaid, Mode::Postpaid] {
        test(Deal {
            mode,
            ..Deal::default()
        });
    }
}

#[test]
fn honest_sides_agree_to_the_byte_and_to_the_millisatoshi() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.connect();
        world.want_down = 10 * W + 12_345;
        world.want_up = W + 6_789;
        world.run_until(MINUTE, World::is_idle);
        let (buyer, seller) = world.close();

        assert_eq!(buyer.signatures, Signatures::Both);
        assert_eq!(buyer, seller);
        let receipt = buyer.receipt.unwrap();
        assert_eq!(receipt.reading.down, Bytes::new(10 * W + 12_345));
        assert_eq!(receipt.reading.up, Bytes::new(W + 6_789));
        assert_eq!(receipt.billed, world.cost(11 * W + 19_134));
        assert_eq!(world.buyer.meter.reading, world.seller.meter.reading);
        assert_eq!(world.buyer.disk.vouchered, world.seller.disk.vouchered);
    });
}

#[test]
fn a_session_that_carries_nothing_costs_at_most_the_first_payment() {
    let mut world = World::new(Deal {
        min_first: 740_000,
        ..Deal::default()
    });
    world.connect();
    world.run(SECOND);
    assert_eq!(world.buyer.disk.vouchered, Msat::from_msat(740_000));
    let (buyer, seller) = world.close();
    assert_eq!(buyer, seller);
    assert_eq!(buyer.billed(), Msat::ZERO);
}

#[test]
fn a_buyer_who_pays_afterwards_has_paid_nothing_before_the_first_byte() {
    let mut world = World::new(Deal {
        mode: Mode::Postpaid,
        ..Deal::default()
    });
    world.connect();
    world.run(SECOND);
    assert_eq!(world.buyer.disk.vouchered, Msat::ZERO);
}

#[test]
fn carried_credit_is_used_before_anything_is_paid() {
    both_modes(|deal| {
        let cost = World::new(deal).cost(4 * W);
        let mut world = World::new(Deal {
            carried: cost.msat(),
            ..deal
        });
        world.connect();
        world.want_down = 2 * W;
        world.run_until(MINUTE, World::is_idle);
        world.run(SECOND);
        assert_eq!(world.buyer.disk.vouchered, cost);

        world.want_down = 3 * W;
        world.run_until(MINUTE, World::is_idle);
        let (buyer, seller) = world.close();
        assert!(world.buyer.disk.vouchered > cost);
        assert_eq!(buyer, seller);
        assert_eq!(buyer.billed(), world.cost(5 * W));
    });
}

#[test]
fn a_free_seller_is_never_paid_and_still_stops_at_the_quota() {
    both_modes(|deal| {
        let mut world = World::new(Deal { price: 0, ..deal });
        world.connect();
        world.want_down = deal.quota + W;
        world.run(MINUTE);
        assert_eq!(world.want_down, W);
        assert_eq!(world.buyer.disk.vouchered, Msat::ZERO);
        assert_eq!(world.buyer.truth, deal.quota);
    });
}

#[test]
fn a_spent_quota_pauses_both_and_an_extension_resumes_without_loss() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.connect();
        world.want_down = deal.quota + 3 * W;
        world.run(MINUTE);
        assert_eq!(world.buyer.truth, deal.quota);
        assert_eq!(world.seller.truth, deal.quota);
        let spent = Event::Paused(PauseReason::QuotaSpent);
        assert_eq!(
            world.buyer.events.last(),
            Some(&Event::Receipted(
                world
                    .buyer
                    .machine
                    .as_ref()
                    .unwrap()
                    .receipt()
                    .map(|mut receipt| {
                        receipt.paid = world.seller.disk.vouchered;
                        receipt
                    })
                    .unwrap()
            ))
        );
        assert!(world.buyer.events.contains(&spent));
        assert!(world.seller.events.contains(&spent));
        assert_eq!(
            world.buyer.disk.vouchered,
            Msat::from_sat(world.cost(deal.quota).sat_ceil()).unwrap()
        );

        let quota = Bytes::new(deal.quota + 8 * W);
        world.tell_buyer(buyer::Input::Extend { quota });
        world.run_until(MINUTE, World::is_idle);
        assert!(world.buyer.events.contains(&Event::Extended { quota }));
        assert!(world.seller.events.contains(&Event::Extended { quota }));
        let (buyer, seller) = world.close();
        assert_eq!(buyer, seller);
        assert_eq!(buyer.billed(), world.cost(deal.quota + 3 * W));
    });
}

#[test]
fn an_extension_beyond_the_quote_is_refused_on_the_spot() {
    let deal = Deal::default();
    let mut world = World::new(deal);
    world.connect();
    world.run(SECOND);
    for quota in [deal.max_quota + 1, deal.quota, 0] {
        let quota = Bytes::new(quota);
        world.tell_buyer(buyer::Input::Extend { quota });
        assert_eq!(
            world.buyer.events.last(),
            Some(&Event::NotExtended { quota })
        );
    }
}

#[test]
fn an_extension_asked_for_while_disconnected_is_asked_for_again() {
    let deal = Deal::default();
    let mut world = World::new(deal);
    world.connect();
    world.run(SECOND);
    world.disconnect();
    let quota = Bytes::new(deal.max_quota);
    world.tell_buyer(buyer::Input::Extend { quota });
    world.run(SECOND);
    world.connect();
    world.run(SECOND);
    assert_eq!(world.buyer.machine.as_ref().unwrap().quota(), quota);
    assert_eq!(world.seller.machine.as_ref().unwrap().quota(), quota);
}

#[test]
fn a_buyer_who_stops_paying_is_cut_off_within_a_window_and_closed() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.connect();
        world.want_down = deal.quota;
        world.run(SECOND);
        world.is_paying = false;
        world.run(5 * SECOND);
        let at_stop = world.seller.truth;
        let paid_for = world
            .lease
            .price()
            .bytes_for(world.seller.disk.vouchered)
            .get();
        let credit = if deal.mode == Mode::Postpaid { W } else { 0 };
        assert_eq!(at_stop, (paid_for + credit).min(deal.quota));
        assert_eq!(
            world.seller.machine.as_ref().unwrap().paused(),
            Some(PauseReason::Unpaid)
        );

        world.run(40 * SECOND);
        assert_eq!(world.seller.truth, at_stop);
        assert_eq!(world.seller_ending().unwrap().reason, CloseReason::Unpaid);
        assert_eq!(world.buyer_ending().unwrap().reason, CloseReason::Unpaid);
    });
}

#[test]
fn the_operator_pauses_and_resumes_without_loss() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.want_down = 8 * W;
    world.run(SECOND);
    world.tell_seller(seller::Input::PauseAsked);
    world.run(SECOND);
    let (before, paid) = (world.seller.truth, world.buyer.disk.vouchered);
    world.run(MINUTE);
    assert_eq!(world.seller.truth, before);
    assert_eq!(world.buyer.disk.vouchered, paid);
    let paused = Event::Paused(PauseReason::SellerPaused);
    assert!(world.buyer.events.contains(&paused));

    world.tell_seller(seller::Input::ResumeAsked);
    world.run_until(MINUTE, World::is_idle);
    let (buyer, seller) = world.close();
    assert_eq!(buyer, seller);
    assert_eq!(buyer.billed(), world.cost(8 * W));
}

#[test]
fn a_voucher_that_does_not_count_yet_pauses_without_closing() {
    let mut world = World::new(Deal::default());
    world.is_deep = false;
    world.connect();
    world.want_down = 4 * W;
    world.run(10 * MINUTE);
    assert_eq!(world.seller.truth, 0);
    let waiting = Event::Paused(PauseReason::WaitingForConfirmation);
    assert!(world.buyer.events.contains(&waiting));
    assert!(world.seller.events.contains(&waiting));
    assert!(world.buyer_ending().is_none());

    world.is_deep = true;
    let total = world.seller.disk.vouchered;
    world.tell_seller(seller::Input::Paid { total });
    world.run_until(MINUTE, World::is_idle);
    let (buyer, seller) = world.close();
    assert_eq!(buyer, seller);
}

#[test]
fn a_payment_that_is_made_in_part_is_asked_for_again() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.payable = Msat::from_sat(world.cost(3 * W).sat_ceil()).unwrap();
        world.connect();
        world.want_down = 8 * W;
        world.run(10 * SECOND);
        assert!(world.waiting.is_some(), "the rest was never asked for");
        assert!(world.buyer_ending().is_none());

        world.deepen();
        world.run_until(MINUTE, World::is_idle);
        let (buyer, seller) = world.close();
        assert_eq!(buyer, seller);
        assert_eq!(buyer.billed(), world.cost(8 * W));
    });
}

#[test]
fn a_funding_that_a_reorganisation_loses_and_brings_back_costs_a_pause() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.connect();
        world.want_down = 8 * W;
        world.run_until(MINUTE, |world| world.seller.truth > 2 * W);

        world.tell_seller(seller::Input::FundingLost);
        let at_stop = world.seller.truth;
        world.run(30 * SECOND);
        assert_eq!(world.seller.truth, at_stop);
        assert_eq!(
            world.buyer.machine.as_ref().unwrap().paused(),
            Some(PauseReason::WaitingForConfirmation)
        );

        world.tell_seller(seller::Input::FundingFound);
        world.run_until(MINUTE, World::is_idle);
        let (buyer, seller) = world.close();
        assert_eq!(buyer, seller);
        assert_eq!(buyer.billed(), world.cost(8 * W));
    });
}

#[test]
fn a_funding_that_does_not_come_back_ends_the_session_with_what_was_signed() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.connect();
        world.want_down = 8 * W;
        world.run_until(MINUTE, |world| world.seller.truth > 2 * W);

        world.tell_seller(seller::Input::FundingLost);
        world.run(MINUTE + 10 * SECOND);

        let (buyer, seller) = (world.buyer_ending(), world.seller_ending());
        assert_eq!(seller.unwrap().reason, CloseReason::ChannelLost);
        assert_eq!(buyer, seller);
    });
}

#[test]
fn a_lease_ends_at_its_expiry_on_both_sides() {
    both_modes(|deal| {
        let mut world = World::new(Deal {
            term: Duration::from_secs(5),
            quota: deal.max_quota,
            ..deal
        });
        world.connect();
        world.want_down = deal.max_quota;
        world.run(6 * SECOND);
        let (buyer, seller) = (
            world.buyer_ending().unwrap(),
            world.seller_ending().unwrap(),
        );
        assert_eq!(buyer.reason, CloseReason::Expired);
        assert_eq!(buyer, seller);
    });
}

#[test]
fn a_seller_that_leaves_gets_the_final_receipt() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.connect();
        world.want_down = 3 * W;
        world.run_until(MINUTE, World::is_idle);
        world.tell_seller(seller::Input::CloseAsked(CloseReason::Shutdown));
        world.run(SECOND);
        let (buyer, seller) = (
            world.buyer_ending().unwrap(),
            world.seller_ending().unwrap(),
        );
        assert_eq!(seller.reason, CloseReason::Shutdown);
        assert_eq!(seller.signatures, Signatures::Both);
        assert_eq!(buyer, seller);
        assert_eq!(seller.billed(), world.cost(3 * W));
    });
}

#[test]
fn sides_that_leave_at_once_agree() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.want_down = 3 * W;
    world.run_until(MINUTE, World::is_idle);
    world.tell_seller(seller::Input::CloseAsked(CloseReason::Shutdown));
    let (buyer, seller) = world.close();
    assert_eq!(buyer.receipt, seller.receipt);
    assert_eq!(
        (buyer.signatures, seller.signatures),
        (Signatures::Both, Signatures::Both)
    );
}

#[test]
fn closing_works_alone_when_the_other_side_is_gone() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.want_down = 3 * W;
    world.run_until(MINUTE, World::is_idle);
    world.disconnect();
    world.tell_buyer(buyer::Input::CloseAsked(CloseReason::Completed));
    world.run(6 * SECOND);
    let buyer = world.buyer_ending().unwrap();
    assert_eq!(buyer.signatures, Signatures::OneSided);
    assert_eq!(buyer.billed(), world.cost(3 * W));

    world.run(MINUTE);
    let seller = world.seller_ending().unwrap();
    assert_eq!(seller.reason, CloseReason::Detached);
    assert_eq!(seller.signatures, Signatures::OneSided);
}

#[test]
fn a_connection_that_does_not_come_back_ends_both() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.want_down = 3 * W;
    world.run_until(MINUTE, World::is_idle);
    world.disconnect();
    world.run(59 * SECOND);
    assert!(world.buyer_ending().is_none() && world.seller_ending().is_none());
    world.run(8 * SECOND);
    assert_eq!(world.buyer_ending().unwrap().reason, CloseReason::Detached);
    assert_eq!(world.seller_ending().unwrap().reason, CloseReason::Detached);
}

#[test]
fn a_buyer_that_comes_back_too_late_learns_how_it_ended() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.want_down = 3 * W;
    world.run_until(MINUTE, World::is_idle);
    world.run(SECOND);
    world.tell_seller(seller::Input::CloseAsked(CloseReason::Shutdown));
    world.disconnect();
    world.run(6 * SECOND);
    assert!(world.seller_ending().is_some());

    world.connect();
    world.run(SECOND);
    let (buyer, seller) = (
        world.buyer_ending().unwrap(),
        world.seller_ending().unwrap(),
    );
    assert_eq!(buyer.reason, CloseReason::Shutdown);
    assert_eq!(buyer.receipt, seller.receipt);
}

#[test]
fn connections_that_break_again_and_again_lose_no_money() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.want_down = 6 * W;
        world.want_up = W;
        // Slow enough that what is in flight at a break is small: twenty breaks stay within a window.
        world.per_tick = KIB;
        for _ in 0..20 {
            world.connect();
            world.run(2 * SECOND);
            world.disconnect();
            world.run(SECOND);
        }
        world.connect();
        world.run_until(10 * MINUTE, World::is_idle);
        let (buyer, seller) = world.close();
        assert_eq!(buyer, seller);
        let used = world.buyer.truth;
        assert_eq!(buyer.billed(), world.cost(used));
        assert!(world.seller.truth - used < W);
    });
}

#[test]
fn messages_that_come_twice_change_nothing() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.copies = 2;
        world.connect();
        world.want_down = 6 * W;
        world.run_until(MINUTE, World::is_idle);
        let (buyer, seller) = world.close();
        assert_eq!(buyer, seller);
        assert_eq!(buyer.billed(), world.cost(6 * W));
        let ignored = |event: &Event| matches!(event, Event::Ignored(_));
        assert!(!world.buyer.events.iter().any(ignored));
    });
}

#[test]
fn a_long_way_slows_a_session_and_does_not_stop_it() {
    both_modes(|deal| {
        let mut world = World::new(deal);
        world.latency = Duration::from_millis(1_500);
        world.connect();
        world.want_down = 10 * W;
        world.run_until(10 * MINUTE, World::is_idle);
        let (buyer, seller) = world.close();
        assert_eq!(buyer, seller);
        assert_eq!(buyer.billed(), world.cost(10 * W));
    });
}

#[test]
fn a_payment_that_fails_for_now_is_tried_again() {
    let mut world = World::new(Deal::default());
    world.is_paying = false;
    world.connect();
    world.want_down = 2 * W;
    world.run(SECOND);
    world.is_paying = true;
    let passing = PayFailure::Passing;
    world.tell_buyer(buyer::Input::PayFailed(passing));
    world.run_until(MINUTE, World::is_idle);
    let (buyer, seller) = world.close();
    assert_eq!(buyer, seller);
}

#[test]
fn a_channel_without_room_ends_the_session_once_what_is_paid_is_used() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.want_down = 10 * W;
    world.run(Duration::from_millis(200));
    world.is_paying = false;
    world.tell_buyer(buyer::Input::PayFailed(PayFailure::CapacitySpent));
    world.run(5 * SECOND);
    let (buyer, seller) = (
        world.buyer_ending().unwrap(),
        world.seller_ending().unwrap(),
    );
    assert_eq!(buyer.reason, CloseReason::BudgetSpent);
    assert_eq!(buyer, seller);
    let paid_for = world.lease.price().bytes_for(world.buyer.disk.vouchered);
    assert_eq!(buyer.receipt.unwrap().reading.total(), paid_for);
}

#[test]
fn a_buyer_that_cannot_pay_any_more_does_not_use_up_its_credit_first() {
    let mut world = World::new(Deal {
        mode: Mode::Postpaid,
        ..Deal::default()
    });
    world.connect();
    world.want_down = 10 * W;
    world.run(SECOND);
    world.is_paying = false;
    let used = world.buyer.truth;
    world.tell_buyer(buyer::Input::PayFailed(PayFailure::CapacitySpent));
    world.run(SECOND);
    let buyer = world.buyer_ending().unwrap();
    assert_eq!(buyer.reason, CloseReason::BudgetSpent);
    assert_eq!(world.buyer.truth, used);
    assert_eq!(Some(buyer), world.seller_ending());
}

#[test]
fn a_lost_channel_ends_the_session() {
    let mut world = World::new(Deal::default());
    world.connect();
    world.run(SECOND);
    let lost = PayFailure::ChannelLost;
    world.tell_buyer(buyer::Input::PayFailed(lost));
    world.run(SECOND);
    assert_eq!(
        world.buyer_ending().unwrap().reason,
        CloseReason::ChannelLost
    );
    assert_eq!(
        world.seller_ending().unwrap().reason,
        CloseReason::ChannelLost
    );
}
