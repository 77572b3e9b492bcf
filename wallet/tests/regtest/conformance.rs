//! One contract, held by every source: the same tests over each of them, on a real chain.
//!
//! Esplora and Electrum are asked through the servers of [`crate::servers`]. What only some sources
//! can do is asked of those that [say](Sight) that they can.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bitcoin::{Amount, BlockHash, FeeRate, Network, OutPoint, Transaction};
use bitmesh_wallet::chain::bitcoind::Bitcoind;
use bitmesh_wallet::chain::checked::Checked;
use bitmesh_wallet::chain::electrum::{self, Electrum};
use bitmesh_wallet::chain::esplora::{self, Esplora};
use bitmesh_wallet::chain::filters::{self, Filters};
use bitmesh_wallet::chain::watch::{WatchEvent, Watcher};
use bitmesh_wallet::chain::{
    Accepted, BlockId, BroadcastError, ChainError, ChainEvent, ChainSource, RejectReason, Sight,
    Start, Verdict, funding_facts,
};
use bitmesh_wallet::keys::Keys;
use bitmesh_wallet::onchain::{ChangesError, OpenError, Payment, Rebuilt, Value, Wallet};
use tempfile::TempDir;

use crate::bitcoind::{NOW, Purse, Regtest};
use crate::servers::{Protocol, Server};

/// How long to wait before looking again, and how often: filters come when peers feel like it.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSES: u32 = 3_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bitcoind,
    Filters,
    Esplora,
    Electrum,
    Checked,
}

/// A bitcoind, whatever stands in front of it, and sources on top of that.
struct World {
    kind: Kind,
    node: Regtest,
    peer: String,
    server: Option<Server>,
    network: Network,
    fallback_feerate: Option<FeeRate>,
}

impl World {
    fn new(kind: Kind) -> Self {
        Self::with(kind, &[])
    }

    fn with(kind: Kind, extra: &[&str]) -> Self {
        let (node, peer) = Regtest::start_with_filters(extra);
        node.mine_away(1);
        let server = match kind {
            Kind::Bitcoind | Kind::Filters => None,
            Kind::Esplora | Kind::Checked => Some(Server::start(&node, Protocol::Esplora)),
            Kind::Electrum => Some(Server::start(&node, Protocol::Electrum)),
        };
        Self {
            kind,
            node,
            peer: peer.to_string(),
            server,
            network: Network::Regtest,
            fallback_feerate: Some(FeeRate::BROADCAST_MIN),
        }
    }

    fn source(&self, start: Start) -> Box<dyn ChainSource> {
        let Self {
            network,
            fallback_feerate,
            ..
        } = *self;
        let url = self.server.as_ref().map(Server::url).unwrap_or_default();
        let bitcoind = |start| {
            let config = bitmesh_wallet::chain::bitcoind::Config {
                network,
                fallback_feerate,
                ..self.node.config()
            };
            Box::new(Bitcoind::new(config, start))
        };
        let esplora = |start| {
            let config = esplora::Config {
                url: url.clone(),
                network,
                fallback_feerate,
            };
            Box::new(Esplora::new(&config, start).unwrap())
        };
        match self.kind {
            Kind::Bitcoind => bitcoind(start),
            Kind::Esplora => esplora(start),
            Kind::Electrum => {
                let config = electrum::Config {
                    url,
                    network,
                    fallback_feerate,
                };
                Box::new(Electrum::new(&config, start).unwrap())
            }
            Kind::Filters => {
                let config = filters::Config {
                    network,
                    peers: vec![self.peer.clone()],
                    agreeing: 1,
                    fallback_feerate,
                };
                Box::new(Filters::new(config, start).unwrap())
            }
            Kind::Checked => {
                let confirming = esplora(Start::default());
                Box::new(Checked::new(bitcoind(start), vec![confirming]))
            }
        }
    }

    fn go_down(&mut self) {
        if let Some(server) = &mut self.server {
            server.stop();
        }
        self.node.stop();
    }

    fn come_back(&mut self) {
        self.node.launch();
        if let Some(server) = &mut self.server {
            server.start_again(&self.node);
        }
    }
}

/// A wallet and a watcher that listen to one source, and make sure that it keeps its promises.
struct Listener {
    source: Box<dyn ChainSource>,
    wallet: Wallet,
    watcher: Watcher,
    /// What the watcher said.
    said: Vec<WatchEvent>,
    /// The chain as it was told, lowest first.
    told: Vec<BlockId>,
    /// Heights of blocks as they came for the first time, and with a minus as they went.
    heights: Vec<i64>,
    mempool: Vec<bitcoin::Txid>,
    dir: TempDir,
    entropy: u8,
}

/// Opens a wallet that was open in this process until now. A child that another test starts in this
/// moment holds the store's lock as well, until it has become another program.
fn reopened(dir: &Path, keys: &Arc<Keys>) -> (Wallet, Option<Rebuilt>) {
    for _ in 0..100 {
        match Wallet::open(dir, Arc::clone(keys)) {
            Err(OpenError::Changes(ChangesError::Locked { .. })) => {
                thread::sleep(Duration::from_millis(100));
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays locked", dir.display());
}

impl Listener {
    fn new(world: &World, entropy: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::from_entropy(&[entropy; 16], Network::Regtest);
        let (mut wallet, _) = Wallet::open(dir.path(), keys.into()).unwrap();
        let _ = wallet.take_new_scripts();
        let genesis = BlockId {
            height: 0,
            hash: bitcoin::constants::genesis_block(Network::Regtest).block_hash(),
        };
        let watcher = Watcher::new(genesis);
        Self {
            source: world.source(wallet.start().join(watcher.start())),
            wallet,
            watcher,
            said: Vec::new(),
            told: Vec::new(),
            heights: Vec::new(),
            mempool: Vec::new(),
            dir,
            entropy,
        }
    }

    /// Ends the process and starts another, which knows what was written down.
    fn restart(self, world: &World) -> Self {
        let Self {
            mut wallet,
            watcher,
            dir,
            entropy,
            ..
        } = self;
        wallet.persist().unwrap();
        drop(wallet);
        let keys = Arc::new(Keys::from_entropy(&[entropy; 16], Network::Regtest));
        let (mut wallet, rebuilt) = reopened(dir.path(), &keys);
        assert_eq!(rebuilt, None);
        let watcher = Watcher::restore(&watcher.snapshot()).unwrap();
        let mut told = wallet.start().locator;
        told.reverse();
        let _ = wallet.take_new_scripts();
        Self {
            source: world.source(wallet.start().join(watcher.start())),
            wallet,
            watcher,
            said: Vec::new(),
            told,
            heights: Vec::new(),
            mempool: Vec::new(),
            dir,
            entropy,
        }
    }

    /// Takes what one poll says.
    fn poll(&mut self) -> Result<bool, ChainError> {
        let events = self.source.poll(NOW)?;
        let blocks = |event: &&ChainEvent| matches!(event, ChainEvent::Connected { .. });
        assert!(events.iter().filter(blocks).count() <= 1, "{events:?}");
        for event in &events {
            self.check(event);
            self.wallet.apply(event).unwrap();
            self.watcher.apply(event).unwrap();
            self.said
                .extend(std::iter::from_fn(|| self.watcher.poll_event()));
            let from = match event {
                ChainEvent::Connected { height, .. } => *height,
                _ => self.wallet.tip().height + 1,
            };
            let new = self.wallet.take_new_scripts();
            if !new.is_empty() {
                self.source.watch(from, &new);
            }
        }
        Ok(!events.is_empty())
    }

    /// The promises about order.
    fn check(&mut self, event: &ChainEvent) {
        match event {
            ChainEvent::Connected { height, block } => {
                let this = BlockId {
                    height: *height,
                    hash: block.block_hash(),
                };
                if self.told.contains(&this) {
                    return;
                }
                self.heights.push(i64::from(*height));
                if let Some(last) = self.told.last() {
                    assert_eq!(*height, last.height + 1);
                    assert_eq!(block.header.prev_blockhash, last.hash);
                }
                self.told.push(this);
            }
            ChainEvent::Disconnected { height, hash } => {
                let this = BlockId {
                    height: *height,
                    hash: *hash,
                };
                // One that was held back and given up is told to have left, which means nothing.
                if self.told.contains(&this) {
                    self.heights.push(-i64::from(*height));
                    assert_eq!(self.told.pop(), Some(this));
                }
            }
            ChainEvent::Mempool { seen, evicted, .. } => {
                assert_ne!(self.source.sight(), Sight::Blocks);
                for txid in evicted {
                    self.mempool.retain(|it| it != txid);
                }
                self.mempool.extend(seen.iter().map(|tx| tx.compute_txid()));
            }
        }
    }

    /// Listens until `is_so`, and asks again whatever fails in passing.
    #[track_caller]
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let mut last = None;
        let mut pauses = 0;
        while pauses < PAUSES {
            let is_idle = match self.poll() {
                Ok(had_events) => !had_events,
                Err(error) => {
                    assert!(error.is_passing(), "{error}");
                    last = Some(error);
                    true
                }
            };
            if is_so(self) {
                return;
            }
            if is_idle {
                pauses += 1;
                std::thread::sleep(PAUSE);
            }
        }
        panic!(
            "not in time: {what}; told {:?}, last {last:?}",
            self.heights
        );
    }

    /// Listens until everything of the best chain was told.
    #[track_caller]
    fn catch_up(&mut self, node: &Regtest) {
        let best: BlockHash = serde_json::from_value(node.call("getbestblockhash", &[])).unwrap();
        self.until("the tip", |it| it.wallet.tip().hash == best);
    }

    /// Listens until the mempool as far as it is ours is as it should be, if it is seen.
    #[track_caller]
    fn sees(&mut self, transaction: &Transaction, is_there: bool) {
        let txid = transaction.compute_txid();
        if self.source.sight() != Sight::Blocks {
            self.until("the mempool", |it| it.mempool.contains(&txid) == is_there);
        }
    }

    fn said_last(&self) -> Option<&WatchEvent> {
        self.said.last()
    }
}

fn pay(from: &mut Purse, to: &mut Wallet, sat: u64) -> Transaction {
    let payment = Payment {
        to: to.receive_address().unwrap(),
        value: Value::Exact(Amount::from_sat(sat)),
        feerate: FeeRate::from_sat_per_vb(2).unwrap(),
    };
    from.wallet.send(&payment, NOW).unwrap().0
}

/// Polls until the source says what is wrong.
fn until_it_fails(source: &mut dyn ChainSource) -> ChainError {
    for _ in 0..PAUSES {
        match source.poll(NOW) {
            Err(error) => return error,
            Ok(_) => std::thread::sleep(PAUSE),
        }
    }
    panic!("it never fails");
}

fn blocks_come_in_order_and_a_reorganisation_is_told_highest_first(kind: Kind) {
    let world = World::new(kind);
    world.node.mine_away(11);
    let mut listener = Listener::new(&world, 2);
    listener.catch_up(&world.node);
    assert_eq!(listener.heights, (1..=12).collect::<Vec<_>>());
    let tip = listener.source.tip().unwrap();
    assert_eq!(tip.block, *listener.told.last().unwrap());
    assert_eq!((tip.headers, tip.syncing), (12, false));
    assert_eq!(listener.source.block_at(5).unwrap(), Some(listener.told[4]));
    assert_eq!(listener.source.block_at(13).unwrap(), None);

    // Only a longer chain is better, for whoever cannot be told that a block is not valid.
    listener.heights.clear();
    world.node.invalidate(10);
    world.node.mine_away(4);
    listener.catch_up(&world.node);
    let heights = &listener.heights;
    assert_eq!(heights[..], [-12, -11, -10, 10, 11, 12, 13], "{heights:?}");

    // And once more while nobody listens.
    let mut listener = listener.restart(&world);
    world.node.invalidate(12);
    world.node.mine_away(3);
    listener.catch_up(&world.node);
    assert_eq!(listener.heights, [-13, -12, 12, 13, 14]);
}

fn a_payment_reaches_the_wallet_and_its_spend_leaves_it(kind: Kind) {
    let world = World::new(kind);
    let mut alice = Purse::rich(&world.node, 1, 2);
    let mut bob = Listener::new(&world, 2);
    bob.catch_up(&world.node);

    let paid = pay(&mut alice, &mut bob.wallet, 50_000);
    alice.source.broadcast(&paid).unwrap();
    bob.sees(&paid, true);
    if bob.source.sight() != Sight::Blocks {
        assert_eq!(bob.wallet.balance().pending, Amount::from_sat(50_000));
    }
    world.node.mine_away(1);
    bob.catch_up(&world.node);
    assert_eq!(bob.wallet.balance().confirmed, Amount::from_sat(50_000));

    // The wallet pays everything back through its own source.
    let back = Payment {
        to: alice.address(),
        value: Value::Everything,
        feerate: FeeRate::BROADCAST_MIN,
    };
    let (spend, _) = bob.wallet.send(&back, NOW).unwrap();
    bob.source.broadcast(&spend).unwrap();
    bob.until("it to be relayed", |_| world.node.is_in_mempool(&spend));
    world.node.mine_away(1);
    bob.catch_up(&world.node);
    assert_eq!(bob.wallet.balance().total(), Amount::ZERO);

    // A reorganisation gives the coins back, and takes them again.
    world.node.invalidate(world.node.height());
    world.node.mine_exactly(&[]);
    world.node.mine_exactly(&[]);
    bob.catch_up(&world.node);
    assert_eq!(bob.wallet.balance().confirmed, Amount::ZERO);
    assert_eq!(bob.wallet.history().len(), 2);
    world.node.mine_away(1);
    bob.catch_up(&world.node);
    assert_eq!(bob.wallet.balance().total(), Amount::ZERO);
}

fn an_old_wallet_finds_its_coins_from_its_birthday_up_to_the_gap(kind: Kind) {
    let world = World::new(kind);
    let mut alice = Purse::rich(&world.node, 1, 3);
    let mut bob = Listener::new(&world, 2);
    bob.catch_up(&world.node);
    let birthday = world.node.height();
    // Each payment goes far beyond the last, the second beyond what is derived at first.
    for reach in [200_u32, 240] {
        for _ in 0..reach {
            bob.wallet.change_script().unwrap();
        }
        let script = bob.wallet.change_script().unwrap();
        let to = bitcoin::Address::from_script(&script, Network::Regtest).unwrap();
        let payment = Payment {
            to,
            value: Value::Exact(Amount::from_sat(20_000)),
            feerate: FeeRate::BROADCAST_MIN,
        };
        let (paid, _) = alice.wallet.send(&payment, NOW).unwrap();
        alice.source.broadcast(&paid).unwrap();
        world.node.mine_away(3);
        alice.sync();
    }

    let mut restored = Listener::new(&world, 2);
    let mut born = None;
    restored.until("the birthday's block", |it| {
        born = it.source.block_at(birthday).ok().flatten();
        born.is_some()
    });
    // What the polls above told was for a wallet that begins at the beginning.
    let mut restored = Listener::new(&world, 2);
    restored.wallet.start_at(born.unwrap()).unwrap();
    restored.watcher = Watcher::new(born.unwrap());
    let start = restored.wallet.start().join(restored.watcher.start());
    restored.source.restart(start);
    restored.catch_up(&world.node);
    assert_eq!(restored.heights.first(), Some(&i64::from(birthday + 1)));
    assert_eq!(
        restored.wallet.balance().confirmed,
        Amount::from_sat(40_000)
    );
}

fn the_life_of_a_foreign_output_is_told_with_its_depth(kind: Kind) {
    let world = World::new(kind);
    let mut alice = Purse::rich(&world.node, 1, 1);
    let mut carol = Purse::new(&world.node, 3);
    let mut bob = Listener::new(&world, 2);
    bob.catch_up(&world.node);
    let script = carol.address().script_pubkey();
    let (funding, _) = alice
        .wallet
        .fund(&script, Amount::from_sat(50_000), FeeRate::BROADCAST_MIN)
        .unwrap();
    let made_it = funding
        .output
        .iter()
        .position(|it| it.script_pubkey == script);
    let outpoint = OutPoint::new(funding.compute_txid(), made_it.unwrap() as u32);

    // It is in a block before anybody is told to watch for it.
    alice.source.broadcast(&funding).unwrap();
    world.node.mine_away(2);
    bob.catch_up(&world.node);
    assert_eq!(bob.said, []);
    bob.watcher
        .watch(outpoint, script.clone(), &funding)
        .unwrap();
    bob.source.watch(bob.wallet.tip().height - 5, &[script]);
    let depth = |confirmations| WatchEvent::Depth {
        outpoint,
        confirmations,
    };
    bob.until("its depth", |it| it.said_last() == Some(&depth(2)));
    world.node.mine_away(1);
    bob.catch_up(&world.node);
    assert_eq!(bob.said_last(), Some(&depth(3)));

    carol.sync();
    let everything = Payment {
        to: alice.address(),
        value: Value::Everything,
        feerate: FeeRate::BROADCAST_MIN,
    };
    let (spend, _) = carol.wallet.send(&everything, NOW).unwrap();
    carol.source.broadcast(&spend).unwrap();
    let spent = |height| WatchEvent::Spent {
        outpoint,
        transaction: spend.clone().into(),
        height,
    };
    if bob.source.sight() != Sight::Blocks {
        bob.until("the spend", |it| it.said.contains(&spent(None)));
    }
    world.node.mine_away(1);
    bob.catch_up(&world.node);
    let height = Some(world.node.height());
    assert!(bob.said.contains(&spent(height)), "{:?}", bob.said);

    // Depth and spend survive a restart, and a reorganisation takes the spend back.
    let mut bob = bob.restart(&world);
    world.node.invalidate(world.node.height());
    world.node.mine_exactly(&[]);
    world.node.mine_exactly(&[]);
    bob.catch_up(&world.node);
    assert!(
        bob.said.contains(&WatchEvent::Unspent { outpoint }),
        "{:?}",
        bob.said
    );
    assert!(bob.said.contains(&depth(5)), "{:?}", bob.said);
}

fn a_broadcast_is_idempotent_and_its_refusal_says_what_to_do(kind: Kind) {
    let world = World::new(kind);
    let mut alice = Purse::rich(&world.node, 1, 2);
    let mut bob = Listener::new(&world, 2);
    bob.catch_up(&world.node);
    let paid = pay(&mut alice, &mut bob.wallet, 50_000);
    let mut orphan = paid.clone();
    orphan.input[0].previous_output.vout = 7;
    let mut rival = paid.clone();
    rival.output[0].value -= Amount::ONE_SAT;

    let source = &bob.source;
    let is_blind = source.sight() == Sight::Blocks;
    let refusal = |tx: &Transaction| match source.broadcast(tx) {
        Err(BroadcastError::Rejected(rejection)) => Some(rejection.reason),
        Ok(_) => None,
        Err(BroadcastError::Chain(error)) => panic!("{error}"),
    };
    let verdict = source.test_accept(&paid).unwrap();
    if source.sight() == Sight::Everything {
        assert!(matches!(verdict, Verdict::Allowed { .. }), "{verdict:?}");
    } else {
        assert_eq!(verdict, Verdict::Unknown);
    }
    if is_blind {
        assert_eq!(source.broadcast(&orphan).unwrap(), Accepted::Sent);
    } else {
        assert_eq!(refusal(&orphan), Some(RejectReason::MissingInputs));
    }
    for _ in 0..2 {
        let accepted = source.broadcast(&paid).unwrap();
        let expected = if is_blind {
            Accepted::Sent
        } else {
            Accepted::InMempool
        };
        assert_eq!(accepted, expected);
    }
    bob.until("it to be relayed", |_| world.node.is_in_mempool(&paid));
    world.node.mine_away(1);
    bob.catch_up(&world.node);
    let source = &bob.source;
    if is_blind {
        assert_eq!(source.broadcast(&paid).unwrap(), Accepted::Sent);
    } else {
        assert_eq!(source.broadcast(&paid).unwrap(), Accepted::InChain);
        let reason = match source.broadcast(&rival).unwrap_err() {
            BroadcastError::Rejected(rejection) => rejection.reason,
            BroadcastError::Chain(error) => panic!("{error}"),
        };
        assert_eq!(reason, RejectReason::MissingInputs, "its inputs are spent");
    }
    // A package of one is a transaction, and as idempotent.
    if !is_blind {
        source
            .broadcast_package(std::slice::from_ref(&paid))
            .unwrap();
    }
}

fn what_falls_out_of_the_mempool_is_told_where_that_is_seen(kind: Kind) {
    let world = World::new(kind);
    let mut alice = Purse::rich(&world.node, 1, 1);
    let mut bob = Listener::new(&world, 2);
    bob.catch_up(&world.node);
    let paid = pay(&mut alice, &mut bob.wallet, 50_000);
    alice.source.broadcast(&paid).unwrap();
    bob.sees(&paid, true);

    let replacement = alice
        .wallet
        .cancel(
            paid.compute_txid(),
            FeeRate::from_sat_per_vb(9).unwrap(),
            NOW,
        )
        .unwrap();
    alice.source.broadcast(&replacement).unwrap();
    bob.sees(&paid, false);
    assert_eq!(bob.wallet.balance().total(), Amount::ZERO);
    // And it is not told again when the replacement is confirmed.
    world.node.mine_away(1);
    bob.catch_up(&world.node);
    bob.sees(&paid, false);
    assert_eq!(bob.wallet.balance().total(), Amount::ZERO);
}

fn a_fee_rate_has_a_floor_and_a_fallback(kind: Kind) {
    let mut world = World::with(kind, &["-minrelaytxfee=0.00005"]);
    world.node.mine_away(3);
    let mut listener = Listener::new(&world, 2);
    listener.catch_up(&world.node);
    let mut feerate = None;
    // A peer says what it relays some time after it was met.
    listener.until("an estimate", |it| {
        feerate = Some(it.source.feerate(6).unwrap());
        feerate >= FeeRate::from_sat_per_vb(5) || kind == Kind::Esplora
    });
    assert!(feerate >= Some(FeeRate::BROADCAST_MIN));

    world.fallback_feerate = None;
    let mut strict = Listener::new(&world, 2);
    strict.catch_up(&world.node);
    let error = strict.source.feerate(6).unwrap_err();
    assert!(matches!(error, ChainError::NoEstimate { .. }), "{error}");
    assert!(error.is_passing());
}

fn a_source_that_goes_down_says_so_and_comes_back_with_nothing_lost(kind: Kind) {
    let mut world = World::new(kind);
    let mut alice = Purse::rich(&world.node, 1, 1);
    let mut bob = Listener::new(&world, 2);
    bob.catch_up(&world.node);
    let paid = pay(&mut alice, &mut bob.wallet, 50_000);

    world.go_down();
    let error = until_it_fails(bob.source.as_mut());
    assert!(matches!(error, ChainError::Unavailable { .. }), "{error}");
    assert!(error.is_passing());
    assert!(matches!(
        bob.source.broadcast(&paid),
        Err(BroadcastError::Chain(error)) if error.is_passing()
    ));
    assert!(bob.source.tip().unwrap_err().is_passing());
    bob.heights.clear();

    world.come_back();
    world.node.mine_away(1);
    bob.until("the broadcast", |it| it.source.broadcast(&paid).is_ok());
    bob.until("it to be relayed", |_| world.node.is_in_mempool(&paid));
    world.node.mine_away(1);
    bob.catch_up(&world.node);
    assert_eq!(bob.heights, [102 + 1, 102 + 2], "each told once");
    assert_eq!(bob.wallet.balance().confirmed, Amount::from_sat(50_000));
}

fn a_listener_that_ends_in_the_middle_goes_on_where_it_stopped(kind: Kind) {
    let world = World::new(kind);
    let mut alice = Purse::rich(&world.node, 1, 1);
    let mut bob = Listener::new(&world, 2);
    let paid = pay(&mut alice, &mut bob.wallet, 50_000);
    alice.source.broadcast(&paid).unwrap();
    world.node.mine_away(20);
    bob.until("half of the chain", |it| it.wallet.tip().height == 60);

    let mut bob = bob.restart(&world);
    bob.catch_up(&world.node);
    assert_eq!(bob.heights.first(), Some(&61));
    assert_eq!(bob.wallet.balance().confirmed, Amount::from_sat(50_000));
}

fn a_source_of_another_network_is_refused(kind: Kind) {
    let mut world = World::new(kind);
    world.network = Network::Signet;
    let mut source = world.source(Start::default());
    if kind == Kind::Filters {
        // Its peers speak with other magic bytes, so it finds nobody.
        until_it_fails(source.as_mut());
        return;
    }
    let error = source.poll(NOW).unwrap_err();
    assert!(matches!(error, ChainError::WrongNetwork { .. }), "{error}");
    assert!(!error.is_passing());
}

fn a_confirmed_output_can_be_asked_for_or_the_source_says_that_it_is_blind(kind: Kind) {
    let world = World::new(kind);
    let mut alice = Purse::rich(&world.node, 1, 1);
    let mut bob = Listener::new(&world, 2);
    bob.catch_up(&world.node);
    let paid = pay(&mut alice, &mut bob.wallet, 50_000);
    let coin = paid.input[0].previous_output;
    let ask = |bob: &Listener, outpoint| bob.source.confirmed_output(&outpoint);
    if bob.source.sight() == Sight::Blocks {
        let error = ask(&bob, coin).unwrap_err();
        assert!(matches!(error, ChainError::Blind { .. }) && !error.is_passing());
        return;
    }
    let output = ask(&bob, coin).unwrap().unwrap();
    assert_eq!(output.value, Amount::from_int_btc(50));
    assert_eq!(output.confirmations, 101);
    alice.source.broadcast(&paid).unwrap();
    assert!(
        ask(&bob, coin).unwrap().is_some(),
        "a spend in the mempool does not count"
    );
    assert_eq!(
        ask(&bob, OutPoint::new(paid.compute_txid(), 0)).unwrap(),
        None
    );
    let facts = funding_facts(bob.source.as_ref(), &paid).unwrap();
    assert!(facts.has_confirmed_inputs && facts.feerate >= FeeRate::BROADCAST_MIN);
    world.node.mine_away(1);
    assert_eq!(ask(&bob, coin).unwrap(), None);
    assert!(
        ask(&bob, OutPoint::new(paid.compute_txid(), 0))
            .unwrap()
            .is_some()
    );
}

/// Makes every test for every source.
macro_rules! hold_all_to {
    ($($test:ident),* $(,)?) => {
        hold_all_to!(@each over_bitcoind Bitcoind [$($test),*]);
        hold_all_to!(@each over_filters Filters [$($test),*]);
        hold_all_to!(@each over_esplora Esplora [$($test),*]);
        hold_all_to!(@each over_electrum Electrum [$($test),*]);
        hold_all_to!(@each over_checked Checked [$($test),*]);
    };
    (@each $name:ident $kind:ident [$($test:ident),*]) => {
        mod $name {
            $(
                #[test]
                fn $test() {
                    super::$test(super::Kind::$kind);
                }
            )*
        }
    };
}

hold_all_to!(
    blocks_come_in_order_and_a_reorganisation_is_told_highest_first,
    a_payment_reaches_the_wallet_and_its_spend_leaves_it,
    an_old_wallet_finds_its_coins_from_its_birthday_up_to_the_gap,
    the_life_of_a_foreign_output_is_told_with_its_depth,
    a_broadcast_is_idempotent_and_its_refusal_says_what_to_do,
    what_falls_out_of_the_mempool_is_told_where_that_is_seen,
    a_fee_rate_has_a_floor_and_a_fallback,
    a_source_that_goes_down_says_so_and_comes_back_with_nothing_lost,
    a_listener_that_ends_in_the_middle_goes_on_where_it_stopped,
    a_source_of_another_network_is_refused,
    a_confirmed_output_can_be_asked_for_or_the_source_says_that_it_is_blind,
);

#[test]
fn sources_that_disagree_hold_new_blocks_back_until_they_agree_again() {
    let world = World::new(Kind::Bitcoind);
    let (other, _) = Regtest::start_with_filters(&[]);
    let copy = |from: u32| {
        for height in from..=world.node.height() {
            let hash = world.node.call("getblockhash", &[height.into()]);
            let block = world.node.call("getblock", &[hash, 0.into()]);
            other.call("submitblock", &[block]);
        }
    };
    world.node.mine_away(4);
    copy(1);
    let confirming = Box::new(other.source(Start::default()));
    let mut listener = Listener::new(&world, 2);
    let lead = world.source(listener.wallet.start().join(listener.watcher.start()));
    listener.source = Box::new(Checked::new(lead, vec![confirming]));
    listener.catch_up(&world.node);
    assert_eq!(listener.told.len(), 5);

    // The other one is behind: patience. Then it is on another chain: said with both blocks.
    world.node.mine_away(1);
    let error = listener.source.poll(NOW).unwrap_err();
    assert!(matches!(error, ChainError::Unavailable { .. }), "{error}");
    other.mine_away(1);
    other.mine_away(1);
    let error = listener.source.poll(NOW).unwrap_err();
    assert!(
        matches!(error, ChainError::Disagreement { height: 6, .. }),
        "{error}"
    );
    assert!(error.is_passing());
    assert_eq!(listener.wallet.tip().height, 5, "no depth grew");

    // The other chain was never the better one after all.
    world.node.mine_away(2);
    copy(6);
    listener.catch_up(&world.node);
    assert_eq!(listener.wallet.tip().height, 8);

    // The leader gives way: what it showed and nobody confirmed was never told.
    world.node.mine_away(1);
    assert!(listener.source.poll(NOW).is_err());
    world.node.invalidate(9);
    world.node.mine_away(2);
    copy(9);
    listener.heights.clear();
    listener.until("the agreed chain", |it| it.wallet.tip().height == 10);
}
