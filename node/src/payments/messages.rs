//! What peers say about channels: sorted to the machine it is for, refused where there is none.

use std::time::Instant;

use bitcoin::Amount;
use bitmesh_market::identity::NodeId;
use bitmesh_wallet::channel::message::{Message, Open, RefusalCode, Refused};
use bitmesh_wallet::channel::params::Parties;
use bitmesh_wallet::channel::payee::{self, Acceptance, Payee};
use bitmesh_wallet::channel::{ChannelId, ProposalId, payer};
use bitmesh_wallet::keys::Role;
use tracing::debug;

use super::rollover::RENEWAL_PATIENCE;
use super::{
    Channel, MAX_CHANNELS, Output, Payments, PaymentsError, count_channel, party, use_channel,
};

/// Channels that were accepted and not funded yet, of all buyers together. Each costs the seller one
/// key and one record, and the buyer nothing; an honest buyer funds within seconds.
const MAX_UNFUNDED: usize = 64;

/// Channels that a buyer may propose in one lease before a block has funded any of them. An honest one
/// proposes one, and another if its wallet could not fund that or it is used up.
const PROPOSALS_PER_LEASE: u32 = 4;

impl Payments {
    // What happened elsewhere.

    /// A peer said something about a channel. Errors are the peer's; it is told if it can help it.
    ///
    /// # Errors
    ///
    /// What was wrong with it, for counting against the peer.
    pub(crate) fn received(
        &mut self,
        from: NodeId,
        message: Message,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        match message {
            Message::Open(open) => self.proposed(from, open, None, now),
            Message::Renew(renew) => self.proposed(from, renew.open, Some(renew.from), now),
            Message::Accept(ref accept) => {
                let proposal = accept.proposal;
                let told = self.tell_payer_of(from, proposal, message, now);
                if let Err(error) = &told
                    && self.payers.get(&proposal).is_some_and(|it| it.peer == from)
                {
                    self.answer_is_unacceptable(proposal, error, now);
                }
                told
            }
            Message::Depth(ref depth) => {
                let proposal = self.by_channel.get(&depth.channel).copied();
                self.tell_payer_of(from, proposal.ok_or(PaymentsError::Unknown)?, message, now)
            }
            Message::Refused(refused) => {
                let subject = refused.subject;
                let named = self
                    .by_channel
                    .get(&ChannelId::from_bytes(subject))
                    .copied();
                // A payer refuses too, while both close together.
                let payee = named.and_then(|named| self.payees.get(&named));
                if let Some(proposal) = named
                    && payee.is_some_and(|channel| channel.peer == from)
                {
                    return self.tell_payee(proposal, payee::Input::Received(message), now);
                }
                let proposal = named.unwrap_or(ProposalId::from_bytes(subject));
                self.tell_payer_of(from, proposal, message, now)
            }
            Message::CloseAsk(_) | Message::CloseAck(_) | Message::CloseDone(_) => {
                let channel = ChannelId::from_bytes(message.subject());
                let proposal = self.by_channel.get(&channel).copied();
                self.tell_payer_of(from, proposal.ok_or(PaymentsError::Unknown)?, message, now)
            }
            Message::Close(_) | Message::ClosePartial(_) => {
                let channel = ChannelId::from_bytes(message.subject());
                self.tell_payee_of(from, channel, message, now)
            }
            Message::Funding(ref funding) => {
                let channel = funding.channel;
                self.tell_payee_of(from, channel, message, now)
            }
            Message::Voucher(ref voucher) => {
                let channel = voucher.channel;
                self.tell_payee_of(from, channel, message, now)
            }
        }
    }

    /// Seller: a buyer proposes a channel, to follow the channel `before` if that is given.
    fn proposed(
        &mut self,
        buyer: NodeId,
        open: Open,
        before: Option<ProposalId>,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        let proposal = open.proposal();
        if let Some(known) = self.payees.get(&proposal) {
            // Said twice because the answer was lost: say the answer again.
            if known.peer == buyer {
                let accept = known.machine.contract().accept().clone();
                self.outputs.push_back(Output::Send {
                    to: buyer,
                    message: Message::Accept(accept),
                });
            }
            return Ok(());
        }
        let tip = self.tip.ok_or(PaymentsError::NoTip)?;
        let allowed = match before {
            Some(before) => self.may_renew(buyer, before),
            None if self.may_propose(buyer, now) => Ok(()),
            None => Err(RefusalCode::Busy),
        };
        if let Err(code) = allowed {
            self.refuse_proposal(buyer, proposal, code);
            return Ok(());
        }
        self.make_room_for(buyer, now);
        let unfunded = self
            .payees
            .values()
            .filter(|c| c.machine.stage() == payee::Stage::Accepted);
        // A channel that follows another has its key: the words of its buyer know no other.
        let shared = before.and_then(|before| self.key_of(before));
        let key_index = shared.unwrap_or(self.next_payee_key);
        let (parties, min_first) = (
            Parties {
                payer: party(buyer),
                payee: party(self.me),
            },
            Amount::from_sat(self.first_payment().sat_ceil()),
        );
        let policy = match before {
            Some(_) => self.policy.payee.for_next(),
            None => self.policy.payee.clone(),
        };
        let checked = policy.check(&open, self.network, parties, min_first, tip);
        let code = match checked {
            Ok(()) if unfunded.count() >= MAX_UNFUNDED => Some(RefusalCode::Busy),
            Ok(()) => None,
            Err(error) => {
                debug!(%buyer, %error, "a proposed channel is refused");
                Some(error.refusal())
            }
        };
        if let Some(code) = code {
            self.refuse_proposal(buyer, proposal, code);
            return Ok(());
        }
        let key = self.key(Role::Payee, key_index)?;
        if shared.is_none() {
            self.next_payee_key = key_index.checked_add(1).ok_or(PaymentsError::NoKey)?;
        }
        let network = self.network;
        let acceptance = Acceptance {
            network,
            parties,
            min_first,
            tip,
            key_index,
            from: before,
        };
        let accepted = Payee::accept(open, &acceptance, key, policy);
        let machine = match accepted {
            Ok(machine) => machine,
            Err(error) => {
                self.refuse_proposal(buyer, proposal, error.refusal());
                return Ok(());
            }
        };
        self.index(Some(machine.channel()), proposal);
        let mut channel = Channel::new(machine, buyer);
        channel.key_index = Some(key_index);
        channel.give_up_at = before.and_then(|_| now.checked_add(RENEWAL_PATIENCE));
        self.payees.insert(proposal, channel);
        match before {
            Some(_) => {
                count_channel(&mut self.sold, buyer, proposal, Amount::ZERO);
            }
            None => use_channel(&mut self.sold, buyer, proposal, Amount::ZERO, false),
        }
        self.drain_payee(proposal, now);
        Ok(())
    }

    /// Whether a buyer may propose a channel; counts that it did. A channel costs the seller a key and
    /// some records for good. Whoever has a lease, of which there are few, or a channel, which costs the
    /// miners' fee, may propose four that no block has funded; all others share what is left of
    /// [`Welcome`](super::opening::Welcome). Nobody may have more than a few that are not over.
    fn may_propose(&mut self, buyer: NodeId, now: Instant) -> bool {
        let payees = &self.payees;
        let Some(pair) = self.sold.get_mut(&buyer) else {
            return self.welcome.take(now);
        };
        let is_funded = |id: &&ProposalId| {
            let stage = payees.get(id).map(|channel| channel.machine.stage());
            stage.is_some_and(|stage| stage != payee::Stage::Accepted)
        };
        let funded = pair.channels.iter().filter(is_funded).count();
        if funded >= MAX_CHANNELS {
            return false;
        }
        if pair.lease.is_none() && funded == 0 {
            return self.welcome.take(now);
        }
        let may = pair.proposed < PROPOSALS_PER_LEASE;
        if may {
            pair.proposed += 1;
        }
        may
    }

    fn refuse_proposal(&mut self, buyer: NodeId, proposal: ProposalId, code: RefusalCode) {
        let refused = Refused {
            subject: *proposal.as_bytes(),
            code,
        };
        self.outputs.push_back(Output::Send {
            to: buyer,
            message: Message::Refused(refused),
        });
    }

    /// Gives up what was proposed and never funded: what this buyer proposed before, since a buyer
    /// has one such at a time; and where there are too many, one of a buyer whose lease is over.
    fn make_room_for(&mut self, buyer: NodeId, now: Instant) {
        let unfunded: Vec<_> = self
            .payees
            .iter()
            .filter(|(_, c)| c.machine.stage() == payee::Stage::Accepted)
            .filter(|(proposal, _)| !self.is_being_funded(**proposal))
            .map(|(proposal, c)| (*proposal, c.peer))
            .collect();
        let is_full = unfunded.len() >= MAX_UNFUNDED;
        let left = unfunded
            .iter()
            .find(|(_, peer)| is_full && !self.is_leased(Role::Payee, *peer))
            .copied();
        let own = unfunded.into_iter().filter(|(_, peer)| *peer == buyer);
        let stale: Vec<_> = own.chain(left).map(|(proposal, _)| proposal).collect();
        for proposal in stale {
            let _ = self.tell_payee(proposal, payee::Input::AbandonAsked, now);
        }
    }

    fn tell_payer_of(
        &mut self,
        from: NodeId,
        proposal: ProposalId,
        message: Message,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        if self
            .payers
            .get(&proposal)
            .is_none_or(|channel| channel.peer != from)
        {
            return Err(PaymentsError::Unknown);
        }
        self.tell_payer(proposal, payer::Input::Received(message), now)
    }

    pub(super) fn tell_payer(
        &mut self,
        proposal: ProposalId,
        input: payer::Input,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        let channel = self
            .payers
            .get_mut(&proposal)
            .ok_or(PaymentsError::Unknown)?;
        let seller = channel.peer;
        let told = channel.machine.handle(input, now);
        self.drain_payer(proposal, now);
        self.try_pay(seller, now);
        Ok(told?)
    }

    fn tell_payee_of(
        &mut self,
        from: NodeId,
        channel: ChannelId,
        message: Message,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        let known = self.by_channel.get(&channel).copied();
        let known = known.filter(|id| self.payees.get(id).is_some_and(|c| c.peer == from));
        let Some(proposal) = known else {
            let code = RefusalCode::Unknown;
            let refused = Refused {
                subject: *channel.as_bytes(),
                code,
            };
            self.outputs.push_back(Output::Send {
                to: from,
                message: Message::Refused(refused),
            });
            return Err(PaymentsError::Unknown);
        };
        let told = self.tell_payee(proposal, payee::Input::Received(message), now);
        if let Err(PaymentsError::Payee(error)) = &told
            && let Some(code) = error.refusal()
        {
            let refused = Refused {
                subject: *channel.as_bytes(),
                code,
            };
            self.outputs.push_back(Output::Send {
                to: from,
                message: Message::Refused(refused),
            });
        }
        told
    }

    pub(super) fn tell_payee(
        &mut self,
        proposal: ProposalId,
        input: payee::Input,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        let channel = self
            .payees
            .get_mut(&proposal)
            .ok_or(PaymentsError::Unknown)?;
        let buyer = channel.peer;
        let told = channel.machine.handle(input, now);
        self.drain_payee(proposal, now);
        self.tell_deferred(proposal, buyer);
        Ok(told?)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use bitcoin::absolute::LockTime;
    use bitcoin::secp256k1::Secp256k1;
    use bitcoin::{Network, ScriptBuf, Transaction, TxIn, TxOut, Witness};
    use bitmesh_market::identity::{Ed25519Signer, Signer as _};
    use bitmesh_market::lease::LeaseId;
    use bitmesh_market::units::Msat;
    use bitmesh_wallet::channel::deadline::BlockHeight;
    use bitmesh_wallet::channel::message::Funding;
    use bitmesh_wallet::channel::params::{self, PayeePolicy, PayerPolicy};
    use bitmesh_wallet::channel::{TrancheIndex, tx};
    use bitmesh_wallet::keys::Keys;

    use super::super::{ChainFact, Policy};
    use super::*;

    const NETWORK: Network = Network::Regtest;
    const TIP: u32 = 1_000;

    #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
    fn epoch() -> Instant {
        Instant::now()
    }

    fn node(seed: u8) -> NodeId {
        Ed25519Signer::from_seed([seed; 32]).node_id()
    }

    fn keys(seed: u8) -> Keys {
        Keys::from_entropy(&[seed; 16], NETWORK)
    }

    fn seller() -> Payments {
        let policy = Policy {
            payee: PayeePolicy::default(),
            payer: PayerPolicy::default(),
            zero_conf_total: Amount::from_sat(5_000),
            expiry_blocks: params::DEFAULT_TERM,
        };
        let mut seller = Payments::new(node(0), NETWORK, Arc::new(keys(0)), policy, 1);
        seller.tip_changed(BlockHeight::new(TIP), epoch());
        seller
    }

    fn open(buyer: u8, nonce: u8) -> Open {
        let key = keys(buyer).channel_keypair(Role::Payer, 0).unwrap();
        let (key, _) = key.x_only_public_key();
        Open {
            nonce: [nonce; 16],
            chain: params::genesis(NETWORK),
            payer: party(node(buyer)),
            payee: party(node(0)),
            payer_key: key,
            capacity: Amount::from_sat(100_000),
            expiry: BlockHeight::new(TIP + params::DEFAULT_TERM),
            change_script: ScriptBuf::new_p2tr(&Secp256k1::new(), key, None),
        }
    }

    /// Whether a proposal was accepted, and how many records it made the seller write.
    fn propose(seller: &mut Payments, buyer: u8, nonce: u8) -> (bool, usize) {
        let message = Message::Open(open(buyer, nonce));
        seller.received(node(buyer), message, epoch()).unwrap();
        let (mut accepted, mut records) = (false, 0);
        while let Some(output) = seller.poll_output() {
            match output {
                Output::Send { message, .. } => accepted = matches!(message, Message::Accept(_)),
                Output::Persist(_) => records += 1,
                _ => {}
            }
        }
        (accepted, records)
    }

    fn lease(seller: &mut Payments, buyer: u8) {
        let lease = LeaseId::from_bytes([buyer; 32]);
        seller.lease_begun(Role::Payee, node(buyer), lease, Msat::ZERO);
    }

    fn end_lease(seller: &mut Payments, buyer: u8) {
        let lease = LeaseId::from_bytes([buyer; 32]);
        seller.lease_over(Role::Payee, node(buyer), lease, Msat::ZERO);
    }

    fn unfunded(seller: &Payments) -> usize {
        let stages = seller.payees.values().map(|c| c.machine.stage());
        stages
            .filter(|stage| *stage == payee::Stage::Accepted)
            .count()
    }

    /// A channel that `buyer` has funded and blocks hold.
    fn funded(seller: &mut Payments, buyer: u8) -> ProposalId {
        lease(seller, buyer);
        assert!(propose(seller, buyer, 0).0);
        let proposal = open(buyer, 0).proposal();
        let machine = &seller.payees[&proposal].machine;
        let contract = machine.contract();
        let tx = Transaction {
            version: tx::VERSION,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                witness: Witness::from_slice(&[[0x55; 64]]),
                ..TxIn::default()
            }],
            output: vec![TxOut {
                value: contract.open().capacity,
                script_pubkey: contract.scripts().output().clone(),
            }],
        };
        let funding = Funding {
            channel: machine.channel(),
            tranche: TrancheIndex::FIRST,
            tx,
            vout: 0,
        };
        let funding = Message::Funding(Box::new(funding));
        seller.received(node(buyer), funding, epoch()).unwrap();
        seller.on_chain(proposal, ChainFact::Confirmed(6), epoch());
        while seller.poll_output().is_some() {}
        proposal
    }

    /// Lets blocks come up to `height`; how often the seller wants to ask, and how often it does if
    /// it may, that is if the buyer is there.
    fn blocks(seller: &mut Payments, heights: Range<u32>, is_there: bool) -> (usize, usize) {
        let (mut wanted, mut asked) = (0, 0);
        for height in heights {
            seller.tip_changed(BlockHeight::new(height), epoch());
            while let Some(output) = seller.poll_output() {
                match output {
                    Output::CooperationDue { channel, .. } => {
                        wanted += 1;
                        if is_there {
                            seller.cooperate(channel, epoch()).unwrap();
                        }
                    }
                    Output::Send {
                        message: Message::CloseAsk(_),
                        ..
                    } => asked += 1,
                    _ => {}
                }
            }
            // Nobody answers, and the attempt is given up long before the next block.
            seller.handle_timeout(epoch() + params::CLOSE_PATIENCE);
            while seller.poll_output().is_some() {}
        }
        (wanted, asked)
    }

    #[test]
    fn a_buyer_that_does_not_answer_is_asked_to_close_together_every_six_blocks_until_the_close() {
        let mut seller = seller();
        funded(&mut seller, 1);
        let expiry = TIP + params::DEFAULT_TERM;

        let early = blocks(&mut seller, expiry - 230..expiry - 216, true);
        assert_eq!(early, (0, 0));

        // A buyer that is away is looked out for with every block, and asked nothing.
        let away = blocks(&mut seller, expiry - 216..expiry - 186, false);
        assert_eq!(away, (30, 0));

        let there = blocks(&mut seller, expiry - 186..expiry - 144, true);
        assert_eq!(there, (7, 7));
        let late = blocks(&mut seller, expiry - 144..expiry, true);
        assert_eq!(late, (0, 0));
    }

    #[test]
    fn whoever_has_no_lease_and_no_channel_makes_the_seller_write_little() {
        let mut seller = seller();

        // Under many names or one: all of them share what is left.
        let accepted = (0..200).filter(|nonce| propose(&mut seller, 1 + nonce % 7, *nonce).0);
        assert_eq!(accepted.count(), 16);
        assert_eq!(seller.next_payee_key, 16);
        assert_eq!(propose(&mut seller, 1, 201), (false, 0));

        // A lease is another matter.
        lease(&mut seller, 1);
        assert!(propose(&mut seller, 1, 202).0);
        end_lease(&mut seller, 1);
        assert_eq!(propose(&mut seller, 1, 203), (false, 0));
    }

    #[test]
    fn a_lease_is_good_for_four_proposals_and_one_that_is_not_funded() {
        let mut seller = seller();
        lease(&mut seller, 1);

        let accepted = (0..100).filter(|nonce| propose(&mut seller, 1, *nonce).0);

        assert_eq!(accepted.count(), 4);
        assert_eq!(unfunded(&seller), 1);
        assert_eq!(seller.next_payee_key, 4);
    }

    #[test]
    fn buyers_that_leave_channels_unfunded_do_not_keep_others_out() {
        let mut seller = seller();
        for buyer in 1..=200 {
            lease(&mut seller, buyer);
            assert!(propose(&mut seller, buyer, 0).0, "{buyer}");
            end_lease(&mut seller, buyer);

            assert!(unfunded(&seller) <= MAX_UNFUNDED);
        }
    }
}
