use bitcoin::absolute::LockTime;
use bitcoin::block::{Header, Version as BlockVersion};
use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{Amount, Block, CompactTarget, Sequence, TxIn, TxMerkleNode, TxOut, Witness};
use proptest::prelude::*;

use super::*;

fn outpoint(number: u8, vout: u32) -> OutPoint {
    OutPoint {
        txid: Txid::from_byte_array([number; 32]),
        vout,
    }
}

fn spend(inputs: &[OutPoint], salt: u32) -> Transaction {
    Transaction {
        version: Version(3),
        lock_time: LockTime::from_height(salt).unwrap(),
        input: inputs
            .iter()
            .map(|previous_output| TxIn {
                previous_output: *previous_output,
                script_sig: ScriptBuf::new(),
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                witness: Witness::new(),
            })
            .collect(),
        output: vec![TxOut {
            value: Amount::from_sat(10_000),
            script_pubkey: script(),
        }],
    }
}

fn script() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x51])
}

fn block_on(parent: BlockHash, salt: u32, txdata: Vec<Transaction>) -> Block {
    Block {
        header: Header {
            version: BlockVersion::TWO,
            prev_blockhash: parent,
            merkle_root: TxMerkleNode::all_zeros(),
            time: 0,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: salt,
        },
        txdata,
    }
}

const BASE: u32 = 100;

fn base() -> BlockId {
    BlockId {
        height: BASE,
        hash: BlockHash::all_zeros(),
    }
}

/// A chain and a mempool that tell events as a source does.
#[derive(Clone)]
struct World {
    blocks: Vec<Block>,
    mempool: Vec<Transaction>,
    salt: u32,
}

impl World {
    fn new() -> Self {
        Self {
            blocks: Vec::new(),
            mempool: Vec::new(),
            salt: 0,
        }
    }

    fn height(&self) -> u32 {
        BASE + self.blocks.len() as u32
    }

    fn chain(&self) -> impl Iterator<Item = (u32, &Transaction)> {
        self.blocks
            .iter()
            .zip(BASE + 1..)
            .flat_map(|(block, height)| block.txdata.iter().map(move |tx| (height, tx)))
    }

    fn is_mined(&self, tx: &Transaction) -> bool {
        self.chain().any(|(_, mined)| mined == tx)
    }

    fn conflicts(one: &Transaction, other: &Transaction) -> bool {
        one != other
            && one.input.iter().any(|input| {
                other
                    .input
                    .iter()
                    .any(|theirs| theirs.previous_output == input.previous_output)
            })
    }

    fn is_child(child: &Transaction, parent: &Transaction) -> bool {
        let parent = parent.compute_txid();
        child
            .input
            .iter()
            .any(|input| input.previous_output.txid == parent)
    }

    /// Whether it could be mined or relayed next: not mined, no conflict mined, parents there.
    fn is_valid(&self, tx: &Transaction, parents: &[Transaction]) -> bool {
        !self.is_mined(tx)
            && !self.chain().any(|(_, mined)| Self::conflicts(mined, tx))
            && parents.iter().all(|parent| {
                !Self::is_child(tx, parent)
                    || self.is_mined(parent)
                    || self.mempool.contains(parent)
            })
    }

    /// Takes a transaction and what builds on it out of the mempool.
    fn drop_from_mempool(&mut self, tx: &Transaction, gone: &mut Vec<Txid>) {
        if !self.mempool.contains(tx) {
            return;
        }
        self.mempool.retain(|other| other != tx);
        gone.push(tx.compute_txid());
        let children: Vec<_> = self
            .mempool
            .iter()
            .filter(|other| Self::is_child(other, tx))
            .cloned()
            .collect();
        for child in children {
            self.drop_from_mempool(&child, gone);
        }
    }

    fn relay(&mut self, tx: &Transaction, all: &[Transaction]) -> Vec<ChainEvent> {
        if self.mempool.contains(tx) || !self.is_valid(tx, all) {
            return Vec::new();
        }
        let mut evicted = Vec::new();
        let rivals: Vec<_> = self
            .mempool
            .iter()
            .filter(|other| Self::conflicts(other, tx))
            .cloned()
            .collect();
        for rival in rivals {
            self.drop_from_mempool(&rival, &mut evicted);
        }
        // Replacing an ancestor's rival may have taken the ancestor itself away.
        if !self.is_valid(tx, all) {
            return vec![mempool(Vec::new(), evicted)];
        }
        self.mempool.push(tx.clone());
        vec![mempool(vec![tx.clone()], evicted)]
    }

    fn evict(&mut self, tx: &Transaction) -> Vec<ChainEvent> {
        let mut evicted = Vec::new();
        self.drop_from_mempool(tx, &mut evicted);
        if evicted.is_empty() {
            return Vec::new();
        }
        vec![mempool(Vec::new(), evicted)]
    }

    /// Mines what is given, and whatever of it is valid, whether it was relayed or not.
    fn mine(&mut self, wanted: &[Transaction], all: &[Transaction]) -> Vec<ChainEvent> {
        let mut txdata: Vec<Transaction> = Vec::new();
        for tx in wanted {
            let has_parents = all.iter().all(|parent| {
                !Self::is_child(tx, parent) || self.is_mined(parent) || txdata.contains(parent)
            });
            let is_free = !txdata.iter().any(|other| Self::conflicts(other, tx));
            let is_new = !self.chain().any(|(_, m)| m == tx || Self::conflicts(m, tx));
            if has_parents && is_free && is_new && !txdata.contains(tx) {
                txdata.push(tx.clone());
            }
        }
        self.salt += 1;
        let parent = self.blocks.last().map_or(base().hash, Block::block_hash);
        let block = block_on(parent, self.salt, txdata);
        self.blocks.push(block.clone());
        let mut events = vec![ChainEvent::Connected {
            height: self.height(),
            block: Arc::new(block.clone()),
        }];
        let mut evicted = Vec::new();
        for tx in &block.txdata {
            self.mempool.retain(|other| other != tx);
            let rivals: Vec<_> = self
                .mempool
                .iter()
                .filter(|other| Self::conflicts(other, tx))
                .cloned()
                .collect();
            for rival in rivals {
                self.drop_from_mempool(&rival, &mut evicted);
            }
        }
        if !evicted.is_empty() {
            events.push(mempool(Vec::new(), evicted));
        }
        events
    }

    /// Takes blocks off; what they held returns to the mempool, as a node does it.
    fn disconnect(&mut self, depth: usize, all: &[Transaction]) -> Vec<ChainEvent> {
        let mut events = Vec::new();
        let mut back = Vec::new();
        for _ in 0..depth {
            let height = self.height();
            let Some(block) = self.blocks.pop() else {
                break;
            };
            events.push(ChainEvent::Disconnected {
                height,
                hash: block.block_hash(),
            });
            back.splice(0..0, block.txdata);
        }
        // The node puts them back before anyone can look: told together with the next listing.
        let mut seen = Vec::new();
        let mut evicted = Vec::new();
        for tx in back {
            let rivals: Vec<_> = self
                .mempool
                .iter()
                .filter(|other| Self::conflicts(other, &tx))
                .cloned()
                .collect();
            for rival in rivals {
                self.drop_from_mempool(&rival, &mut evicted);
            }
            if self.is_valid(&tx, all) && !self.mempool.contains(&tx) {
                self.mempool.push(tx.clone());
                seen.push(tx);
            }
        }
        if !seen.is_empty() || !evicted.is_empty() {
            events.push(mempool(seen, evicted));
        }
        events
    }
}

fn mempool(seen: Vec<Transaction>, evicted: Vec<Txid>) -> ChainEvent {
    ChainEvent::Mempool {
        at: 0,
        seen: seen.into_iter().map(Arc::new).collect(),
        evicted,
    }
}

/// What somebody knows who only hears the events.
#[derive(Default)]
struct Listener {
    standing: Option<WatchEvent>,
    spend: Option<(Transaction, Option<u32>)>,
}

impl Listener {
    fn hear(&mut self, watcher: &mut Watcher) {
        while let Some(event) = watcher.poll_event() {
            match event {
                WatchEvent::Spent {
                    transaction,
                    height,
                    ..
                } => self.spend = Some((transaction.as_ref().clone(), height)),
                WatchEvent::Unspent { .. } => self.spend = None,
                event => self.standing = Some(event),
            }
        }
    }
}

/// The transactions of a world: funding, rivals of it, spends of its output.
struct Cast {
    funding: Transaction,
    rivals: Vec<Transaction>,
    spends: Vec<Transaction>,
}

impl Cast {
    fn new() -> Self {
        let (a, b) = (outpoint(1, 0), outpoint(2, 1));
        let funding = spend(&[a, b], 0);
        let output = OutPoint {
            txid: funding.compute_txid(),
            vout: 0,
        };
        Self {
            rivals: vec![
                spend(&[a], 1),
                spend(&[b], 2),
                spend(&[a, outpoint(9, 9)], 3),
            ],
            spends: vec![spend(&[output], 4), spend(&[output, outpoint(8, 8)], 5)],
            funding,
        }
    }

    fn output(&self) -> OutPoint {
        OutPoint {
            txid: self.funding.compute_txid(),
            vout: 0,
        }
    }

    fn all(&self) -> Vec<Transaction> {
        let mut all = vec![self.funding.clone()];
        all.extend(self.rivals.iter().chain(&self.spends).cloned());
        all.push(spend(&[outpoint(7, 7)], 6));
        all
    }

    fn watcher(&self) -> Watcher {
        let mut watcher = Watcher::new(base());
        watcher
            .watch(self.output(), script(), &self.funding)
            .unwrap();
        watcher
    }
}

/// The truth, looked up in the world.
fn check(world: &World, cast: &Cast, heard: &Listener) {
    let outpoint = cast.output();
    let place = |tx: &Transaction| {
        let mined = world.chain().find(|(_, mined)| *mined == tx);
        match mined {
            Some((height, _)) => Some(Some(height)),
            None => world.mempool.contains(tx).then_some(None),
        }
    };
    let confirmations = |height: u32| world.height() - height + 1;
    let conflict = cast
        .rivals
        .iter()
        .filter_map(|rival| Some((place(rival)?, rival)))
        .map(|(at, rival)| (at.map_or(0, confirmations), rival.compute_txid()))
        .max_by_key(|(depth, txid)| (*depth, std::cmp::Reverse(*txid)));
    match (place(&cast.funding), conflict) {
        (Some(None), _) => assert_eq!(heard.standing, Some(WatchEvent::Seen { outpoint })),
        (Some(Some(height)), _) => assert_eq!(
            heard.standing,
            Some(WatchEvent::Depth {
                outpoint,
                confirmations: confirmations(height)
            })
        ),
        (None, Some((confirmations, by))) => assert_eq!(
            heard.standing,
            Some(WatchEvent::Conflicted {
                outpoint,
                by,
                confirmations
            })
        ),
        (None, None) => assert!(
            matches!(heard.standing, None | Some(WatchEvent::Dropped { .. })),
            "{:?}",
            heard.standing
        ),
    }
    let spent = cast
        .spends
        .iter()
        .find_map(|spend| Some((spend.clone(), place(spend)?)));
    assert_eq!(heard.spend, spent);
}

#[derive(Clone, Debug)]
enum Step {
    Relay(usize),
    Evict(usize),
    Mine(Vec<usize>),
    Reorganise { off: usize, on: Vec<Vec<usize>> },
    Restart,
    Repeat,
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..7_usize;
    prop_oneof![
        4 => index.clone().prop_map(Step::Relay),
        2 => index.clone().prop_map(Step::Evict),
        4 => prop::collection::vec(index.clone(), 0..4).prop_map(Step::Mine),
        2 => (1..4_usize, prop::collection::vec(prop::collection::vec(index, 0..3), 0..5))
            .prop_map(|(off, on)| Step::Reorganise { off, on }),
        1 => Just(Step::Restart),
        1 => Just(Step::Repeat),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 4, ..Default::default() })]

    #[test]
    fn who_hears_the_events_knows_the_truth_whatever_the_chain_does(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let cast = Cast::new();
        let all = cast.all();
        let mut world = World::new();
        let mut watcher = cast.watcher();
        let mut heard = Listener::default();
        let mut last = Vec::new();
        for step in steps {
            let pick = |indices: &[usize]| -> Vec<Transaction> {
                indices.iter().map(|index| all[*index].clone()).collect()
            };
            let events = match step {
                Step::Relay(index) => world.relay(&all[index], &all),
                Step::Evict(index) => world.evict(&all[index]),
                Step::Mine(indices) => world.mine(&pick(&indices), &all),
                Step::Reorganise { off, on } => {
                    let mut events = world.disconnect(off, &all);
                    for indices in on {
                        events.extend(world.mine(&pick(&indices), &all));
                    }
                    events
                }
                Step::Restart => {
                    watcher = Watcher::restore(&watcher.snapshot()).unwrap();
                    heard = Listener {
                        // A machine that was dropped stays told so; the watcher has no more to say.
                        standing: heard
                            .standing
                            .filter(|event| matches!(event, WatchEvent::Dropped { .. })),
                        spend: None,
                    };
                    watcher.tell_again(&cast.output());
                    Vec::new()
                }
                Step::Repeat => {
                    // The end of what was told, told once more: blocks only, as after a restart.
                    std::mem::take(&mut last)
                        .into_iter()
                        .filter(|event| matches!(event, ChainEvent::Connected { block, .. }
                            if world.blocks.contains(block)))
                        .collect()
                }
            };
            for event in &events {
                watcher.apply(event).unwrap();
            }
            heard.hear(&mut watcher);
            check(&world, &cast, &heard);
            last = events;
        }
    }
}

#[test]
fn a_funding_is_followed_from_the_mempool_into_depth_and_spent() {
    let cast = Cast::new();
    let all = cast.all();
    let outpoint = cast.output();
    let mut world = World::new();
    let mut watcher = cast.watcher();
    let mut tell = |events: Vec<ChainEvent>| {
        for event in &events {
            watcher.apply(event).unwrap();
        }
        std::iter::from_fn(|| watcher.poll_event()).collect::<Vec<_>>()
    };

    assert_eq!(
        tell(world.relay(&cast.funding, &all)),
        [WatchEvent::Seen { outpoint }]
    );
    for confirmations in 1..=3 {
        assert_eq!(
            tell(world.mine(std::slice::from_ref(&cast.funding), &all)),
            [WatchEvent::Depth {
                outpoint,
                confirmations
            }]
        );
    }
    let transaction = Arc::new(cast.spends[0].clone());
    assert_eq!(
        tell(world.relay(&transaction, &all)),
        [WatchEvent::Spent {
            outpoint,
            transaction: Arc::clone(&transaction),
            height: None
        }]
    );
}

#[test]
fn depth_is_told_up_to_a_bound_and_then_no_more() {
    let cast = Cast::new();
    let mut world = World::new();
    let mut watcher = cast.watcher();
    let mut told = 0;
    for _ in 0..REPORTED_CONFIRMATIONS + 10 {
        for event in world.mine(std::slice::from_ref(&cast.funding), &cast.all()) {
            watcher.apply(&event).unwrap();
        }
        told += std::iter::from_fn(|| watcher.poll_event()).count() as u32;
    }
    assert_eq!(told, REPORTED_CONFIRMATIONS);
}

#[test]
fn a_gap_is_refused_and_changes_nothing() {
    let cast = Cast::new();
    let mut watcher = cast.watcher();
    let stray = ChainEvent::Connected {
        height: BASE + 2,
        block: Arc::new(block_on(base().hash, 1, vec![cast.funding.clone()])),
    };
    let unrelated = ChainEvent::Connected {
        height: BASE + 1,
        block: Arc::new(block_on(
            BlockHash::from_byte_array([7; 32]),
            1,
            vec![cast.funding.clone()],
        )),
    };
    for event in [stray, unrelated] {
        assert!(matches!(
            watcher.apply(&event),
            Err(WatchError::Gap { told: BASE, .. })
        ));
        assert_eq!(watcher.poll_event(), None);
        assert_eq!(watcher.height(), BASE);
    }
}

#[test]
fn a_replacement_that_does_not_connect_changes_nothing() {
    let cast = Cast::new();
    let mut world = World::new();
    let mut watcher = cast.watcher();
    for txdata in [vec![], vec![cast.funding.clone()], vec![]] {
        for event in world.mine(&txdata, &cast.all()) {
            watcher.apply(&event).unwrap();
        }
    }
    while watcher.poll_event().is_some() {}
    let before = watcher.snapshot();

    let stray = ChainEvent::Connected {
        height: BASE + 2,
        block: Arc::new(block_on(BlockHash::from_byte_array([7; 32]), 9, vec![])),
    };
    assert!(watcher.apply(&stray).is_err());
    assert_eq!(watcher.snapshot(), before);
    assert_eq!(watcher.poll_event(), None);
}

#[test]
fn a_reorganisation_below_the_first_block_known_is_survived() {
    let cast = Cast::new();
    let mut watcher = cast.watcher();
    let others = BlockHash::from_byte_array([9; 32]);

    watcher
        .apply(&ChainEvent::Disconnected {
            height: BASE,
            hash: base().hash,
        })
        .unwrap();
    let block = block_on(others, 1, vec![cast.funding.clone()]);
    watcher
        .apply(&ChainEvent::Connected {
            height: BASE,
            block: Arc::new(block),
        })
        .unwrap();

    assert_eq!(
        watcher.poll_event(),
        Some(WatchEvent::Depth {
            outpoint: cast.output(),
            confirmations: 1
        })
    );
    assert_eq!(watcher.height(), BASE);
}

#[test]
fn a_funding_that_was_mined_before_the_watch_is_found_by_telling_its_block_again() {
    let cast = Cast::new();
    let mut world = World::new();
    let mut watcher = Watcher::new(base());
    let mut events = world.mine(std::slice::from_ref(&cast.funding), &cast.all());
    events.extend(world.mine(&[], &cast.all()));
    for event in &events {
        watcher.apply(event).unwrap();
    }

    watcher
        .watch(cast.output(), script(), &cast.funding)
        .unwrap();
    assert_eq!(watcher.poll_event(), None);
    for event in &events {
        watcher.apply(event).unwrap();
    }

    assert_eq!(
        watcher.poll_event(),
        Some(WatchEvent::Depth {
            outpoint: cast.output(),
            confirmations: 2
        })
    );
    assert_eq!(watcher.poll_event(), None);
}

#[test]
fn what_is_not_watched_any_more_is_not_told() {
    let cast = Cast::new();
    let mut world = World::new();
    let mut watcher = cast.watcher();
    watcher.unwatch(&cast.output());
    for event in world.mine(&cast.all(), &cast.all()) {
        watcher.apply(&event).unwrap();
    }
    assert_eq!(watcher.poll_event(), None);
    assert!(watcher.by_input.is_empty());
}

#[test]
fn a_watch_must_name_the_output_and_script_of_its_funding() {
    let cast = Cast::new();
    let mut watcher = Watcher::new(base());
    let absent = OutPoint {
        vout: 1,
        ..cast.output()
    };
    for (outpoint, script) in [
        (absent, script()),
        (cast.output(), ScriptBuf::new()),
        (outpoint(5, 0), script()),
    ] {
        assert_eq!(
            watcher.watch(outpoint, script, &cast.funding),
            Err(WatchError::NotThatFunding { outpoint })
        );
    }
}

#[test]
fn watches_are_bounded() {
    let inputs: Vec<_> = (0..=MAX_FUNDING_INPUTS as u32)
        .map(|vout| outpoint(1, vout))
        .collect();
    let wide = spend(&inputs, 0);
    let output = |tx: &Transaction| OutPoint {
        txid: tx.compute_txid(),
        vout: 0,
    };
    let mut watcher = Watcher::new(base());
    assert!(matches!(
        watcher.watch(output(&wide), script(), &wide),
        Err(WatchError::TooManyInputs { .. })
    ));

    for salt in 0..=MAX_WATCHES as u32 {
        let tx = spend(&[outpoint(1, salt)], 0);
        let result = watcher.watch(output(&tx), script(), &tx);
        assert_eq!(
            result,
            if salt < MAX_WATCHES as u32 {
                Ok(())
            } else {
                Err(WatchError::Full)
            }
        );
    }
}

#[test]
fn bytes_that_are_no_snapshot_are_refused() {
    let good = Cast::new().watcher().snapshot();
    assert!(Watcher::restore(&good).is_ok());
    assert!(Watcher::restore(&[]).is_err());
    assert!(Watcher::restore(&good[1..]).is_err());
    assert!(Watcher::restore(&good[..good.len() - 1]).is_err());
    assert!(Watcher::restore(&[good.as_slice(), &[0]].concat()).is_err());
}
