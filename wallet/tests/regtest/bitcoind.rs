//! A bitcoind of the test's own: own directory, own port, gone when the test is.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bdk_bitcoind_rpc::bitcoincore_rpc::{Auth as RpcAuth, Client, RpcApi};
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Address, BlockHash, Network, ScriptBuf, Transaction};
use bitmesh_testnet::bitcoind;
use bitmesh_wallet::chain::bitcoind::{Auth, Bitcoind, Config};
use bitmesh_wallet::chain::watch::{WatchEvent, Watcher};
use bitmesh_wallet::chain::{ChainEvent, ChainSource, Start};
use bitmesh_wallet::keys::Keys;
use bitmesh_wallet::onchain::Wallet;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Any time will do; what is seen later is given a later one by the wallet.
pub(crate) const NOW: u64 = 1_700_000_000;

/// Runs bitcoind and kills it when its standard input ends: when the test drops the pipe, and as
/// well when the test is killed, because the kernel closes the pipe then.
const LEASH: &str =
    r#"exec 3<&0; "$@" </dev/null 3<&- & pid=$!; read -r _ <&3; kill -9 $pid; wait $pid"#;

/// The bitcoind of this machine, or one fetched now; panics with how to get one.
fn bitcoind() -> &'static bitcoind::Bitcoind {
    static FOUND: OnceLock<bitcoind::Bitcoind> = OnceLock::new();
    FOUND.get_or_init(|| {
        bitcoind::locate(&mut |said| eprintln!("{said}")).unwrap_or_else(|error| panic!("{error}"))
    })
}

struct Leashed {
    shell: Child,
    leash: Option<ChildStdin>,
}

impl Drop for Leashed {
    fn drop(&mut self) {
        drop(self.leash.take());
        let _ = self.shell.wait();
    }
}

pub(crate) struct Regtest {
    process: Option<Leashed>,
    dir: TempDir,
    port: u16,
    mined: Cell<u32>,
    extra: Vec<String>,
}

impl Regtest {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// One that serves block filters to peers, and where it does.
    pub(crate) fn start_with_filters(extra: &[&str]) -> (Self, SocketAddr) {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let bind = format!("-bind={address}");
        let mut args = vec![
            "-listen=1",
            &bind,
            "-blockfilterindex=1",
            "-peerblockfilters=1",
        ];
        args.extend(extra);
        (Self::start_with(&args), address)
    }

    /// With the relay policy of Bitcoin Core, whoever made the bitcoind: Knots is looser with
    /// transactions of version 3 unless told.
    pub(crate) fn start_with_core_policy() -> Self {
        match bitcoind().flavour() {
            bitcoind::Flavour::Knots => Self::start_with(&["-corepolicy=1"]),
            bitcoind::Flavour::Core => Self::start(),
        }
    }

    pub(crate) fn start_with(extra: &[&str]) -> Self {
        let mut node = Self {
            process: None,
            dir: tempfile::tempdir().unwrap(),
            port: free_port(),
            mined: Cell::new(0),
            extra: extra.iter().map(|arg| (*arg).to_owned()).collect(),
        };
        node.launch();
        node
    }

    pub(crate) fn launch(&mut self) {
        assert!(self.process.is_none());
        let log = std::fs::File::create(self.dir.path().join("stdout.log")).unwrap();
        let mut shell = Command::new("sh")
            .args(["-c", LEASH, "sh"])
            .arg(bitcoind().exe())
            .arg("-regtest")
            .arg(format!("-datadir={}", self.dir.path().display()))
            .arg(format!("-rpcport={}", self.port))
            .args(["-rpcbind=127.0.0.1", "-rpcallowip=127.0.0.1"])
            .args(["-listen=0", "-connect=0", "-dnsseed=0", "-disablewallet"])
            .args([
                "-printtoconsole=1",
                "-debugexclude=libevent",
                "-rpcworkqueue=256",
            ])
            .args(&self.extra)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("a system has a shell");
        let leash = shell.stdin.take();
        self.process = Some(Leashed { shell, leash });
        for _ in 0..600 {
            if self.try_call("getblockcount", &[]).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = std::fs::read_to_string(self.dir.path().join("stdout.log"));
        panic!("bitcoind did not start: {log:?}");
    }

    /// Stops it as an operator would: it writes its mempool down.
    pub(crate) fn stop(&mut self) {
        self.call("stop", &[]);
        for _ in 0..600 {
            let cookie = self.cookie();
            if !cookie.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!self.cookie().exists(), "bitcoind did not stop");
        // The cookie goes before the locks do.
        for _ in 0..600 {
            if self.lock_is_free() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.process = None;
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn forget_mempool(&self) {
        let _ = std::fs::remove_file(self.dir.path().join("regtest/mempool.dat"));
    }

    fn lock_is_free(&self) -> bool {
        let log = std::fs::read_to_string(self.dir.path().join("stdout.log")).unwrap_or_default();
        log.contains("Shutdown: done") || log.contains("Shutdown done")
    }

    pub(crate) fn cookie(&self) -> PathBuf {
        self.dir.path().join("regtest/.cookie")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn config(&self) -> Config {
        Config::new(self.url(), Auth::Cookie(self.cookie()), Network::Regtest)
    }

    pub(crate) fn source(&self, start: Start) -> Bitcoind {
        Bitcoind::new(self.config(), start)
    }

    pub(crate) fn try_call(&self, method: &str, params: &[Value]) -> Result<Value, String> {
        Client::new(&self.url(), RpcAuth::CookieFile(self.cookie()))
            .and_then(|client| client.call(method, params))
            .map_err(|error| error.to_string())
    }

    pub(crate) fn call(&self, method: &str, params: &[Value]) -> Value {
        self.try_call(method, params)
            .unwrap_or_else(|error| panic!("{method} {params:?}: {error}"))
    }

    pub(crate) fn height(&self) -> u32 {
        self.call("getblockcount", &[]).as_u64().unwrap() as u32
    }

    pub(crate) fn mine(&self, blocks: u32, to: &Address) {
        self.call("generatetoaddress", &[json!(blocks), json!(to.to_string())]);
    }

    /// Mines to nobody.
    pub(crate) fn mine_away(&self, blocks: u32) {
        let nobody = self.nobody();
        self.mine(blocks, &nobody);
    }

    /// Mines one block that holds just these transactions, whatever is in the mempool.
    pub(crate) fn mine_exactly(&self, transactions: &[&Transaction]) {
        let hexes: Vec<_> = transactions.iter().map(|tx| serialize_hex(*tx)).collect();
        let nobody = self.nobody().to_string();
        self.call("generateblock", &[json!(nobody), json!(hexes)]);
    }

    /// An address without a key, another each time: a block mined again after a reorganisation
    /// must not be the one that was invalidated.
    fn nobody(&self) -> Address {
        let count = self.mined.get();
        self.mined.set(count + 1);
        let script = ScriptBuf::from_bytes(count.to_le_bytes().to_vec());
        Address::p2wsh(&script, Network::Regtest)
    }

    /// Takes the blocks from `height` on off the best chain, for good.
    pub(crate) fn invalidate(&self, height: u32) {
        let hash: BlockHash =
            serde_json::from_value(self.call("getblockhash", &[json!(height)])).unwrap();
        self.call("invalidateblock", &[json!(hash)]);
    }

    pub(crate) fn is_in_mempool(&self, tx: &Transaction) -> bool {
        let txid = json!(tx.compute_txid());
        self.call("getrawmempool", &[])
            .as_array()
            .unwrap()
            .contains(&txid)
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A wallet with a source of its own, kept in one directory across restarts.
pub(crate) struct Purse {
    pub(crate) wallet: Wallet,
    pub(crate) source: Bitcoind,
    pub(crate) keys: Arc<Keys>,
    pub(crate) dir: TempDir,
}

impl Purse {
    pub(crate) fn new(node: &Regtest, entropy: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = Arc::new(Keys::from_entropy(&[entropy; 16], Network::Regtest));
        let (wallet, aside) = Wallet::open(dir.path(), Arc::clone(&keys)).unwrap();
        assert_eq!(aside, None);
        let source = node.source(wallet.start());
        Self {
            wallet,
            source,
            keys,
            dir,
        }
    }

    /// A wallet with `coins` mature coinbase outputs of 50 bitcoin.
    pub(crate) fn rich(node: &Regtest, entropy: u8, coins: u32) -> Self {
        let mut purse = Self::new(node, entropy);
        let address = purse.wallet.receive_address().unwrap();
        node.mine(coins, &address);
        node.mine_away(100);
        purse.sync();
        purse
    }

    /// Reads everything there is to read.
    pub(crate) fn sync(&mut self) {
        while self.step() {}
        self.wallet.persist().unwrap();
    }

    fn step(&mut self) -> bool {
        let events = self.source.poll(NOW).unwrap();
        for event in &events {
            self.wallet.apply(event).unwrap();
        }
        !events.is_empty()
    }

    pub(crate) fn address(&mut self) -> Address {
        self.wallet.receive_address().unwrap()
    }

    /// Ends the process, as far as the wallet can tell, and starts another.
    pub(crate) fn restart(self, node: &Regtest) -> Self {
        let Self {
            wallet, keys, dir, ..
        } = self;
        drop(wallet);
        let (wallet, aside) = Wallet::open(dir.path(), Arc::clone(&keys)).unwrap();
        assert_eq!(aside, None);
        Self {
            source: node.source(wallet.start()),
            wallet,
            keys,
            dir,
        }
    }

    pub(crate) fn store(&self) -> &Path {
        self.dir.path()
    }
}

/// Reads everything there is to read into a watcher, and returns what it tells.
pub(crate) fn watch(source: &mut Bitcoind, watcher: &mut Watcher) -> Vec<WatchEvent> {
    let mut told = Vec::new();
    loop {
        let events: Vec<ChainEvent> = source.poll(NOW).unwrap();
        if events.is_empty() {
            return told;
        }
        for event in &events {
            watcher.apply(event).unwrap();
            told.extend(std::iter::from_fn(|| watcher.poll_event()));
        }
    }
}
