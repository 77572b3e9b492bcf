//! Every crash there is: each write, send and broadcast of a scenario, on either side, is met by a
//! crash in each way it can be, until a run ends without reaching it.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::action::Action::{self, *};
use crate::ends::Ending;
use crate::world::{Fault, Mode, World};

/// How long a conversation may take to come to rest.
const TALK: &[(Action, &[u8])] = &[(DeliverAll, &[]), (DeliverAll, &[]), (DeliverAll, &[])];
/// A channel of 100,000 sat, agreed and funded.
const OPEN: &[(Action, &[u8])] = &[
    (Propose, &[2]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
];
const CONFIRM: &[(Action, &[u8])] = &[(MineMany, &[2]), (DeliverAll, &[])];
const FIRST: &[(Action, &[u8])] = &[(Pay, &[92, 0]), (DeliverAll, &[]), (DeliverAll, &[])];
const MORE: &[(Action, &[u8])] = &[
    (Pay, &[40, 0]),
    (DeliverAll, &[]),
    (PayMuch, &[50, 0]),
    (DeliverAll, &[]),
    (Pay, &[200, 0]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
];
const AGAIN: &[(Action, &[u8])] = &[
    (Propose, &[3]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
    (Pay, &[92, 0]),
    (Pay, &[92, 1]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
];
/// A reorganisation of six blocks, of which what they held comes back or is gone.
const UNDO: &[(Action, &[u8])] = &[(Reorganise, &[11]), (DeliverAll, &[]), (Mine, &[])];
const AWAY: &[(Action, &[u8])] = &[(ReorganiseAway, &[11]), (DeliverAll, &[]), (Mine, &[])];
/// The same, and the coins of the funding are spent elsewhere meanwhile.
const DISPLACED: &[(Action, &[u8])] = &[(ReorganiseAway, &[5]), (MineMany, &[6])];
const TOGETHER: &[(Action, &[u8])] = &[
    (SleepLong, &[0]),
    (Together, &[0]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
    (MineMany, &[6]),
];

/// Two channels with something to close.
const TWO: &[(Action, &[u8])] = &[
    (Pay, &[92, 0]),
    (DeliverAll, &[]),
    (Pay, &[92, 1]),
    (DeliverAll, &[]),
    (Pay, &[200, 0]),
    (DeliverAll, &[]),
    (Pay, &[250, 1]),
    (DeliverAll, &[]),
    (DeliverAll, &[]),
];

type Steps = &'static [(Action, &'static [u8])];

/// What is played, and how it ends.
const SCENARIOS: [(&str, Ending, &[Steps]); 19] = [
    (
        "the seller closes at its deadline",
        Ending::Patient,
        &[OPEN, CONFIRM, FIRST, MORE],
    ),
    (
        "the seller closes when it likes",
        Ending::Prompt,
        &[OPEN, FIRST, CONFIRM, MORE],
    ),
    (
        "service on unconfirmed funding",
        Ending::Prompt,
        &[
            OPEN,
            FIRST,
            &[(Sleep, &[11])],
            TALK,
            &[(Pay, &[20, 0])],
            TALK,
            CONFIRM,
        ],
    ),
    (
        "everything is paid",
        Ending::Prompt,
        &[
            OPEN,
            CONFIRM,
            CONFIRM,
            FIRST,
            MORE,
            &[(PayAll, &[50, 0])],
            TALK,
            &[(PayAll, &[0, 0])],
            TALK,
        ],
    ),
    (
        "vouchers wait for one another",
        Ending::Patient,
        &[
            OPEN,
            CONFIRM,
            &[(Group, &[])],
            FIRST,
            MORE,
            &[(Sync, &[])],
            TALK,
            MORE,
        ],
    ),
    (
        "the seller vanishes",
        Ending::SellerGone,
        &[OPEN, CONFIRM, FIRST, MORE],
    ),
    (
        "the buyer vanishes",
        Ending::BuyerGone,
        &[OPEN, CONFIRM, FIRST, MORE],
    ),
    (
        "two channels at once",
        Ending::Patient,
        &[OPEN, AGAIN, CONFIRM, MORE, MORE],
    ),
    (
        "blocks with the funding are undone",
        Ending::Patient,
        &[OPEN, FIRST, CONFIRM, UNDO, MORE, AWAY, TALK],
    ),
    (
        "the funding is displaced",
        Ending::Patient,
        &[OPEN, FIRST, CONFIRM, MORE, DISPLACED, TALK],
    ),
    (
        "the coins of the funding are spent elsewhere",
        Ending::Patient,
        &[
            OPEN,
            FIRST,
            &[(Sleep, &[11]), (Conflict, &[0]), (MineMany, &[6])],
            TALK,
        ],
    ),
    (
        "fees rise while the channel closes",
        Ending::Patient,
        &[
            OPEN,
            CONFIRM,
            FIRST,
            MORE,
            &[
                (FeesRise, &[3]),
                (CloseAsked, &[0]),
                (FeesRise, &[12]),
                (MineEmpty, &[]),
                (Mine, &[]),
            ],
            UNDO,
        ],
    ),
    (
        "both close together",
        Ending::Patient,
        &[OPEN, CONFIRM, FIRST, MORE, TOGETHER],
    ),
    (
        "the seller asks to close together, on a bad line",
        Ending::Patient,
        &[
            OPEN,
            CONFIRM,
            FIRST,
            &[
                (SleepLong, &[0]),
                (Together, &[1]),
                (DeliverAny, &[0]),
                (Duplicate, &[0]),
            ],
            &[(Reconnect, &[]), (Sleep, &[15])],
            TOGETHER,
        ],
    ),
    (
        "two channels close in a batch, and more is bid",
        Ending::Patient,
        &[
            OPEN,
            AGAIN,
            CONFIRM,
            TWO,
            &[(CloseAll, &[])],
            &[(Jump, &[4, 0]), (FeesRise, &[3]), (MineEmpty, &[])],
            &[(FeesFall, &[]), (Mine, &[])],
        ],
    ),
    (
        "the seller comes back from an old backup",
        Ending::Patient,
        &[OPEN, CONFIRM, FIRST, MORE, &[(OldSeller, &[3])], TALK, MORE],
    ),
    (
        "the seller comes back from a backup without the channel",
        Ending::Patient,
        &[OPEN, CONFIRM, FIRST, MORE, &[(OldSeller, &[0])], TALK, MORE],
    ),
    (
        "a hostile buyer pays more while a split is on offer",
        Ending::Patient,
        &[
            OPEN,
            CONFIRM,
            FIRST,
            MORE,
            &[
                (SleepLong, &[0]),
                (Together, &[0]),
                // The wish and the offer, and before the half of a signature arrives, a voucher.
                (Deliver, &[]),
                (Deliver, &[]),
                (Cheat, &[0, 0, 200]),
                (DeliverAny, &[1]),
                (DeliverAll, &[]),
                (DeliverAll, &[]),
            ],
        ],
    ),
    (
        "a hostile buyer takes back what it can after the expiry",
        Ending::Patient,
        &[
            OPEN,
            CONFIRM,
            FIRST,
            MORE,
            &[(Cheat, &[6, 0, 40]), (Jump, &[6, 0]), (Cheat, &[6, 0, 80])],
        ],
    ),
];

/// The bytes of a scenario, as a fuzzer would find them.
pub(crate) fn bytes_of(ending: Ending, steps: &[Steps]) -> Vec<u8> {
    let ending = Ending::ALL.iter().position(|it| *it == ending);
    let mut bytes = vec![ending.unwrap() as u8];
    for (action, parameters) in steps.iter().copied().flatten() {
        bytes.push(action.byte());
        bytes.extend(*parameters);
    }
    bytes
}

/// All of them, with their names.
pub(crate) fn scenarios() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let bytes = |(name, ending, steps): (_, Ending, &[Steps])| (name, bytes_of(ending, steps));
    SCENARIOS.into_iter().map(bytes)
}

#[test]
fn a_crash_at_any_write_or_send_costs_nobody_anything() {
    let mut cases = BTreeSet::new();
    for (name, bytes) in scenarios() {
        let before = cases.len();
        for mode in Mode::ALL {
            for at in 1.. {
                let waits = false;
                let fault = Fault { at, mode, waits };
                let run = || World::run_into(&bytes, Some(fault));
                let world = catch_unwind(AssertUnwindSafe(run))
                    .unwrap_or_else(|_| panic!("{name}: a crash {mode:?} effect {at}"));
                if world.fault.is_some() {
                    break;
                }
                if world.counts.0.keys().any(|what| what.starts_with("crash")) {
                    cases.insert((name, mode, at));
                }
            }
        }
        println!("{:>6}  {name}", cases.len() - before);
    }
    println!(
        "{:>6}  crashes in {} scenarios",
        cases.len(),
        SCENARIOS.len()
    );
    assert!(cases.len() > 1_000, "only {} crashes", cases.len());
}

#[test]
fn the_scenarios_come_to_the_ends_they_are_named_after() {
    let ends = |name: &str| {
        let mut all = scenarios();
        let (_, bytes) = all.find(|(it, _)| *it == name).unwrap();
        let counts = World::run(&bytes).counts.0;
        let ends = counts.into_keys().filter(|what| what.starts_with("end "));
        ends.collect::<Vec<_>>()
    };

    assert_eq!(
        ends("the seller closes at its deadline"),
        ["end \"Commitment\""]
    );
    assert_eq!(ends("everything is paid"), ["end \"Commitment\""]);
    assert_eq!(ends("the seller vanishes"), ["end \"Refund\""]);
    assert_eq!(ends("the funding is displaced"), ["end \"never funded\""]);
    assert_eq!(ends("both close together"), ["end \"Together\""]);
    assert_eq!(
        ends("two channels close in a batch, and more is bid"),
        ["end \"Commitment\"", "end \"in a batch\""]
    );
    assert_eq!(
        ends("the seller comes back from an old backup"),
        ["end \"Commitment\""]
    );
    assert_eq!(
        ends("a hostile buyer pays more while a split is on offer"),
        ["end \"Together\""]
    );
    let bad_line = "the seller asks to close together, on a bad line";
    assert_eq!(ends(bad_line), ["end \"Together\""]);
}
