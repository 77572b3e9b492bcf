//! Opening everything a node needs, in the order in which it can fail with nothing lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::{Amount, FeeRate};
use bitmesh_market::book::{self, OrderBook};
use bitmesh_market::identity::{Ed25519Signer, Signer};
use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::negotiation;
use bitmesh_market::session;
use bitmesh_wallet::chain::bitcoind::{self, Auth, Bitcoind};
use bitmesh_wallet::chain::checked::Checked;
use bitmesh_wallet::chain::electrum::Electrum;
use bitmesh_wallet::chain::esplora::Esplora;
use bitmesh_wallet::chain::filters::Filters;
use bitmesh_wallet::chain::watch::Watcher;
use bitmesh_wallet::chain::{ChainSource, Sight, Start};
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::exposure::{ExposureTable, ExposureTableError, Step};
use bitmesh_wallet::channel::params::{PayeePolicy, PayerPolicy};
use bitmesh_wallet::channel::record::{Fact, JOURNAL_KIND, Record};
use bitmesh_wallet::keys::{Keys, Role};
use bitmesh_wallet::onchain::Wallet;
use bitmesh_wallet::store::Journal;
use rand::RngExt;
use thiserror::Error;
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::outlet::Outlet;
use super::{Driver, Inboxes, WAKES};
use crate::cache::Cache;
use crate::chain::Chain;
use crate::clock::Clock;
use crate::compact::compact;
use crate::config::{Config, Source};
use crate::control::server::{self, BindError, Socket};
use crate::control::{CALL_QUEUE, EVENT_BACKLOG};
use crate::mesh;
use crate::paths::{self, Lock, LockError, Paths};
use crate::payments::{Payments, Policy};
use crate::records::{
    Codec, Kind, LeaseRecord, MomentRecord, OpenedRecord, RepairedRecord, RestoredRecord,
    WrittenOffRecord,
};
use crate::words::{self, Passphrase, WordsFileError};

/// Blocks that may wait for the driver. Each may be 4 MB.
const CHAIN_UPDATES: usize = 8;

/// Outputs of a funding of one channel: the channel and the change.
const ONE_AND_CHANGE: usize = 2;

/// Where the channel keys of a restored seller begin: beyond what a seller uses up, and with as many
/// left.
const RESTORED_KEYS: std::ops::Range<u32> = 1 << 24..1 << 30;

/// Why a node does not start, or stops. Nothing on disk was changed, except where it says so.
#[derive(Debug, Error)]
pub enum StartError {
    /// Another daemon has the data directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The words cannot be read.
    #[error(transparent)]
    Words(#[from] WordsFileError),
    /// The journal does not open. Money stands on it: the node does not run without.
    #[error("the journal does not open: {0}")]
    Journal(#[from] bitmesh_wallet::store::OpenError),
    /// The journal holds records that do not belong together.
    #[error("the journal cannot be followed: {0}")]
    Records(String),
    /// The disk refused a record. Whatever was said before is written.
    #[error("the journal cannot be written; is the disk full?")]
    JournalRefuses,
    /// The wallet's store does not open.
    #[error("the wallet does not open: {0}")]
    Wallet(#[from] bitmesh_wallet::onchain::OpenError),
    /// The mesh does not start.
    #[error("the mesh does not start: {0}")]
    Mesh(#[from] mesh::StartError),
    /// The control socket cannot be made.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// A setting cannot work.
    #[error("{key}: {reason}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs a node until `shutdown` is cancelled or a caller asks it to stop. `ready` is called once,
/// when the journal is replayed and the control socket answers. `passphrase` is that of the words, if
/// they are under one; it is forgotten once they are read.
///
/// # Errors
///
/// [`StartError`] if it cannot start, or cannot go on.
pub async fn run(
    config: Config,
    paths: &Paths,
    passphrase: Option<Passphrase>,
    shutdown: CancellationToken,
    ready: impl FnOnce(),
) -> Result<(), StartError> {
    let _lock = Lock::acquire(paths)?;
    let (keys, birth_height) = words::load(paths, config.network, passphrase.as_ref())?;
    drop(passphrase);
    let keys = Arc::new(keys);
    let mut journal = Journal::open(paths.journal())?;
    let (file, entries, _) = &mut journal;
    if let Some(kept) = compact(entries) {
        info!(
            before = entries.len(),
            after = kept.len(),
            "the journal is written anew without what was replaced"
        );
        file.replace(&kept)
            .map_err(|_| StartError::JournalRefuses)?;
        *entries = kept;
    }
    let socket = Socket::bind(&paths.socket)?;
    let (driver, inboxes, calls, events) =
        open(config, paths, keys, birth_height, journal, shutdown.clone()).await?;
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server::serve(socket, calls, events, stop.clone()));
    ready();
    let outcome = driver.run(inboxes).await;
    stop.cancel();
    match serving.await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => warn!(%error, "the control socket ended with an error"),
    }
    outcome
}

type Opened = (
    Driver,
    Inboxes,
    mpsc::Sender<crate::control::Call>,
    broadcast::Sender<crate::control::api::Event>,
);

async fn open(
    config: Config,
    paths: &Paths,
    keys: Arc<Keys>,
    birth_height: Option<u32>,
    (journal, entries, report): (Journal, Vec<(u8, Vec<u8>)>, bitmesh_wallet::store::Report),
    shutdown: CancellationToken,
) -> Result<Opened, StartError> {
    let clock = Clock;
    let network = config.network;
    if report.cut > 0 {
        warn!(
            bytes = report.cut,
            "an unfinished write at the journal's end was set aside"
        );
    }
    let signer = Ed25519Signer::from_seed(*keys.identity_seed());
    let node = signer.node_id();
    let cache = Cache::open(&paths.book()).map_err(io_error("opening the cache"))?;
    let wallet_dir = paths.wallet();
    paths::create_private_dir(&wallet_dir).map_err(io_error("making the wallet's folder"))?;
    let (wallet, rebuilt) = Wallet::open(&wallet_dir, Arc::clone(&keys))?;
    if let Some(rebuilt) = rebuilt {
        warn!(kept_at = ?rebuilt.aside, detail = rebuilt.detail, "the wallet's cache was damaged; it is read from the chain again");
    }
    let watcher = cache
        .watcher()
        .and_then(|bytes| Watcher::restore(&bytes).ok())
        .unwrap_or_else(|| Watcher::new(wallet.birthday().unwrap_or_else(|| genesis(network))));

    let source = chain_source(&config)?;
    let (source_name, sight) = (source.name(), source.sight());
    let fallback = config.payments.fallback_feerate;
    let payments = Payments::new(
        node,
        words::bitcoin_network(network),
        Arc::clone(&keys),
        policy(&config, sight)?,
        fallback,
    );
    let mut seed = [0; 32];
    seed.copy_from_slice(&*keys.identity_seed());
    let (mesh, mesh_events, _task) = mesh::start(&config.mesh, network, seed)?;
    let (chain_updates, chain_inbox) = mpsc::channel(CHAIN_UPDATES);
    let every = Duration::from_millis(config.chain.poll_ms);
    let chain = Chain::start(source, clock, every, birth_height, chain_updates)
        .map_err(io_error("starting the chain thread"))?;
    let (calls, calls_inbox) = mpsc::channel(CALL_QUEUE);
    let (events, _) = broadcast::channel(EVENT_BACKLOG);
    let (wakes, wakes_inbox) = mpsc::channel(WAKES);
    let outlet = Outlet::new(config.egress.clone(), config.sell.total_rate);
    let now = clock.now();
    let mut driver = Driver {
        node,
        signer,
        keys,
        words_are_sealed: words::is_sealed(paths)?,
        network,
        clock,
        datadir: paths.datadir.clone(),
        config_file: paths.config.clone(),
        started: now,
        book: OrderBook::new(book::Config {
            own: node,
            capacity: book::DEFAULT_CAPACITY,
            salt: rand::rng().random(),
        }),
        desk: negotiation::seller::Seller::new(node),
        purchases: Default::default(),
        sessions: BTreeMap::new(),
        payments,
        watcher,
        wallet,
        selling: super::selling::Desk::new(if config.sell.enabled {
            super::selling::Phase::Offering
        } else {
            super::selling::Phase::Stopped
        }),
        sync: Default::default(),
        closed: Default::default(),
        connected: BTreeMap::new(),
        seen: BTreeMap::new(),
        listening: BTreeSet::new(),
        announced: Vec::new(),
        asked: BTreeMap::new(),
        next_request: 0,
        answering: None,
        watched: BTreeMap::new(),
        follows_chain: false,
        source_name,
        chain_tip: None,
        told_tip: None,
        chain_trouble: None,
        feerate: None,
        funding_problem: None,
        extending: Vec::new(),
        closing: Vec::new(),
        handing: Vec::new(),
        moment: None,
        folding: Arc::new(Semaphore::new(1)),
        together: Vec::new(),
        standing: Default::default(),
        held: BTreeMap::new(),
        rolling: Vec::new(),
        openings: Vec::new(),
        broken: false,
        next_tick: now,
        config,
        mesh,
        chain,
        journal,
        cache,
        outlet,
        events: events.clone(),
        wakes,
    };
    driver.tell_own_addresses();
    driver.replay(entries)?;
    if birth_height.is_some() {
        // Restored from its words: which of the seller's channel keys are used is not known, and nobody
        // searches for them. The first channel's record tells from here on.
        let unlikely_used = rand::rng().random_range(RESTORED_KEYS);
        driver.payments.begin_payee_keys_at(unlikely_used);
    }
    driver.restore_book();
    for topic in driver.topics() {
        driver.mesh_do(mesh::Command::Subscribe(topic.clone()));
        driver.mesh_do(mesh::Command::Provide(topic.cell.clone()));
        driver.mesh_do(mesh::Command::FindProviders(topic.cell));
    }
    driver.supply();
    info!(%node, network = %network, "the node is up");
    let inboxes = Inboxes {
        shutdown,
        calls: calls_inbox,
        chain: chain_inbox,
        wakes: wakes_inbox,
        mesh: mesh_events,
    };
    Ok((driver, inboxes, calls, events))
}

impl Driver {
    /// Puts every machine back where it stood, from the journal alone.
    fn replay(&mut self, entries: Vec<(u8, Vec<u8>)>) -> Result<(), StartError> {
        let now = self.clock.now();
        let broken = |what: String| StartError::Records(what);
        let mut channels: Vec<(ProposalId, Vec<Record>)> = Vec::new();
        let mut by_proposal: BTreeMap<ProposalId, usize> = BTreeMap::new();
        let mut leases: Vec<(Lease, Role, Vec<session::Record>)> = Vec::new();
        let mut by_lease: BTreeMap<LeaseId, usize> = BTreeMap::new();
        // Fundings of several channels, which a crash may have left known to some of them only.
        let mut shared: Vec<bitcoin::Transaction> = Vec::new();
        for (index, (kind, bytes)) in entries.into_iter().enumerate() {
            let unreadable = || broken(format!("record {index} of kind {kind} cannot be read"));
            if kind == JOURNAL_KIND {
                let record = Record::from_bytes(&bytes).map_err(|_| unreadable())?;
                if let Fact::Funded { tx, .. } = &record.fact
                    && tx.output.len() > ONE_AND_CHANGE
                    && shared.last() != Some(&**tx)
                {
                    shared.push((**tx).clone());
                }
                let at = by_proposal.get(&record.proposal).copied();
                match at.and_then(|at| channels.get_mut(at)) {
                    Some((_, records)) => records.push(record),
                    None => {
                        by_proposal.insert(record.proposal, channels.len());
                        channels.push((record.proposal, vec![record]));
                    }
                }
            } else if kind == Kind::Lease as u8 {
                let record = LeaseRecord::from_bytes(&bytes).ok_or_else(unreadable)?;
                let role = record.role().ok_or_else(unreadable)?;
                let lease = Lease::verify(record.lease(), self.network)
                    .map_err(|error| broken(format!("record {index}: {error}")))?;
                by_lease.insert(lease.id(), leases.len());
                leases.push((lease, role, Vec::new()));
            } else if kind == Kind::Session as u8 {
                let record = session::Record::from_bytes(&bytes).map_err(|_| unreadable())?;
                let at = by_lease.get(&record.lease).copied();
                let (_, _, records) = at
                    .and_then(|at| leases.get_mut(at))
                    .ok_or_else(unreadable)?;
                records.push(record);
            } else if kind == Kind::Opened as u8 {
                let record = OpenedRecord::from_bytes(&bytes).ok_or_else(unreadable)?;
                self.payments.restore_opened(record.channel(), record.at());
            } else if kind == Kind::WrittenOff as u8 {
                let record = WrittenOffRecord::from_bytes(&bytes).ok_or_else(unreadable)?;
                let seller = record.seller().ok_or_else(unreadable)?;
                self.payments.restore_written_off(seller, record.total());
            } else if kind == Kind::Moment as u8 {
                let record = MomentRecord::from_bytes(&bytes).ok_or_else(unreadable)?;
                self.moment = Some(record.at());
            } else if kind == Kind::Restored as u8 {
                let record = RestoredRecord::from_bytes(&bytes).ok_or_else(unreadable)?;
                self.payments.restore_indexes(record.next_indexes());
            } else if kind == Kind::Repaired as u8 {
                let record = RepairedRecord::from_bytes(&bytes).ok_or_else(unreadable)?;
                self.payments.restore_indexes(record.next_indexes());
            } else {
                return Err(broken(format!(
                    "record {index} is of kind {kind}, of a later version"
                )));
            }
        }
        for (proposal, records) in channels {
            self.payments
                .restore(records, now)
                .map_err(|error| broken(format!("channel {proposal}: {error}")))?;
        }
        let wallet = &self.wallet;
        self.payments.complete(&shared, |tx| wallet.fee_of(tx), now);
        for (lease, role, records) in leases {
            let id = lease.id();
            self.resume_session(lease.clone(), role, records)
                .map_err(|error| broken(format!("lease {id}: {error}")))?;
            // One that has ended takes no slot, and does not keep its buyer from another.
            if role == Role::Payee && self.sessions.contains_key(&id) {
                let restored = negotiation::seller::Input::Restored(lease);
                self.desk.handle(restored, now);
            }
        }
        self.drain_payments();
        Ok(())
    }
}

/// What the operator's limits are in the channel machines' words.
fn policy(config: &Config, sight: Sight) -> Result<Policy, StartError> {
    let payments = &config.payments;
    // Whoever cannot see a double-spend coming risks nothing on what can be double-spent.
    let zero_conf = |sat| if sight.bears_zero_conf() { sat } else { 0 };
    let step = |confirmations, sat| Step {
        confirmations,
        limit: Amount::from_sat(sat),
    };
    let exposure = ExposureTable::new(vec![
        step(0, zero_conf(payments.zero_conf.per_channel_sat)),
        step(1, payments.one_conf_sat),
        step(2, payments.two_conf_sat),
        Step {
            confirmations: 3,
            limit: Amount::MAX_MONEY,
        },
    ])
    .map_err(|error: ExposureTableError| StartError::Setting {
        key: "payments",
        reason: format!("limits must not fall as confirmations rise: {error}"),
    })?;
    Ok(Policy {
        payee: PayeePolicy {
            max_capacity: Amount::from_sat(payments.max_capacity_sat),
            exposure,
            min_mempool_age: Duration::from_secs(payments.zero_conf.min_age_s),
            ..PayeePolicy::default()
        },
        payer: PayerPolicy::default(),
        zero_conf_total: Amount::from_sat(zero_conf(payments.zero_conf.total_sat)),
        expiry_blocks: payments.expiry_blocks,
    })
}

/// The source that leads, and around it whatever confirms it.
fn chain_source(config: &Config) -> Result<Box<dyn ChainSource>, StartError> {
    let lead = one_source(config, config.chain.leads(config.network))?;
    if config.chain.confirm.is_empty() {
        return Ok(lead);
    }
    let others = config.chain.confirm.iter();
    let others = others.map(|source| one_source(config, *source));
    Ok(Box::new(Checked::new(
        lead,
        others.collect::<Result<_, _>>()?,
    )))
}

fn one_source(config: &Config, source: Source) -> Result<Box<dyn ChainSource>, StartError> {
    let (chain, network) = (&config.chain, config.network);
    let fallback = FeeRate::from_sat_per_vb(config.payments.fallback_feerate);
    let refused = |key| move |reason| StartError::Setting { key, reason };
    Ok(match source {
        Source::Bitcoind => Box::new(bitcoind_source(config, fallback)?),
        Source::Filters => {
            let filters = chain.filters_config(network, fallback);
            let filters = Filters::new(filters, Start::default());
            Box::new(filters.map_err(refused("chain.filters"))?)
        }
        Source::Esplora => {
            let esplora = chain.esplora.config(network, fallback);
            let esplora = Esplora::new(&esplora, Start::default());
            Box::new(esplora.map_err(refused("chain.esplora"))?)
        }
        Source::Electrum => {
            let electrum = chain.electrum.config(network, fallback);
            let electrum = Electrum::new(&electrum, Start::default());
            Box::new(electrum.map_err(refused("chain.electrum"))?)
        }
    })
}

fn bitcoind_source(config: &Config, fallback: Option<FeeRate>) -> Result<Bitcoind, StartError> {
    let settings = &config.chain.bitcoind;
    let network = words::bitcoin_network(config.network);
    let auth = match (&settings.user, &settings.password_file) {
        (Some(user), Some(file)) => {
            let password = std::fs::read_to_string(file).map_err(|source| StartError::Io {
                what: format!("reading {}", file.display()),
                source,
            })?;
            Auth::UserPassword {
                user: user.clone(),
                password: password.trim_end().to_owned().into(),
            }
        }
        (None, None) => Auth::Cookie(settings.cookie_file(config.network)),
        (Some(_), None) | (None, Some(_)) => {
            return Err(StartError::Setting {
                key: "chain.bitcoind",
                reason: "user and password_file belong together".to_owned(),
            });
        }
    };
    let mut source = bitcoind::Config::new(settings.address(config.network), auth, network);
    source.fallback_feerate = fallback;
    Ok(Bitcoind::new(source, Start::default()))
}

fn genesis(network: bitmesh_market::envelope::Network) -> bitmesh_wallet::chain::BlockId {
    let hash = bitmesh_wallet::channel::params::genesis(words::bitcoin_network(network));
    bitmesh_wallet::chain::BlockId { height: 0, hash }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io {
        what: what.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unconfirmed_counts_where_the_whole_mempool_is_not_seen() {
        let config = Config::default();
        for (sight, per_channel, total) in [
            (Sight::Blocks, 0, 0),
            (Sight::Watched, 0, 0),
            (Sight::Everything, 1_000, 5_000),
        ] {
            let policy = policy(&config, sight).unwrap();

            let expected = Amount::from_sat(per_channel);
            assert_eq!(policy.payee.exposure.limit(0), expected, "{sight:?}");
            assert_eq!(policy.zero_conf_total, Amount::from_sat(total));
            assert_eq!(policy.payee.exposure.limit(1), Amount::from_sat(50_000));
        }
    }
}
