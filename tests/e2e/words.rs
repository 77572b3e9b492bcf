//! What the twelve words bring back, all else being lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bitmesh_node::control::api::{Channel, ChannelState};
use bitmesh_tests::{PATIENCE, World, bitmesh, wait};

use crate::accounts::{FINAL, MB, buy, buyer, file, seller, slow_seller};
use crate::chain::mine_to;

/// The shortest life of a channel, in blocks.
const EXPIRY: u32 = 1_008;

/// Deletes everything that a node has but its configuration, and makes it anew from its words with the
/// command line.
pub(crate) fn lose_all_but_the_words(folder: &Path) {
    let words = fs::read_to_string(folder.join("words.txt")).unwrap();
    let config = fs::read(folder.join("config.toml")).unwrap();
    fs::remove_dir_all(folder).unwrap();
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("config.toml"), config).unwrap();
    let paper = folder.with_extension("paper");
    fs::write(&paper, words).unwrap();
    let output = Command::new(bitmesh())
        .arg("--datadir")
        .arg(folder)
        .args(["--no-input", "init", "--words-file"])
        .arg(&paper)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_alone_find_a_channel_and_bring_its_money_back_after_expiry() {
    let bob = buyer("bob").set("payments.expiry_blocks", i64::from(EXPIRY));
    let mut world = World::start([slow_seller("alice"), bob]).await;
    buy(&world, "bob", 50 * MB).await;
    world.fetch("bob", file(10 * MB, 1)).await;
    let lost = world.channels("bob").await.remove(0);
    let before = world.balance("bob").await;
    assert!(lost.paid_sat > 0 && before.locked_sat > 0);

    // The seller is gone as well: nobody can tell the buyer anything.
    world.node_mut("alice").kill().unwrap();
    world.node_mut("bob").kill().unwrap();
    lose_all_but_the_words(world.node("bob").folder());
    let again = world.node_mut("bob").start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));

    let found = wait::until_async(PATIENCE, "the channel to be found", || async {
        let mut channels = world.channels("bob").await;
        channels.pop().filter(|it| it.state == ChannelState::Open)
    });
    let found: Channel = found.await.unwrap_or_else(|late| panic!("{late}"));
    assert_eq!(found.funding, lost.funding);
    assert_eq!(found.capacity_sat, lost.capacity_sat);
    assert_eq!(found.expiry_height, lost.expiry_height);
    assert_eq!(found.reason.unwrap().code, "found_on_chain");
    let balance = world.balance("bob").await;
    assert_eq!(balance.confirmed_sat, before.confirmed_sat);

    mine_to(&world, lost.expiry_height - 1, "bob").await;
    assert_eq!(
        world.chain().mempool().unwrap(),
        [],
        "a refund before its time"
    );
    mine_to(&world, lost.expiry_height, "bob").await;
    crate::chain::until_broadcast(&world, "the refund").await;
    mine_to(&world, lost.expiry_height + FINAL, "bob").await;
    let closed = world
        .until_channel("bob", &found.id, ChannelState::Closed)
        .await;

    let after = world.balance("bob").await;
    let fee = closed.fees_sat - lost.fees_sat;
    assert!(
        (100..1_000).contains(&fee),
        "a refund is 138 vB: {closed:#?}"
    );
    assert_eq!(
        after.confirmed_sat,
        before.confirmed_sat + lost.capacity_sat - fee
    );
    // A second start knows it from its journal.
    let again = world.node_mut("bob").start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(world.channels("bob").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_whose_words_are_under_a_passphrase_starts_with_it_alone_and_goes_on_selling() {
    let mut world = World::start([seller("alice"), buyer("bob")]).await;
    let lease = buy(&world, "bob", 20 * MB).await;
    world.fetch("bob", file(5 * MB, 1)).await;
    crate::accounts::close(&world, "bob", "alice", &lease.id).await;
    let sold = world.channels("alice").await.remove(0);
    let folder = world.node("alice").folder().to_owned();
    let plain = fs::read_to_string(folder.join("words.txt")).unwrap();
    let passphrase = folder.with_extension("passphrase");
    fs::write(&passphrase, "correct horse battery staple\n").unwrap();

    world.node_mut("alice").kill().unwrap();
    let set = Command::new(bitmesh())
        .arg("--datadir")
        .arg(&folder)
        .args(["wallet", "passphrase", "set", "--passphrase-file"])
        .arg(&passphrase)
        .output()
        .unwrap();
    assert!(set.status.success(), "{set:?}");
    let refused = world.node_mut("alice").start_again().await;
    assert!(refused.is_err(), "it started without its passphrase");
    let node = world.node_mut("alice");
    node.set_env("BITMESH_PASSPHRASE_FILE", &passphrase);
    // Twice: a start with a passphrase leaves nothing behind that a second could do without.
    for _ in 0..2 {
        let again = node.start_again().await;
        again.unwrap_or_else(|error| panic!("{error}"));
    }

    let sealed = fs::read_to_string(folder.join("words.txt")).unwrap();
    assert!(sealed.starts_with("bitmesh sealed words 1\n"), "{sealed}");
    for word in plain.lines().next().unwrap().split(' ') {
        assert!(!sealed.split_whitespace().any(|it| it == word), "{word}");
    }
    // More than the first payment left as credit: a voucher is signed and held.
    let lease = crate::accounts::buy_again(&world, "bob", 60 * MB).await;
    world.fetch("bob", file(50 * MB, 2)).await;
    crate::accounts::close(&world, "bob", "alice", &lease.id).await;
    let again = world.channels("alice").await.remove(0);
    assert_eq!(again.id, sold.id);
    assert!(again.paid_sat > sold.paid_sat, "{again:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_still_claims_its_vouchers_from_a_buyer_who_kept_only_the_words() {
    let mut world = World::start([slow_seller("alice"), buyer("bob")]).await;
    let lease = buy(&world, "bob", 50 * MB).await;
    world.fetch("bob", file(10 * MB, 1)).await;
    crate::accounts::close(&world, "bob", "alice", &lease.id).await;
    let lost = world.channels("bob").await.remove(0);
    let before = world.balance("bob").await;

    world.node_mut("bob").kill().unwrap();
    lose_all_but_the_words(world.node("bob").folder());
    let again = world.node_mut("bob").start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));
    let found = wait::until_async(PATIENCE, "the channel to be found", || async {
        let mut channels = world.channels("bob").await;
        channels.pop().filter(|it| it.state == ChannelState::Open)
    });
    let found = found.await.unwrap_or_else(|late| panic!("{late}"));
    let sold = world.channels("alice").await.remove(0);
    crate::accounts::close_channel(&world, "alice", &sold.id).await;
    world.mine(FINAL).await;

    // The buyer sees the end that it had no part in, and gets what it had not paid.
    world
        .until_channel("bob", &found.id, ChannelState::Closed)
        .await;
    let after = world.balance("bob").await;
    assert_eq!(
        after.confirmed_sat,
        before.confirmed_sat + lost.capacity_sat - lost.paid_sat
    );
}

/// Runs the command line on a node's folder.
fn bitmesh_on(folder: &Path, arguments: &[&str]) {
    let output = Command::new(bitmesh())
        .arg("--datadir")
        .arg(folder)
        .args(["--no-input", "--network", "regtest"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// Replaces all that a node has by a backup and its words.
async fn go_back(world: &mut World, name: &str, backup: &Path) {
    world.node_mut(name).kill().unwrap();
    let folder = world.node(name).folder().to_owned();
    let paper = folder.with_extension("paper");
    fs::copy(folder.join("words.txt"), &paper).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let (backup, paper) = (backup.to_str().unwrap(), paper.to_str().unwrap());
    bitmesh_on(
        &folder,
        &["backup", "restore", backup, "--words-file", paper],
    );
    let again = world.node_mut(name).start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));
}

/// Makes a backup of a running node, beside its folder.
fn back_up(world: &World, name: &str) -> PathBuf {
    let folder = world.node(name).folder();
    let file = folder.with_extension("backup");
    let path = file.to_str().unwrap();
    bitmesh_on(folder, &["backup", "create", path]);
    bitmesh_on(folder, &["backup", "verify", path]);
    file
}

/// A lease that costs more than a first payment, and is paid and closed.
pub(crate) async fn trade(world: &World, seed: u64) {
    let lease = world.buy("bob", 60 * MB).await.lease.unwrap();
    if world.channels("bob").await[0].confirmations == 0 {
        crate::accounts::confirm(world, "bob", &lease).await;
    }
    world.fetch("bob", file(50 * MB, seed)).await;
    crate::accounts::close(world, "bob", "alice", &lease.id).await;
}

/// Waits until a node knows of this total, paid on its one channel.
pub(crate) async fn until_paid(world: &World, name: &str, total: u64) {
    let what = format!("{name} to know of {total} sat");
    let seen = wait::until_async(PATIENCE, what, || async {
        let channels = world.channels(name).await;
        (channels.len() == 1 && channels[0].paid_sat == total).then_some(())
    });
    seen.await.unwrap_or_else(|late| panic!("{late}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_restored_from_an_old_backup_is_told_the_last_voucher_and_claims_it() {
    let mut world = World::start([seller("alice"), buyer("bob")]).await;
    trade(&world, 1).await;
    let old = world.channels("alice").await.remove(0);
    let backup = back_up(&world, "alice");
    trade(&world, 2).await;
    trade(&world, 3).await;
    let newest = world.channels("alice").await.remove(0);
    assert!(newest.paid_sat > old.paid_sat, "{newest:#?}");

    go_back(&mut world, "alice", &backup).await;

    until_paid(&world, "alice", newest.paid_sat).await;
    let settled = crate::accounts::settle(&world, "bob", "alice", &newest.id).await;
    assert_eq!(settled.paid_sat, newest.paid_sat);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_restored_from_an_old_backup_never_signs_below_what_it_signed() {
    let mut world = World::start([seller("alice"), buyer("bob")]).await;
    trade(&world, 1).await;
    let old = world.channels("bob").await.remove(0);
    let backup = back_up(&world, "bob");
    trade(&world, 2).await;
    trade(&world, 3).await;
    let newest = world.channels("bob").await.remove(0);
    assert!(newest.paid_sat > old.paid_sat, "{newest:#?}");

    go_back(&mut world, "bob", &backup).await;

    // The seller shows the voucher that it holds, and the buyer goes on from there.
    until_paid(&world, "bob", newest.paid_sat).await;
    until_paid(&world, "alice", newest.paid_sat).await;
    let settled = crate::accounts::settle(&world, "bob", "alice", &newest.id).await;
    assert_eq!(settled.paid_sat, newest.paid_sat);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_opened_after_the_backup_is_found_on_the_chain() {
    let mut world = World::start([seller("alice"), buyer("bob")]).await;
    let backup = back_up(&world, "bob");
    trade(&world, 1).await;
    let lost = world.channels("bob").await.remove(0);

    go_back(&mut world, "bob", &backup).await;

    let found = wait::until_async(PATIENCE, "the channel to be found", || async {
        let mut channels = world.channels("bob").await;
        channels.pop().filter(|it| it.state == ChannelState::Open)
    });
    let found = found.await.unwrap_or_else(|late| panic!("{late}"));
    assert_eq!(found.funding, lost.funding);
}
