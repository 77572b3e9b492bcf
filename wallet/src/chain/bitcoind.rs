//! A chain source that asks a bitcoind by RPC.
//!
//! Works with any Bitcoin Core since 25 and its relatives, with or without a wallet, an index or
//! pruning (down to the blocks still wanted). Nothing has to be configured on it but access.
//!
//! It survives what happens to a bitcoind: a restart (the cookie is read anew, the mempool is not
//! believed before it is loaded), a reorganisation, a warm-up, an overload. All of those are
//! [`ChainError::Unavailable`] or nothing at all.

use std::collections::{HashMap, HashSet};
use std::fmt;

use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use bitcoin::{Amount, Block, BlockHash, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use serde::Deserialize;
use serde_json::{Value, json};

use self::rpc::{CallError, Rpc};
use super::follow::{Follower, Node};
use super::{
    Accepted, BlockId, BroadcastError, ChainError, ChainEvent, ChainSource, ConfirmedOutput,
    RejectReason, Rejection, Sight, Start, Tip, Verdict,
};

mod rpc;

pub use self::rpc::{Auth, Config};

/// Estimates for fewer blocks do not exist, for more neither.
const ESTIMATE_TARGETS: std::ops::RangeInclusive<u16> = 2..=1008;

/// "Transaction outputs already in utxo set": it is in the chain.
const ALREADY_IN_CHAIN: i32 = -27;
/// "Missing inputs", and a fee above the node's own limit.
const TRANSACTION_ERROR: i32 = -25;
/// Refused by consensus or policy.
const TRANSACTION_REJECTED: i32 = -26;
/// "Block height out of range."
const INVALID_PARAMETER: i32 = -8;
/// "Block not available (pruned data)", among others.
const MISC_ERROR: i32 = -1;
/// "No such mempool transaction", "Block not found".
const NOT_FOUND: i32 = -5;
/// Not a transaction at all.
const DESERIALIZATION_ERROR: i32 = -22;

/// A [`ChainSource`] on top of one bitcoind.
///
/// Making one does not connect; the first call does.
pub struct Bitcoind {
    rpc: Rpc,
    follower: Follower,
}

impl fmt::Debug for Bitcoind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bitcoind")
            .field("node", &self.rpc.node())
            .finish_non_exhaustive()
    }
}

impl Bitcoind {
    /// A source that tells the chain from `start` on.
    pub fn new(config: Config, start: Start) -> Self {
        Self {
            rpc: Rpc::new(config),
            follower: Follower::new(start),
        }
    }

    fn send(&self, transaction: &Transaction) -> Result<Accepted, BroadcastError> {
        let answer: Result<Txid, CallError> = self
            .rpc
            .call("sendrawtransaction", &json!([serialize_hex(transaction)]));
        match answer {
            Ok(_) => Ok(Accepted::InMempool),
            Err(CallError::Answer {
                code: ALREADY_IN_CHAIN,
                ..
            }) => Ok(Accepted::InChain),
            Err(CallError::Answer {
                code: TRANSACTION_ERROR | TRANSACTION_REJECTED | DESERIALIZATION_ERROR,
                message,
            }) => match sort_refusal(&message) {
                Refusal::InMempool => Ok(Accepted::InMempool),
                Refusal::InChain => Ok(Accepted::InChain),
                Refusal::Rejected(reason) => Err(Rejection {
                    reason,
                    detail: message,
                }
                .into()),
            },
            Err(error) => Err(self.rpc.unexpected("sendrawtransaction", error).into()),
        }
    }
}

#[derive(Deserialize)]
struct ChainInfo {
    blocks: u32,
    headers: u32,
    bestblockhash: BlockHash,
    #[serde(default)]
    initialblockdownload: bool,
}

#[derive(Deserialize)]
struct Estimate {
    #[serde(default, with = "bitcoin::amount::serde::as_btc::opt")]
    feerate: Option<Amount>,
}

#[derive(Deserialize)]
struct MempoolFloor {
    #[serde(default, with = "bitcoin::amount::serde::as_btc::opt")]
    mempoolminfee: Option<Amount>,
}

#[derive(Deserialize)]
struct MempoolState {
    #[serde(default)]
    loaded: Option<bool>,
}

#[derive(Deserialize)]
struct TestedTransaction {
    allowed: bool,
    #[serde(default)]
    vsize: u64,
    fees: Option<TestedFees>,
    #[serde(default, rename = "reject-reason")]
    reject_reason: String,
}

#[derive(Deserialize)]
struct TestedFees {
    #[serde(with = "bitcoin::amount::serde::as_btc")]
    base: Amount,
}

#[derive(Deserialize)]
struct TxOut {
    confirmations: u32,
    #[serde(with = "bitcoin::amount::serde::as_btc")]
    value: Amount,
    #[serde(rename = "scriptPubKey")]
    script: Script,
}

#[derive(Deserialize)]
struct Script {
    hex: ScriptBuf,
}

#[derive(Deserialize)]
struct PackageResult {
    package_msg: String,
    #[serde(default, rename = "tx-results")]
    results: HashMap<String, serde::de::IgnoredAny>,
}

impl Node for Rpc {
    fn best_block(&self) -> Result<BlockHash, ChainError> {
        ask(self, "getbestblockhash", json!([]))
    }

    fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        match self.call("getblockhash", &json!([height])) {
            Ok(hash) => Ok(Some(hash)),
            Err(CallError::Answer {
                code: INVALID_PARAMETER,
                ..
            }) => Ok(None),
            Err(error) => Err(self.unexpected("getblockhash", error)),
        }
    }

    fn block(&self, hash: BlockHash, height: u32) -> Result<Block, ChainError> {
        const METHOD: &str = "getblock";
        let hex: String = match self.call(METHOD, &json!([hash, 0])) {
            Ok(hex) => hex,
            Err(CallError::Answer {
                code: MISC_ERROR,
                message,
            }) if message.contains("prune") => {
                return Err(ChainError::Pruned {
                    node: self.node().to_owned(),
                    height,
                });
            }
            Err(error) => return Err(self.unexpected(METHOD, error)),
        };
        let block: Block = deserialize_hex(&hex).map_err(|error| self.protocol(METHOD, error))?;
        if block.block_hash() != hash {
            return Err(self.protocol(METHOD, "another block than the one asked for"));
        }
        Ok(block)
    }

    fn mempool(&self) -> Result<Option<HashSet<Txid>>, ChainError> {
        // Until bitcoind has read its mempool back from disk after a start, everything would look
        // evicted.
        let state: MempoolState = ask(self, "getmempoolinfo", json!([]))?;
        if !state.loaded.unwrap_or(true) {
            return Ok(None);
        }
        ask(self, "getrawmempool", json!([])).map(Some)
    }

    fn transactions(&self, txids: &[Txid]) -> Result<Vec<Transaction>, ChainError> {
        const METHOD: &str = "getrawtransaction";
        let params: Vec<Value> = txids.iter().map(|txid| json!([txid])).collect();
        let mut transactions = Vec::with_capacity(txids.len());
        for answer in self.batch::<String>(METHOD, &params)? {
            match answer {
                Ok(hex) => transactions
                    .push(deserialize_hex(&hex).map_err(|error| self.protocol(METHOD, error))?),
                Err(CallError::Answer {
                    code: NOT_FOUND, ..
                }) => {}
                Err(error) => return Err(self.unexpected(METHOD, error)),
            }
        }
        Ok(transactions)
    }
}

/// Makes a call that has no legitimate refusal.
fn ask<T: serde::de::DeserializeOwned>(
    rpc: &Rpc,
    method: &'static str,
    params: Value,
) -> Result<T, ChainError> {
    rpc.call(method, &params)
        .map_err(|error| rpc.unexpected(method, error))
}

impl ChainSource for Bitcoind {
    fn name(&self) -> String {
        let place = self.rpc.node();
        let place = place.strip_prefix("http://").unwrap_or(place);
        format!("bitcoind at {place}")
    }

    fn sight(&self) -> Sight {
        Sight::Everything
    }

    fn poll(&mut self, now: u64) -> Result<Vec<ChainEvent>, ChainError> {
        self.follower.step(&self.rpc, now)
    }

    fn restart(&mut self, start: Start) {
        self.follower = Follower::new(start);
    }

    fn watch(&mut self, from: u32, _scripts: &[ScriptBuf]) {
        // Everything is told whatever the scripts, but the listener was not listening for them.
        self.follower.tell_again(from);
    }

    fn look_again(&mut self, txids: &[Txid], spent: &[OutPoint]) -> Result<(), ChainError> {
        #[derive(Deserialize)]
        struct Spender {
            spendingtxid: Option<Txid>,
        }
        let mut again = txids.to_vec();
        if !spent.is_empty() {
            let outputs: Vec<_> = spent
                .iter()
                .map(|outpoint| json!({ "txid": outpoint.txid, "vout": outpoint.vout }))
                .collect();
            let spenders: Vec<Spender> = ask(&self.rpc, "gettxspendingprevout", json!([outputs]))?;
            again.extend(
                spenders
                    .into_iter()
                    .filter_map(|spender| spender.spendingtxid),
            );
        }
        self.follower.look_again(&again);
        Ok(())
    }

    fn broadcast(&self, transaction: &Transaction) -> Result<Accepted, BroadcastError> {
        self.send(transaction)
    }

    fn broadcast_package(&self, package: &[Transaction]) -> Result<(), BroadcastError> {
        if package.len() > 1 {
            let hexes: Vec<String> = package.iter().map(serialize_hex).collect();
            match self
                .rpc
                .call::<PackageResult>("submitpackage", &json!([hexes]))
            {
                Ok(result)
                    if result.package_msg == "success" && result.results.len() == package.len() =>
                {
                    return Ok(());
                }
                Err(CallError::Chain(error)) if error.is_passing() => return Err(error.into()),
                // A parent that is confirmed already, or a node that knows no packages: each on
                // its own then, which also tells exactly which one is refused and why.
                Ok(_) | Err(_) => {}
            }
        }
        for transaction in package {
            self.send(transaction)?;
        }
        Ok(())
    }

    fn test_accept(&self, transaction: &Transaction) -> Result<Verdict, ChainError> {
        const METHOD: &str = "testmempoolaccept";
        let tested: Vec<TestedTransaction> =
            ask(&self.rpc, METHOD, json!([[serialize_hex(transaction)]]))?;
        let Some(tested) = tested.into_iter().next() else {
            return Err(self.rpc.protocol(METHOD, "no result"));
        };
        if tested.allowed {
            let Some(fees) = tested.fees else {
                return Err(self.rpc.protocol(METHOD, "allowed without a fee"));
            };
            return Ok(Verdict::Allowed {
                vbytes: tested.vsize,
                fee: fees.base,
            });
        }
        Ok(match sort_refusal(&tested.reject_reason) {
            Refusal::InMempool | Refusal::InChain => Verdict::Known,
            Refusal::Rejected(reason) => Verdict::Rejected(Rejection {
                reason,
                detail: tested.reject_reason,
            }),
        })
    }

    fn feerate(&self, target_blocks: u16) -> Result<FeeRate, ChainError> {
        let target = target_blocks.clamp(*ESTIMATE_TARGETS.start(), *ESTIMATE_TARGETS.end());
        let estimate: Estimate = ask(&self.rpc, "estimatesmartfee", json!([target]))?;
        let floor: MempoolFloor = ask(&self.rpc, "getmempoolinfo", json!([]))?;
        let estimate = match (estimate.feerate, self.rpc.config().fallback_feerate) {
            (Some(per_kvb), _) => feerate_of(per_kvb),
            (None, Some(fallback)) => fallback,
            (None, None) => {
                return Err(ChainError::NoEstimate {
                    node: self.rpc.node().to_owned(),
                });
            }
        };
        let floor = floor
            .mempoolminfee
            .map_or(FeeRate::BROADCAST_MIN, feerate_of);
        Ok(estimate.max(floor).max(FeeRate::BROADCAST_MIN))
    }

    fn tip(&self) -> Result<Tip, ChainError> {
        let info: ChainInfo = ask(&self.rpc, "getblockchaininfo", json!([]))?;
        Ok(Tip {
            block: BlockId {
                height: info.blocks,
                hash: info.bestblockhash,
            },
            headers: info.headers,
            syncing: info.initialblockdownload,
        })
    }

    fn block_at(&self, height: u32) -> Result<Option<BlockId>, ChainError> {
        Ok(self
            .rpc
            .block_hash(height)?
            .map(|hash| BlockId { height, hash }))
    }

    fn confirmed_output(&self, outpoint: &OutPoint) -> Result<Option<ConfirmedOutput>, ChainError> {
        let output: Option<TxOut> = ask(
            &self.rpc,
            "gettxout",
            json!([outpoint.txid, outpoint.vout, false]),
        )?;
        Ok(output
            .filter(|output| output.confirmations > 0)
            .map(|output| ConfirmedOutput {
                value: output.value,
                script: output.script.hex,
                confirmations: output.confirmations,
            }))
    }
}

/// The feerate of an amount per 1,000 virtual bytes, rounded up to whole sat per 1,000 weight.
pub(super) fn feerate_of(per_kvb: Amount) -> FeeRate {
    FeeRate::from_sat_per_kwu(per_kvb.to_sat().div_ceil(4))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    InMempool,
    InChain,
    Rejected(RejectReason),
}

/// Sorts bitcoind's words. They are stable: wallets have relied on them for a decade. Servers in
/// front of a bitcoind pass them on.
pub(super) fn sort_refusal(words: &str) -> Refusal {
    use RejectReason::{Conflict, FeeTooLow, Invalid, MissingInputs, NotFinal, Policy};
    const SORTED: &[(&str, Refusal)] = &[
        ("already-in-mempool", Refusal::InMempool),
        ("same-nonwitness-data-in-mempool", Refusal::InMempool),
        ("already-known", Refusal::InChain),
        ("already in utxo set", Refusal::InChain),
        ("already in block chain", Refusal::InChain),
        ("missing-inputs", Refusal::Rejected(MissingInputs)),
        ("missingorspent", Refusal::Rejected(MissingInputs)),
        ("mempool-conflict", Refusal::Rejected(Conflict)),
        ("insufficient fee", Refusal::Rejected(Conflict)),
        ("replacement", Refusal::Rejected(Conflict)),
        ("fee not met", Refusal::Rejected(FeeTooLow)),
        ("mempool full", Refusal::Rejected(FeeTooLow)),
        ("non-final", Refusal::Rejected(NotFinal)),
        ("non-BIP68-final", Refusal::Rejected(NotFinal)),
        ("premature-spend", Refusal::Rejected(NotFinal)),
        ("non-mandatory-script", Refusal::Rejected(Policy)),
        ("script-verify-flag", Refusal::Rejected(Invalid)),
        ("bad-txns", Refusal::Rejected(Invalid)),
        ("bad-witness", Refusal::Rejected(Policy)),
        ("decode failed", Refusal::Rejected(Invalid)),
    ];
    SORTED
        .iter()
        .find(|(part, _)| words.contains(part))
        .map_or(Refusal::Rejected(Policy), |(_, refusal)| *refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_sorted_by_what_can_be_done_about_them() {
        use RejectReason::{Conflict, FeeTooLow, Invalid, MissingInputs, NotFinal, Policy};
        for (words, expected) in [
            ("txn-already-in-mempool", Refusal::InMempool),
            ("txn-already-known", Refusal::InChain),
            (
                "bad-txns-inputs-missingorspent",
                Refusal::Rejected(MissingInputs),
            ),
            ("missing-inputs", Refusal::Rejected(MissingInputs)),
            ("txn-mempool-conflict", Refusal::Rejected(Conflict)),
            (
                "insufficient fee, rejecting replacement 00; new feerate 0.00001000 BTC/kvB",
                Refusal::Rejected(Conflict),
            ),
            (
                "min relay fee not met, 0 < 110",
                Refusal::Rejected(FeeTooLow),
            ),
            (
                "mempool min fee not met, 110 < 220",
                Refusal::Rejected(FeeTooLow),
            ),
            ("non-final", Refusal::Rejected(NotFinal)),
            (
                "bad-txns-premature-spend-of-coinbase, tried",
                Refusal::Rejected(NotFinal),
            ),
            ("dust", Refusal::Rejected(Policy)),
            (
                "TRUC-violation, version=3 tx is too big",
                Refusal::Rejected(Policy),
            ),
            (
                "mandatory-script-verify-flag-failed (Invalid Schnorr)",
                Refusal::Rejected(Invalid),
            ),
            (
                "mempool-script-verify-flag-failed (Invalid Schnorr signature)",
                Refusal::Rejected(Invalid),
            ),
            (
                "non-mandatory-script-verify-flag (unused)",
                Refusal::Rejected(Policy),
            ),
            (
                "bad-txns-in-belowout, value in (1) < value out",
                Refusal::Rejected(Invalid),
            ),
        ] {
            assert_eq!(sort_refusal(words), expected, "{words}");
        }
    }

    #[test]
    fn a_feerate_is_rounded_up_so_that_it_is_never_below_the_floor() {
        assert_eq!(feerate_of(Amount::from_sat(1_000)), FeeRate::BROADCAST_MIN);
        assert_eq!(feerate_of(Amount::from_sat(1_001)).to_sat_per_kwu(), 251);
        assert_eq!(feerate_of(Amount::from_sat(100)).to_sat_per_kwu(), 25);
    }

    #[test]
    fn debug_does_not_show_the_password() {
        let auth = Auth::UserPassword {
            user: "alice".into(),
            password: zeroize::Zeroizing::new("hunter2".into()),
        };
        let config = Config::new("127.0.0.1:18443", auth, bitcoin::Network::Regtest);
        let source = Bitcoind::new(config, Start::default());
        assert!(!format!("{source:?}").contains("hunter2"));
    }
}
