//! The main job from end to end, shown on real parts.
//!
//! Three sellers at different prices, one buyer, and a local web server as the internet. The buyer
//! takes the cheapest, opens a channel, and downloads files until its prepaid quota is used up; it
//! tops up, goes on without loss, and closes; the seller settles on chain. Then every figure that a
//! side counted, paid or received is compared with the other side's and with the chain's.
//!
//! Everything is asked for through the daemons' control API, as a person would by the command line.

mod report;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bitcoin::Amount;
use bitmesh_node::control::api::{
    Buy, Channel, ChannelState, Channels, CloseChannel, CloseLease, ExtendLease, Lease, LeaseState,
    ListChannels, ListOffers, ShowLease,
};
use thiserror::Error;

pub use self::report::{FileReport, Report};
use crate::{
    bitcoind::Bitcoind,
    books::{self, AuditError},
    chain::{Chain, ChainError},
    download::{Download, Downloaded, TransferError},
    network::{Network, NetworkError, Node, NodeError, NodeSpec, Plan},
    wait::{Deadline, TimedOut},
    web::Content,
};

/// The sellers and their prices in msat per GB: some hundred times those of a real market, so that
/// payments show in so few bytes.
const SELLERS: [(&str, u64); 3] = [
    ("alice", 20_000_000),
    ("bob", 25_000_000),
    ("carol", 30_000_000),
];

/// The rate of a lease. It sets the credit window, one second of it.
const RATE: &str = "160 Mbit/s";

/// The buyer.
const BUYER: &str = "dave";

/// What the buyer starts with.
const FUNDS: Amount = Amount::from_sat(1_000_000);

/// The lengths of the files, the last of which is longer than the first quota.
const FILES: [u64; 3] = [1, 1 << 20, 100 << 20];

/// What is bought first, and what is added once that is used up.
const QUOTA: u64 = 64_000_000;

/// How often more quota is added at most.
const TOP_UPS: u32 = 4;

/// How long each step may take. Only a fault takes that long, or a very slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many blocks make a settlement final.
const FINAL: u32 = 6;

/// A step of the demonstration did not succeed.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The network did not come up or did not do what it was asked.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A node did not do what it was asked.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The chain did not do what it was asked.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A file did not arrive as it was sent.
    #[error("a file of {length} bytes: {source}")]
    Transfer {
        /// Its length.
        length: u64,
        /// What went wrong.
        source: TransferError,
    },
    /// The accounts could not be drawn up.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A step took too long.
    #[error(transparent)]
    Late(#[from] TimedOut),
    /// A node's answer lacks something that it should have.
    #[error("{node} does not say {what}")]
    Missing {
        /// The node.
        node: String,
        /// What is missing.
        what: &'static str,
    },
    /// A file arrived although what was paid for does not cover it.
    #[error("a file of {length} bytes arrived on a quota of {quota}")]
    Unpaid {
        /// The length of the file.
        length: u64,
        /// The quota.
        quota: u64,
    },
}

/// Runs the demonstration with the program `bitmesh` and returns what it found.
///
/// `progress` is told, one sentence at a time, what happens. Nothing is left running afterwards,
/// whatever comes of it.
///
/// # Errors
///
/// Returns the first step that failed. Books that do not add up are no error: the report says so.
pub async fn run(
    bitmesh: impl Into<PathBuf>,
    bitcoind: Bitcoind,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, DemoError> {
    let name = format!("demo-{}", std::process::id());
    let mut plan = Plan::new(&name, bitmesh, bitcoind);
    for (seller, price) in SELLERS {
        plan = plan.with(NodeSpec::seller(seller, price).set("sell.rate", RATE));
    }
    let network = Network::up(plan.with(NodeSpec::buyer(BUYER, FUNDS)), progress).await?;
    let report = Demo {
        network: &network,
        progress,
    }
    .run()
    .await;
    network.down().await;
    report
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures what a person would wait for"
)]
fn now() -> Instant {
    Instant::now()
}

struct Demo<'a> {
    network: &'a Network,
    progress: &'a mut dyn FnMut(&str),
}

impl<'a> Demo<'a> {
    async fn run(mut self) -> Result<Report, DemoError> {
        let start = now();
        let network = self.network;
        let buyer = network.node(BUYER);
        let opening = books::open(network).await?;
        self.show_offers(buyer).await?;

        let (lease, seller, buy_took) = self.buy(buyer).await?;
        // As in life: a block comes while the lease is used, and the seller trusts the channel with
        // more from then on.
        until_in_mempool(network.chain(), "the channel's funding").await?;
        network.chain().mine(1)?;
        let (files, pauses) = self.download_all(buyer, seller, &lease.id).await?;

        buyer
            .ask(CloseLease {
                lease: lease.id.clone(),
            })
            .await?;
        let bought = until_state(buyer, &lease.id, LeaseState::Closed).await?;
        until_state(seller, &lease.id, LeaseState::Closed).await?;
        self.say("closed the lease with a last receipt");

        let channel = bought
            .channel
            .ok_or_else(|| missing(buyer, "which channel paid"))?;
        let close = CloseChannel {
            channel: channel.clone(),
            feerate_sat_per_kvb: None,
            force: false,
            dry_run: false,
        };
        seller.ask(close).await?;
        until_in_mempool(network.chain(), "the closing transaction").await?;
        network.chain().mine(FINAL)?;
        until_settled(buyer, &channel).await?;
        until_settled(seller, &channel).await?;
        self.say(&format!(
            "{} settled on chain, {FINAL} blocks deep",
            seller.name()
        ));

        let delivered = files.iter().map(|file| file.bytes).sum();
        let books = books::audit(network, &opening, &[(&lease.id, delivered)]).await?;
        Ok(Report::new(books, files, pauses, buy_took, now() - start))
    }

    fn say(&mut self, what: &str) {
        (self.progress)(what);
    }

    async fn show_offers(&mut self, buyer: &Node) -> Result<(), DemoError> {
        let offers = buyer.ask(ListOffers::default()).await?.offers;
        let prices: Vec<_> = offers
            .iter()
            .map(|offer| (offer.price_msat_per_gb / 1_000).to_string())
            .collect();
        self.say(&format!(
            "{BUYER} sees {} offers: {} sat/GB",
            offers.len(),
            prices.join(", ")
        ));
        Ok(())
    }

    /// Buys the first quota and returns the lease, its seller, and how long that took.
    async fn buy(&mut self, buyer: &Node) -> Result<(Lease, &'a Node, Duration), DemoError> {
        let start = now();
        let dearest = SELLERS.map(|(_, price)| price).into_iter().max();
        let request = Buy {
            bytes: Some(QUOTA),
            max_price_msat_per_gb: dearest,
            ..Buy::default()
        };
        let purchase = buyer.ask(request).await?;
        let took = now() - start;
        let lease = purchase
            .lease
            .ok_or_else(|| missing(buyer, "which lease it bought"))?;
        let seller = self
            .network
            .nodes()
            .iter()
            .find(|node| node.id() == lease.peer);
        let seller = seller.ok_or_else(|| missing(buyer, "of whom it bought"))?;
        self.say(&format!(
            "{BUYER} bought {} MB of {} at {} sat/GB, prepaid, in {} ms; the channel holds {} sat",
            QUOTA / 1_000_000,
            seller.name(),
            lease.price_msat_per_gb / 1_000,
            took.as_millis(),
            purchase.cost.capacity_sat,
        ));
        Ok((lease, seller, took))
    }

    /// Downloads each file, and tops up whenever the quota is used up. Returns how often that was.
    async fn download_all(
        &mut self,
        buyer: &Node,
        seller: &Node,
        lease: &str,
    ) -> Result<(Vec<FileReport>, u32), DemoError> {
        let (mut files, mut pauses, mut total) = (Vec::new(), 0, 0);
        for (seed, length) in (1..).zip(FILES) {
            let content = Content { length, seed };
            let download = Download::start(buyer.proxy(), self.network.web().address(), content, 0);
            while let Some(received) = until_over_or_paused(buyer, lease, &download).await? {
                pauses += 1;
                if pauses > TOP_UPS {
                    return Err(missing(buyer, "that the quota it added is there"));
                }
                until_quota_spent(seller, lease).await?;
                self.say(&format!(
                    "the quota is used up, {} of {length} bytes in: both sides have paused; {BUYER} tops up {} MB",
                    received,
                    QUOTA / 1_000_000,
                ));
                buyer
                    .ask(ExtendLease {
                        lease: lease.to_owned(),
                        bytes: QUOTA,
                    })
                    .await?;
                until_state(buyer, lease, LeaseState::Active).await?;
            }
            let done = finish(download, length).await?;
            total += done.length;
            let quota = QUOTA * u64::from(pauses + 1);
            if total > quota {
                return Err(DemoError::Unpaid {
                    length: total,
                    quota,
                });
            }
            let sha256 = done
                .sha256
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>();
            let took_ms = u64::try_from(done.took.as_millis()).unwrap_or(u64::MAX);
            self.say(&format!(
                "downloaded {length} bytes in {took_ms} ms, SHA-256 {sha256:.16}… is right"
            ));
            files.push(FileReport {
                bytes: length,
                sha256,
                took_ms,
            });
        }
        Ok((files, pauses))
    }
}

fn missing(node: &Node, what: &'static str) -> DemoError {
    DemoError::Missing {
        node: node.name().to_owned(),
        what,
    }
}

/// Waits until a download has ended, or else returns how much of it had come when its lease paused.
async fn until_over_or_paused(
    buyer: &Node,
    lease: &str,
    download: &Download,
) -> Result<Option<u64>, DemoError> {
    let request = ShowLease {
        lease: lease.to_owned(),
    };
    let seen = buyer.until(
        PATIENCE,
        "a download to end or its lease to pause",
        request,
        |lease| {
            match lease.state {
                _ if download.is_over() => Some(None),
                // A payment under way pauses it too, for a moment.
                LeaseState::Paused if is_quota_spent(&lease) => Some(Some(download.received())),
                // Without a lease nothing comes: the download shows why.
                LeaseState::Closed => Some(None),
                LeaseState::Opening
                | LeaseState::Active
                | LeaseState::Paused
                | LeaseState::Detached
                | LeaseState::Closing => None,
            }
        },
    );
    Ok(seen.await?)
}

async fn finish(download: Download, length: u64) -> Result<Downloaded, DemoError> {
    let late = TimedOut {
        what: format!("the end of a file of {length} bytes"),
        within: PATIENCE,
    };
    let ended = tokio::time::timeout(PATIENCE, download.finish())
        .await
        .map_err(|_| late)?;
    ended.map_err(|source| DemoError::Transfer { length, source })
}

async fn until_state(node: &Node, lease: &str, state: LeaseState) -> Result<Lease, NodeError> {
    let request = ShowLease {
        lease: lease.to_owned(),
    };
    let what = format!("lease {lease:.8} to be {state:?}");
    node.until(PATIENCE, &what, request, |lease| {
        (lease.state == state).then_some(lease)
    })
    .await
}

fn is_quota_spent(lease: &Lease) -> bool {
    lease
        .reason
        .as_ref()
        .is_some_and(|reason| reason.code == "quota_spent")
}

async fn until_quota_spent(node: &Node, lease: &str) -> Result<(), NodeError> {
    let request = ShowLease {
        lease: lease.to_owned(),
    };
    let what = format!("lease {lease:.8} to pause for want of quota");
    node.until(PATIENCE, &what, request, |lease| {
        is_quota_spent(&lease).then_some(())
    })
    .await
}

/// Waits for a transaction to be mined: a node hands it over in the background.
async fn until_in_mempool(chain: &Chain, what: &str) -> Result<(), DemoError> {
    let deadline = Deadline::after(PATIENCE);
    while chain.mempool()?.is_empty() {
        if deadline.is_over() {
            return Err(DemoError::Late(TimedOut {
                what: what.to_owned(),
                within: PATIENCE,
            }));
        }
        deadline.pause().await;
    }
    Ok(())
}

async fn until_settled(node: &Node, channel: &str) -> Result<(), NodeError> {
    let what = format!("channel {channel:.8} to be settled");
    let settled = |answer: Channels| {
        let closed = |it: &Channel| it.id == channel && it.state == ChannelState::Closed;
        answer.channels.iter().any(closed).then_some(())
    };
    node.until(PATIENCE, &what, ListChannels { all: true }, settled)
        .await
}
