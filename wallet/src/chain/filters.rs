//! A chain source that reads compact block filters (BIP-157 and BIP-158) from nodes of the network.
//!
//! Nobody learns which scripts are ours, and nobody is trusted for much: headers carry proof of work,
//! filters are checked against filter headers on which the required number of peers agree, and only
//! blocks whose filter matches are fetched and checked against their merkle root. All peers together
//! could hide a transaction; none can invent one.
//!
//! There is no mempool to see: what is unconfirmed is unknown, and a broadcast that nobody relays
//! looks like any other. So [`Sight::Blocks`], and the zero-conf limit is zero here.
//!
//! A `Light` node of the crate `bip157` does the talking, on a thread of its own with an async
//! runtime of its own; nothing of that is seen outside of this module.

use std::collections::HashSet;
use std::sync::Mutex;

use bitcoin::{Block, BlockHash, FeeRate, Network, OutPoint, ScriptBuf, Transaction, Txid};

use self::light::{Ask, Light};
use self::seen::DEEPEST_REORG;
use super::follow::{Follower, Node};
use super::{
    Accepted, BlockId, BroadcastError, ChainError, ChainEvent, ChainSource, ConfirmedOutput, Sight,
    Start, Tip, Verdict,
};

mod light;
mod seen;

/// Blocks for which one estimate of the fee rate serves: an hour. Each costs a whole block.
const BLOCKS_PER_ESTIMATE: u32 = 6;

/// How many filters are read again at most rather than trusting a shallow block to stay.
const MOST_EXTRA_FILTERS: u32 = 2_016;

/// Which peers, and what is expected of them.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network whose nodes are asked.
    pub network: Network,
    /// The peers to ask and no others, as `host:port`. Empty: whoever the network's DNS seeds name.
    pub peers: Vec<String>,
    /// Peers that must agree on the filters, 1 to 15. Fewer peers than that give no filters at all.
    pub agreeing: u8,
    /// What to pay where the last block paid nothing. `None` makes that an error.
    pub fallback_feerate: Option<FeeRate>,
}

impl Config {
    /// Whether the peers can be used.
    ///
    /// # Errors
    ///
    /// Says what is wrong with them.
    pub fn check(&self) -> Result<(), String> {
        light::peers(&self.peers).map(|_| ())
    }

    /// What is asked, for people.
    fn place(&self) -> String {
        if self.peers.is_empty() {
            "peers of the network".to_owned()
        } else {
            self.peers.join(", ")
        }
    }
}

/// A [`ChainSource`] on top of the filters of some peers.
pub struct Filters {
    config: Config,
    node: Peers,
    follower: Follower,
    /// Where to begin anew at the next poll.
    restart: Option<Start>,
    /// The last estimate, and at which height it was made.
    estimate: Mutex<Option<(u32, FeeRate)>>,
}

impl Filters {
    /// A source that tells the chain from `start` on. It connects when it is first asked, and until
    /// it is polled it reads headers alone.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the peers.
    pub fn new(config: Config, start: Start) -> Result<Self, String> {
        config.check()?;
        let place = config.place();
        Ok(Self {
            node: Peers {
                place,
                light: Mutex::new(None),
            },
            config,
            follower: Follower::new(Start::default()),
            restart: Some(start),
            estimate: Mutex::default(),
        })
    }

    /// The block from which headers are read if nothing better is known. Nothing of ours lies below
    /// it: our scripts are taproot.
    fn checkpoint(&self) -> BlockId {
        light::checkpoint(self.config.network)
    }

    /// Where headers have to be read from so that `start` can be served: a block that no
    /// reorganisation takes away, because one that replaces it could not be noticed.
    fn base(&self, start: &Start, first: u32) -> BlockId {
        let wanted = first.saturating_sub(1).saturating_sub(DEEPEST_REORG);
        let genesis = light::genesis(self.config.network);
        let checkpoint = self.checkpoint();
        let mut base = if checkpoint.height < first {
            checkpoint
        } else {
            genesis
        };
        let deep = start.locator.iter().filter(|it| it.height <= wanted);
        if let Some(known) = deep.max_by_key(|it| it.height)
            && known.height > base.height
        {
            base = *known;
        }
        if wanted > base.height
            && let Ok(Some(known)) = self.node.header(wanted)
        {
            base = known;
        }
        // Rather a block that is not quite so deep than the filters of a year.
        let shallow = start.locator.iter().filter(|it| it.height > wanted);
        if let Some(known) = shallow.min_by_key(|it| it.height)
            && known.height < first
            && base.height.saturating_add(MOST_EXTRA_FILTERS) < wanted
        {
            base = *known;
        }
        base
    }

    fn begin(&mut self, start: Start) {
        let follower = Follower::new(start.clone());
        let base = self.base(&start, follower.first_height());
        let told = follower.top().map_or(0, |top| top.height);
        let light = Light::start(&self.config, base, Some((told, &start.scripts)));
        self.node.replace(light);
        self.follower = follower;
    }
}

/// The peers, as the follower asks them.
struct Peers {
    place: String,
    light: Mutex<Option<Light>>,
}

impl Peers {
    fn replace(&mut self, light: Light) {
        *self.lock() = Some(light);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Light>> {
        // What is behind it is whole between any two calls.
        self.light
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn unavailable(&self, detail: impl ToString) -> ChainError {
        ChainError::Unavailable {
            node: self.place.clone(),
            detail: detail.to_string(),
        }
    }

    /// Runs `question` on the node, if there is one and it is well.
    fn ask<T>(&self, question: impl FnOnce(&Light) -> Result<T, String>) -> Result<T, ChainError> {
        match &*self.lock() {
            Some(light) => question(light).map_err(|detail| self.unavailable(detail)),
            None => Err(self.unavailable("not connected yet")),
        }
    }

    fn header(&self, height: u32) -> Result<Option<BlockId>, ChainError> {
        self.ask(|light| {
            let known = light.seen().block_at(height);
            match known {
                Some(known) => Ok(Some(known)),
                None => light.ask(|answer| Ask::Header(height, answer)),
            }
        })
    }
}

impl Node for Peers {
    fn best_block(&self) -> Result<BlockHash, ChainError> {
        self.ask(|light| Ok(light.seen().scanned().hash))
    }

    fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        self.ask(|light| {
            let seen = light.seen();
            if height > seen.scanned().height {
                return Ok(None);
            }
            match seen.block_at(height) {
                Some(block) => Ok(Some(block.hash)),
                None => Err(format!("block {height} is below those it reads")),
            }
        })
    }

    fn block(&self, hash: BlockHash, height: u32) -> Result<Block, ChainError> {
        self.ask(|light| {
            let judged = light.seen().judgement(height, hash);
            match judged {
                Some((header, false)) => Ok(Block {
                    header,
                    txdata: Vec::new(),
                }),
                Some((_, true)) => {
                    let block: Block = light.ask(|answer| Ask::Block(hash, answer))?;
                    if block.block_hash() != hash || !block.check_merkle_root() {
                        return Err("another block than the one asked for".to_owned());
                    }
                    Ok(block)
                }
                None => Err("a block left the chain just now".to_owned()),
            }
        })
    }

    fn mempool(&self) -> Result<Option<HashSet<Txid>>, ChainError> {
        Ok(None)
    }

    fn transactions(&self, _txids: &[Txid]) -> Result<Vec<Transaction>, ChainError> {
        Ok(Vec::new())
    }
}

impl ChainSource for Filters {
    fn name(&self) -> String {
        format!("block filters of {}", self.node.place)
    }

    fn sight(&self) -> Sight {
        Sight::Blocks
    }

    fn poll(&mut self, now: u64) -> Result<Vec<ChainEvent>, ChainError> {
        if let Some(start) = self.restart.take() {
            self.begin(start);
        }
        let is_ready = self.node.ask(|light| {
            light.check()?;
            Ok(light.seen().is_ready())
        })?;
        if !is_ready {
            return Ok(Vec::new());
        }
        let events = self.follower.step(&self.node, now)?;
        let told = self.follower.top().map_or(0, |top| top.height);
        self.node.ask(|light| {
            light.seen().forget_told(told);
            Ok(())
        })?;
        Ok(events)
    }

    fn restart(&mut self, start: Start) {
        self.restart = Some(start);
    }

    fn watch(&mut self, from: u32, scripts: &[ScriptBuf]) {
        if let Some(start) = &mut self.restart {
            start.scripts.extend_from_slice(scripts);
            return;
        }
        let touched = self
            .node
            .ask(|light| Ok(light.seen().watch(from, scripts)))
            .ok()
            .flatten();
        if let Some(height) = touched {
            self.follower.tell_again(height);
        }
    }

    fn look_again(&mut self, _txids: &[Txid], _spent: &[OutPoint]) -> Result<(), ChainError> {
        // There is no mempool to look at.
        Ok(())
    }

    fn broadcast(&self, transaction: &Transaction) -> Result<Accepted, BroadcastError> {
        self.broadcast_package(std::slice::from_ref(transaction))?;
        Ok(Accepted::Sent)
    }

    fn broadcast_package(&self, package: &[Transaction]) -> Result<(), BroadcastError> {
        Ok(self.node.ask(|light| {
            light.check()?;
            light.ask(|answer| Ask::Offer(package.to_vec(), answer))
        })?)
    }

    fn test_accept(&self, _transaction: &Transaction) -> Result<Verdict, ChainError> {
        Ok(Verdict::Unknown)
    }

    /// What the last block paid on average, and no less than what peers relay. There is no mempool
    /// to estimate from, so neither is the number of blocks of any use.
    fn feerate(&self, _target_blocks: u16) -> Result<FeeRate, ChainError> {
        let tip = self.tip()?.block;
        let mut estimate = self
            .estimate
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let feerate = match *estimate {
            Some((at, feerate)) if tip.height.abs_diff(at) < BLOCKS_PER_ESTIMATE => feerate,
            Some(_) | None => {
                let feerate = self
                    .node
                    .ask(|light| light.ask(|answer| Ask::Paid(tip.hash, answer)))?;
                *estimate = Some((tip.height, feerate));
                feerate
            }
        };
        let floor = self.node.ask(|light| light.ask(Ask::Floor))?;
        let paid = (feerate > FeeRate::ZERO).then_some(feerate);
        paid.or(self.config.fallback_feerate)
            .map(|feerate| feerate.max(floor).max(FeeRate::BROADCAST_MIN))
            .ok_or_else(|| ChainError::NoEstimate {
                node: self.node.place.clone(),
            })
    }

    fn tip(&self) -> Result<Tip, ChainError> {
        if self.node.lock().is_none() {
            let light = Light::start(&self.config, self.checkpoint(), None);
            *self.node.lock() = Some(light);
        }
        self.node.ask(|light| {
            light.check()?;
            let seen = light.seen();
            let (block, headers) = (seen.scanned(), seen.top().height);
            if headers == 0 && !seen.is_ready() {
                return Err("no peer has answered yet".to_owned());
            }
            Ok(Tip {
                block,
                headers,
                syncing: !seen.is_ready() || block.height < headers,
            })
        })
    }

    fn block_at(&self, height: u32) -> Result<Option<BlockId>, ChainError> {
        let tip = self.tip()?;
        if height > tip.headers {
            return Ok(None);
        }
        let base = self.node.ask(|light| Ok(light.seen().base()))?;
        if height <= base.height {
            return Ok(Some(base));
        }
        self.node.header(height)
    }

    fn confirmed_output(
        &self,
        _outpoint: &OutPoint,
    ) -> Result<Option<ConfirmedOutput>, ChainError> {
        Err(ChainError::Blind {
            node: self.node.place.clone(),
            what: "whether an output that is not watched is unspent",
        })
    }
}
