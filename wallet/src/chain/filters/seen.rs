//! What a light node has seen: headers, and for each block whether its filter matches. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use bitcoin::bip158::BlockFilter;
use bitcoin::block::Header;
use bitcoin::{BlockHash, ScriptBuf};

use crate::chain::BlockId;

/// Blocks that a reorganisation can take away, generously. Filters of so many told blocks are kept,
/// to be matched against scripts that are added later.
pub(super) const DEEPEST_REORG: u32 = 144;

/// Headers kept below the last block told.
const KEPT_HEADERS: u32 = 2_016;

/// Filters of blocks that were not told yet that are kept, at some 20 kB each. A block whose filter
/// was not kept counts as one that matches when a script is added.
const KEPT_AHEAD: usize = 1_000;

/// Whether one of `scripts` is in the filter of the block (BIP-158), or seems to be: one filter in
/// 784,931 lies for each script. A filter that cannot be read matches, so that its block is read.
pub(super) fn touches<'a>(
    filter: &BlockFilter,
    block: &BlockHash,
    scripts: impl Iterator<Item = &'a ScriptBuf> + Clone,
) -> bool {
    // The filter code takes the question about nothing for one with the answer yes.
    scripts.clone().next().is_some()
        && filter
            .match_any(block, scripts.map(|script| script.as_bytes()))
            .unwrap_or(true)
}

/// A block whose filter was read.
struct Judged {
    hash: BlockHash,
    is_touched: bool,
    /// Kept while a script may still be added.
    filter: Option<BlockFilter>,
}

/// Headers of the best chain above a base, and what the filters say.
pub(super) struct Seen {
    base: BlockId,
    headers: BTreeMap<u32, Header>,
    judged: HashMap<u32, Judged>,
    /// The last block up to which every filter was read.
    scanned: u32,
    /// The last block told.
    told: u32,
    scripts: HashSet<ScriptBuf>,
    /// Whether blocks are read for scripts, or headers alone.
    reads_filters: bool,
    /// Set when the node says that it has all there is.
    is_complete: bool,
    kept_ahead: usize,
}

impl Seen {
    /// Nothing above `base`. With `follows`, filters are to be read, for listeners who were told the
    /// chain up to that height and have those scripts.
    pub(super) fn new(base: BlockId, follows: Option<(u32, &[ScriptBuf])>) -> Self {
        Self {
            base,
            headers: BTreeMap::new(),
            judged: HashMap::new(),
            scanned: base.height,
            told: follows.map_or(0, |(told, _)| told),
            scripts: follows
                .map(|(_, scripts)| scripts.iter().cloned().collect())
                .unwrap_or_default(),
            reads_filters: follows.is_some(),
            is_complete: false,
            kept_ahead: 0,
        }
    }

    /// Forgets the chain and begins again at a block that is deep enough: for a node that has to
    /// start over because it lost its peers.
    pub(super) fn start_over(&mut self) -> BlockId {
        let depth = self.told.saturating_sub(DEEPEST_REORG);
        if let Some(header) = self.headers.get(&depth) {
            self.base = BlockId {
                height: depth,
                hash: header.block_hash(),
            };
        }
        self.headers.clear();
        self.judged.clear();
        self.scanned = self.base.height;
        self.is_complete = false;
        self.kept_ahead = 0;
        self.base
    }

    pub(super) fn base(&self) -> BlockId {
        self.base
    }

    pub(super) fn reads_filters(&self) -> bool {
        self.reads_filters
    }

    /// The highest header.
    pub(super) fn top(&self) -> BlockId {
        let top = self.headers.last_key_value();
        top.map_or(self.base, |(height, header)| BlockId {
            height: *height,
            hash: header.block_hash(),
        })
    }

    /// The last block that can be told: up to it, every filter was read.
    pub(super) fn scanned(&self) -> BlockId {
        if !self.reads_filters && self.is_complete {
            return self.top();
        }
        self.block_at(self.scanned).unwrap_or(self.base)
    }

    /// Whether what is told can be compared with what was told before: the chain is known at least
    /// as high. Until then, everything above would look as if it had left the chain.
    pub(super) fn is_ready(&self) -> bool {
        if self.reads_filters {
            self.scanned >= self.told && (self.is_complete || self.scanned > self.base.height)
        } else {
            self.is_complete
        }
    }

    pub(super) fn block_at(&self, height: u32) -> Option<BlockId> {
        if height == self.base.height {
            return Some(self.base);
        }
        let header = self.headers.get(&height)?;
        Some(BlockId {
            height,
            hash: header.block_hash(),
        })
    }

    /// The header of a block whose filter was read, and whether that matched.
    pub(super) fn judgement(&self, height: u32, hash: BlockHash) -> Option<(Header, bool)> {
        let header = self.headers.get(&height)?;
        let judged = self.judged.get(&height)?;
        (judged.hash == hash && header.block_hash() == hash).then_some((*header, judged.is_touched))
    }

    pub(super) fn connected(&mut self, height: u32, header: Header) {
        self.headers.insert(height, header);
        if !self.reads_filters {
            self.is_complete = false;
            let kept = height.saturating_sub(KEPT_HEADERS);
            self.headers = self.headers.split_off(&kept);
        }
    }

    /// The blocks from `height` on left the best chain, and `accepted` take their place.
    pub(super) fn reorganised(&mut self, height: u32, accepted: Vec<(u32, Header)>) {
        self.headers.split_off(&height);
        self.judged.retain(|at, _| *at < height);
        self.scanned = self.scanned.min(height.saturating_sub(1));
        for (height, header) in accepted {
            self.headers.insert(height, header);
        }
    }

    /// A filter was read and found genuine.
    pub(super) fn filtered(&mut self, height: u32, hash: BlockHash, filter: BlockFilter) {
        if !self.reads_filters {
            return;
        }
        let is_touched = touches(&filter, &hash, self.scripts.iter());
        let keeps = height <= self.told || self.kept_ahead < KEPT_AHEAD;
        if keeps && height > self.told {
            self.kept_ahead = self.kept_ahead.saturating_add(1);
        }
        let judged = Judged {
            hash,
            is_touched,
            filter: keeps.then_some(filter),
        };
        self.judged.insert(height, judged);
        while let Some(above) = self.scanned.checked_add(1)
            && let (Some(header), Some(judged)) =
                (self.headers.get(&above), self.judged.get(&above))
            && header.block_hash() == judged.hash
        {
            self.scanned = above;
        }
    }

    pub(super) fn completed(&mut self) {
        self.is_complete = true;
    }

    /// Adds scripts. Returns the lowest block from `from` on that was told and that touches one.
    pub(super) fn watch(&mut self, from: u32, scripts: &[ScriptBuf]) -> Option<u32> {
        let new: Vec<ScriptBuf> = scripts
            .iter()
            .filter(|script| self.scripts.insert((*script).clone()))
            .cloned()
            .collect();
        if new.is_empty() {
            return None;
        }
        let mut lowest = None;
        for (height, judged) in &mut self.judged {
            if *height < from {
                continue;
            }
            let matches = match &judged.filter {
                Some(filter) => touches(filter, &judged.hash, new.iter()),
                None => *height > self.told,
            };
            if matches {
                judged.is_touched = true;
                if *height <= self.told {
                    lowest = Some(lowest.map_or(*height, |lowest: u32| lowest.min(*height)));
                }
            }
        }
        lowest
    }

    /// The chain was told up to `height`: what is far below is not needed any more.
    pub(super) fn forget_told(&mut self, height: u32) {
        if height == self.told {
            return;
        }
        self.told = height;
        let filters = height.saturating_sub(DEEPEST_REORG);
        let headers = height.saturating_sub(KEPT_HEADERS);
        self.headers = self.headers.split_off(&headers);
        self.judged.retain(|at, _| *at >= headers);
        let mut kept_ahead = 0_usize;
        for (at, judged) in &mut self.judged {
            if *at < filters {
                judged.filter = None;
            } else if *at > height && judged.filter.is_some() {
                kept_ahead = kept_ahead.saturating_add(1);
            }
        }
        self.kept_ahead = kept_ahead;
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::bip158::FilterHeader;
    use bitcoin::consensus::encode::deserialize_hex;
    use bitcoin::constants::genesis_block;
    use bitcoin::hashes::Hash as _;
    use bitcoin::{Block, Network};

    use super::*;

    /// Bitcoin Core's `blockfilters.json`, which is BIP-158's `testnet-19.json`.
    const VECTORS: &str = include_str!("../../../tests/vectors/bip158_blockfilters.json");

    #[test]
    fn the_vectors_of_bip_158_hold_and_every_script_of_a_block_is_found_in_its_filter() {
        let rows: Vec<serde_json::Value> = serde_json::from_str(VECTORS).unwrap();
        let mut tested = 0;
        for row in &rows {
            // The first row names the columns.
            let Some(height) = row[0].as_u64() else {
                continue;
            };
            let text = |at: usize| row[at].as_str().unwrap();
            let block: Block = deserialize_hex(text(2)).unwrap();
            let hash: BlockHash = text(1).parse().unwrap();
            assert_eq!(block.block_hash(), hash, "{height}");
            let spent: Vec<ScriptBuf> = row[3]
                .as_array()
                .unwrap()
                .iter()
                .map(|hex| ScriptBuf::from_hex(hex.as_str().unwrap()).unwrap())
                .collect();
            let previous: FilterHeader = text(4).parse().unwrap();
            let filter = BlockFilter::new(&hex::decode(text(5)).unwrap());

            let inputs = block.txdata.iter().skip(1).flat_map(|tx| &tx.input);
            let known: HashMap<_, _> = inputs
                .map(|input| input.previous_output)
                .zip(spent.clone())
                .collect();
            let made = BlockFilter::new_script_filter(&block, |outpoint| {
                Ok::<_, bitcoin::bip158::Error>(known[outpoint].clone())
            });
            assert_eq!(made.unwrap().content, filter.content, "{height}");
            assert_eq!(
                filter.filter_header(&previous).to_string(),
                text(6),
                "{height}"
            );

            let paid = block.txdata.iter().flat_map(|tx| &tx.output);
            let paid = paid.map(|output| output.script_pubkey.clone());
            for script in paid.chain(spent) {
                let is_in = !script.is_empty() && !script.is_op_return();
                let found = touches(&filter, &hash, [script.clone()].iter());
                assert_eq!(found, is_in, "{height}: {script}");
            }
            assert!(!touches(&filter, &hash, [].iter()), "{height}");
            tested += 1;
        }
        assert_eq!(tested, rows.len() - 1);
        assert!(tested >= 10);
    }

    /// A chain of headers that need no work, with filters that hold one script each.
    fn chain(length: u32) -> Vec<(u32, Header, BlockFilter, ScriptBuf)> {
        let mut previous = genesis_block(Network::Regtest).block_hash();
        let mut chain = Vec::new();
        for height in 1..=length {
            let mut block = genesis_block(Network::Regtest);
            let script = ScriptBuf::from_bytes(height.to_le_bytes().to_vec());
            block.header.prev_blockhash = previous;
            block.header.nonce = height;
            block.txdata[0].output[0].script_pubkey = script.clone();
            previous = block.block_hash();
            let filter = BlockFilter::new_script_filter(&block, |_| {
                Err::<ScriptBuf, _>(bitcoin::bip158::Error::UtxoMissing(
                    bitcoin::OutPoint::null(),
                ))
            });
            chain.push((height, block.header, filter.unwrap(), script));
        }
        chain
    }

    fn base() -> BlockId {
        BlockId {
            height: 0,
            hash: genesis_block(Network::Regtest).block_hash(),
        }
    }

    fn seen(length: u32, scripts: &[ScriptBuf]) -> Seen {
        let mut seen = Seen::new(base(), Some((0, scripts)));
        for (height, header, filter, _) in chain(length) {
            seen.connected(height, header);
            seen.filtered(height, header.block_hash(), filter);
        }
        seen
    }

    #[test]
    fn a_block_can_be_told_once_every_filter_up_to_it_was_read() {
        let blocks = chain(3);
        let mut seen = Seen::new(base(), Some((0, &[])));
        for (height, header, ..) in &blocks {
            seen.connected(*height, *header);
        }
        assert_eq!((seen.top().height, seen.scanned().height), (3, 0));
        assert!(!seen.is_ready());
        for at in [0, 2] {
            let (height, header, filter, _) = blocks[at].clone();
            seen.filtered(height, header.block_hash(), filter);
        }
        assert_eq!(seen.scanned().height, 1, "the second is missing");
        let (height, header, filter, _) = blocks[1].clone();
        seen.filtered(height, header.block_hash(), filter);
        assert_eq!(seen.scanned().height, 3);
        assert!(seen.is_ready());
    }

    #[test]
    fn a_script_that_is_added_later_is_looked_for_in_what_was_told() {
        let scripts: Vec<ScriptBuf> = chain(9).into_iter().map(|it| it.3).collect();
        let mut seen = seen(9, &scripts[..1]);
        seen.forget_told(6);
        let judged = |seen: &Seen, height: u32| {
            let hash = seen.block_at(height).unwrap().hash;
            seen.judgement(height, hash).unwrap().1
        };
        assert!(judged(&seen, 1) && !judged(&seen, 5) && !judged(&seen, 8));
        assert_eq!(seen.watch(1, &scripts[7..8]), None, "not told yet");
        assert!(judged(&seen, 8));
        assert_eq!(
            seen.watch(6, &scripts[4..5]),
            None,
            "below what is asked for"
        );
        assert_eq!(seen.watch(1, &scripts[2..4]), Some(3));
        assert!(judged(&seen, 3) && judged(&seen, 4));
        assert_eq!(
            seen.watch(1, &scripts[2..4]),
            None,
            "the second time is no news"
        );
    }

    #[test]
    fn a_reorganisation_takes_back_what_was_read_above_it() {
        let mut seen = seen(5, &[]);
        let (_, mut header, ..) = chain(4).pop().unwrap();
        header.nonce = 99;
        seen.reorganised(4, vec![(4, header)]);
        assert_eq!((seen.top().height, seen.scanned().height), (4, 3));
        assert_eq!(seen.judgement(4, header.block_hash()), None);
    }

    #[test]
    fn a_node_that_starts_over_begins_below_what_was_told_and_is_not_believed_before_it_is_there() {
        let mut seen = seen(400, &[]);
        seen.forget_told(400);
        let base = seen.start_over();
        assert_eq!(base.height, 400 - DEEPEST_REORG);
        assert!(!seen.is_ready());
        let blocks = chain(400);
        for (height, header, filter, _) in blocks.into_iter().skip(base.height as usize) {
            assert!(!seen.is_ready(), "{height}");
            seen.connected(height, header);
            seen.filtered(height, header.block_hash(), filter);
        }
        assert!(seen.is_ready());
        assert_ne!(seen.scanned().hash, BlockHash::all_zeros());
    }
}
