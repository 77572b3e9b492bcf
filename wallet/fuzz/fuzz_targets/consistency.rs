//! The harness of `wallet/tests/consistency`, with its bytes chosen by a fuzzer. A run that breaks a
//! rule panics; play the file it leaves with `BITMESH_BYTES`.

#![no_main]
#![allow(dead_code, reason = "the tests use more of the harness")]

#[path = "../../tests/consistency/action.rs"]
mod action;
#[path = "../../tests/channel/bip341.rs"]
mod bip341;
#[path = "../../tests/consistency/buyer.rs"]
mod buyer;
#[path = "../../tests/consistency/chain.rs"]
mod chain;
#[path = "../../tests/consistency/closes.rs"]
mod closes;
#[path = "../../tests/consistency/disk.rs"]
mod disk;
#[path = "../../tests/consistency/ends.rs"]
mod ends;
#[path = "../../tests/channel/fixture.rs"]
mod fixture;
#[path = "../../tests/consistency/hostile.rs"]
mod hostile;
#[path = "../../tests/consistency/journal.rs"]
mod journal;
#[path = "../../tests/consistency/keys.rs"]
mod keys;
#[path = "../../tests/consistency/seller.rs"]
mod seller;
#[path = "../../tests/consistency/world.rs"]
mod world;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Longer runs find nothing that two shorter ones do not, and are slow.
    if bytes.len() <= 1_024 {
        world::World::run(bytes);
    }
});
