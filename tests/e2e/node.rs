//! A daemon and its folder.

use std::process::{Command, Stdio};

use bitmesh_node::control::api::{GetStatus, LeaseState};
use bitmesh_tests::{NodeSpec, PATIENCE, World, bitmesh, wait};

use crate::accounts::{MB, balance, buy, buyer, file, pair, seller};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_folder_is_refused_and_does_not_disturb_the_first() {
    let world = World::start([NodeSpec::bystander("alice")]).await;
    let alice = world.node("alice");

    let mut second = Command::new(bitmesh())
        .arg("--datadir")
        .arg(alice.folder())
        .arg("daemon")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let code = wait::until(PATIENCE, "the second daemon to end", || {
        second.try_wait().unwrap()
    });
    if code.is_err() {
        second.kill().unwrap();
    }
    let output = second.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);

    assert!(!code.unwrap().success(), "{said}");
    assert!(
        said.contains(&alice.pid().to_string()),
        "it does not say who has it: {said}"
    );
    let status = alice.ask(GetStatus {}).await.unwrap();
    assert_eq!(status.pid, alice.pid());
    assert!(status.healthy, "{:?}", status.problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_closes_its_leases_with_a_receipt_first() {
    for (name, other) in [("bob", "alice"), ("alice", "bob")] {
        let (mut world, opening) = pair(seller("alice")).await;
        let lease = buy(&world, "bob", 10 * MB).await;
        world.fetch("bob", file(3 * MB, 1)).await;

        world.node_mut(name).stop().unwrap();
        let left = world
            .until_lease(other, &lease.id, LeaseState::Closed)
            .await;
        assert!(left.receipt.expect("3 MB were carried").cosigned);
        let again = world.node_mut(name).start_again().await;
        again.unwrap_or_else(|error| panic!("{error}"));

        balance(&world, &opening, &[(&lease.id, 3 * MB)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_were_killed_find_each_other_again_without_being_told() {
    let mut world = World::start([seller("alice"), buyer("bob")]).await;

    for name in ["alice", "bob"] {
        let node = world.node_mut(name);
        node.kill().unwrap();
        let again = node.start_again().await;
        again.unwrap_or_else(|error| panic!("{error}"));
        for name in ["alice", "bob"] {
            let met = |status: bitmesh_node::control::api::Status| (status.peers > 0).then_some(());
            let met = world
                .node(name)
                .until(PATIENCE, "a peer", GetStatus {}, met);
            met.await.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    let lease = buy(&world, "bob", 10 * MB).await;
    world
        .until_lease("alice", &lease.id, LeaseState::Active)
        .await;
}
