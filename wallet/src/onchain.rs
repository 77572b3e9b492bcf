//! The coins: addresses, balance, spending and history, on a descriptor wallet of BDK.
//!
//! The wallet is synchronous and asks nobody: it is *told* the chain by
//! [`apply`](Wallet::apply), told the time as Unix seconds, and hands signed transactions back for
//! the caller to broadcast. It has its own small store, which can always be rebuilt from the
//! mnemonic and the chain.
//!
//! # How a transaction of ours lives
//!
//! | step | who | what it changes |
//! |---|---|---|
//! | [`fund`](Wallet::fund) | payer of a channel | its coins are *reserved*, in memory only |
//! | channel record durable | the channel's journal | now the transaction must not be lost |
//! | [`record`](Wallet::record), then broadcast | the driver | coins spent, change pending; survives a restart |
//! | [`release`](Wallet::release) | the driver, if it never came to a broadcast | coins free again |
//! | [`send`](Wallet::send) | an ordinary payment | recorded in the same step |
//! | [`outgoing`](Wallet::outgoing) | the driver, at start and now and then | what to broadcast again |
//! | [`cancel`](Wallet::cancel), [`abandon`](Wallet::abandon) | the operator | replaced, or forgotten |
//!
//! Reservations are not stored on purpose: after a crash between `fund` and the channel's record
//! the coins are free, and a channel whose record survived calls [`reserve`](Wallet::reserve) or
//! `record` again when it is replayed.
//!
//! A transaction of ours that leaves the mempool stays recorded: whoever saw it can bring it back,
//! so its coins are not spent twice by accident. It ends by confirming, by a confirmed conflict,
//! or by the operator's word.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bdk_wallet::chain::{ChainPosition, ConfirmationBlockTime, Indexer};
use bdk_wallet::{KeychainKind, LoadError, LocalOutput, Wallet as Bdk};
use bitcoin::address::{Address, NetworkUnchecked};
use bitcoin::{Amount, BlockHash, Network, OutPoint, Script, ScriptBuf, Transaction, TxOut, Txid};
use thiserror::Error;

use self::changes::Changes;
use crate::chain::{BlockId, Start};
use crate::keys::{Descriptors, Keys};

mod apply;
mod changes;
mod fees;
mod history;
mod lost;
mod spend;

pub use self::apply::{Applied, ApplyError};
pub use self::changes::{ChangesError, Rebuilt};
pub use self::fees::FeePolicy;
pub use self::history::{HistoryEntry, Status};
pub use self::lost::LostFunding;
pub use self::spend::{CancelError, ChannelFunding, Payment, Preview, SpendError, Value};

/// How many addresses beyond the last used one are watched, on each of the two chains of
/// addresses. A rescan finds coins only that far ahead, so it covers the change addresses of this
/// many channels in a row that were promised one and never came to a close.
pub const LOOKAHEAD: u32 = 250;

/// The two chains of addresses.
const KEYCHAINS: [KeychainKind; 2] = [KeychainKind::External, KeychainKind::Internal];

/// Where the height from which the wallet exists is kept, apart from the store so that it survives
/// the loss of that.
const BIRTHDAY_FILE: &str = "birthday";

/// Why the wallet could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The store could not be used.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// The store belongs to another mnemonic or network.
    #[error("{} belongs to another wallet: {detail}", path.display())]
    OtherWallet {
        /// The wallet's directory.
        path: PathBuf,
        /// What differs.
        detail: String,
    },
    /// The birthday could not be read or written.
    #[error("{}: {detail}", path.display())]
    Birthday {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

/// Why a wallet cannot start at a given block.
#[derive(Debug, Error)]
pub enum StartError {
    /// It has read blocks already.
    #[error("the wallet has already read the chain up to block {height}")]
    Started {
        /// The height it has read to.
        height: u32,
    },
    /// The birthday could not be kept.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Why a text is not an address to pay to.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// It is not an address at all, or was mistyped.
    #[error("not a bitcoin address: {detail}")]
    Malformed {
        /// What is wrong with it.
        detail: String,
    },
    /// It is an address of another network; coins sent there would be lost to its owner.
    #[error("the address is not for {expected}")]
    WrongNetwork {
        /// The wallet's network.
        expected: Network,
    },
}

/// What the wallet holds. Together the first three are everything; to the sat, they equal the sum
/// of [`HistoryEntry::net_sat`] over the whole history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// In the chain, and mature.
    pub confirmed: Amount,
    /// Not yet in the chain: incoming payments and change.
    pub pending: Amount,
    /// Mined by us and younger than 100 blocks.
    pub immature: Amount,
    /// The part of `confirmed` and `pending` that is promised to transactions not yet broadcast.
    pub reserved: Amount,
}

impl Balance {
    /// Everything that belongs to the wallet, spendable now or not.
    pub fn total(&self) -> Amount {
        self.confirmed + self.pending + self.immature
    }
}

/// A descriptor wallet that knows its keys, its coins and its history.
pub struct Wallet {
    coins: Bdk,
    keys: Arc<Keys>,
    changes: Changes,
    dir: PathBuf,
    birthday: Option<BlockId>,
    /// Coins promised to a transaction that was signed and not yet recorded.
    reserved: BTreeMap<OutPoint, Txid>,
    /// The last time used to order sightings; see [`Wallet::tick`].
    clock: u64,
    /// Blocks applied since the wallet was last written down, and since it was last thinned out.
    unwritten_blocks: u32,
    unthinned_blocks: u32,
    /// Transactions of ours that [`Wallet::lost_fundings`] has looked at in this run.
    examined: BTreeSet<Txid>,
    /// How many scripts of each of [`KEYCHAINS`] were handed out for the source.
    known_scripts: [u32; 2],
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wallet")
            .field("keys", &self.keys)
            .field("tip", &self.tip())
            .finish_non_exhaustive()
    }
}

impl Wallet {
    /// Opens the wallet in `dir`, or makes one there. The directory is created if need be.
    ///
    /// If the store was damaged, what is left of it is moved aside and the wallet starts over from
    /// its birthday; the second value says so, and the operator should be told.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError::OtherWallet`] if the directory belongs to other keys. Nothing is
    /// changed then.
    pub fn open(dir: &Path, keys: Arc<Keys>) -> Result<(Self, Option<Rebuilt>), OpenError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| ChangesError::Io {
                path: dir.to_owned(),
                source,
            })?;
        let birthday = read_birthday(dir)?;
        let (mut changes, state, mut rebuilt) = Changes::open(dir)?;
        let coins = match state {
            None => None,
            Some(state) => match load(state, &keys) {
                Ok(coins) => Some(coins),
                Err(LoadError::Mismatch(mismatch)) => {
                    return Err(OpenError::OtherWallet {
                        path: dir.to_owned(),
                        detail: mismatch.to_string(),
                    });
                }
                Err(error) => {
                    let replaced = changes.replace_damaged(error.to_string())?;
                    changes = replaced.0;
                    rebuilt = Some(replaced.1);
                    None
                }
            },
        };
        let coins = match coins {
            Some(coins) => coins,
            None => create(&keys),
        };
        let mut wallet = Self {
            clock: latest_sighting(&coins),
            coins,
            keys,
            changes,
            dir: dir.to_owned(),
            birthday,
            reserved: BTreeMap::new(),
            unwritten_blocks: 0,
            unthinned_blocks: 0,
            examined: BTreeSet::new(),
            known_scripts: [0, 0],
        };
        if wallet.tip().height == 0
            && let Some(birthday) = birthday
        {
            wallet.skip_to(birthday);
        }
        wallet.write(Flush::Now)?;
        Ok((wallet, rebuilt))
    }

    /// Tells a wallet that has read nothing yet that there is nothing of its own up to and
    /// including `block`: the chain's tip for new keys, an earlier block for restored ones. Without
    /// it the whole chain is read.
    ///
    /// # Errors
    ///
    /// Returns [`StartError::Started`] if the wallet has read blocks already; nothing changes.
    pub fn start_at(&mut self, block: BlockId) -> Result<(), StartError> {
        let height = self.tip().height;
        if height != 0 {
            return Err(StartError::Started { height });
        }
        write_birthday(&self.dir, block)?;
        self.birthday = Some(block);
        self.skip_to(block);
        self.write(Flush::Now).map_err(OpenError::from)?;
        Ok(())
    }

    /// From where a chain source has to tell this wallet the chain.
    pub fn start(&self) -> Start {
        let mut locator = Vec::new();
        let mut step = 1;
        let mut next = u32::MAX;
        for checkpoint in self.coins.local_chain().iter_checkpoints() {
            let block = checkpoint.block_id();
            // The last ten, then at distances that double, then the genesis block.
            if block.height <= next || block.height == 0 {
                if locator.len() >= 10 {
                    step *= 2;
                }
                next = block.height.saturating_sub(step);
                locator.push(block);
            }
        }
        Start {
            locator,
            floor: self.birthday.map_or(0, |block| block.height),
            unconfirmed: self
                .coins
                .transactions()
                .filter(|tx| !tx.chain_position.is_confirmed())
                .map(|tx| tx.tx_node.txid)
                .collect(),
            scripts: self.scripts_from([0, 0]),
        }
    }

    /// The scripts that were derived since the last call of this, for a source that has to be
    /// [told](crate::chain::ChainSource::watch) them. There are some after each use of an address,
    /// because [`LOOKAHEAD`] moves on. All of them are in [`start`](Self::start) as well.
    pub fn take_new_scripts(&mut self) -> Vec<ScriptBuf> {
        let new = self.scripts_from(self.known_scripts);
        self.known_scripts = KEYCHAINS.map(|keychain| {
            let mut derived = self
                .coins
                .spk_index()
                .inner()
                .all_spks()
                .range((keychain, 0)..=(keychain, u32::MAX));
            let last = derived.next_back();
            last.map_or(0, |((_, index), _)| index.saturating_add(1))
        });
        new
    }

    /// The scripts of the two chains of addresses, each from an index on; in the order in which they
    /// are likely to be used.
    fn scripts_from(&self, from: [u32; 2]) -> Vec<ScriptBuf> {
        let spks = self.coins.spk_index().inner().all_spks();
        let mut scripts: Vec<(u32, ScriptBuf)> = Vec::new();
        for (keychain, from) in KEYCHAINS.into_iter().zip(from) {
            let derived = spks.range((keychain, from)..=(keychain, u32::MAX));
            scripts.extend(derived.map(|((_, index), script)| (*index, script.clone())));
        }
        scripts.sort_by_key(|(index, _)| *index);
        scripts.into_iter().map(|(_, script)| script).collect()
    }

    /// The last block the wallet has read.
    pub fn tip(&self) -> BlockId {
        self.coins.local_chain().tip().block_id()
    }

    /// The block from which this wallet exists, if it was told.
    pub fn birthday(&self) -> Option<BlockId> {
        self.birthday
    }

    /// The network of the coins.
    pub fn network(&self) -> Network {
        self.coins.network()
    }

    /// The public descriptors: with them any other wallet can watch these coins.
    pub fn descriptors(&self) -> Descriptors {
        self.keys.descriptors()
    }

    /// The next address that has not received anything. The same one again until it has.
    ///
    /// # Errors
    ///
    /// Returns an error if it could not be written down; then it must not be handed out.
    pub fn receive_address(&mut self) -> Result<Address, ChangesError> {
        let address = self
            .coins
            .next_unused_address(KeychainKind::External)
            .address;
        self.write(Flush::Now)?;
        Ok(address)
    }

    /// A new change script, for a channel to return its unspent part to. Never the same twice.
    ///
    /// # Errors
    ///
    /// Returns an error if it could not be written down; then it must not be handed out.
    pub fn change_script(&mut self) -> Result<ScriptBuf, ChangesError> {
        let address = self
            .coins
            .reveal_next_address(KeychainKind::Internal)
            .address;
        self.write(Flush::Now)?;
        Ok(address.script_pubkey())
    }

    /// Whether `script` is an address of this wallet, up to [`LOOKAHEAD`] beyond the last used one.
    pub fn is_mine(&self, script: &Script) -> bool {
        self.coins.is_mine(script.to_owned())
    }

    /// Reads an address of this wallet's network.
    ///
    /// # Errors
    ///
    /// Returns [`AddressError`] for anything else.
    pub fn parse_address(&self, text: &str) -> Result<Address, AddressError> {
        let address: Address<NetworkUnchecked> =
            text.trim()
                .parse()
                .map_err(|error| AddressError::Malformed {
                    detail: format!("{error}"),
                })?;
        let expected = self.network();
        address
            .require_network(expected)
            .map_err(|_| AddressError::WrongNetwork { expected })
    }

    /// What the wallet holds now.
    pub fn balance(&self) -> Balance {
        let balance = self.coins.balance();
        let reserved = self
            .coins
            .list_unspent()
            .filter(|coin| self.reserved.contains_key(&coin.outpoint))
            .map(|coin| coin.txout.value)
            .sum();
        Balance {
            confirmed: balance.confirmed,
            pending: balance.trusted_pending + balance.untrusted_pending,
            immature: balance.immature,
            reserved,
        }
    }

    /// Reserves the coins that `transaction` spends, as [`fund`](Self::fund) did: for a channel
    /// that is replayed from its records before its funding was broadcast.
    pub fn reserve(&mut self, transaction: &Transaction) {
        let txid = transaction.compute_txid();
        for input in &transaction.input {
            if self.is_coin(&input.previous_output) {
                self.reserved.insert(input.previous_output, txid);
            }
        }
    }

    /// Frees the coins reserved for `transaction`, which must never be broadcast after that.
    pub fn release(&mut self, transaction: &Transaction) {
        let txid = transaction.compute_txid();
        self.reserved.retain(|_, owner| *owner != txid);
    }

    /// Takes note of a transaction that is about to be broadcast: its coins are spent and its
    /// change is pending from here on, across restarts. Idempotent. Transactions that do not touch
    /// this wallet are ignored.
    ///
    /// `now` is Unix time in seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if it could not be written down; then it must not be broadcast.
    pub fn record(&mut self, transaction: &Transaction, now: u64) -> Result<(), ChangesError> {
        if self.coins.spk_index().is_tx_relevant(transaction) {
            let at = self.tick(now);
            self.coins
                .apply_unconfirmed_txs([(Arc::new(transaction.clone()), at)]);
            self.write(Flush::Now)?;
        }
        self.release(transaction);
        Ok(())
    }

    /// Teaches the wallet an output that is not its own and is spent to it, so that the fee of the
    /// spending transaction can be shown: the funding output of a channel, at its payee.
    ///
    /// # Errors
    ///
    /// Returns an error if it could not be written down.
    pub fn learn_output(&mut self, outpoint: OutPoint, output: TxOut) -> Result<(), ChangesError> {
        self.coins.insert_txout(outpoint, output);
        self.write(Flush::Later)
    }

    /// Transactions of ours that are not confirmed, parents first: broadcast them at start and
    /// every few hours. Handing one out again does no harm.
    pub fn outgoing(&self) -> Vec<Arc<Transaction>> {
        let mut waiting: BTreeMap<Txid, Arc<Transaction>> = self
            .coins
            .transactions()
            .filter(|tx| !tx.chain_position.is_confirmed() && self.is_ours(&tx.tx_node.tx))
            .map(|tx| (tx.tx_node.txid, Arc::clone(&tx.tx_node.tx)))
            .collect();
        let mut ordered = Vec::with_capacity(waiting.len());
        while let Some(txid) = waiting
            .iter()
            .find(|(_, tx)| {
                tx.input
                    .iter()
                    .all(|input| !waiting.contains_key(&input.previous_output.txid))
            })
            .map(|(txid, _)| *txid)
        {
            ordered.extend(waiting.remove(&txid));
        }
        ordered
    }

    /// Writes down what was learned since. Call it when the chain has been told to its end, and
    /// before the end of the process; without it, the last blocks are only read again.
    ///
    /// # Errors
    ///
    /// Returns an error if that failed; what was learned is kept and tried again by the next call.
    pub fn persist(&mut self) -> Result<(), ChangesError> {
        self.write(Flush::Now)
    }

    /// Whether we signed it: it spends a coin of ours.
    fn is_ours(&self, transaction: &Transaction) -> bool {
        transaction
            .input
            .iter()
            .any(|input| self.is_coin(&input.previous_output))
    }

    /// Whether every coin it spends is ours, so that nobody else can replace it.
    fn is_ours_alone(&self, transaction: &Transaction) -> bool {
        transaction
            .input
            .iter()
            .all(|input| self.is_coin(&input.previous_output))
    }

    fn is_coin(&self, outpoint: &OutPoint) -> bool {
        self.coins.spk_index().txout(*outpoint).is_some()
    }

    /// A time for ordering what was seen in the mempool: `now`, or one more than the last, so that
    /// a later sighting always wins over an earlier one, whatever the clock does.
    fn tick(&mut self, now: u64) -> u64 {
        self.clock = now.max(self.clock.saturating_add(1));
        self.clock
    }

    fn skip_to(&mut self, block: BlockId) {
        let genesis = self.coins.local_chain().tip();
        if let Ok(checkpoint) = genesis.push(block) {
            let update = bdk_wallet::Update {
                chain: Some(checkpoint),
                ..Default::default()
            };
            self.coins
                .apply_update(update)
                .expect("a block above the genesis block connects to it");
        }
    }

    fn write(&mut self, flush: Flush) -> Result<(), ChangesError> {
        if let Some(staged) = self.coins.staged() {
            self.changes.append(staged)?;
            self.coins.take_staged();
        }
        self.unwritten_blocks = 0;
        match flush {
            Flush::Now => self.changes.flush(),
            Flush::Later => Ok(()),
        }
    }
}

/// Whether a change must survive a crash of the machine before the caller goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Now,
    Later,
}

fn create(keys: &Keys) -> Bdk {
    let Descriptors { external, internal } = keys.descriptors();
    Bdk::create(external, internal)
        .network(keys.network())
        .lookahead(LOOKAHEAD)
        .create_wallet_no_persist()
        .expect("BIP-86 descriptors make a wallet")
}

fn load(state: bdk_wallet::ChangeSet, keys: &Keys) -> Result<Bdk, LoadError> {
    let Descriptors { external, internal } = keys.descriptors();
    Bdk::load()
        .descriptor(KeychainKind::External, Some(external))
        .descriptor(KeychainKind::Internal, Some(internal))
        .check_network(keys.network())
        .lookahead(LOOKAHEAD)
        .load_wallet_no_persist(state)?
        .ok_or(LoadError::MissingNetwork)
}

fn latest_sighting(coins: &Bdk) -> u64 {
    let graph = coins.tx_graph();
    graph
        .full_txs()
        .filter_map(|node| node.last_seen.max(graph.get_last_evicted(node.txid)))
        .max()
        .unwrap_or(0)
}

/// The depth of a position below `tip`, one for the tip itself; zero while unconfirmed.
fn confirmations(position: &ChainPosition<ConfirmationBlockTime>, tip: u32) -> u32 {
    match position {
        ChainPosition::Confirmed { anchor, .. } => {
            tip.saturating_add(1).saturating_sub(anchor.block_id.height)
        }
        ChainPosition::Unconfirmed { .. } => 0,
    }
}

/// Has the wallet in `dir` read the chain again from its birthday when it is opened next. Nobody may have it open.
/// What a wallet knows comes from the chain and its keys; only how many addresses were handed out, and
/// not used so far, is forgotten.
///
/// # Errors
///
/// What the system says.
pub fn forget(dir: &Path) -> std::io::Result<()> {
    changes::forget(dir)
}

/// The block from which on the wallet in `dir` exists, if that is known yet.
///
/// # Errors
///
/// [`OpenError::Birthday`] if its note of that cannot be read.
pub fn birthday(dir: &Path) -> Result<Option<BlockId>, OpenError> {
    read_birthday(dir)
}

fn read_birthday(dir: &Path) -> Result<Option<BlockId>, OpenError> {
    let path = dir.join(BIRTHDAY_FILE);
    let wrong = |detail: String| OpenError::Birthday {
        path: path.clone(),
        detail,
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let block = text.trim().split_once(' ').and_then(|(height, hash)| {
        Some(BlockId {
            height: height.parse().ok()?,
            hash: hash.parse::<BlockHash>().ok()?,
        })
    });
    match block {
        Some(block) => Ok(Some(block)),
        None => Err(wrong("expected a height and a block hash".into())),
    }
}

fn write_birthday(dir: &Path, block: BlockId) -> Result<(), OpenError> {
    let path = dir.join(BIRTHDAY_FILE);
    let new = dir.join(format!("{BIRTHDAY_FILE}.new"));
    let write = || {
        let mut file = fs::File::create(&new)?;
        writeln!(file, "{} {}", block.height, block.hash)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(|error| OpenError::Birthday {
        path,
        detail: error.to_string(),
    })
}

/// The coin's transaction, if it is unconfirmed and others could still replace it.
fn is_foreign_pending(wallet: &Wallet, coin: &LocalOutput) -> bool {
    !coin.chain_position.is_confirmed()
        && wallet
            .coins
            .tx_graph()
            .get_tx(coin.outpoint.txid)
            .is_none_or(|transaction| !wallet.is_ours_alone(&transaction))
}

#[cfg(test)]
mod tests;
