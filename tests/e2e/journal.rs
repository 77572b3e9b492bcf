//! A journal that the disk has damaged: the node refuses it, and goes on after a repair.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use bitmesh_node::control::api::{Audit, ChannelState, GetEarnings};
use bitmesh_tests::{PATIENCE, World, bitmesh, wait};
use bitmesh_wallet::channel::record;
use bitmesh_wallet::store::salvage::salvage;
use serde_json::Value;

use crate::accounts::{buyer, seller, settle};
use crate::words::{trade, until_paid};

/// Flips one bit in the last record of this name in a node's journal.
fn damage(folder: &Path, name: &str) {
    let path = folder.join("journal");
    let mut bytes = fs::read(&path).unwrap();
    let found = salvage(&bytes).unwrap().found;
    let victim = found.iter().rfind(|found| {
        let (kind, payload) = &found.entry;
        *kind == record::JOURNAL_KIND && record::name_of(payload) == Some(name)
    });
    let victim = victim.unwrap_or_else(|| panic!("no {name} in the journal"));
    // In the middle of its payload: a record has 10 bytes before it.
    let at = usize::try_from(victim.offset).unwrap() + 10 + victim.entry.1.len() / 2;
    bytes[at] ^= 0x10;
    fs::write(&path, bytes).unwrap();
}

fn journal(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(bitmesh())
        .arg("--datadir")
        .arg(folder)
        .args(["--no-input", "--network", "regtest", "--json", "journal"])
        .args(arguments)
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Damages a node's journal, sees that it does not start on it, and repairs it. Returns what was found.
async fn damage_and_repair(world: &mut World, name: &str, record: &str) -> Value {
    world.node_mut(name).kill().unwrap();
    let folder = world.node(name).folder().to_owned();
    damage(&folder, record);
    let damaged = fs::read(folder.join("journal")).unwrap();

    let refused = world.node_mut(name).start_again().await;
    let refused = refused
        .expect_err("it started on a damaged journal")
        .to_string();
    assert!(refused.contains("is damaged at byte"), "{refused}");
    assert!(refused.contains("bitmesh journal check"), "{refused}");
    let checked = journal(&folder, &["check"]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    let unasked = journal(&folder, &["repair"]);
    assert_eq!(unasked.status.code(), Some(2), "{unasked:?}");
    assert_eq!(fs::read(folder.join("journal")).unwrap(), damaged);

    let repaired = journal(&folder, &["repair", "--yes"]);
    assert!(repaired.status.success(), "{repaired:?}");
    let found = json(&repaired);
    let kept_at = found["kept_at"].as_str().unwrap();
    assert_eq!(fs::read(kept_at).unwrap(), damaged);
    assert_eq!(json(&checked)["missing"], found["missing"]);
    assert_eq!(found["missing"][0]["was"], record);

    let again = world.node_mut(name).start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));
    let running = journal(&folder, &["repair", "--yes"]);
    assert_eq!(running.status.code(), Some(1), "{running:?}");
    found
}

async fn audit(world: &World, name: &str) -> Audit {
    let request = GetEarnings {
        audit: true,
        ..GetEarnings::default()
    };
    let earnings = world.node(name).ask(request).await;
    let earnings = earnings.unwrap_or_else(|error| panic!("{error}"));
    earnings.audit.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_whose_journal_lost_its_best_voucher_is_told_it_again_after_a_repair() {
    let mut world = World::start([seller("alice"), buyer("bob")]).await;
    trade(&world, 1).await;
    let old = world.channels("alice").await.remove(0);
    trade(&world, 2).await;
    let newest = world.channels("alice").await.remove(0);
    assert!(newest.paid_sat > old.paid_sat, "{newest:#?}");

    let found = damage_and_repair(&mut world, "alice", "voucher").await;

    let channel = &found["channels"][0];
    assert_eq!(channel["effect"], "voucher_may_be_lost");
    assert_eq!(channel["channel"], *newest.id);
    assert!(channel["total_sat"].as_u64().unwrap() < newest.paid_sat);
    until_paid(&world, "alice", newest.paid_sat).await;
    world.until_all_see_the_chain().await;
    let audit = audit(&world, "alice").await;
    assert_eq!(audit.misfits.len(), 1, "{audit:#?}");
    assert!(
        audit.misfits[0].why.contains("bytes were lost"),
        "{audit:#?}"
    );
    assert!(audit.disagreements.is_empty(), "{audit:#?}");
    let settled = settle(&world, "bob", "alice", &newest.id).await;
    assert_eq!(settled.paid_sat, newest.paid_sat);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_whose_journal_lost_a_funding_finds_it_on_the_chain_and_funds_nothing_twice() {
    let mut world = World::start([seller("alice"), buyer("bob")]).await;
    trade(&world, 1).await;
    let lost = world.channels("bob").await.remove(0);
    let before = world.balance("bob").await;

    let found = damage_and_repair(&mut world, "bob", "funding").await;

    assert_eq!(found["channels"][0]["effect"], "given_up");
    assert!(found["set_aside"][0]["records"].as_u64().unwrap() > 0);
    let again = wait::until_async(PATIENCE, "the channel to be found", || async {
        let mut channels = world.channels("bob").await;
        channels.retain(|it| it.state == ChannelState::Open);
        channels.pop()
    });
    let again = again.await.unwrap_or_else(|late| panic!("{late}"));
    assert_eq!(again.funding, lost.funding);
    assert_eq!(again.capacity_sat, lost.capacity_sat);
    assert_eq!(again.expiry_height, lost.expiry_height);
    assert_eq!(again.reason.unwrap().code, "found_on_chain");
    let after = world.balance("bob").await;
    assert_eq!(after.confirmed_sat, before.confirmed_sat);
    assert_eq!(world.chain().mempool().unwrap(), [], "something was funded");
    // The seller's claim stands, and the rest comes back.
    let sold = world.channels("alice").await.remove(0);
    assert_eq!(sold.paid_sat, lost.paid_sat);
    crate::accounts::close_channel(&world, "alice", &sold.id).await;
    world.mine(crate::accounts::FINAL).await;
    world
        .until_channel("bob", &again.id, ChannelState::Closed)
        .await;
    assert_eq!(
        world.balance("bob").await.confirmed_sat,
        before.confirmed_sat + lost.capacity_sat - lost.paid_sat
    );
}
