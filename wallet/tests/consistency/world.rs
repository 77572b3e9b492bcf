//! A buyer, a seller, what they say to each other, and a chain.
//!
//! Everything a side does to the world goes through here and is held against what the world saw
//! before: what was signed, what is durable, what was credited. A rule that is broken is a panic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitcoin::secp256k1::XOnlyPublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Txid, Witness};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::message::ClosePartial;
use bitmesh_wallet::channel::params::Tranche;
use bitmesh_wallet::channel::record::Settlement;
use bitmesh_wallet::channel::{AttemptId, ProposalId};

use crate::action::Bytes;
use crate::buyer::Buyer;
use crate::chain::{Chain, Place, Refusal};
use crate::fixture::{TIP, check_spends, epoch, funding_tx, sat};
use crate::seller::Seller;

/// From so many blocks before the expiry on, a seller that is awake closes.
pub(crate) const CLOSE: u32 = 144;
/// From so many blocks before the expiry on, nothing is paid and nothing served.
pub(crate) const STOP: u32 = 288;
/// A close that waits this close to the expiry may lose against the refund.
pub(crate) const LATE: u32 = 16;

/// Who.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Buyer,
    Seller,
}

/// What a side does that the world or its own disk remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    Write,
    Send,
    Broadcast,
}

/// How a crash meets an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// It does not happen.
    Before,
    /// It happens, whole and durable, and nothing after it.
    After,
    /// A part of it reaches the disk.
    Torn,
    /// It is written, and lost with the power.
    Unsynced,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Before, Self::After, Self::Torn, Self::Unsynced];

    /// Only a write can be torn or stay unsynced.
    pub(crate) fn fits(self, effect: Effect) -> bool {
        match (self, effect) {
            (Self::Before | Self::After, _) | (_, Effect::Write) => true,
            (Self::Torn | Self::Unsynced, Effect::Send | Effect::Broadcast) => false,
        }
    }
}

/// A crash to come: at the effect of this number, counted from the beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) at: u64,
    pub(crate) mode: Mode,
    /// Whether it meets the next effect that the mode fits, if not this one.
    pub(crate) waits: bool,
}

/// The side has crashed: what it was doing is over.
#[derive(Debug)]
pub(crate) struct Crash;

/// What was seen of one channel from outside.
#[derive(Default)]
pub(crate) struct Truth {
    pub(crate) expiry: u32,
    pub(crate) tranche: Option<Tranche>,
    pub(crate) funding: Option<Transaction>,
    /// The highest total of a voucher that left the buyer.
    pub(crate) signed: Amount,
    /// The totals of the splits that the buyer gave its half of a signature on.
    pub(crate) halves: BTreeSet<Amount>,
    /// The highest total the seller counted as paid while it served, and has not lost with its disk.
    pub(crate) served: Amount,
    /// Whether the seller slept, or nothing that pays a fair fee was mined, when it had to close.
    pub(crate) is_excused: bool,
    /// Whether the seller came back from a backup that is behind on it.
    pub(crate) is_behind: bool,
    /// Whether it had closed the channel before it came back: that close may still be mined, whatever
    /// it has taken since without knowing of it.
    pub(crate) is_closed_before: bool,
    /// Whether the buyer has said what its machine does not know of.
    pub(crate) is_cheated: bool,
}

/// Whether what happens is printed, as when one run is played again.
pub(crate) static IS_TOLD: AtomicBool = AtomicBool::new(false);

/// What happened, by name.
#[derive(Default)]
pub(crate) struct Counts(pub(crate) BTreeMap<String, u64>);

impl Counts {
    pub(crate) fn add(&mut self, kind: &str, what: impl Debug) {
        let name = format!("{kind} {what:?}");
        if IS_TOLD.load(Ordering::Relaxed) {
            println!("{name}");
        }
        *self.0.entry(name).or_default() += 1;
    }
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) chain: Chain,
    pub(crate) buyer: Buyer,
    pub(crate) seller: Seller,
    /// What is on its way, oldest first.
    pub(crate) network: Vec<(Side, Vec<u8>)>,
    pub(crate) truths: BTreeMap<ProposalId, Truth>,
    /// Which proposal a key was shown for.
    keys: BTreeMap<XOnlyPublicKey, ProposalId>,
    /// Transactions that were found valid.
    checked: BTreeSet<Txid>,
    /// What was signed with which nonce.
    pub(crate) partials: BTreeMap<AttemptId, ClosePartial>,
    /// How many random numbers were drawn.
    drawn: u64,
    /// How many channels were ever proposed.
    pub(crate) proposed: u8,
    /// Whether somebody forged messages: what the machines then come to is their forger's loss, so
    /// that only safety is asked for.
    pub(crate) is_forged: bool,
    pub(crate) effects: u64,
    pub(crate) fault: Option<Fault>,
    pub(crate) counts: Counts,
}

/// How much a run's network may hold: more would not be met again.
const MAX_IN_FLIGHT: usize = 48;

impl World {
    pub(crate) fn new() -> Self {
        Self {
            now: epoch(),
            chain: Chain::new(TIP.get()),
            buyer: Buyer::new(),
            seller: Seller::new(),
            network: Vec::new(),
            truths: BTreeMap::new(),
            keys: BTreeMap::new(),
            checked: BTreeSet::new(),
            partials: BTreeMap::new(),
            drawn: 0,
            proposed: 0,
            is_forged: false,
            effects: 0,
            fault: None,
            counts: Counts::default(),
        }
    }

    /// Plays `bytes` from the beginning, and then brings everything to its end.
    pub(crate) fn run(bytes: &[u8]) -> Self {
        Self::run_into(bytes, None)
    }

    /// Plays `bytes` with a crash in the middle.
    pub(crate) fn run_into(bytes: &[u8], fault: Option<Fault>) -> Self {
        let mut world = Self::new();
        world.fault = fault;
        world.tell_chain();
        let mut bytes = Bytes::new(bytes);
        let ending = bytes.take();
        while let Some(action) = bytes.action() {
            world.counts.add("action", action);
            world.act(action, &mut bytes);
            world.check();
        }
        world.end(ending);
        world
    }

    /// Counts an effect and says whether the side crashes at it, and how.
    pub(crate) fn effect(&mut self, side: Side, effect: Effect) -> Option<Mode> {
        self.effects += 1;
        self.counts.add("effect", (side, effect));
        let fault = self.fault.filter(|fault| match fault.waits {
            true => fault.at <= self.effects && fault.mode.fits(effect),
            false => fault.at == self.effects,
        })?;
        self.fault = None;
        if !fault.mode.fits(effect) {
            return None;
        }
        self.counts.add("crash", (side, effect, fault.mode));
        Some(fault.mode)
    }

    /// What the operating system gives out for a nonce: never the same twice.
    pub(crate) fn draw(&mut self) -> [u8; 32] {
        self.drawn += 1;
        let mut seed = [0x5e; 32];
        seed[..8].copy_from_slice(&self.drawn.to_be_bytes());
        seed
    }

    pub(crate) fn send(&mut self, to: Side, bytes: Vec<u8>) {
        if self.network.len() >= MAX_IN_FLIGHT {
            self.network.remove(0);
        }
        self.network.push((to, bytes));
    }

    /// A key is for one channel only: two would share what one signature gives away.
    pub(crate) fn show_key(&mut self, key: XOnlyPublicKey, proposal: ProposalId) {
        let known = *self.keys.entry(key).or_insert(proposal);
        assert_eq!(known, proposal, "a key was shown for two channels");
    }

    /// The channels that `tx` ends, in the order of its inputs.
    pub(crate) fn spends(&self, tx: &Transaction) -> Vec<(ProposalId, &Tranche)> {
        let of = |outpoint: OutPoint| {
            self.truths.iter().find_map(|(id, truth)| {
                let tranche = truth.tranche.as_ref()?;
                (tranche.outpoint() == outpoint).then_some((*id, tranche))
            })
        };
        let inputs = tx.input.iter();
        inputs
            .filter_map(|input| of(input.previous_output))
            .collect()
    }

    /// What `tx`, which spends `tranche`, makes of it, with its share of the fee.
    pub(crate) fn settlement(&self, tranche: &Tranche, tx: &Transaction) -> Settlement {
        let settlement = tranche.settlement(tx, None).expect("it spends it");
        if tx.input.len() == 1 {
            return settlement;
        }
        let spent = self.spends(tx).iter().map(|(_, it)| it.capacity()).sum();
        settlement.bear(tranche.fee_share(tx, spent))
    }

    /// Hands a transaction to the mempool. Whatever is broadcast is valid, or will be.
    pub(crate) fn broadcast(&mut self, proposal: ProposalId, tx: &Transaction) {
        let txid = tx.compute_txid();
        let expiry = self.truths.entry(proposal).or_default().expiry;
        let ends: Vec<Tranche> = self
            .spends(tx)
            .iter()
            .map(|(_, it)| (*it).clone())
            .collect();
        if ends.len() == tx.input.len() && self.checked.insert(txid) {
            // A reorganisation may have taken the block that made a refund final.
            let height = self.chain.height.max(expiry) + 1;
            if let Err(error) = check_spends(&ends, tx, height) {
                panic!("an invalid transaction was broadcast: {error}");
            }
        }
        let funding = self.truths[&proposal].funding.as_ref();
        if funding != Some(tx) && !self.checked.contains(&txid) {
            assert!(self.is_forged, "nobody signed this");
            return;
        }
        let taken = self.chain.accept(tx);
        self.counts.add("broadcast", taken.err());
        if taken == Err(Refusal::NotFinal) {
            assert!(self.chain.height < expiry, "never final");
        }
    }

    /// The wallet's transaction for a channel, from a coin that is this channel's alone.
    pub(crate) fn fund(
        &mut self,
        proposal: ProposalId,
        script: &ScriptBuf,
        amount: Amount,
    ) -> (Transaction, Amount) {
        let mut tx = funding_tx(script, amount);
        let coin = coin(proposal);
        tx.input[0].previous_output = coin;
        let fee = sat(self.chain.floor * tx.vsize() as u64);
        let value = tx.output.iter().map(|output| output.value).sum::<Amount>() + fee;
        let change = tx.output[0].script_pubkey.clone();
        if let Some(known) = self.chain.prevout(coin) {
            // Made once before, and never shown to anybody.
            tx.output[0].value = known.value - amount - fee;
        } else {
            let script_pubkey = change;
            self.chain.mint(
                coin,
                TxOut {
                    value,
                    script_pubkey,
                },
            );
        }
        (tx, fee)
    }

    /// The buyer's wallet spends the coin of a channel elsewhere. `false` if there is none to spend.
    pub(crate) fn double_spend(&mut self, proposal: ProposalId) -> bool {
        let coin = coin(proposal);
        let Some(prevout) = self.chain.prevout(coin).cloned() else {
            return false;
        };
        let mut tx = funding_tx(&prevout.script_pubkey, sat(1_000));
        tx.input = vec![TxIn {
            previous_output: coin,
            witness: Witness::from_slice(&[[0x66; 64]]),
            ..TxIn::default()
        }];
        tx.output.truncate(1);
        tx.output[0].value = prevout.value - sat(20_000);
        self.chain.force(&tx)
    }

    /// Every channel that was funded, with its output.
    pub(crate) fn funded(&self) -> Vec<(ProposalId, OutPoint)> {
        let outpoint = |(id, truth): (&ProposalId, &Truth)| {
            let outpoint = truth.tranche.as_ref()?.outpoint();
            Some((*id, outpoint))
        };
        self.truths.iter().filter_map(outpoint).collect()
    }

    /// Both are told what the chain holds, who has eyes for it.
    pub(crate) fn tell_chain(&mut self) {
        self.look(Side::Buyer);
        self.look(Side::Seller);
    }

    pub(crate) fn look(&mut self, side: Side) {
        match side {
            Side::Buyer => self.look_buyer(),
            Side::Seller => self.look_seller(),
        }
    }

    /// Before the chain moves from here to `height`: whether the seller can be held to its deadlines.
    pub(crate) fn excuse(&mut self, height: u32, is_empty: bool) {
        let from = self.chain.height;
        let is_blind = self.seller.eyes.are_shut || is_empty || self.chain.floor > 1;
        for truth in self.truths.values_mut() {
            let is_near = height + CLOSE >= truth.expiry;
            let leaps = from + CLOSE < truth.expiry && height + LATE > truth.expiry;
            truth.is_excused |= (is_near && is_blind) || leaps;
        }
    }

    pub(crate) fn mine(&mut self, is_empty: bool) {
        self.seller_syncs();
        self.excuse(self.chain.height + 1, is_empty);
        self.chain.mine(is_empty);
        self.tell_chain();
    }

    pub(crate) fn jump(&mut self, height: u32) {
        self.seller_syncs();
        self.excuse(height.max(self.chain.height), false);
        self.chain.jump(height);
        self.tell_chain();
    }

    pub(crate) fn sleep(&mut self, seconds: u64) {
        self.seller_syncs();
        self.now += Duration::from_secs(seconds);
        self.buyer_timeout();
        self.seller_timeout();
    }

    /// How deep a reorganisation may be: it does not undo what a machine has taken for final.
    pub(crate) fn max_reorganisation(&self) -> u32 {
        let finals = self.buyer.finals().chain(self.seller.finals());
        let conflicts = self.truths.keys().filter_map(|proposal| {
            let (_, place) = self.chain.spender(coin(*proposal))?;
            match place {
                Place::Block(height) if self.chain.height >= height + 5 => Some(height),
                Place::Block(_) | Place::Mempool => None,
            }
        });
        let lowest = finals.chain(conflicts).max().unwrap_or(TIP.get());
        self.chain.height - lowest.max(TIP.get())
    }

    /// What must hold after every step.
    pub(crate) fn check(&mut self) {
        self.check_buyer();
        self.check_seller();
        let stages = self.buyer.stages().chain(self.seller.stages());
        let stages: Vec<String> = stages.collect();
        if IS_TOLD.load(Ordering::Relaxed) {
            println!("    {stages:?}");
        }
        for stage in stages {
            *self.counts.0.entry(stage).or_default() += 1;
        }
    }
}

/// The coin a channel is funded from.
pub(crate) fn coin(proposal: ProposalId) -> OutPoint {
    use bitcoin::hashes::Hash;
    OutPoint::new(Txid::from_byte_array(*proposal.as_bytes()), 0)
}

/// What a side was told of the chain.
#[derive(Default)]
pub(crate) struct Eyes {
    /// Whether it looks.
    pub(crate) are_shut: bool,
    pub(crate) tip: Option<u32>,
    watched: BTreeMap<ProposalId, (OutPoint, Transaction)>,
    told: BTreeMap<ProposalId, Told>,
    /// Whether something new is to be watched.
    pub(crate) is_new: bool,
}

/// What a side was told of one channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Told {
    pub(crate) funding: Option<Standing>,
    pub(crate) spend: Option<(Transaction, Option<u32>)>,
}

/// How a funding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Seen,
    Deep(u32),
    Conflicted(u32),
    Dropped,
}

/// One thing to tell.
#[derive(Debug)]
pub(crate) enum News {
    Funding(Standing),
    Spent(Transaction, Option<u32>),
    Unspent,
    Tip(BlockHeight),
}

impl Eyes {
    /// After a restart nothing is known and nothing is watched.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            are_shut: self.are_shut,
            ..Self::default()
        };
    }

    pub(crate) fn watch(&mut self, proposal: ProposalId, outpoint: OutPoint, tx: &Transaction) {
        self.watched.insert(proposal, (outpoint, tx.clone()));
        self.told.remove(&proposal);
        self.is_new = true;
    }

    pub(crate) fn told(&self, proposal: ProposalId) -> Told {
        self.told.get(&proposal).cloned().unwrap_or_default()
    }

    /// What there is to tell: of each channel what has changed, and then the tip to `all` machines.
    pub(crate) fn news(&mut self, chain: &Chain, all: &[ProposalId]) -> Vec<(ProposalId, News)> {
        self.is_new = false;
        let mut news = Vec::new();
        for (proposal, (outpoint, funding)) in &self.watched {
            let told = self.told.entry(*proposal).or_default();
            let standing = standing(chain, funding);
            let was_seen = told.funding.is_some();
            if told.funding != Some(standing) && (was_seen || standing != Standing::Dropped) {
                told.funding = Some(standing);
                news.push((*proposal, News::Funding(standing)));
            }
            let spend = chain.spender(*outpoint).map(|(tx, place)| match place {
                Place::Mempool => (tx.clone(), None),
                Place::Block(height) => (tx.clone(), Some(height)),
            });
            if told.spend != spend {
                told.spend.clone_from(&spend);
                let what = match spend {
                    Some((tx, height)) => News::Spent(tx, height),
                    None => News::Unspent,
                };
                news.push((*proposal, what));
            }
        }
        if self.tip != Some(chain.height) {
            self.tip = Some(chain.height);
            let tip = BlockHeight::new(chain.height);
            news.extend(all.iter().map(|proposal| (*proposal, News::Tip(tip))));
        }
        news
    }
}

fn standing(chain: &Chain, funding: &Transaction) -> Standing {
    let txid = funding.compute_txid();
    match chain.place(txid) {
        Some(Place::Mempool) => Standing::Seen,
        Some(Place::Block(_)) => Standing::Deep(chain.confirmations(txid)),
        None => match chain.spender(funding.input[0].previous_output) {
            Some((other, _)) => Standing::Conflicted(chain.confirmations(other.compute_txid())),
            None => Standing::Dropped,
        },
    }
}
