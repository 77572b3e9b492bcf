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

use super::{Channel, Output, Payments, PaymentsError, party, use_channel};

/// Channels that were accepted and not funded yet, of all buyers together. Each costs the seller one
/// key and one record, and the buyer nothing; an honest buyer funds within seconds.
const MAX_UNFUNDED: usize = 64;

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
            Message::Open(open) => self.proposed(from, open, now),
            Message::Accept(ref accept) => {
                let proposal = accept.proposal;
                self.tell_payer_of(from, proposal, message, now)
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
                let proposal = named.unwrap_or(ProposalId::from_bytes(subject));
                self.tell_payer_of(from, proposal, message, now)
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

    /// Seller: a buyer proposes a channel.
    fn proposed(&mut self, buyer: NodeId, open: Open, now: Instant) -> Result<(), PaymentsError> {
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
        self.make_room_for(buyer, now);
        let unfunded = self
            .payees
            .values()
            .filter(|c| c.machine.stage() == payee::Stage::Accepted);
        let key_index = self.next_payee_key;
        let (parties, min_first) = (
            Parties {
                payer: party(buyer),
                payee: party(self.me),
            },
            Amount::from_sat(self.first_payment().sat_ceil()),
        );
        let checked = self
            .policy
            .payee
            .check(&open, self.network, parties, min_first, tip);
        let code = match checked {
            Ok(()) if unfunded.count() >= MAX_UNFUNDED => Some(RefusalCode::Busy),
            Ok(()) => None,
            Err(error) => {
                debug!(%buyer, %error, "a proposed channel is refused");
                Some(error.refusal())
            }
        };
        if let Some(code) = code {
            let refused = Refused {
                subject: *proposal.as_bytes(),
                code,
            };
            self.outputs.push_back(Output::Send {
                to: buyer,
                message: Message::Refused(refused),
            });
            return Ok(());
        }
        let key = self.key(Role::Payee, key_index)?;
        self.next_payee_key = key_index.checked_add(1).ok_or(PaymentsError::NoKey)?;
        let network = self.network;
        let acceptance = Acceptance {
            network,
            parties,
            min_first,
            tip,
            key_index,
        };
        let accepted = Payee::accept(open, &acceptance, key, self.policy.payee.clone());
        let machine = match accepted {
            Ok(machine) => machine,
            Err(error) => {
                let refused = Refused {
                    subject: *proposal.as_bytes(),
                    code: error.refusal(),
                };
                self.outputs.push_back(Output::Send {
                    to: buyer,
                    message: Message::Refused(refused),
                });
                return Ok(());
            }
        };
        self.index(Some(machine.channel()), proposal);
        self.payees.insert(proposal, Channel::new(machine, buyer));
        use_channel(&mut self.sold, buyer, proposal, Amount::ZERO);
        self.drain_payee(proposal, now);
        Ok(())
    }

    /// Gives up what this buyer proposed before and never funded: a buyer has one such at a time.
    fn make_room_for(&mut self, buyer: NodeId, now: Instant) {
        let stale: Vec<_> = self
            .payees
            .iter()
            .filter(|(_, c)| c.peer == buyer && c.machine.stage() == payee::Stage::Accepted)
            .map(|(proposal, _)| *proposal)
            .collect();
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
        self.drain_payer(proposal);
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
