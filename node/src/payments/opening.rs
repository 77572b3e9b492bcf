//! Making channels: proposed, agreed on, funded, alone or several in one transaction.
//!
//! Channels that are funded together wait for one another: first every seller has its say, then one
//! transaction funds those that agreed. All of them have it written down before any of it is told to
//! anybody, so that a crash leaves either no funding or one that every channel knows. Where it leaves
//! the record of one and not of another, the transaction in the first completes the second at the next
//! start ([`complete`](Payments::complete)): nothing had been said.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitcoin::{Amount, ScriptBuf, Transaction};
use bitmesh_market::identity::NodeId;
use bitmesh_wallet::channel::message::RefusalCode;
use bitmesh_wallet::channel::params::{Contract, Parties};
use bitmesh_wallet::channel::payer::{self, Payer};
use bitmesh_wallet::channel::{ProposalId, tx};
use bitmesh_wallet::keys::Role;
use tracing::debug;

use super::{
    Channel, MAX_CHANNELS, Output, Payments, PaymentsError, is_on_its_way, party, use_channel,
};

/// How long sellers may take to answer before they are left out. An answer takes a round trip and a
/// write to a disk, but a seller may have to be dialled first; whoever waits is a person.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);

/// Channels that one transaction funds at most. Each takes an output of 43 vB and, if the words are to
/// find it, an input of 57.5: 32 are 3,300 vB, well below the 10,000 that version 3 allows, and more
/// sellers than anybody uses.
pub(crate) const MAX_TOGETHER: usize = 32;

/// Openings under way at once. Each is a person at a prompt.
const MAX_OPENINGS: usize = 8;

/// Proposals of strangers that a seller takes at once, and how long until it takes one more. Each costs
/// it a key and a record of some 300 bytes for good: 40 MB in a year of nothing else.
const STRANGERS: u32 = 16;
const STRANGER_EVERY: Duration = Duration::from_secs(240);

/// A channel to propose.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) seller: NodeId,
    pub(crate) capacity: Amount,
    /// The highest first payment.
    pub(crate) max_first: Amount,
    /// An unused script of the wallet for what is not paid.
    pub(crate) change_script: ScriptBuf,
    /// Random.
    pub(crate) nonce: [u8; 16],
}

/// Why a seller has no part in an opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftOut {
    /// It refused.
    Refused(RefusalCode),
    /// It asks for a first payment above what was agreed to.
    First(Amount),
    /// It did not answer in time.
    Silent,
    /// What it answered does not fit.
    Nonsense,
}

/// Channels that wait for one another to be funded.
#[derive(Debug, Default)]
pub(super) struct Openings {
    live: BTreeMap<u64, Opening>,
    next: u64,
}

#[derive(Debug)]
struct Opening {
    members: BTreeMap<ProposalId, Answer>,
    until: Instant,
    /// Set when the wallet was asked: what comes later has no part in it.
    is_asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Awaited,
    Agreed,
    No(LeftOut),
}

impl Openings {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.live.values().filter(|opening| !opening.is_asked);
        waiting.map(|opening| opening.until).min()
    }

    fn of(&mut self, channel: ProposalId) -> Option<(u64, &mut Answer)> {
        let mut live = self.live.iter_mut().filter(|(_, it)| !it.is_asked);
        live.find_map(|(id, it)| Some((*id, it.members.get_mut(&channel)?)))
    }
}

/// How many proposals of buyers that have neither a lease nor a channel are taken.
#[derive(Debug)]
pub(super) struct Welcome {
    left: u32,
    /// When one was last added.
    filled: Option<Instant>,
}

impl Default for Welcome {
    fn default() -> Self {
        Self {
            left: STRANGERS,
            filled: None,
        }
    }
}

impl Welcome {
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let filled = *self.filled.get_or_insert(now);
        let waited = now.saturating_duration_since(filled);
        let more = u32::try_from(waited.as_secs() / STRANGER_EVERY.as_secs()).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(STRANGERS);
            self.filled = filled.checked_add(STRANGER_EVERY.saturating_mul(more));
        }
        let Some(left) = self.left.checked_sub(1) else {
            return false;
        };
        self.left = left;
        true
    }
}

impl Payments {
    /// Buyer: proposes a channel. It is used when those that the pair has are used up.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Opening`], [`PaymentsError::TooMany`], [`PaymentsError::NoTip`] or
    /// [`PaymentsError::NoKey`].
    pub(crate) fn open(&mut self, terms: Terms, now: Instant) -> Result<ProposalId, PaymentsError> {
        let seller = terms.seller;
        self.may_open(seller)?;
        let id = self.propose(terms, None, now)?;
        use_channel(&mut self.bought, seller, id, Amount::ZERO, false);
        self.bought.entry(seller).or_default().top_up.opening();
        self.drain_payer(id, now);
        Ok(id)
    }

    /// Proposes a channel, to be funded from coins or from the channel `from`. What the machine says to
    /// that is still to be drained.
    pub(super) fn propose(
        &mut self,
        terms: Terms,
        from: Option<ProposalId>,
        now: Instant,
    ) -> Result<ProposalId, PaymentsError> {
        let seller = terms.seller;
        let tip = self.tip.ok_or(PaymentsError::NoTip)?;
        let expiry = tip
            .checked_add(self.policy.expiry_blocks)
            .ok_or(PaymentsError::NoTip)?;
        let key_index = self.next_payer_key;
        let key = self.key(Role::Payer, key_index)?;
        self.next_payer_key = key_index.checked_add(1).ok_or(PaymentsError::NoKey)?;
        let proposal = payer::Proposal {
            nonce: terms.nonce,
            network: self.network,
            parties: Parties {
                payer: party(self.me),
                payee: party(seller),
            },
            capacity: terms.capacity,
            expiry,
            change_script: terms.change_script,
            max_min_first: terms.max_first,
            key_index,
            from,
        };
        let mut machine = Payer::propose(proposal, key, self.policy.payer, now);
        let id = machine.proposal();
        // A machine that has just been made takes the tip without complaint.
        let _ = machine.handle(payer::Input::TipChanged(tip), now);
        self.payers.insert(id, Channel::new(machine, seller));
        Ok(id)
    }

    /// Buyer: how many channels may be opened with this seller besides those there are.
    pub(crate) fn channels_left(&self, seller: NodeId) -> u64 {
        let pair = self.bought.get(&seller);
        let open = pair.map_or(0, |pair| pair.channels.len());
        u64::try_from(MAX_CHANNELS.saturating_sub(open)).unwrap_or(0)
    }

    /// Buyer: whether there is a channel with this seller that is not over.
    pub(crate) fn has_channel(&self, seller: NodeId) -> bool {
        let pair = self.bought.get(&seller);
        pair.is_some_and(|pair| !pair.channels.is_empty())
    }

    /// Everybody this node has paid, or has a channel with.
    pub(crate) fn sellers(&self) -> impl Iterator<Item = NodeId> {
        self.bought
            .keys()
            .copied()
            .filter(|seller| *seller != self.me)
    }

    /// Buyer: whether a channel may be proposed to this seller now.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Opening`] or [`PaymentsError::TooMany`].
    pub(crate) fn may_open(&self, seller: NodeId) -> Result<(), PaymentsError> {
        if self.is_opening(seller) {
            return Err(PaymentsError::Opening);
        }
        let pair = self.bought.get(&seller);
        match pair.is_some_and(|pair| pair.channels.len() >= MAX_CHANNELS) {
            true => Err(PaymentsError::TooMany),
            false => Ok(()),
        }
    }

    /// Buyer: proposes several channels, which one transaction is to fund. Answered by one
    /// [`Output::FundTogether`] once every seller has answered, or has not in time. Returns the number
    /// that it is known by, and what has become of each channel so far.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::TooMany`] if there are more than [`MAX_TOGETHER`], or if too many such openings
    /// are under way; otherwise as [`open`](Self::open) if none could be proposed.
    pub(crate) fn open_together(
        &mut self,
        channels: Vec<Terms>,
        now: Instant,
    ) -> Result<u64, PaymentsError> {
        if channels.len() > MAX_TOGETHER || self.openings.live.len() >= MAX_OPENINGS {
            return Err(PaymentsError::TooMany);
        }
        for terms in &channels {
            self.may_open(terms.seller)?;
        }
        let mut members = BTreeMap::new();
        for terms in channels {
            members.insert(self.open(terms, now)?, Answer::Awaited);
        }
        let id = self.openings.next;
        self.openings.next = id.wrapping_add(1);
        let opening = Opening {
            members,
            until: now.checked_add(ANSWERS_WITHIN).unwrap_or(now),
            is_asked: false,
        };
        self.openings.live.insert(id, opening);
        Ok(id)
    }

    /// What became of the channels of an opening, and the end of it: which are to be funded, and who
    /// was left out.
    pub(crate) fn take_opening(&mut self, id: u64) -> Vec<(ProposalId, NodeId, Option<LeftOut>)> {
        let members = self.openings.live.remove(&id).map(|it| it.members);
        let members = members.unwrap_or_default().into_iter();
        let told = members.filter_map(|(channel, answer)| {
            let seller = self.payers.get(&channel)?.peer;
            let left_out = match answer {
                Answer::Agreed => None,
                Answer::Awaited => Some(LeftOut::Silent),
                Answer::No(why) => Some(why),
            };
            Some((channel, seller, left_out))
        });
        told.collect()
    }

    /// Buyer: what both agreed for a channel that is to be funded.
    pub(crate) fn contract(&self, channel: ProposalId) -> Option<&Contract> {
        self.payers.get(&channel)?.machine.contract()
    }

    /// Buyer: whether somebody waits for this channel to be funded: a lease of the pair. What was agreed
    /// on and not funded when a node stopped, and what a lease no longer needs, is given up.
    pub(crate) fn is_wanted(&self, channel: ProposalId) -> bool {
        let channel = self.payers.get(&channel);
        channel.is_some_and(|it| self.is_leased(Role::Payer, it.peer))
    }

    /// The wallet made the funding transaction.
    ///
    /// # Errors
    ///
    /// If it does not fund the channel; the wallet's coins are untouched, since it was not broadcast.
    pub(crate) fn funded(
        &mut self,
        channel: ProposalId,
        tx: Transaction,
        fee: Amount,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        let tx = Box::new(tx);
        self.tell_payer(channel, payer::Input::FundingSigned { tx, fee }, now)?;
        if let Some(channel) = self.payers.get_mut(&channel) {
            channel.fees = fee;
        }
        Ok(())
    }

    /// The wallet made one transaction that funds all these channels, and pays `fee`, which they share
    /// evenly. Every record of it stands before everything else that is to be done.
    ///
    /// # Errors
    ///
    /// If it does not fund one of them. Then none is funded.
    pub(crate) fn funded_together(
        &mut self,
        channels: &[ProposalId],
        tx: &Transaction,
        fee: Amount,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        for channel in channels {
            let contract = self.contract(*channel).ok_or(PaymentsError::Unknown)?;
            let vout = output_of(contract, tx).unwrap_or(u32::MAX);
            contract.fund(tx, vout).map_err(payer::Error::from)?;
        }
        let mark = self.outputs.len();
        for (channel, share) in self
            .in_order_of_outputs(channels, tx)
            .into_iter()
            .zip(tx::shares(fee, channels.len()))
        {
            self.funded(channel, tx.clone(), share, now)?;
        }
        let queued = self.outputs.split_off(mark.min(self.outputs.len()));
        let (records, rest): (Vec<_>, Vec<_>) = queued
            .into_iter()
            .partition(|output| matches!(output, Output::Persist(_)));
        self.outputs.extend(records);
        let mut is_broadcast = false;
        self.outputs.extend(rest.into_iter().filter(|output| {
            // Each wants it broadcast.
            let is_funding = matches!(output, Output::Broadcast(queued) if **queued == *tx);
            !(is_funding && std::mem::replace(&mut is_broadcast, true))
        }));
        Ok(())
    }

    fn in_order_of_outputs(&self, channels: &[ProposalId], tx: &Transaction) -> Vec<ProposalId> {
        let mut ordered = channels.to_vec();
        ordered.sort_by_key(|id| self.contract(*id).and_then(|it| output_of(it, tx)));
        ordered
    }

    /// The wallet could not.
    pub(crate) fn funding_failed(&mut self, channel: ProposalId, now: Instant) {
        if let Err(error) = self.tell_payer(channel, payer::Input::FundingFailed, now) {
            debug!(%error, "a funding failed that nobody waited for");
        }
    }

    /// After a restart, once all channels stand where they stood: funds those whose output is in a
    /// transaction of `shared`, which the record of another channel holds. A crash came between the
    /// two records, before anything was said of either. `fee_of` says what a transaction pays.
    pub(crate) fn complete(
        &mut self,
        shared: &[Transaction],
        fee_of: impl Fn(&Transaction) -> Option<Amount>,
        now: Instant,
    ) {
        for tx in shared {
            let txid = tx.compute_txid();
            let mut known = self.payers.values();
            let known = known.find(|it| it.funding.is_some_and(|output| output.txid == txid));
            let Some(known) = known.map(|channel| channel.fees) else {
                continue;
            };
            let is_in = |contract: &Contract| output_of(contract, tx).is_some();
            let channels = self
                .payers
                .iter()
                .filter(|(_, channel)| channel.machine.contract().is_some_and(is_in));
            let channels: Vec<_> = channels.map(|(id, _)| *id).collect();
            let shares = fee_of(tx).map(|fee| tx::shares(fee, channels.len()).collect::<Vec<_>>());
            let ordered = self.in_order_of_outputs(&channels, tx);
            for (index, channel) in ordered.into_iter().enumerate() {
                let stage = self.payers.get(&channel).map(|it| it.machine.stage());
                if !stage.is_some_and(is_on_its_way) {
                    continue;
                }
                let share = shares.as_ref().and_then(|shares| shares.get(index));
                let share = share.copied().unwrap_or(known);
                match self.funded(channel, tx.clone(), share, now) {
                    Ok(()) => self.outputs.retain(|output| {
                        !matches!(output, Output::Fund { channel: asked, .. } if *asked == channel)
                    }),
                    Err(error) => debug!(%channel, %error, "not funded by what pays to its script"),
                }
            }
        }
    }

    // Answers.

    /// Buyer: the seller agreed. `true` if the channel waits for others.
    pub(super) fn is_agreed_together(&mut self, channel: ProposalId) -> bool {
        let Some((id, answer)) = self.openings.of(channel) else {
            return false;
        };
        *answer = Answer::Agreed;
        self.opening_may_be_complete(id);
        true
    }

    /// Buyer: a channel came to nothing before it was funded.
    pub(super) fn is_left_out(&mut self, channel: ProposalId, why: LeftOut) {
        if let Some((id, answer)) = self.openings.of(channel) {
            // The first reason is the one to tell: what follows is this side's doing.
            if !matches!(answer, Answer::No(_)) {
                *answer = Answer::No(why);
            }
            self.opening_may_be_complete(id);
        }
    }

    fn opening_may_be_complete(&mut self, id: u64) {
        let Some(opening) = self.openings.live.get_mut(&id) else {
            return;
        };
        let is_awaited = opening.members.values().any(|it| *it == Answer::Awaited);
        if !is_awaited && !opening.is_asked {
            opening.is_asked = true;
            self.outputs.push_back(Output::FundTogether { opening: id });
        }
    }

    pub(super) fn openings_timed_out(&mut self, now: Instant) {
        let live = self.openings.live.values();
        let late = live.filter(|it| !it.is_asked && it.until <= now);
        let awaited = late
            .flat_map(|it| &it.members)
            .filter(|(_, answer)| **answer == Answer::Awaited);
        for channel in awaited.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.is_left_out(channel, LeftOut::Silent);
            let _ = self.tell_payer(channel, payer::Input::AbandonAsked, now);
        }
    }

    /// Buyer: a seller's answer that cannot be accepted. Its channel is given up.
    pub(super) fn answer_is_unacceptable(
        &mut self,
        channel: ProposalId,
        error: &PaymentsError,
        now: Instant,
    ) {
        let why = match error {
            PaymentsError::Payer(payer::Error::MinFirst { got, .. }) => LeftOut::First(*got),
            PaymentsError::Payer(payer::Error::Contract(_)) => LeftOut::Nonsense,
            _ => return,
        };
        self.is_left_out(channel, why);
        let _ = self.tell_payer(channel, payer::Input::AbandonAsked, now);
    }
}

/// Which output of `tx` has the script of the channel.
fn output_of(contract: &Contract, tx: &Transaction) -> Option<u32> {
    let script = contract.scripts().output();
    let found = tx.output.iter().position(|it| it.script_pubkey == *script);
    found.and_then(|index| u32::try_from(index).ok())
}
