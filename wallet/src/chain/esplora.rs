//! A chain source that asks an Esplora server over HTTP.
//!
//! Blocks are fetched whole, so the server does not learn from them what is ours, and every
//! transaction that touches a watched output is told. The mempool is asked for script by script, a
//! bounded number at a time: from that the server learns our scripts, and news of an unconfirmed
//! transaction takes some polls.
//!
//! The server is trusted for which chain is the best one; that a transaction is in a block is
//! checked against the block's merkle root.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bitcoin::consensus::encode::{deserialize, serialize_hex};
use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::{Block, BlockHash, FeeRate, Network, OutPoint, ScriptBuf, Transaction, Txid};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use self::http::{Answer, Http};
use super::follow::{Follower, Node};
use super::server::{WORDS, check_genesis, feerate_of, refused};
use super::wire::Place;
use super::{
    Accepted, BlockId, BroadcastError, ChainError, ChainEvent, ChainSource, ConfirmedOutput, Sight,
    Start, Tip, Verdict,
};

mod http;

/// Bytes of the largest block, and of the largest transaction.
const LARGEST_BLOCK: usize = 4_000_000;

/// Bytes of any other answer. The longest is a transaction as JSON.
const LARGEST_ANSWER: usize = 8_000_000;

/// Scripts whose unconfirmed transactions are asked for in one look at the mempool: a wallet's five
/// hundred come round within half a minute at two seconds a look.
const SCRIPTS_PER_LOOK: usize = 32;

/// Unconfirmed transactions of ours that are followed at once. More would be an attack.
const MOST_UNCONFIRMED: usize = 2_000;

/// Which server, and what is expected of it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its API is: `https://blockstream.info/api`, or `http://` within one's own network.
    pub url: String,
    /// The network it must be on.
    pub network: Network,
    /// What to pay while the server has no estimate. `None` makes that an error.
    pub fallback_feerate: Option<FeeRate>,
}

impl Config {
    /// Whether the address can be used.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        place(&self.url).map(|_| ())
    }
}

fn place(url: &str) -> Result<Place, String> {
    Place::parse(url, [("http", Some(80)), ("https", Some(443))])
}

/// A [`ChainSource`] on top of one Esplora server.
pub struct Esplora {
    server: Server,
    follower: Follower,
    fallback_feerate: Option<FeeRate>,
}

impl Esplora {
    /// A source that tells the chain from `start` on.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the address.
    pub fn new(config: &Config, start: Start) -> Result<Self, String> {
        let mut source = Self {
            server: Server {
                http: Http::new(place(&config.url)?),
                network: config.network,
                is_checked: RefCell::new(false),
                mempool: RefCell::default(),
            },
            follower: Follower::new(Start::default()),
            fallback_feerate: config.fallback_feerate,
        };
        source.restart(start);
        Ok(source)
    }
}

/// The server, and what is known of its mempool.
struct Server {
    http: Http,
    network: Network,
    is_checked: RefCell<bool>,
    mempool: RefCell<Mempool>,
}

/// The mempool as far as it touches what is watched.
#[derive(Default)]
struct Mempool {
    /// The unconfirmed transactions of each script that has some.
    by_script: BTreeMap<ScriptBuf, Vec<Txid>>,
    watched: HashSet<ScriptBuf>,
    /// Scripts in the order in which they are to be looked at.
    queue: VecDeque<ScriptBuf>,
    /// Scripts that were never looked at.
    unknown: HashSet<ScriptBuf>,
    /// The block on top of which `by_script` holds.
    tip: Option<BlockHash>,
}

impl Mempool {
    fn watch(&mut self, script: &ScriptBuf) {
        if self.watched.insert(script.clone()) {
            self.unknown.insert(script.clone());
            // What was added last is most likely to be paid soon.
            self.queue.push_front(script.clone());
        }
    }

    fn txids(&self) -> HashSet<Txid> {
        self.by_script.values().flatten().copied().collect()
    }
}

#[derive(Deserialize)]
struct TxStatus {
    confirmed: bool,
    #[serde(default)]
    block_height: Option<u32>,
}

#[derive(Deserialize)]
struct Unconfirmed {
    txid: Txid,
}

#[derive(Deserialize)]
struct Outspend {
    spent: bool,
    #[serde(default)]
    txid: Option<Txid>,
    #[serde(default)]
    status: Option<TxStatus>,
}

#[derive(Deserialize)]
struct Summary {
    height: u32,
}

#[derive(Deserialize)]
struct PackageResult {
    package_msg: String,
}

impl Server {
    /// Gets what must be there.
    fn get(&self, path: &str, most: usize) -> Result<Answer, ChainError> {
        self.find(path, most)?
            .ok_or_else(|| self.http.place().protocol(path, "there is no such thing"))
    }

    /// Gets what may not be there.
    fn find(&self, path: &str, most: usize) -> Result<Option<Answer>, ChainError> {
        self.check_network()?;
        let answer = self.http.get(path, most)?;
        match answer.status {
            200 => Ok(Some(answer)),
            404 => Ok(None),
            // Some servers say so of a transaction or height they do not know.
            400 if answer.text().to_ascii_lowercase().contains("not found") => Ok(None),
            _ => Err(self.protocol(path, &answer)),
        }
    }

    fn json<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ChainError> {
        let Some(answer) = self.find(path, LARGEST_ANSWER)? else {
            return Ok(None);
        };
        serde_json::from_slice(&answer.body)
            .map(Some)
            .map_err(|error| self.http.place().protocol(path, error))
    }

    fn hash(&self, path: &str, answer: &Answer) -> Result<BlockHash, ChainError> {
        let text = answer.text();
        text.parse()
            .map_err(|error| self.http.place().protocol(path, error))
    }

    fn protocol(&self, path: &str, answer: &Answer) -> ChainError {
        let words: String = answer.text().chars().take(WORDS).collect();
        let detail = format!("HTTP status {}: {words}", answer.status);
        self.http.place().protocol(path, detail)
    }

    /// Refuses a server of another network before anything is learned from it.
    fn check_network(&self) -> Result<(), ChainError> {
        const PATH: &str = "/block-height/0";
        if *self.is_checked.borrow() {
            return Ok(());
        }
        let answer = self.http.get(PATH, LARGEST_ANSWER)?;
        if answer.status != 200 {
            return Err(self.protocol(PATH, &answer));
        }
        let found = self.hash(PATH, &answer)?;
        check_genesis(self.http.place(), self.network, found)?;
        self.is_checked.replace(true);
        Ok(())
    }

    fn status(&self, txid: Txid) -> Result<Option<TxStatus>, ChainError> {
        // A server answers "not confirmed" for transactions that it does not know at all.
        if self
            .find(&format!("/tx/{txid}/raw"), LARGEST_BLOCK)?
            .is_none()
        {
            return Ok(None);
        }
        self.json(&format!("/tx/{txid}/status"))
    }

    /// Forgets what left the mempool since the last block.
    fn drop_confirmed(&self, tip: BlockHash) -> Result<(), ChainError> {
        if self.mempool.borrow().tip == Some(tip) {
            return Ok(());
        }
        let txids = self.mempool.borrow().txids();
        let mut gone = HashSet::new();
        for txid in txids {
            if self.status(txid)?.is_none_or(|status| status.confirmed) {
                gone.insert(txid);
            }
        }
        let mut mempool = self.mempool.borrow_mut();
        for txids in mempool.by_script.values_mut() {
            txids.retain(|txid| !gone.contains(txid));
        }
        mempool.tip = Some(tip);
        Ok(())
    }

    fn look_at(&self, script: &ScriptBuf) -> Result<(), ChainError> {
        let hash = sha256::Hash::hash(script.as_bytes());
        let path = format!("/scripthash/{hash}/txs/mempool");
        let found: Vec<Unconfirmed> = self.json(&path)?.unwrap_or_default();
        let mut mempool = self.mempool.borrow_mut();
        mempool.by_script.remove(script);
        let held: usize = mempool.by_script.values().map(Vec::len).sum();
        let room = MOST_UNCONFIRMED.saturating_sub(held);
        let txids: Vec<Txid> = found.into_iter().take(room).map(|it| it.txid).collect();
        if !txids.is_empty() {
            mempool.by_script.insert(script.clone(), txids);
        }
        mempool.unknown.remove(script);
        Ok(())
    }
}

impl Node for Server {
    fn best_block(&self) -> Result<BlockHash, ChainError> {
        const PATH: &str = "/blocks/tip/hash";
        let answer = self.get(PATH, LARGEST_ANSWER)?;
        self.hash(PATH, &answer)
    }

    fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        let path = format!("/block-height/{height}");
        let answer = self.find(&path, LARGEST_ANSWER)?;
        answer.map(|answer| self.hash(&path, &answer)).transpose()
    }

    fn block(&self, hash: BlockHash, _height: u32) -> Result<Block, ChainError> {
        let path = format!("/block/{hash}/raw");
        let answer = self.get(&path, LARGEST_BLOCK)?;
        let place = self.http.place();
        let block: Block =
            deserialize(&answer.body).map_err(|error| place.protocol(&path, error))?;
        if block.block_hash() != hash || !block.check_merkle_root() {
            return Err(place.protocol(&path, "another block than the one asked for"));
        }
        Ok(block)
    }

    fn mempool(&self) -> Result<Option<HashSet<Txid>>, ChainError> {
        self.drop_confirmed(self.best_block()?)?;
        let scripts: Vec<ScriptBuf> = {
            let mempool = self.mempool.borrow();
            mempool
                .queue
                .iter()
                .take(SCRIPTS_PER_LOOK)
                .cloned()
                .collect()
        };
        for script in &scripts {
            self.look_at(script)?;
            let mut mempool = self.mempool.borrow_mut();
            mempool.queue.pop_front();
            mempool.queue.push_back(script.clone());
        }
        let mempool = self.mempool.borrow();
        Ok(mempool.unknown.is_empty().then(|| mempool.txids()))
    }

    fn transactions(&self, txids: &[Txid]) -> Result<Vec<Transaction>, ChainError> {
        let mut transactions = Vec::new();
        for txid in txids {
            let path = format!("/tx/{txid}/raw");
            let Some(answer) = self.find(&path, LARGEST_BLOCK)? else {
                continue;
            };
            let place = self.http.place();
            let transaction: Transaction =
                deserialize(&answer.body).map_err(|error| place.protocol(&path, error))?;
            if transaction.compute_txid() != *txid {
                return Err(place.protocol(&path, "another transaction than the one asked for"));
            }
            let status: Option<TxStatus> = self.json(&format!("/tx/{txid}/status"))?;
            if status.is_some_and(|status| !status.confirmed) {
                transactions.push(transaction);
            }
        }
        Ok(transactions)
    }
}

impl ChainSource for Esplora {
    fn name(&self) -> String {
        format!("Esplora at {}", self.server.http.place())
    }

    fn sight(&self) -> Sight {
        Sight::Watched
    }

    fn poll(&mut self, now: u64) -> Result<Vec<ChainEvent>, ChainError> {
        self.follower.step(&self.server, now)
    }

    fn restart(&mut self, start: Start) {
        let mut mempool = Mempool::default();
        // The first are watched last, so that they are looked at first.
        for script in start.scripts.iter().rev() {
            mempool.watch(script);
        }
        self.server.mempool.replace(mempool);
        self.follower = Follower::new(start);
    }

    fn watch(&mut self, from: u32, scripts: &[ScriptBuf]) {
        for script in scripts {
            self.server.mempool.borrow_mut().watch(script);
        }
        self.follower.tell_again(from);
    }

    fn look_again(&mut self, txids: &[Txid], spent: &[OutPoint]) -> Result<(), ChainError> {
        let mut again = txids.to_vec();
        for OutPoint { txid, vout } in spent {
            let path = format!("/tx/{txid}/outspend/{vout}");
            let outspend: Option<Outspend> = self.server.json(&path)?;
            again.extend(outspend.and_then(|outspend| outspend.txid));
        }
        self.follower.look_again(&again);
        Ok(())
    }

    fn broadcast(&self, transaction: &Transaction) -> Result<Accepted, BroadcastError> {
        const PATH: &str = "/tx";
        self.server.check_network()?;
        let hex = serialize_hex(transaction);
        let answer = self.server.http.post(PATH, &hex, LARGEST_ANSWER)?;
        match answer.status {
            200 => Ok(Accepted::InMempool),
            400 => refused(&answer.text()),
            429 | 503 | 504 => {
                let detail = format!("HTTP status {}", answer.status);
                Err(self.server.http.place().unavailable(detail).into())
            }
            _ => Err(self.server.protocol(PATH, &answer).into()),
        }
    }

    fn broadcast_package(&self, package: &[Transaction]) -> Result<(), BroadcastError> {
        if package.len() > 1 {
            self.server.check_network()?;
            let hexes: Vec<String> = package.iter().map(serialize_hex).collect();
            let body = json!(hexes).to_string();
            let answer = self
                .server
                .http
                .post("/txs/package", &body, LARGEST_ANSWER)?;
            let result = serde_json::from_slice::<PackageResult>(&answer.body);
            if answer.status == 200 && result.is_ok_and(|result| result.package_msg == "success") {
                return Ok(());
            }
            // Each on its own then, which also tells exactly which one is refused and why.
        }
        for transaction in package {
            self.broadcast(transaction)?;
        }
        Ok(())
    }

    fn test_accept(&self, _transaction: &Transaction) -> Result<Verdict, ChainError> {
        Ok(Verdict::Unknown)
    }

    fn feerate(&self, target_blocks: u16) -> Result<FeeRate, ChainError> {
        let estimates: Option<HashMap<u16, f64>> = self.server.json("/fee-estimates")?;
        let estimate = estimates.and_then(|estimates| {
            let within = estimates
                .into_iter()
                .filter(|(target, _)| *target <= target_blocks);
            within.max_by_key(|(target, _)| *target)
        });
        let estimate = estimate.and_then(|(_, per_vb)| feerate_of(per_vb));
        estimate
            .or(self.fallback_feerate)
            .map(|feerate| feerate.max(FeeRate::BROADCAST_MIN))
            .ok_or_else(|| ChainError::NoEstimate {
                node: self.server.http.place().to_string(),
            })
    }

    fn tip(&self) -> Result<Tip, ChainError> {
        let hash = self.server.best_block()?;
        let path = format!("/block/{hash}");
        let summary: Option<Summary> = self.server.json(&path)?;
        let Some(Summary { height }) = summary else {
            let detail = "its best block left the chain just now";
            return Err(self.server.http.place().unavailable(detail));
        };
        Ok(Tip {
            block: BlockId { height, hash },
            headers: height,
            syncing: false,
        })
    }

    fn block_at(&self, height: u32) -> Result<Option<BlockId>, ChainError> {
        Ok(self
            .server
            .block_hash(height)?
            .map(|hash| BlockId { height, hash }))
    }

    fn confirmed_output(&self, outpoint: &OutPoint) -> Result<Option<ConfirmedOutput>, ChainError> {
        let OutPoint { txid, vout } = outpoint;
        let place = self.server.http.place();
        let path = format!("/tx/{txid}/raw");
        let Some(answer) = self.server.find(&path, LARGEST_BLOCK)? else {
            return Ok(None);
        };
        let made: Transaction =
            deserialize(&answer.body).map_err(|error| place.protocol(&path, error))?;
        if made.compute_txid() != *txid {
            return Err(place.protocol(&path, "another transaction than the one asked for"));
        }
        let status: Option<TxStatus> = self.server.json(&format!("/tx/{txid}/status"))?;
        let output = usize::try_from(*vout)
            .ok()
            .and_then(|vout| made.output.get(vout));
        let (Some(height), Some(output)) = (confirmed_at(status), output) else {
            return Ok(None);
        };
        let outspend: Option<Outspend> =
            self.server.json(&format!("/tx/{txid}/outspend/{vout}"))?;
        let is_spent =
            outspend.is_some_and(|it| it.spent && it.status.is_some_and(|it| it.confirmed));
        if is_spent {
            return Ok(None);
        }
        let tip = self.tip()?.block.height;
        Ok(Some(ConfirmedOutput {
            value: output.value,
            script: output.script_pubkey.clone(),
            confirmations: tip.saturating_sub(height).saturating_add(1),
        }))
    }
}

fn confirmed_at(status: Option<TxStatus>) -> Option<u32> {
    let status = status.filter(|status| status.confirmed)?;
    status.block_height
}
