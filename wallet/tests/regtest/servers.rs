//! An Esplora server and an Electrum server, answering from a bitcoind.
//!
//! They are not the real ones: those need an index on disk whose library takes a quarter of an hour
//! to compile. They speak the protocols as documented (Esplora's `API.md`; Electrum protocol 1.4) as
//! far as a chain source asks, and read the whole chain into memory whenever it changes. What they
//! cannot show is how a real server behaves when it is slow, busy or wrong.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bdk_bitcoind_rpc::bitcoincore_rpc::{Auth, Client, Error, RpcApi, jsonrpc};
use bitcoin::consensus::encode::{deserialize_hex, serialize, serialize_hex};
use bitcoin::hashes::{Hash, sha256, sha256d};
use bitcoin::{Block, BlockHash, OutPoint, ScriptBuf, Transaction, Txid};
use serde_json::{Value, json};

use crate::bitcoind::Regtest;

/// Which protocol a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Esplora,
    Electrum,
}

/// A running server. Dropping it closes its port and all connections.
pub(crate) struct Server {
    address: SocketAddr,
    protocol: Protocol,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(node: &Regtest, protocol: Protocol) -> Self {
        Self::start_at(node, protocol, "127.0.0.1:0".parse().unwrap())
    }

    fn start_at(node: &Regtest, protocol: Protocol, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let stops = Arc::new(AtomicBool::new(false));
        let index = Arc::new(Mutex::new(Index::new(node)));
        let thread = thread::spawn({
            let stops = Arc::clone(&stops);
            move || {
                let mut connections = Vec::new();
                while !stops.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            stream.set_nonblocking(false).unwrap();
                            let (index, stops) = (Arc::clone(&index), Arc::clone(&stops));
                            connections.push(thread::spawn(move || {
                                serve(stream, protocol, &index, &stops)
                            }));
                        }
                        Err(_) => thread::sleep(Duration::from_millis(2)),
                    }
                }
                for connection in connections {
                    let _ = connection.join();
                }
            }
        });
        Self {
            address,
            protocol,
            stops,
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        match self.protocol {
            Protocol::Esplora => format!("http://{}", self.address),
            Protocol::Electrum => format!("tcp://{}", self.address),
        }
    }

    pub(crate) fn stop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(crate) fn start_again(&mut self, node: &Regtest) {
        self.stop();
        *self = Self::start_at(node, self.protocol, self.address);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How often a connection looks whether it should end, and whether there is news.
const PULSE: Duration = Duration::from_millis(20);

fn serve(stream: TcpStream, protocol: Protocol, index: &Mutex<Index>, stops: &AtomicBool) {
    stream.set_read_timeout(Some(PULSE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    let mut session = ElectrumSession::default();
    let mut line = Vec::new();
    while !stops.load(Ordering::Relaxed) {
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                for news in session.news(&mut index.lock().unwrap()) {
                    if writeln!(writer, "{news}").is_err() {
                        return;
                    }
                }
                continue;
            }
            Err(_) => return,
        }
        let text = String::from_utf8(std::mem::take(&mut line)).unwrap();
        let answer = match protocol {
            Protocol::Electrum => session
                .answer(&mut index.lock().unwrap(), &text)
                .into_bytes(),
            Protocol::Esplora => {
                let Some(body) = read_body(&mut reader) else {
                    return;
                };
                http(esplora(&mut index.lock().unwrap(), &text, &body))
            }
        };
        if writer.write_all(&answer).is_err() {
            return;
        }
    }
}

/// Reads the header lines of a request and its body.
fn read_body(reader: &mut impl BufRead) -> Option<String> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    String::from_utf8(body).ok()
}

/// Answers in chunks, as servers behind a proxy do.
fn http((status, body): (u16, Vec<u8>)) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 {status} Whatever\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.chunks(1_000) {
        answer.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        answer.extend(chunk);
        answer.extend(b"\r\n");
    }
    answer.extend(b"0\r\n\r\n");
    answer
}

/// The chain and the mempool of a bitcoind, by script.
struct Index {
    url: String,
    cookie: std::path::PathBuf,
    blocks: Vec<(BlockHash, Block)>,
    mempool: BTreeMap<Txid, Transaction>,
    transactions: HashMap<Txid, (Transaction, Option<u32>)>,
    histories: HashMap<ScriptBuf, Vec<(Txid, Option<u32>)>>,
    spenders: HashMap<OutPoint, Txid>,
}

impl Index {
    fn new(node: &Regtest) -> Self {
        Self {
            url: node.url(),
            cookie: node.cookie(),
            blocks: Vec::new(),
            mempool: BTreeMap::new(),
            transactions: HashMap::new(),
            histories: HashMap::new(),
            spenders: HashMap::new(),
        }
    }

    fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        params: &[Value],
    ) -> Result<T, String> {
        let client = Client::new(&self.url, Auth::CookieFile(self.cookie.clone())).unwrap();
        client.call(method, params).map_err(|error| match error {
            Error::JsonRpc(jsonrpc::Error::Rpc(error)) => error.message,
            error => error.to_string(),
        })
    }

    /// Reads what is new; quick if nothing is.
    fn update(&mut self) {
        let Ok(best) = self.call::<BlockHash>("getbestblockhash", &[]) else {
            return;
        };
        let listed: Vec<Txid> = self.call("getrawmempool", &[]).unwrap();
        let is_same = self.blocks.last().map(|(hash, _)| *hash) == Some(best)
            && listed.len() == self.mempool.len()
            && listed.iter().all(|txid| self.mempool.contains_key(txid));
        if is_same {
            return;
        }
        let height: usize = self.call("getblockcount", &[]).unwrap();
        self.blocks.truncate(height + 1);
        while let Some((hash, _)) = self.blocks.last() {
            let there = self.call("getblockhash", &[json!(self.blocks.len() - 1)]);
            if there.as_ref() == Ok(hash) {
                break;
            }
            self.blocks.pop();
        }
        while self.blocks.len() <= height {
            let hash: BlockHash = self
                .call("getblockhash", &[json!(self.blocks.len())])
                .unwrap();
            let hex: String = self.call("getblock", &[json!(hash), json!(0)]).unwrap();
            self.blocks.push((hash, deserialize_hex(&hex).unwrap()));
        }
        self.mempool.clear();
        for txid in listed {
            if let Ok(hex) = self.call::<String>("getrawtransaction", &[json!(txid)]) {
                self.mempool.insert(txid, deserialize_hex(&hex).unwrap());
            }
        }
        self.sort();
    }

    fn sort(&mut self) {
        self.transactions.clear();
        self.histories.clear();
        self.spenders.clear();
        let confirmed = self
            .blocks
            .iter()
            .enumerate()
            .flat_map(|(height, (_, block))| {
                let height = u32::try_from(height).unwrap();
                block
                    .txdata
                    .iter()
                    .map(move |tx| (tx.clone(), Some(height)))
            });
        let unconfirmed = self.mempool.values().map(|tx| (tx.clone(), None));
        for (tx, height) in confirmed.chain(unconfirmed) {
            self.transactions.insert(tx.compute_txid(), (tx, height));
        }
        for (txid, (tx, height)) in &self.transactions {
            let mut scripts: Vec<ScriptBuf> = tx
                .output
                .iter()
                .map(|output| output.script_pubkey.clone())
                .collect();
            for input in &tx.input {
                let OutPoint { txid: made, vout } = input.previous_output;
                self.spenders.insert(input.previous_output, *txid);
                if let Some((made, _)) = self.transactions.get(&made) {
                    scripts.push(made.output[vout as usize].script_pubkey.clone());
                }
            }
            scripts.sort();
            scripts.dedup();
            for script in scripts {
                self.histories
                    .entry(script)
                    .or_default()
                    .push((*txid, *height));
            }
        }
        for history in self.histories.values_mut() {
            history.sort_by_key(|(txid, height)| (height.unwrap_or(u32::MAX), *txid));
        }
    }

    /// The history of a script by its SHA-256, in the byte order given.
    fn history(&self, hash: &str, is_reversed: bool) -> Vec<(Txid, Option<u32>)> {
        let found = self.histories.iter().find(|(script, _)| {
            let mut bytes = sha256::Hash::hash(script.as_bytes()).to_byte_array();
            if is_reversed {
                bytes.reverse();
            }
            hex::encode(bytes) == hash
        });
        found
            .map(|(_, history)| history.clone())
            .unwrap_or_default()
    }

    fn estimate(&self) -> Option<f64> {
        let estimate: Value = self.call("estimatesmartfee", &[json!(6)]).unwrap();
        estimate["feerate"].as_f64()
    }
}

fn esplora(index: &mut Index, request: &str, body: &str) -> (u16, Vec<u8>) {
    index.update();
    let path = request.split(' ').nth(1).unwrap();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let text = |text: String| (200, text.into_bytes());
    let missing = || (404, b"not there".to_vec());
    let status = |height: Option<u32>| match height {
        Some(height) => json!({ "confirmed": true, "block_height": height }),
        None => json!({ "confirmed": false }),
    };
    let transaction = |txid: &str| index.transactions.get(&txid.parse::<Txid>().unwrap());
    match parts[..] {
        ["blocks", "tip", "hash"] => text(index.blocks.last().unwrap().0.to_string()),
        ["block-height", height] => match index.blocks.get(height.parse::<usize>().unwrap()) {
            Some((hash, _)) => text(hash.to_string()),
            None => missing(),
        },
        ["block", hash] => {
            let hash: BlockHash = hash.parse().unwrap();
            match index.blocks.iter().position(|(it, _)| *it == hash) {
                Some(height) => text(json!({ "height": height }).to_string()),
                None => missing(),
            }
        }
        ["block", hash, "raw"] => {
            let hash: BlockHash = hash.parse().unwrap();
            match index.blocks.iter().find(|(it, _)| *it == hash) {
                Some((_, block)) => (200, serialize(block)),
                None => missing(),
            }
        }
        ["tx", txid, "raw"] => match transaction(txid) {
            Some((tx, _)) => (200, serialize(tx)),
            None => missing(),
        },
        ["tx", txid, "status"] => {
            let height = transaction(txid).and_then(|(_, height)| *height);
            text(status(height).to_string())
        }
        ["tx", txid, "outspend", vout] => {
            let outpoint = OutPoint::new(txid.parse().unwrap(), vout.parse().unwrap());
            text(match index.spenders.get(&outpoint) {
                Some(spender) => {
                    let height = index.transactions[spender].1;
                    json!({ "spent": true, "txid": spender, "status": status(height) }).to_string()
                }
                None => json!({ "spent": false }).to_string(),
            })
        }
        ["scripthash", hash, "txs", "mempool"] => {
            let history = index.history(hash, false);
            let unconfirmed = history.into_iter().filter(|(_, height)| height.is_none());
            let listed: Vec<Value> = unconfirmed
                .map(|(txid, _)| json!({ "txid": txid }))
                .collect();
            text(json!(listed).to_string())
        }
        ["fee-estimates"] => text(match index.estimate() {
            Some(per_kvb) => json!({ "6": per_kvb * 100_000.0 }).to_string(),
            None => "{}".to_owned(),
        }),
        ["tx"] => match index.call::<Txid>("sendrawtransaction", &[json!(body)]) {
            Ok(txid) => text(txid.to_string()),
            Err(words) => (
                400,
                format!("sendrawtransaction RPC error: {words}").into_bytes(),
            ),
        },
        ["txs", "package"] => {
            let hexes: Value = serde_json::from_str(body).unwrap();
            match index.call::<Value>("submitpackage", &[hexes]) {
                Ok(result) => text(result.to_string()),
                Err(words) => (400, words.into_bytes()),
            }
        }
        _ => panic!("{path}"),
    }
}

/// What one client subscribed to, and what it was told last.
#[derive(Default)]
struct ElectrumSession {
    tip: Option<BlockHash>,
    states: BTreeMap<String, Option<String>>,
}

impl ElectrumSession {
    fn header(index: &Index) -> Value {
        let (_, block) = index.blocks.last().unwrap();
        json!({ "height": index.blocks.len() - 1, "hex": serialize_hex(&block.header) })
    }

    /// The protocol's status of a script: a hash of its history.
    fn state(index: &Index, hash: &str) -> Option<String> {
        let history = index.history(hash, true);
        let listed: String = history
            .iter()
            .map(|(txid, height)| format!("{txid}:{}:", height.unwrap_or(0)))
            .collect();
        (!history.is_empty()).then(|| sha256::Hash::hash(listed.as_bytes()).to_string())
    }

    fn news(&mut self, index: &mut Index) -> Vec<Value> {
        let mut news = Vec::new();
        if self.tip.is_none() {
            return news;
        }
        index.update();
        let notify = |method: &str, params: Value| json!({ "jsonrpc": "2.0", "method": method, "params": params });
        let tip = index.blocks.last().map(|(hash, _)| *hash);
        if tip != self.tip {
            self.tip = tip;
            let header = Self::header(index);
            news.push(notify("blockchain.headers.subscribe", json!([header])));
        }
        for (hash, known) in &mut self.states {
            let state = Self::state(index, hash);
            if state != *known {
                known.clone_from(&state);
                news.push(notify(
                    "blockchain.scripthash.subscribe",
                    json!([hash, state]),
                ));
            }
        }
        news
    }

    /// Answers one request, after whatever news there is.
    fn answer(&mut self, index: &mut Index, line: &str) -> String {
        let request: Value = serde_json::from_str(line).unwrap();
        index.update();
        let news: String = self
            .news(index)
            .iter()
            .map(|it| format!("{it}\n"))
            .collect();
        let id = &request["id"];
        let answer = match self.result(index, &request) {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            Err(words) => {
                json!({ "jsonrpc": "2.0", "id": id, "error": { "code": 1, "message": words } })
            }
        };
        format!("{news}{answer}\n")
    }

    fn result(&mut self, index: &Index, request: &Value) -> Result<Value, String> {
        let params = &request["params"];
        let text = |at: usize| params[at].as_str().unwrap();
        let number = |at: usize| usize::try_from(params[at].as_u64().unwrap()).unwrap();
        Ok(match request["method"].as_str().unwrap() {
            "server.version" => json!(["a test's", "1.4"]),
            "server.features" => json!({ "genesis_hash": index.blocks[0].0 }),
            "server.ping" => Value::Null,
            "blockchain.headers.subscribe" => {
                self.tip = index.blocks.last().map(|(hash, _)| *hash);
                Self::header(index)
            }
            "blockchain.block.header" => {
                let block = index.blocks.get(number(0)).ok_or("height out of range")?;
                json!(serialize_hex(&block.1.header))
            }
            "blockchain.block.headers" => {
                let blocks = index.blocks.iter().skip(number(0)).take(number(1));
                let hex: String = blocks
                    .map(|(_, block)| serialize_hex(&block.header))
                    .collect();
                json!({ "hex": hex })
            }
            "blockchain.scripthash.subscribe" => {
                let state = Self::state(index, text(0));
                self.states.insert(text(0).to_owned(), state.clone());
                json!(state)
            }
            "blockchain.scripthash.get_history" => {
                let history = index.history(text(0), true);
                let listed = history.into_iter().map(
                    |(txid, height)| json!({ "tx_hash": txid, "height": height.unwrap_or(0) }),
                );
                Value::Array(listed.collect())
            }
            "blockchain.transaction.get" => {
                let txid: Txid = text(0).parse().unwrap();
                let found = index.transactions.get(&txid);
                json!(serialize_hex(&found.ok_or("no such transaction")?.0))
            }
            "blockchain.transaction.get_merkle" => {
                let (_, block) = &index.blocks[number(1)];
                merkle(block, text(0).parse().unwrap()).ok_or("not in that block")?
            }
            "blockchain.transaction.broadcast" => {
                json!(index.call::<Txid>("sendrawtransaction", &[params[0].clone()])?)
            }
            "blockchain.estimatefee" => json!(index.estimate().unwrap_or(-1.0)),
            "blockchain.relayfee" => {
                let info: Value = index.call("getmempoolinfo", &[]).unwrap();
                info["mempoolminfee"].clone()
            }
            method => panic!("{method}"),
        })
    }
}

fn merkle(block: &Block, txid: Txid) -> Option<Value> {
    let mut level: Vec<sha256d::Hash> = block
        .txdata
        .iter()
        .map(|tx| tx.compute_txid().to_raw_hash())
        .collect();
    let position = level.iter().position(|it| *it == txid.to_raw_hash())?;
    let mut branch = Vec::new();
    let mut at = position;
    while level.len() > 1 {
        if !level.len().is_multiple_of(2) {
            level.push(*level.last().unwrap());
        }
        branch.push(level[at ^ 1]);
        level = level
            .chunks(2)
            .map(|pair| {
                let bytes = [pair[0].to_byte_array(), pair[1].to_byte_array()].concat();
                sha256d::Hash::hash(&bytes)
            })
            .collect();
        at /= 2;
    }
    Some(json!({ "merkle": branch, "pos": position }))
}
