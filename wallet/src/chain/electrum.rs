//! A chain source that asks an Electrum server (protocol 1.4) over TCP or TLS.
//!
//! The server is told every watched script and says when the history of one changes, so little is
//! sent however busy the chain is; and it learns which scripts are ours. Blocks are told with the
//! transactions of those histories alone. That a transaction is in its block is proved by a merkle
//! branch; which chain is the best one, and that nothing is left out, is the server's word.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, BufReader, Write as _};

use bitcoin::consensus::encode::{deserialize, deserialize_hex, serialize_hex};
use bitcoin::hashes::{Hash as _, sha256, sha256d};
use bitcoin::{
    Block, BlockHash, FeeRate, Network, OutPoint, Script, ScriptBuf, Transaction, TxMerkleNode,
    Txid, block,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::follow::{Follower, Node};
use super::server::{WORDS, check_genesis, feerate_of, refused};
use super::wire::{Link, Place, invalid, read_line};
use super::{
    Accepted, BlockId, BroadcastError, ChainError, ChainEvent, ChainSource, ConfirmedOutput, Sight,
    Start, Tip, Verdict,
};

/// Bytes of one answer: the largest transaction in hexadecimal, or a long history.
const LARGEST_ANSWER: u64 = 9_000_000;

/// Requests that are sent before the answer to the first is read.
const REQUESTS_AT_ONCE: usize = 50;

/// Notifications that may come between a request and its answer: one for each watched script, and a
/// few blocks. More is a server that talks without end.
const NOTIFICATIONS: usize = 20_000;

/// Transactions of one script. Servers refuse longer histories themselves.
const LONGEST_HISTORY: usize = 10_000;

/// Transactions of a foreign script that are read to see whether one of them spends an output.
const SPENDERS_READ: usize = 200;

/// Headers that are asked for at once while far behind, and how far behind that is: deeper than any
/// reorganisation, so that they cannot change before they are used.
const HEADERS_AT_ONCE: u32 = 500;
const FAR_BEHIND: u32 = 1_000;

/// Which server, and what is expected of it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens: `ssl://electrum.example:50002`, or `tcp://` within one's own network.
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
    Place::parse(url, [("tcp", None), ("ssl", Some(50_002))])
}

/// A [`ChainSource`] on top of one Electrum server.
pub struct Electrum {
    server: Server,
    follower: Follower,
    fallback_feerate: Option<FeeRate>,
}

impl Electrum {
    /// A source that tells the chain from `start` on.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the address.
    pub fn new(config: &Config, start: Start) -> Result<Self, String> {
        let mut source = Self {
            server: Server {
                place: place(&config.url)?,
                network: config.network,
                session: RefCell::default(),
            },
            follower: Follower::new(Start::default()),
            fallback_feerate: config.fallback_feerate,
        };
        source.restart(start);
        Ok(source)
    }
}

struct Server {
    place: Place,
    network: Network,
    session: RefCell<Session>,
}

/// The connection, and what the server said of the scripts that are watched.
#[derive(Default)]
struct Session {
    link: Option<BufReader<Link>>,
    next_id: u64,
    tip: Option<(u32, BlockHash)>,
    /// Headers far below the tip that were asked for ahead, by height.
    ahead: BTreeMap<u32, block::Header>,
    scripts: HashMap<String, Watched>,
    /// Scripts whose history has to be asked for, by their hash.
    stale: BTreeSet<String>,
    /// The lowest height at which a history has grown since it was known.
    news_at: Option<u32>,
}

/// A watched script, by the hash that the protocol calls it by.
#[derive(Default)]
struct Watched {
    /// `None` until it was asked for. Confirmed and unconfirmed, as listed.
    history: Option<Vec<Listed>>,
    /// From which height on a transaction is news, when the history is learned for the first time.
    from: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct Listed {
    tx_hash: Txid,
    /// Zero or below for what is not confirmed.
    height: i64,
}

impl Listed {
    fn confirmed_at(self) -> Option<u32> {
        u32::try_from(self.height).ok().filter(|height| *height > 0)
    }
}

#[derive(Deserialize)]
struct HeaderNews {
    height: u32,
    hex: String,
}

#[derive(Deserialize)]
struct Headers {
    hex: String,
}

#[derive(Deserialize)]
struct Features {
    genesis_hash: BlockHash,
}

#[derive(Deserialize)]
struct Branch {
    merkle: Vec<sha256d::Hash>,
    pos: u32,
}

#[derive(Deserialize)]
struct Message {
    id: Option<u64>,
    method: Option<String>,
    #[serde(default)]
    params: Vec<Value>,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Value,
}

/// Why a request failed.
enum CallError {
    /// It got no answer, or not one that can be used.
    Chain(ChainError),
    /// The server answered that it will not or cannot.
    Answer(String),
}

impl From<ChainError> for CallError {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

/// What the protocol calls a script by.
fn script_hash(script: &Script) -> String {
    let mut hash = sha256::Hash::hash(script.as_bytes()).to_byte_array();
    hash.reverse();
    hex::encode(hash)
}

fn read_header(hex: &str) -> Result<block::Header, String> {
    deserialize_hex(hex).map_err(|error| error.to_string())
}

impl Session {
    /// Begins to watch a script. What its history holds from `from` on is news.
    fn watch(&mut self, script: &Script, from: Option<u32>) {
        let hash = script_hash(script);
        if !self.scripts.contains_key(&hash) {
            let watched = Watched {
                history: None,
                from,
            };
            self.scripts.insert(hash.clone(), watched);
            self.stale.insert(hash);
        }
    }

    fn take_notification(&mut self, message: &Message) -> Result<(), String> {
        match (message.method.as_deref(), &message.params[..]) {
            (Some("blockchain.headers.subscribe"), [news]) => self.take_tip(news.clone()),
            (Some("blockchain.scripthash.subscribe"), [Value::String(hash), ..]) => {
                if self.scripts.contains_key(hash) {
                    self.stale.insert(hash.clone());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn take_tip(&mut self, news: Value) -> Result<(), String> {
        let news: HeaderNews = serde_json::from_value(news).map_err(|error| error.to_string())?;
        self.tip = Some((news.height, read_header(&news.hex)?.block_hash()));
        Ok(())
    }

    fn take_history(&mut self, hash: &str, history: Vec<Listed>) {
        let Some(watched) = self.scripts.get_mut(hash) else {
            return;
        };
        let from = watched.from;
        let known = watched.history.replace(history.clone());
        let lowest = history
            .into_iter()
            .filter(|listed| match &known {
                Some(known) => !known.contains(listed),
                None => from.is_some(),
            })
            .filter_map(Listed::confirmed_at)
            .filter(|height| known.is_some() || from.is_some_and(|from| *height >= from))
            .min();
        self.news_at = match (self.news_at, lowest) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self.stale.remove(hash);
    }

    fn listed(&self) -> impl Iterator<Item = &Listed> {
        self.scripts
            .values()
            .flat_map(|watched| watched.history.iter().flatten())
    }
}

impl Server {
    /// Makes requests, a bounded number at a time, and returns what each of them got.
    fn call_all(
        &self,
        method: &str,
        params: &[Value],
    ) -> Result<Vec<Result<Value, String>>, ChainError> {
        let mut session = self.session.borrow_mut();
        let mut link = match session.link.take() {
            Some(link) => link,
            None => self.connect(&mut session)?,
        };
        let mut answers = Vec::with_capacity(params.len());
        for params in params.chunks(REQUESTS_AT_ONCE) {
            let exchanged = exchange(&mut session, &mut link, method, params);
            answers.extend(exchanged.map_err(|error| self.sort(method, &error))?);
        }
        session.link = Some(link);
        Ok(answers)
    }

    fn call<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T, CallError> {
        let answer = self.call_all(method, &[params])?.pop();
        match answer {
            Some(Ok(value)) => serde_json::from_value(value)
                .map_err(|error| self.place.protocol(method, error).into()),
            Some(Err(words)) => Err(CallError::Answer(words)),
            None => Err(self.place.protocol(method, "no answer").into()),
        }
    }

    /// Makes a call that has no legitimate refusal.
    fn ask<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T, ChainError> {
        self.call(method, params).map_err(|error| match error {
            CallError::Chain(error) => error,
            CallError::Answer(words) => self.place.protocol(method, words),
        })
    }

    /// Connects, makes sure of the network, and subscribes to the tip. Every script has to be
    /// subscribed to again on a new connection.
    fn connect(&self, session: &mut Session) -> Result<BufReader<Link>, ChainError> {
        let mut link = self
            .place
            .connect()
            .map_err(|error| self.place.unavailable(error))?;
        let mut ask = |method: &str, params: Value| {
            let mut answers = exchange(session, &mut link, method, &[params])
                .map_err(|error| self.sort(method, &error))?;
            match answers.pop() {
                Some(Ok(value)) => Ok(value),
                Some(Err(words)) => Err(self.place.protocol(method, words)),
                None => Err(self.place.protocol(method, "no answer")),
            }
        };
        ask("server.version", json!(["bitmesh", "1.4"]))?;
        const FEATURES: &str = "server.features";
        let features: Features = serde_json::from_value(ask(FEATURES, json!([]))?)
            .map_err(|error| self.place.protocol(FEATURES, error))?;
        check_genesis(&self.place, self.network, features.genesis_hash)?;
        const SUBSCRIBE: &str = "blockchain.headers.subscribe";
        let tip = ask(SUBSCRIBE, json!([]))?;
        session
            .take_tip(tip)
            .map_err(|error| self.place.protocol(SUBSCRIBE, error))?;
        session.stale = session.scripts.keys().cloned().collect();
        session.ahead.clear();
        Ok(link)
    }

    fn sort(&self, method: &str, error: &io::Error) -> ChainError {
        match error.kind() {
            io::ErrorKind::InvalidData => self.place.protocol(method, error),
            _ => self.place.unavailable(error),
        }
    }

    /// Hears what the server has to say, and asks for the histories that changed.
    fn refresh(&self) -> Result<(), ChainError> {
        // Whatever was sent before the answer is read with it.
        let _: Value = self.ask("server.ping", json!([]))?;
        const SUBSCRIBE: &str = "blockchain.scripthash.subscribe";
        const HISTORY: &str = "blockchain.scripthash.get_history";
        let stale: Vec<String> = self.session.borrow().stale.iter().cloned().collect();
        for hashes in stale.chunks(REQUESTS_AT_ONCE) {
            let params: Vec<Value> = hashes.iter().map(|hash| json!([hash])).collect();
            // Subscribing first, so that no change falls between the two.
            let states = self.call_all(SUBSCRIBE, &params)?;
            let mut used = Vec::new();
            for (hash, state) in hashes.iter().zip(states) {
                match state {
                    Ok(Value::Null) => {
                        self.session.borrow_mut().take_history(hash, Vec::new());
                    }
                    Ok(_) => used.push(hash),
                    Err(words) => return Err(self.place.protocol(SUBSCRIBE, words)),
                }
            }
            let params: Vec<Value> = used.iter().map(|hash| json!([hash])).collect();
            let histories = self.call_all(HISTORY, &params)?;
            for (hash, history) in used.into_iter().zip(histories) {
                let history = history.map_err(|words| self.place.protocol(HISTORY, words))?;
                let history: Vec<Listed> = serde_json::from_value(history)
                    .map_err(|error| self.place.protocol(HISTORY, error))?;
                if history.len() > LONGEST_HISTORY {
                    return Err(self.place.protocol(HISTORY, "a history that is too long"));
                }
                self.session.borrow_mut().take_history(hash, history);
            }
        }
        Ok(())
    }

    fn header(&self, height: u32) -> Result<Option<block::Header>, ChainError> {
        const METHOD: &str = "blockchain.block.header";
        let (tip, _) = self.best()?;
        if height > tip {
            return Ok(None);
        }
        if tip.saturating_sub(height) > FAR_BEHIND {
            return self.header_ahead(height).map(Some);
        }
        let hex: String = self.ask(METHOD, json!([height]))?;
        read_header(&hex)
            .map(Some)
            .map_err(|error| self.place.protocol(METHOD, error))
    }

    fn header_ahead(&self, height: u32) -> Result<block::Header, ChainError> {
        const METHOD: &str = "blockchain.block.headers";
        if let Some(header) = self.session.borrow().ahead.get(&height) {
            return Ok(*header);
        }
        let answer: Headers = self.ask(METHOD, json!([height, HEADERS_AT_ONCE]))?;
        let bytes = hex::decode(&answer.hex).map_err(|error| self.place.protocol(METHOD, error))?;
        let headers = bytes.chunks(block::Header::SIZE).map(deserialize);
        let headers: Vec<block::Header> = headers
            .collect::<Result<_, _>>()
            .map_err(|error| self.place.protocol(METHOD, error))?;
        let first = headers.first().copied();
        self.session.borrow_mut().ahead = (height..).zip(headers).collect();
        first.ok_or_else(|| self.place.protocol(METHOD, "no headers"))
    }

    /// The tip that the server named last. It says so by itself when there is another.
    fn best(&self) -> Result<(u32, BlockHash), ChainError> {
        if self.session.borrow().link.is_none() {
            let _: Value = self.ask("server.ping", json!([]))?;
        }
        let tip = self.session.borrow().tip;
        tip.ok_or_else(|| {
            self.place
                .unavailable("it has not named its best block yet")
        })
    }

    /// Gets a transaction; `None` if the server does not know it.
    fn transaction(&self, txid: Txid) -> Result<Option<Transaction>, ChainError> {
        const METHOD: &str = "blockchain.transaction.get";
        let hex: String = match self.call(METHOD, json!([txid])) {
            Ok(hex) => hex,
            Err(CallError::Answer(_)) => return Ok(None),
            Err(CallError::Chain(error)) => return Err(error),
        };
        let transaction: Transaction =
            deserialize_hex(&hex).map_err(|error| self.place.protocol(METHOD, error))?;
        if transaction.compute_txid() != txid {
            return Err(self
                .place
                .protocol(METHOD, "another transaction than the one asked for"));
        }
        Ok(Some(transaction))
    }

    /// Makes the server prove that a transaction is in a block.
    fn prove(&self, txid: Txid, height: u32, header: &block::Header) -> Result<(), ChainError> {
        const METHOD: &str = "blockchain.transaction.get_merkle";
        let branch: Branch = self.ask(METHOD, json!([txid, height]))?;
        if merkle_root(txid, &branch) != Some(header.merkle_root) {
            // Or a reorganisation came between two questions; it is asked again.
            return Err(self.place.unavailable("a transaction is not in its block"));
        }
        Ok(())
    }
}

/// The root of the tree that `txid` is a leaf of (BIP-37 describes such branches); `None` if the
/// branch is longer than any.
fn merkle_root(txid: Txid, branch: &Branch) -> Option<TxMerkleNode> {
    const DEEPEST: usize = 32;
    if branch.merkle.len() > DEEPEST {
        return None;
    }
    let mut node = txid.to_raw_hash();
    let mut position = branch.pos;
    for sibling in &branch.merkle {
        let (left, right) = if position & 1 == 0 {
            (node, *sibling)
        } else {
            (*sibling, node)
        };
        let pair = [left.to_byte_array(), right.to_byte_array()].concat();
        node = sha256d::Hash::hash(&pair);
        position >>= 1;
    }
    (position == 0).then(|| TxMerkleNode::from_raw_hash(node))
}

/// Sends requests and reads their answers, in the order of the requests, and the notifications that
/// come between.
fn exchange(
    session: &mut Session,
    link: &mut BufReader<Link>,
    method: &str,
    params: &[Value],
) -> io::Result<Vec<Result<Value, String>>> {
    let first = session.next_id;
    let mut requests = String::new();
    for params in params {
        let id = session.next_id;
        session.next_id = session.next_id.wrapping_add(1);
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        requests.push_str(&request.to_string());
        requests.push('\n');
    }
    link.get_mut().begin();
    link.get_mut().write_all(requests.as_bytes())?;
    link.get_mut().flush()?;
    let mut answers: Vec<Option<Result<Value, String>>> = params.iter().map(|_| None).collect();
    let mut missing = params.len();
    let mut notifications = 0;
    while missing > 0 {
        let line = read_line(link, LARGEST_ANSWER)?;
        let message: Message =
            serde_json::from_str(&line).map_err(|_| invalid("an answer that is not JSON-RPC"))?;
        let Some(id) = message.id else {
            notifications += 1;
            if notifications > NOTIFICATIONS {
                return Err(invalid("too many notifications"));
            }
            session
                .take_notification(&message)
                .map_err(|_| invalid("a notification that makes no sense"))?;
            continue;
        };
        let slot = id
            .checked_sub(first)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| answers.get_mut(at))
            .filter(|slot| slot.is_none())
            .ok_or_else(|| invalid("an answer that nobody asked for"))?;
        *slot = Some(match message.error {
            Value::Null => Ok(message.result),
            error => Err(words(&error)),
        });
        missing -= 1;
    }
    Ok(answers.into_iter().flatten().collect())
}

/// What a server says when it refuses.
fn words(error: &Value) -> String {
    let said = error.get("message").and_then(Value::as_str);
    let said = said.map_or_else(|| error.to_string(), str::to_owned);
    said.chars().take(WORDS).collect()
}

impl Node for Server {
    fn best_block(&self) -> Result<BlockHash, ChainError> {
        self.best().map(|(_, hash)| hash)
    }

    fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        Ok(self.header(height)?.map(|header| header.block_hash()))
    }

    fn block(&self, hash: BlockHash, height: u32) -> Result<Block, ChainError> {
        let header = self.header(height)?;
        if !self.session.borrow().stale.is_empty() {
            self.refresh()?;
        }
        let Some(header) = header.filter(|header| header.block_hash() == hash) else {
            return Err(self.place.unavailable("a block left the chain just now"));
        };
        let txids: BTreeSet<Txid> = {
            let session = self.session.borrow();
            let here = session
                .listed()
                .filter(|listed| listed.confirmed_at() == Some(height));
            here.map(|listed| listed.tx_hash).collect()
        };
        let mut txdata = Vec::with_capacity(txids.len());
        for txid in txids {
            let Some(transaction) = self.transaction(txid)? else {
                return Err(self
                    .place
                    .unavailable("a transaction left the chain just now"));
            };
            self.prove(txid, height, &header)?;
            txdata.push(transaction);
        }
        Ok(Block { header, txdata })
    }

    fn mempool(&self) -> Result<Option<HashSet<Txid>>, ChainError> {
        self.refresh()?;
        let session = self.session.borrow();
        let unconfirmed = session
            .listed()
            .filter(|listed| listed.confirmed_at().is_none());
        Ok(Some(unconfirmed.map(|listed| listed.tx_hash).collect()))
    }

    fn transactions(&self, txids: &[Txid]) -> Result<Vec<Transaction>, ChainError> {
        let mut transactions = Vec::with_capacity(txids.len());
        for txid in txids {
            transactions.extend(self.transaction(*txid)?);
        }
        Ok(transactions)
    }
}

impl ChainSource for Electrum {
    fn name(&self) -> String {
        format!("Electrum at {}", self.server.place)
    }

    fn sight(&self) -> Sight {
        Sight::Watched
    }

    fn poll(&mut self, now: u64) -> Result<Vec<ChainEvent>, ChainError> {
        self.server.refresh()?;
        // A history that grew below what was told: the server named the block before it had the
        // history of each script ready.
        if let Some(height) = self.server.session.borrow_mut().news_at.take() {
            self.follower.tell_again(height);
        }
        self.follower.step(&self.server, now)
    }

    fn restart(&mut self, start: Start) {
        let session = self.server.session.get_mut();
        session.scripts.clear();
        session.stale.clear();
        session.news_at = None;
        for script in &start.scripts {
            session.watch(script, None);
        }
        self.follower = Follower::new(start);
    }

    fn watch(&mut self, from: u32, scripts: &[ScriptBuf]) {
        let session = self.server.session.get_mut();
        for script in scripts {
            session.watch(script, Some(from));
        }
    }

    fn look_again(&mut self, txids: &[Txid], spent: &[OutPoint]) -> Result<(), ChainError> {
        self.server.refresh()?;
        let mut again = txids.to_vec();
        if !spent.is_empty() {
            // What spends a watched output is in the history of its script.
            let session = self.server.session.borrow();
            again.extend(session.listed().map(|listed| listed.tx_hash));
        }
        self.follower.look_again(&again);
        Ok(())
    }

    fn broadcast(&self, transaction: &Transaction) -> Result<Accepted, BroadcastError> {
        let hex = serialize_hex(transaction);
        let answer = self
            .server
            .call::<Txid>("blockchain.transaction.broadcast", json!([hex]));
        match answer {
            Ok(_) => Ok(Accepted::InMempool),
            Err(CallError::Answer(words)) => refused(&words),
            Err(CallError::Chain(error)) => Err(error.into()),
        }
    }

    fn broadcast_package(&self, package: &[Transaction]) -> Result<(), BroadcastError> {
        // The protocol has no packages before 1.6.
        for transaction in package {
            self.broadcast(transaction)?;
        }
        Ok(())
    }

    fn test_accept(&self, _transaction: &Transaction) -> Result<Verdict, ChainError> {
        Ok(Verdict::Unknown)
    }

    fn feerate(&self, target_blocks: u16) -> Result<FeeRate, ChainError> {
        let estimate: f64 = self
            .server
            .ask("blockchain.estimatefee", json!([target_blocks]))?;
        let floor: f64 = self.server.ask("blockchain.relayfee", json!([]))?;
        // Bitcoin per 1,000 virtual bytes; -1 for none.
        let feerate = |per_kvb: f64| feerate_of(per_kvb * 100_000.0);
        feerate(estimate)
            .or(self.fallback_feerate)
            .map(|estimate| estimate.max(FeeRate::BROADCAST_MIN))
            .map(|estimate| feerate(floor).map_or(estimate, |floor| estimate.max(floor)))
            .ok_or_else(|| ChainError::NoEstimate {
                node: self.server.place.to_string(),
            })
    }

    fn tip(&self) -> Result<Tip, ChainError> {
        let _: Value = self.server.ask("server.ping", json!([]))?;
        let (height, hash) = self.server.best()?;
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
        const METHOD: &str = "blockchain.scripthash.get_history";
        let Some(made) = self.server.transaction(outpoint.txid)? else {
            return Ok(None);
        };
        let output = usize::try_from(outpoint.vout)
            .ok()
            .and_then(|vout| made.output.get(vout));
        let Some(output) = output else {
            return Ok(None);
        };
        let hash = script_hash(&output.script_pubkey);
        let history: Vec<Listed> = self.server.ask(METHOD, json!([hash]))?;
        let made_at = history
            .iter()
            .find(|listed| listed.tx_hash == outpoint.txid)
            .and_then(|listed| listed.confirmed_at());
        let Some(height) = made_at else {
            return Ok(None);
        };
        let later: Vec<_> = history
            .into_iter()
            .filter(|listed| listed.tx_hash != outpoint.txid)
            .filter(|listed| listed.confirmed_at().is_some_and(|at| at >= height))
            .collect();
        if later.len() > SPENDERS_READ {
            return Err(ChainError::Blind {
                node: self.server.place.to_string(),
                what: "whether an output of so busy a script is spent",
            });
        }
        for listed in later {
            let transaction = self.server.transaction(listed.tx_hash)?;
            let spends = transaction.is_some_and(|transaction| {
                let mut inputs = transaction.input.iter();
                inputs.any(|input| input.previous_output == *outpoint)
            });
            if spends {
                return Ok(None);
            }
        }
        let (tip, _) = self.server.best()?;
        Ok(Some(ConfirmedOutput {
            value: output.value,
            script: output.script_pubkey.clone(),
            confirmations: tip.saturating_sub(height).saturating_add(1),
        }))
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::constants::genesis_block;

    use super::*;

    #[test]
    fn a_script_is_called_by_its_reversed_hash() {
        // The example of the protocol's documentation.
        let script =
            ScriptBuf::from_hex("76a91462e907b15cbf27d5425399ebf6f0fb50ebb88f1888ac").unwrap();
        assert_eq!(
            script_hash(&script),
            "8b01df4e368ea28f8dc0423bcf7a4923e3a12d307c875e47a0cfbf90b5c39161"
        );
    }

    #[test]
    fn a_branch_proves_a_leaf_at_its_place_and_no_other() {
        let txids: Vec<Txid> = (0..5_u8)
            .map(|byte| Txid::from_byte_array([byte; 32]))
            .collect();
        let raw: Vec<sha256d::Hash> = txids.iter().map(|txid| txid.to_raw_hash()).collect();
        let join = |one: sha256d::Hash, other: sha256d::Hash| {
            sha256d::Hash::hash(&[one.to_byte_array(), other.to_byte_array()].concat())
        };
        let (ab, cd, ee) = (
            join(raw[0], raw[1]),
            join(raw[2], raw[3]),
            join(raw[4], raw[4]),
        );
        let root = join(join(ab, cd), join(ee, ee));
        let mut branch = Branch {
            merkle: vec![raw[3], ab, join(ee, ee)],
            pos: 2,
        };

        let expected = Some(TxMerkleNode::from_raw_hash(root));
        assert_eq!(merkle_root(txids[2], &branch), expected);
        assert_ne!(merkle_root(txids[1], &branch), expected);
        branch.pos = 3;
        assert_ne!(merkle_root(txids[2], &branch), expected);
        branch.pos = 2 + 8;
        assert_eq!(merkle_root(txids[2], &branch), None);
    }

    #[test]
    fn a_block_of_one_transaction_has_that_for_its_root() {
        let block = genesis_block(Network::Bitcoin);
        let branch = Branch {
            merkle: Vec::new(),
            pos: 0,
        };
        let txid = block.txdata[0].compute_txid();
        assert_eq!(merkle_root(txid, &branch), Some(block.header.merkle_root));
    }
}
