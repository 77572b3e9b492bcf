use bdk_wallet::KeychainKind;
use bitcoin::block::{Header, Version as BlockVersion};
use bitcoin::hashes::Hash;
use bitcoin::{
    Block, BlockHash, CompactTarget, FeeRate, OutPoint, Sequence, TxIn, TxMerkleNode, TxOut,
    Witness, absolute, transaction,
};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::chain::ChainEvent;
use crate::channel::PartyId;
use crate::channel::deadline::BlockHeight;
use crate::channel::exposure::ExposureTable;
use crate::channel::message::{Accept, Open};
use crate::channel::params::{Contract, genesis};
use crate::channel::tx;
use crate::keys::Role;

const NOW: u64 = 1_700_000_000;

fn keys(seed: u8) -> Arc<Keys> {
    Arc::new(Keys::from_entropy(&[seed; 16], Network::Regtest))
}

fn open(dir: &TempDir) -> Wallet {
    let (wallet, rebuilt) = Wallet::open(dir.path(), keys(1)).unwrap();
    assert_eq!(rebuilt, None);
    wallet
}

/// A transaction from nowhere that pays `sat` to `script`; `salt` makes it another one.
fn incoming(script: ScriptBuf, sat: u64, salt: u32) -> Transaction {
    Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(Txid::from_byte_array([7; 32]), salt),
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        }],
        output: vec![TxOut {
            value: Amount::from_sat(sat),
            script_pubkey: script,
        }],
    }
}

fn block(parent: BlockHash, salt: u32, txdata: Vec<Transaction>) -> Arc<Block> {
    Arc::new(Block {
        header: Header {
            version: BlockVersion::TWO,
            prev_blockhash: parent,
            merkle_root: TxMerkleNode::all_zeros(),
            time: salt,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: salt,
        },
        txdata,
    })
}

/// A chain of blocks on top of the genesis block.
struct Chain {
    blocks: Vec<Arc<Block>>,
    salt: u32,
}

impl Chain {
    fn new() -> Self {
        Self {
            blocks: Vec::new(),
            salt: 0,
        }
    }

    fn grow(&mut self, txdata: Vec<Transaction>) -> ChainEvent {
        let genesis = bitcoin::constants::genesis_block(Network::Regtest).block_hash();
        let parent = self
            .blocks
            .last()
            .map_or(genesis, |block| block.block_hash());
        self.salt += 1;
        self.blocks.push(block(parent, self.salt, txdata));
        ChainEvent::Connected {
            height: self.blocks.len() as u32,
            block: Arc::clone(self.blocks.last().unwrap()),
        }
    }

    fn shrink(&mut self) -> Option<ChainEvent> {
        let height = self.blocks.len() as u32;
        let block = self.blocks.pop()?;
        Some(ChainEvent::Disconnected {
            height,
            hash: block.block_hash(),
        })
    }
}

fn seen(transaction: &Transaction) -> ChainEvent {
    ChainEvent::Mempool {
        at: NOW,
        seen: vec![Arc::new(transaction.clone())],
        evicted: Vec::new(),
    }
}

fn evicted(transaction: &Transaction) -> ChainEvent {
    ChainEvent::Mempool {
        at: NOW,
        seen: Vec::new(),
        evicted: vec![transaction.compute_txid()],
    }
}

fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

#[test]
fn years_of_blocks_leave_few_hashes_behind_and_every_coin() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let script = wallet.receive_address().unwrap().script_pubkey();
    let mut chain = Chain::new();
    wallet
        .apply(&chain.grow(vec![incoming(script, 50_000, 0)]))
        .unwrap();
    for _ in 0..5_000 {
        wallet.apply(&chain.grow(Vec::new())).unwrap();
    }

    assert_eq!(wallet.tip().height, 5_001);
    let kept = wallet.coins.local_chain().iter_checkpoints().count();
    assert!(kept < 3_200, "{kept} block hashes are kept");
    assert_eq!(wallet.balance().confirmed, sat(50_000));
    assert!(matches!(
        wallet.history()[0].status,
        Status::Confirmed {
            height: 1,
            confirmations: 5_001,
            ..
        }
    ));
    wallet.persist().unwrap();
    drop(wallet);
    let wallet = open(&dir);
    assert_eq!(wallet.tip().height, 5_001);
    assert_eq!(wallet.balance().confirmed, sat(50_000));
    assert!(wallet.start().locator.len() < 40);
    assert_eq!(wallet.start().locator.last().unwrap().height, 0);
}

#[test]
fn a_block_that_does_not_follow_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let mut chain = Chain::new();
    let (first, second, third) = (
        chain.grow(Vec::new()),
        chain.grow(Vec::new()),
        chain.grow(Vec::new()),
    );
    wallet.apply(&first).unwrap();
    let tip = wallet.tip();

    assert!(matches!(
        wallet.apply(&third),
        Err(ApplyError::Gap { height: 3, .. })
    ));
    let stranger = ChainEvent::Connected {
        height: 2,
        block: block(BlockHash::from_byte_array([5; 32]), 9, Vec::new()),
    };
    assert!(matches!(
        wallet.apply(&stranger),
        Err(ApplyError::Gap { height: 2, .. })
    ));
    assert_eq!(wallet.tip(), tip);
    wallet.apply(&second).unwrap();
    wallet.apply(&third).unwrap();
    assert!(matches!(
        wallet.apply(&stranger),
        Err(ApplyError::Gap { height: 2, .. })
    ));
    assert_eq!(wallet.tip().height, 3);
}

#[test]
fn the_store_holds_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    wallet.receive_address().unwrap();
    wallet.persist().unwrap();
    drop(wallet);
    let db = fs::read(dir.path().join("coins/db")).unwrap();
    let holds = |secret: &[u8]| db.windows(secret.len()).any(|window| window == secret);
    assert!(holds(b"tpub"), "the public descriptors are there");
    assert!(!holds(b"tprv") && !holds(b"xprv") && !holds(&[1; 16]));
}

#[test]
fn sending_everything_leaves_dust_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let address = wallet.receive_address().unwrap();
    let script = address.script_pubkey();
    let coins = [100_000, 575, 576, 330]
        .into_iter()
        .zip(0..)
        .map(|(value, salt)| incoming(script.clone(), value, salt))
        .collect();
    wallet.apply(&Chain::new().grow(coins)).unwrap();

    let preview = wallet
        .preview_send(&Payment {
            to: address,
            value: Value::Everything,
            feerate: FeeRate::from_sat_per_vb(10).unwrap(),
        })
        .unwrap();

    assert_eq!(
        preview.inputs, 2,
        "575 sat cost 575 sat to spend at this rate"
    );
    assert_eq!(preview.value + preview.fee, sat(100_576));
}

#[test]
fn a_wallet_can_live_on_another_thread() {
    fn assert_send<T: Send>() {}
    assert_send::<Wallet>();
    assert_send::<Box<dyn crate::chain::ChainSource>>();
    assert_send::<crate::chain::watch::Watcher>();
}

#[test]
fn another_block_at_a_known_height_takes_the_old_one_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let script = wallet.receive_address().unwrap().script_pubkey();
    let mut chain = Chain::new();
    wallet.apply(&chain.grow(Vec::new())).unwrap();
    wallet
        .apply(&chain.grow(vec![incoming(script, 7_000, 0)]))
        .unwrap();
    wallet.apply(&chain.grow(Vec::new())).unwrap();

    chain.shrink();
    chain.shrink();
    wallet.apply(&chain.grow(Vec::new())).unwrap();

    assert_eq!(wallet.tip().height, 2);
    assert_eq!(wallet.balance().confirmed, Amount::ZERO);
    assert_eq!(wallet.balance().pending, sat(7_000));
}

#[test]
fn seen_evicted_and_seen_again_within_one_second_counts_as_seen() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let script = wallet.receive_address().unwrap().script_pubkey();
    let payment = incoming(script, 7_000, 0);
    for _ in 0..3 {
        wallet.apply(&seen(&payment)).unwrap();
        assert_eq!(wallet.balance().pending, sat(7_000));
        wallet.apply(&evicted(&payment)).unwrap();
        assert_eq!(wallet.balance().pending, Amount::ZERO);
    }
    drop(wallet);
    // The clock was set back an hour while we were away.
    let mut wallet = open(&dir);
    wallet
        .apply(&ChainEvent::Mempool {
            at: NOW - 3_600,
            seen: vec![Arc::new(payment)],
            evicted: Vec::new(),
        })
        .unwrap();
    assert_eq!(wallet.balance().pending, sat(7_000));
}

#[test]
fn strangers_transactions_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let stranger = incoming(ScriptBuf::from_bytes(vec![0x51]), 7_000, 0);
    assert_eq!(wallet.apply(&seen(&stranger)).unwrap(), Applied::Unchanged);
    assert_eq!(
        wallet.apply(&evicted(&stranger)).unwrap(),
        Applied::Unchanged
    );
    assert_eq!(wallet.coins.tx_graph().full_txs().count(), 0);
}

#[test]
fn a_store_with_many_records_is_merged_and_holds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    for _ in 0..200 {
        wallet.change_script().unwrap();
    }
    drop(wallet);
    for _ in 0..2 {
        let wallet = open(&dir);
        assert_eq!(
            wallet.coins.derivation_index(KeychainKind::Internal),
            Some(199)
        );
    }
}

#[test]
fn a_store_is_for_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let wallet = open(&dir);
    assert!(matches!(
        Wallet::open(dir.path(), keys(1)),
        Err(OpenError::Changes(ChangesError::Locked { .. }))
    ));
    drop(wallet);
    open(&dir);
}

#[test]
fn whatever_damage_the_store_takes_the_wallet_opens() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("garbage", |store| {
            fs::write(store.join("db"), b"garbage").unwrap();
        }),
        ("gone", |store| fs::remove_file(store.join("db")).unwrap()),
        ("cut in half", |store| {
            let mut bytes = fs::read(store.join("db")).unwrap();
            bytes.truncate(bytes.len() / 2);
            fs::write(store.join("db"), bytes).unwrap();
        }),
        ("scrambled", |store| {
            let mut bytes = fs::read(store.join("db")).unwrap();
            for byte in bytes.iter_mut().step_by(97) {
                *byte ^= 0x55;
            }
            fs::write(store.join("db"), bytes).unwrap();
        }),
        ("another configuration", |store| {
            fs::write(store.join("conf"), b"garbage").unwrap();
        }),
        ("gone, and a stray blob", |store| {
            fs::remove_file(store.join("db")).unwrap();
            fs::write(store.join("blobs").join("1"), b"garbage").unwrap();
        }),
    ];
    for (name, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let mut wallet = open(&dir);
        let script = wallet.receive_address().unwrap().script_pubkey();
        for _ in 0..10 {
            wallet.change_script().unwrap();
        }
        drop(wallet);
        damage(&dir.path().join("coins"));

        let (mut wallet, _) = Wallet::open(dir.path(), keys(1)).expect(name);
        // Whatever it lost, the chain gives it back.
        let mut chain = Chain::new();
        wallet
            .apply(&chain.grow(vec![incoming(script, 5_000, 0)]))
            .unwrap();
        assert_eq!(wallet.balance().confirmed, sat(5_000), "{name}");
    }
}

#[test]
fn a_record_of_a_later_version_is_set_aside_and_not_guessed_at() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir));
    let db = sled::open(dir.path().join("coins")).unwrap();
    db.insert(u64::MAX.to_be_bytes(), &[9, 1, 2, 3]).unwrap();
    db.flush().unwrap();
    drop(db);

    let (_, rebuilt) = Wallet::open(dir.path(), keys(1)).unwrap();
    let rebuilt = rebuilt.unwrap();
    assert!(rebuilt.aside.unwrap().join("db").exists());
}

#[test]
fn a_store_that_ends_the_process_twice_is_set_aside_the_third_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    wallet.change_script().unwrap();
    drop(wallet);
    let attempts = dir.path().join("coins.opening");

    fs::write(&attempts, [1]).unwrap();
    let (wallet, rebuilt) = Wallet::open(dir.path(), keys(1)).unwrap();
    assert_eq!(rebuilt, None, "once can be a power cut");
    assert!(!attempts.exists());
    drop(wallet);

    fs::write(&attempts, [2]).unwrap();
    let (_, rebuilt) = Wallet::open(dir.path(), keys(1)).unwrap();
    assert!(rebuilt.unwrap().aside.is_some());
    assert!(!attempts.exists());
}

#[test]
fn a_birthday_survives_the_loss_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let block = BlockId {
        height: 812_000,
        hash: BlockHash::from_byte_array([8; 32]),
    };
    wallet.start_at(block).unwrap();
    drop(wallet);
    fs::remove_dir_all(dir.path().join("coins")).unwrap();

    let wallet = open(&dir);
    assert_eq!(wallet.tip(), block);
    assert_eq!(wallet.start().floor, 812_000);
    assert_eq!(wallet.start().locator.first(), Some(&block));
}

#[test]
fn a_nonsense_birthday_is_an_error_and_not_a_rescan() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("birthday"), "yesterday").unwrap();
    assert!(matches!(
        Wallet::open(dir.path(), keys(1)),
        Err(OpenError::Birthday { .. })
    ));
}

#[test]
fn debug_shows_neither_keys_nor_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let address = wallet.receive_address().unwrap().to_string();
    let shown = format!("{wallet:?}");
    assert!(!shown.contains("tpub") && !shown.contains(&address));
}

#[test]
fn a_funding_of_more_coins_than_version_3_may_spend_is_refused_with_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let script = wallet.receive_address().unwrap().script_pubkey();
    let coins = (0..200)
        .map(|salt| incoming(script.clone(), 1_000, salt))
        .collect();
    wallet.apply(&Chain::new().grow(coins)).unwrap();

    let channel =
        ScriptBuf::new_p2tr_tweaked(bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(
            wallet
                .keys
                .channel_keypair(crate::keys::Role::Payer, 0)
                .unwrap()
                .x_only_public_key()
                .0,
        ));
    let error = wallet
        .fund(&channel, sat(180_000), FeeRate::BROADCAST_MIN)
        .unwrap_err();
    assert!(
        matches!(error, SpendError::TooLarge { vbytes, limit: 10_000 } if vbytes > 10_000),
        "{error}"
    );
    assert_eq!(wallet.balance().reserved, Amount::ZERO);
}

fn contract(expiry: u32, key_index: u32, payee: u8) -> Contract {
    let payer = keys(1).channel_keypair(Role::Payer, key_index).unwrap();
    let payee = keys(payee).channel_keypair(Role::Payee, 7).unwrap();
    let open = Open {
        nonce: [1; 16],
        chain: genesis(Network::Regtest),
        payer: PartyId::from_bytes([1; 32]),
        payee: PartyId::from_bytes([2; 32]),
        payer_key: payer.x_only_public_key().0,
        capacity: sat(30_000),
        expiry: BlockHeight::new(expiry),
        change_script: ScriptBuf::new(),
    };
    let accept = Accept {
        proposal: open.proposal(),
        payee_key: payee.x_only_public_key().0,
        min_first: Amount::ZERO,
        exposure: ExposureTable::default(),
    };
    Contract::new(open, accept).unwrap()
}

/// A wallet with coins that has funded `contracts`, each in a block of its own, and the chain.
fn funded(contracts: &[Contract]) -> Chain {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let mut chain = Chain::new();
    let script = wallet.receive_address().unwrap().script_pubkey();
    // Two coins, so that some fundings have more than one input.
    let coins = (0..2).map(|salt| incoming(script.clone(), 40_000, salt));
    wallet.apply(&chain.grow(coins.collect())).unwrap();
    for contract in contracts {
        let funding = wallet
            .fund_channels(&[contract], FeeRate::BROADCAST_MIN)
            .unwrap();
        assert_eq!(funding.traced, [true]);
        let funding = funding.transaction;
        wallet.record(&funding, NOW).unwrap();
        wallet.apply(&chain.grow(vec![funding])).unwrap();
    }
    chain
}

/// One transaction that funds `contracts` from a wallet with so many coins, and the chain with it.
fn funded_together(contracts: &[Contract], coins: u32) -> (ChannelFunding, Chain) {
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let mut chain = Chain::new();
    let script = wallet.receive_address().unwrap().script_pubkey();
    let coins = (0..coins).map(|salt| incoming(script.clone(), 200_000 + u64::from(salt), salt));
    wallet.apply(&chain.grow(coins.collect())).unwrap();
    let contracts: Vec<_> = contracts.iter().collect();
    let funding = wallet
        .fund_channels(&contracts, FeeRate::BROADCAST_MIN)
        .unwrap();
    wallet.record(&funding.transaction, NOW).unwrap();
    let event = chain.grow(vec![funding.transaction.clone()]);
    wallet.apply(&event).unwrap();
    (funding, chain)
}

/// What is found of it by the words `seed` alone.
fn found_by_words(chain: &Chain, seed: u8) -> Vec<LostFunding> {
    let dir = tempfile::tempdir().unwrap();
    let (mut wallet, _) = Wallet::open(dir.path(), keys(seed)).unwrap();
    let mut found = Vec::new();
    for (height, block) in (1..).zip(&chain.blocks) {
        let block = Arc::clone(block);
        wallet
            .apply(&ChainEvent::Connected { height, block })
            .unwrap();
        let next = found.iter().map(|it: &LostFunding| it.key_index + 1).max();
        found.extend(wallet.lost_fundings(|_| false, next.unwrap_or(0), 1_008));
    }
    found
}

#[test]
fn the_words_alone_find_every_channel_that_they_funded() {
    // The default term, the configured one with an index far on, and a term that is neither.
    let contracts = [contract(1 + 4_320, 0, 2), contract(2 + 1_008, 60, 3)];
    let odd = [contract(1 + 500, 3, 4)];

    let mut found = found_by_words(&funded(&contracts), 1);
    found.extend(found_by_words(&funded(&odd), 1));

    assert_eq!(found.len(), 3);
    for (found, contract) in found.iter().zip(contracts.iter().chain(&odd)) {
        assert_eq!(found.payee_key, contract.accept().payee_key);
        assert_eq!(found.payer_key, contract.open().payer_key);
        assert_eq!(found.expiry, contract.open().expiry);
        assert_eq!(found.capacity(), sat(30_000));
        assert!(contract.fund(&found.transaction, found.vout).is_ok());
    }
}

#[test]
fn the_words_find_each_channel_of_one_funding_that_has_an_input_for_it() {
    let contracts = [2, 3, 4].map(|payee| contract(1 + 4_320, u32::from(payee), payee));

    for (coins, traced) in [(1, 1), (2, 2), (3, 3), (5, 3)] {
        let (funding, chain) = funded_together(&contracts, coins);
        let found = found_by_words(&chain, 1);

        assert_eq!(funding.transaction.input.len(), traced);
        assert_eq!(funding.traced.iter().filter(|it| **it).count(), traced);
        assert_eq!(found.len(), traced, "with {coins} coins");
        // Each bears its share of the fee, and all together the whole of it.
        let fees: Vec<_> = tx::shares(funding.preview.fee, contracts.len()).collect();
        let shares = found.iter().map(|it| it.fee);
        assert!(shares.zip(&fees).all(|(share, fee)| share == *fee));
        let sum = fees.iter().map(|fee| fee.to_sat()).sum::<u64>();
        assert_eq!(sum, funding.preview.fee.to_sat());
        for (contract, traced) in contracts.iter().zip(&funding.traced) {
            let found = found
                .iter()
                .find(|it| it.payee_key == contract.accept().payee_key);
            assert_eq!(found.is_some(), *traced);
            let proves = |it: &LostFunding| contract.fund(&it.transaction, it.vout).is_ok();
            assert!(found.is_none_or(proves));
        }
    }
}

#[test]
fn what_is_known_of_a_funding_does_not_hide_the_rest_of_it() {
    let contracts = [2, 3, 4].map(|payee| contract(1 + 4_320, u32::from(payee), payee));
    let (funding, chain) = funded_together(&contracts, 3);
    let script = contracts[1].scripts().output();
    let known = |outpoint: &OutPoint| {
        funding.transaction.output[outpoint.vout as usize].script_pubkey == *script
    };

    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    for (height, block) in (1..).zip(&chain.blocks) {
        let block = Arc::clone(block);
        wallet
            .apply(&ChainEvent::Connected { height, block })
            .unwrap();
    }
    let found = wallet.lost_fundings(known, 5, 4_320);

    let mut keys: Vec<_> = found.iter().map(|it| it.key_index).collect();
    keys.sort_unstable();
    assert_eq!(keys, [2, 4]);
}

#[test]
fn each_further_channel_of_a_funding_takes_43_vbytes_and_each_further_input_57_and_a_half() {
    for count in [1_u8, 2, 3, 8, 32] {
        let contracts: Vec<_> = (0..count)
            .map(|payee| contract(1 + 4_320, u32::from(payee), 100 + payee))
            .collect();
        for coins in [16, u32::from(count).max(16)] {
            let (funding, _) = funded_together(&contracts, coins);
            let transaction = &funding.transaction;

            let outputs = 43 * (u64::from(count) - 1);
            let inputs = 115 * (transaction.input.len() as u64 - 1);
            let expected = tx::FUNDING_VBYTES + outputs + inputs.div_ceil(2);
            let vbytes = transaction.vsize() as u64;
            assert!(vbytes.abs_diff(expected) <= 2, "{vbytes} is not {expected}");
            assert!(vbytes < 10_000);
            assert_eq!(funding.preview.vbytes, vbytes);
            assert_eq!(transaction.version, tx::VERSION);
            assert_eq!(transaction.output.len(), usize::from(count) + 1);
        }
    }
}

#[test]
fn the_preview_of_a_funding_is_what_it_takes() {
    let contracts = [2, 3, 4].map(|payee| contract(1 + 4_320, u32::from(payee), payee));
    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    let script = wallet.receive_address().unwrap().script_pubkey();
    let coins = (0..4).map(|salt| incoming(script.clone(), 60_000, salt));
    wallet.apply(&Chain::new().grow(coins.collect())).unwrap();
    let feerate = FeeRate::from_sat_per_vb(7).unwrap();

    let told = wallet.preview_channels(&[sat(30_000); 3], feerate).unwrap();
    let contracts: Vec<_> = contracts.iter().collect();
    let made = wallet.fund_channels(&contracts, feerate).unwrap();

    assert_eq!(told.inputs, made.preview.inputs);
    assert!(told.vbytes.abs_diff(made.preview.vbytes) <= 1);
    assert_eq!(told.value, sat(90_000));
    assert_eq!(wallet.fee_of(&made.transaction), Some(made.preview.fee));
}

#[test]
fn other_words_find_nothing_and_what_is_known_is_not_found_again() {
    let chain = funded(&[contract(1 + 4_320, 0, 2)]);
    assert_eq!(found_by_words(&chain, 2), []);

    let dir = tempfile::tempdir().unwrap();
    let mut wallet = open(&dir);
    for (height, block) in (1..).zip(&chain.blocks) {
        let block = Arc::clone(block);
        wallet
            .apply(&ChainEvent::Connected { height, block })
            .unwrap();
    }
    assert_eq!(wallet.lost_fundings(|_| true, 0, 4_320), []);
}

#[derive(Clone, Debug)]
enum Step {
    Grow(Vec<usize>),
    Reorganise(usize, Vec<Vec<usize>>),
    See(usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let some = prop::collection::vec(0..6_usize, 0..3);
    prop_oneof![
        4 => some.clone().prop_map(Step::Grow),
        2 => (1..4_usize, prop::collection::vec(some, 0..4))
            .prop_map(|(off, on)| Step::Reorganise(off, on)),
        2 => (0..6_usize).prop_map(Step::See),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, ..Default::default() })]

    #[test]
    fn balance_and_history_agree_with_the_chain_whatever_it_does(
        steps in prop::collection::vec(step(), 1..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut wallet = open(&dir);
        let script = wallet.receive_address().unwrap().script_pubkey();
        let payments: Vec<_> = (0..6)
            .map(|salt| incoming(script.clone(), 1_000 << salt, salt))
            .collect();
        let mut chain = Chain::new();
        let mut known = std::collections::BTreeSet::new();
        for step in steps {
            let mut events = Vec::new();
            let mut grow = |chain: &mut Chain, wanted: Vec<usize>, events: &mut Vec<_>| {
                let mut txdata: Vec<Transaction> = Vec::new();
                for index in wanted {
                    let tx = &payments[index];
                    let is_mined = chain.blocks.iter().any(|block| block.txdata.contains(tx));
                    if !is_mined && !txdata.contains(tx) {
                        known.insert(index);
                        txdata.push(tx.clone());
                    }
                }
                events.push(chain.grow(txdata));
            };
            match step {
                Step::Grow(wanted) => grow(&mut chain, wanted, &mut events),
                Step::Reorganise(off, on) => {
                    for _ in 0..off {
                        events.extend(chain.shrink());
                    }
                    for wanted in on {
                        grow(&mut chain, wanted, &mut events);
                    }
                }
                Step::See(index) => {
                    known.insert(index);
                    events.push(seen(&payments[index]));
                }
                Step::Reopen => {
                    wallet.persist().unwrap();
                    drop(wallet);
                    wallet = open(&dir);
                }
            }
            for event in &events {
                wallet.apply(event).unwrap();
                // Once more, as a source that serves two listeners may.
                if matches!(event, ChainEvent::Connected { .. }) {
                    prop_assert_eq!(wallet.apply(event).unwrap(), Applied::Unchanged);
                }
            }
            let mined: u64 = payments
                .iter()
                .enumerate()
                .filter(|(_, tx)| chain.blocks.iter().any(|block| block.txdata.contains(tx)))
                .map(|(index, _)| 1_000 << index)
                .sum();
            let all: u64 = known.iter().map(|index| 1_000 << index).sum();
            let balance = wallet.balance();
            prop_assert_eq!(wallet.tip().height as usize, chain.blocks.len());
            prop_assert_eq!(balance.confirmed, sat(mined));
            prop_assert_eq!(balance.pending, sat(all - mined));
            let net: i64 = wallet.history().iter().map(HistoryEntry::net_sat).sum();
            prop_assert_eq!(net, i64::try_from(all).unwrap());
        }
    }
}
