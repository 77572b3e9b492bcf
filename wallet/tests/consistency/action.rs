//! Bytes, read as what happens next.

use bitmesh_wallet::channel::message::{Message, RefusalCode, Refused};
use bitmesh_wallet::channel::payee;
use bitmesh_wallet::channel::payer;

use crate::chain::{Fate, Place};
use crate::fixture::sat;
use crate::keys::MAX_CHANNELS;
use crate::world::{CLOSE, Fault, Mode, STOP, Side, World};

/// What can happen. A new kind of thing gets a row here, a weight, and an arm in [`World::act`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// The buyer wants a channel.
    Propose,
    /// The buyer pays a little, much, or all.
    Pay,
    PayMuch,
    PayAll,
    /// The oldest message arrives.
    Deliver,
    /// Everything arrives that is on its way now.
    DeliverAll,
    /// A message overtakes others.
    DeliverAny,
    Duplicate,
    Drop,
    /// The connection breaks, with what was on it, and comes back.
    Reconnect,
    /// Somebody sends what nobody said.
    Forge,
    Sleep,
    SleepLong,
    Mine,
    MineMany,
    MineEmpty,
    /// Blocks up to where a deadline is near.
    Jump,
    Reorganise,
    /// Blocks are undone, and what they held is gone.
    ReorganiseAway,
    /// A transaction leaves the mempool.
    Evict,
    FeesRise,
    FeesFall,
    /// The buyer's wallet spends the coins of a funding elsewhere.
    Conflict,
    CrashBuyer,
    CrashSeller,
    /// A crash in the middle of what comes next.
    CrashBefore,
    CrashAfter,
    CrashTorn,
    CrashUnsynced,
    /// A side comes back from an old backup.
    OldBuyer,
    OldSeller,
    /// The seller's vouchers wait for one another from here on, or no longer.
    Group,
    Sync,
    /// A side no longer sees the chain, or sees it again.
    BlindBuyer,
    BlindSeller,
    /// Operators ask for what they may ask for.
    CloseAsked,
    CloseAll,
    RefundAsked,
    AbandonAsked,
    /// Either wants to close together.
    Together,
    /// The buyer does what its machine would not.
    Cheat,
}

/// How many of 256 bytes stand for each action.
const WEIGHTS: [(Action, u8); 41] = [
    (Action::Propose, 6),
    (Action::Pay, 26),
    (Action::PayMuch, 7),
    (Action::PayAll, 2),
    (Action::Deliver, 33),
    (Action::DeliverAll, 16),
    (Action::DeliverAny, 16),
    (Action::Duplicate, 8),
    (Action::Drop, 8),
    (Action::Reconnect, 8),
    (Action::Forge, 1),
    (Action::Sleep, 10),
    (Action::SleepLong, 6),
    (Action::Mine, 16),
    (Action::MineMany, 6),
    (Action::MineEmpty, 2),
    (Action::Jump, 2),
    (Action::Reorganise, 5),
    (Action::ReorganiseAway, 3),
    (Action::Evict, 3),
    (Action::FeesRise, 3),
    (Action::FeesFall, 4),
    (Action::Conflict, 2),
    (Action::CrashBuyer, 4),
    (Action::CrashSeller, 4),
    (Action::CrashBefore, 5),
    (Action::CrashAfter, 6),
    (Action::CrashTorn, 5),
    (Action::CrashUnsynced, 5),
    (Action::OldBuyer, 2),
    (Action::OldSeller, 2),
    (Action::Group, 3),
    (Action::Sync, 4),
    (Action::BlindBuyer, 2),
    (Action::BlindSeller, 2),
    (Action::CloseAsked, 2),
    (Action::CloseAll, 3),
    (Action::RefundAsked, 2),
    (Action::AbandonAsked, 2),
    (Action::Together, 4),
    (Action::Cheat, 6),
];

impl Action {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        WEIGHTS.iter().map(|(action, _)| *action)
    }

    const fn from_byte(byte: u8) -> Self {
        let (mut at, mut sum) = (0, 0u16);
        while at < WEIGHTS.len() {
            sum += WEIGHTS[at].1 as u16;
            if (byte as u16) < sum {
                return WEIGHTS[at].0;
            }
            at += 1;
        }
        // The weights may leave a rest.
        Self::Deliver
    }

    /// The first byte that stands for it, to write a script with.
    pub(crate) fn byte(self) -> u8 {
        let byte = (0..=u8::MAX).find(|byte| Self::from_byte(*byte) == self);
        byte.expect("every action has a weight")
    }
}

/// Bytes as they are used up.
pub(crate) struct Bytes<'a> {
    left: std::slice::Iter<'a, u8>,
}

impl<'a> Bytes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let left = bytes.iter();
        Self { left }
    }

    /// The next byte; zero when there is none.
    pub(crate) fn take(&mut self) -> u8 {
        self.left.next().copied().unwrap_or(0)
    }

    pub(crate) fn action(&mut self) -> Option<Action> {
        self.left.next().map(|byte| Action::from_byte(*byte))
    }
}

/// Chooses one of `all`.
pub(crate) fn one_of<T: Copy>(all: &[T], choice: u8) -> Option<T> {
    let at = usize::from(choice).checked_rem(all.len())?;
    all.get(at).copied()
}

impl World {
    /// Does `action`, with as many of `bytes` as it takes.
    pub(crate) fn act(&mut self, action: Action, bytes: &mut Bytes<'_>) {
        match action {
            Action::Propose => {
                if self.proposed < MAX_CHANNELS {
                    let choice = bytes.take();
                    let capacities = [20_000, 20_500, 100_000, 300_000];
                    let capacity = capacities[usize::from(choice % 4)];
                    self.propose(capacity, 1_010 + u32::from(choice));
                }
            }
            Action::Pay => {
                let delta = 1 + u64::from(bytes.take()) * 8;
                self.pay(bytes.take(), delta);
            }
            Action::PayMuch => {
                let delta = 1 + u64::from(bytes.take()) * 400;
                self.pay(bytes.take(), delta);
            }
            Action::PayAll => {
                // Around the gap in which change would be dust.
                let less = u64::from(bytes.take()) * 3;
                let choice = bytes.take();
                let Some(id) = one_of(&self.buyers(), choice) else {
                    return;
                };
                let capacity = self.buyer.machines[&id].open().capacity;
                let total = sat(capacity.to_sat() - less);
                self.tell_buyer(id, payer::Input::Pay { total });
            }
            Action::Deliver => self.deliver(0, false),
            Action::DeliverAll => {
                for _ in 0..self.network.len() {
                    self.deliver(0, false);
                }
            }
            Action::DeliverAny => self.deliver(bytes.take(), false),
            Action::Duplicate => self.deliver(bytes.take(), true),
            Action::Drop => {
                let choice = bytes.take();
                if !self.network.is_empty() {
                    let at = usize::from(choice) % self.network.len();
                    self.network.remove(at);
                }
            }
            Action::Reconnect => {
                self.network.clear();
                self.buyer_reconnects();
                self.seller_reconnects();
            }
            Action::Forge => self.forge(bytes),
            Action::Sleep => self.sleep(u64::from(bytes.take() % 16)),
            Action::SleepLong => {
                let seconds = [60, 61, 3_600, 86_400];
                self.sleep(seconds[usize::from(bytes.take() % 4)]);
            }
            Action::Mine => self.mine(false),
            Action::MineMany => {
                for _ in 0..2 + bytes.take() % 7 {
                    self.mine(false);
                }
            }
            Action::MineEmpty => self.mine(true),
            Action::Jump => {
                let before = [STOP + 1, STOP, CLOSE + 2, CLOSE, 20, 2, 0, 144];
                let before = before[usize::from(bytes.take() % 8)];
                let choice = bytes.take();
                let expiries: Vec<u32> = self.truths.values().map(|t| t.expiry).collect();
                if let Some(expiry) = one_of(&expiries, choice) {
                    self.jump(expiry - before);
                }
            }
            Action::Reorganise => self.reorganise(bytes.take(), Fate::Return),
            Action::ReorganiseAway => self.reorganise(bytes.take(), Fate::Vanish),
            Action::Evict => {
                if let Some(tx) = self.chain.in_mempool(|_| true) {
                    let txid = tx.compute_txid();
                    self.chain.evict(txid);
                    self.tell_chain();
                }
            }
            Action::FeesRise => {
                self.chain.floor = 2 + u64::from(bytes.take() % 18);
                self.chain.evict_cheap();
                self.tell_chain();
            }
            Action::FeesFall => {
                self.chain.floor = 1;
                self.tell_chain();
            }
            Action::Conflict => {
                let ids: Vec<_> = self.truths.keys().copied().collect();
                if let Some(id) = one_of(&ids, bytes.take())
                    && self.double_spend(id)
                {
                    self.counts.add("conflict", true);
                    self.tell_chain();
                }
            }
            Action::CrashBuyer => self.restart_buyer(),
            Action::CrashSeller => {
                self.seller.journal.disk.lose();
                self.restart_seller();
            }
            Action::CrashBefore => self.arm(Mode::Before, bytes.take()),
            Action::CrashAfter => self.arm(Mode::After, bytes.take()),
            Action::CrashTorn => self.arm(Mode::Torn, bytes.take()),
            Action::CrashUnsynced => self.arm(Mode::Unsynced, bytes.take()),
            Action::OldBuyer => self.restore_old_buyer(bytes.take()),
            Action::OldSeller => self.restore_old_seller(bytes.take()),
            Action::Group => {
                self.seller_syncs();
                self.seller.is_grouping = !self.seller.is_grouping;
            }
            Action::Sync => self.seller_syncs(),
            Action::BlindBuyer => {
                self.buyer.eyes.are_shut = !self.buyer.eyes.are_shut;
                self.look(Side::Buyer);
            }
            Action::BlindSeller => {
                self.seller.eyes.are_shut = !self.seller.eyes.are_shut;
                self.look(Side::Seller);
            }
            Action::CloseAsked => {
                if let Some(id) = one_of(&self.sellers(), bytes.take()) {
                    self.close(id, self.chain.feerate());
                }
            }
            Action::CloseAll => self.close_all(),
            Action::RefundAsked => {
                if let Some(id) = one_of(&self.buyers(), bytes.take()) {
                    let feerate = self.chain.feerate();
                    self.tell_buyer(id, payer::Input::RefundAsked { feerate });
                }
            }
            Action::Together => {
                let choice = bytes.take();
                if choice.is_multiple_of(2) {
                    if let Some(id) = one_of(&self.buyers(), choice / 2) {
                        let (feerate, seed) = (self.chain.feerate(), self.draw());
                        self.tell_buyer(id, payer::Input::TogetherAsked { feerate, seed });
                    }
                } else if let Some(id) = one_of(&self.sellers(), choice / 2) {
                    self.tell_seller(id, payee::Input::TogetherAsked);
                }
            }
            Action::Cheat => self.cheat(bytes),
            Action::AbandonAsked => {
                let choice = bytes.take();
                if choice.is_multiple_of(2) {
                    if let Some(id) = one_of(&self.buyers(), choice / 2) {
                        self.tell_buyer(id, payer::Input::AbandonAsked);
                    }
                } else if let Some(id) = one_of(&self.sellers(), choice / 2) {
                    self.tell_seller(id, payee::Input::AbandonAsked);
                }
            }
        }
    }

    fn arm(&mut self, mode: Mode, distance: u8) {
        self.fault = Some(Fault {
            at: self.effects + 1 + u64::from(distance % 8),
            mode,
            waits: true,
        });
    }

    /// Pays `delta` more than before on one of the channels.
    pub(crate) fn pay(&mut self, choice: u8, delta: u64) {
        let Some(id) = one_of(&self.buyers(), choice) else {
            return;
        };
        let total = self.buyer.machines[&id].promised() + sat(delta);
        self.tell_buyer(id, payer::Input::Pay { total });
    }

    /// Delivers one message, and keeps it on its way if it `stays`.
    pub(crate) fn deliver(&mut self, choice: u8, stays: bool) {
        if self.network.is_empty() {
            return;
        }
        let at = usize::from(choice) % self.network.len();
        let (to, bytes) = match stays {
            true => self.network[at].clone(),
            false => self.network.remove(at),
        };
        let Ok(message) = Message::from_bytes(&bytes) else {
            assert!(self.is_forged, "what was sent can be read");
            return;
        };
        match to {
            Side::Buyer => self.buyer_hears(message),
            Side::Seller => self.seller_hears(message),
        }
    }

    /// A message with something in it changed, or a refusal out of the blue.
    fn forge(&mut self, bytes: &mut Bytes<'_>) {
        let (choice, how) = (bytes.take(), bytes.take());
        let Some((to, mut forged)) = one_of(&(0..self.network.len()).collect::<Vec<_>>(), choice)
            .map(|at| self.network[at].clone())
        else {
            return;
        };
        self.is_forged = true;
        let parsed = Message::from_bytes(&forged);
        match (how % 4, parsed) {
            (0, Ok(Message::Voucher(mut voucher))) => {
                voucher.total += sat(1 + u64::from(how));
                forged = Message::Voucher(voucher).to_bytes();
            }
            (1, Ok(Message::Depth(mut depth))) => {
                depth.limit = sat(u64::from(how) * 1_000);
                depth.held = depth.held.map(|(total, sig)| (total + sat(1), sig));
                forged = Message::Depth(depth).to_bytes();
            }
            (2, Ok(message)) => {
                let (subject, code) = (message.subject(), RefusalCode::from_code(how % 9));
                forged = Message::Refused(Refused { subject, code }).to_bytes();
            }
            _ => {
                let at = usize::from(bytes.take()) % forged.len();
                forged[at] ^= 1 << (how % 8);
            }
        }
        self.send(to, forged);
    }

    /// Undoes one to six blocks and mines one more than that: what was in them may come back at once,
    /// later, or never.
    fn reorganise(&mut self, choice: u8, fate: Fate) {
        let depth = (1 + u32::from(choice % 6)).min(self.max_reorganisation());
        if depth == 0 {
            return;
        }
        self.counts.add("reorganised", depth);
        self.seller_syncs();
        let top = self.chain.height + 1;
        // A close that a reorganisation undoes may be overtaken by the refund.
        for truth in self.truths.values_mut() {
            truth.is_excused |= top + LATE_AFTER_UNDOING > truth.expiry;
        }
        self.chain.undo(depth, fate);
        let (conflicts, rest) = ((choice / 6).is_multiple_of(8), choice / 48);
        if conflicts && let Some(id) = one_of(&self.sellers(), rest) {
            let funding = self
                .truths
                .get(&id)
                .and_then(|truth| truth.funding.as_ref());
            let is_out = funding.is_some_and(|tx| {
                !matches!(self.chain.place(tx.compute_txid()), Some(Place::Block(_)))
            });
            if is_out && self.double_spend(id) {
                self.counts.add("conflict", "reorganised");
            }
        }
        for block in 0..=depth {
            self.chain.mine(block > 0 || rest.is_multiple_of(2));
        }
        self.tell_chain();
    }
}

/// Blocks before the expiry from which on a reorganisation may let the refund win.
const LATE_AFTER_UNDOING: u32 = 32;
