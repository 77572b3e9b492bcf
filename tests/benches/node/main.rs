//! What a person waits for and what a node costs when nobody uses it.
//!
//! `cargo bench --bench node [-- [buy] [idle] [--rounds N]]`
//!
//! - `buy`: from the command to the first byte through the proxy, the first time ever (a channel is
//!   opened and nothing waits for a block), and with an open channel;
//! - `idle`: memory of daemons that nobody uses, and the size of the program.
//!
//! All of it is about processes, so it is a program of its own and no measurement of criterion's. The
//! daemons are those of the release build.

use std::{env, fs, process::Stdio, time::Duration};

use bitcoin::Amount;
use bitmesh_node::control::api::{Lease, LeaseState};
use bitmesh_tests::{Content, Download, Node, NodeSpec, World, bitmesh};
use tokio::{process::Command, time::Instant};

/// What a person is ready to wait for, the first time and later.
const GOALS: [Duration; 2] = [Duration::from_secs(2), Duration::from_millis(300)];

/// How long daemons are left alone before their memory is read.
const LEFT_ALONE: Duration = Duration::from_secs(20);

/// Goals in MB, of 10^6 bytes.
const MEMORY: f64 = 32.0;
const SIZE: f64 = 20.0;

#[tokio::main]
async fn main() {
    let (mut buying, mut idling, mut rounds) = (false, false, 7);
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // What cargo says to every benchmark.
            "--bench" => {}
            "buy" => buying = true,
            "idle" => idling = true,
            "--rounds" => {
                let next = args.next().and_then(|text| text.parse().ok());
                rounds = next.expect("--rounds needs a number");
            }
            _ => panic!("{arg}: there are buy, idle and --rounds N"),
        }
    }
    let all = !buying && !idling;
    if idling || all {
        idle().await;
    }
    if buying || all {
        buy(rounds).await;
    }
}

async fn buy(rounds: usize) {
    let mut world = World::start([NodeSpec::seller("alice", 100_000)]).await;
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let name = format!("bob{round}");
        // As outside a testnet, so that nothing comes sooner because this node looks more often.
        let buyer = NodeSpec::buyer(&name, Amount::from_sat(1_000_000)).set("chain.poll_ms", 2_000);
        let added = world.add(buyer).await;
        added.unwrap_or_else(|error| panic!("{error}"));
        until_offered(&world, &name).await;
        first.push(until_first_byte(&world, &name).await);
        close(&world, &name).await;
        later.push(until_first_byte(&world, &name).await);
        close(&world, &name).await;
    }
    println!("\n`bitmesh buy` until the first byte through the proxy, {rounds} buyers");
    for (what, times, goal) in [
        ("first ever, zero-conf", &mut first, GOALS[0]),
        ("with an open channel", &mut later, GOALS[1]),
    ] {
        times.sort_unstable();
        let (least, median, most) = (times[0], times[times.len() / 2], times[times.len() - 1]);
        println!("  {what}: median {median:.0?}, {least:.0?} to {most:.0?} (goal {goal:?})");
    }
}

async fn until_offered(world: &World, buyer: &str) {
    use bitmesh_node::control::api::ListOffers;
    let node = world.node(buyer);
    let seen = node.until(
        bitmesh_tests::PATIENCE,
        "an offer",
        ListOffers::default(),
        |seen| (!seen.offers.is_empty()).then_some(()),
    );
    seen.await.unwrap_or_else(|error| panic!("{error}"));
}

/// Runs the command as a person would, and then reads one byte.
async fn until_first_byte(world: &World, buyer: &str) -> Duration {
    let node = world.node(buyer);
    let start = Instant::now();
    bitmesh_of(node, &["buy", "100MB"]).await;
    let content = Content { length: 1, seed: 1 };
    let download = Download::start(node.proxy(), world.web().address(), content, 0);
    let done = download.finish().await;
    let took = start.elapsed();
    done.unwrap_or_else(|error| panic!("{error}"));
    took
}

async fn close(world: &World, buyer: &str) {
    let open = |lease: &Lease| lease.state != LeaseState::Closed;
    let leases = world.leases(buyer).await;
    let lease = leases.into_iter().find(open).expect("one was bought");
    bitmesh_of(world.node(buyer), &["lease", "close", &lease.id]).await;
    world
        .until_lease(buyer, &lease.id, LeaseState::Closed)
        .await;
}

async fn bitmesh_of(node: &Node, args: &[&str]) {
    let output = Command::new(bitmesh())
        .arg("--datadir")
        .arg(node.folder())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("the program was built");
    assert!(
        output.status.success(),
        "bitmesh {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn idle() {
    let size = fs::metadata(bitmesh())
        .expect("the program was built")
        .len();
    println!("\nthe program: {:.1} MB (goal {SIZE})", megabytes(size));
    let world = World::start([
        NodeSpec::seller("alice", 100_000),
        NodeSpec::seller("carol", 120_000),
        NodeSpec::buyer("bob", Amount::from_sat(1_000_000)),
    ])
    .await;
    tokio::time::sleep(LEFT_ALONE).await;
    println!("memory of three daemons that were left alone for {LEFT_ALONE:?}");
    for node in world.nodes() {
        let [all, own] = ["VmRSS", "RssAnon"].map(|what| resident(node.pid(), what));
        println!(
            "  {:5} {:.1} MB (goal {MEMORY}), of which {:.1} MB its own and not the program's",
            node.name(),
            megabytes(all),
            megabytes(own)
        );
    }
}

/// A figure of a process's memory, in bytes.
fn resident(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kib = line.and_then(|line| line.trim_start_matches(':').trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .expect("the system tells it in kB")
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
