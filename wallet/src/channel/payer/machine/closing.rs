//! Closing together, the payer's part: it begins each attempt, and gives its half away first.
//!
//! ```text
//! payer                           payee
//!   │ ◀──────────────── CloseAsk ── │   only if the payee wishes it
//!   │ ── Close, nonce ────────────▶ │   the payer promises nothing more
//!   │ ◀──── CloseAck, nonce, split─ │   the payee takes no further vouchers
//!   │ ── ClosePartial ────────────▶ │   Splitting is durable before
//!   │ ◀──────────────── CloseDone ──│   Closing is durable before
//! ```
//!
//! A rollover is the same, but that the rest goes into the output of the next channel.

use std::time::Instant;

use bitcoin::{Amount, FeeRate, TxOut};

use super::Payer;
use super::state::{Attempt, Chain, Funded, Resend, State, Step};
use crate::channel::ChannelId;
use crate::channel::deadline::Phase;
use crate::channel::message::{
    Close, CloseAck, CloseDone, ClosePartial, Kind, Message, RefusalCode, Refused,
};
use crate::channel::musig::Nonce;
use crate::channel::params::{CLOSE_PATIENCE, Contract, Tranche};
use crate::channel::payer::{CloseError, Error, Event, Output};
use crate::channel::record::Fact;
use crate::channel::split::CloseFailure;
use crate::channel::tx::DUST_P2TR;

impl Payer {
    /// Begins an attempt. One that goes on already goes on.
    pub(super) fn close_together(
        &mut self,
        feerate: FeeRate,
        seed: [u8; 32],
        now: Instant,
    ) -> Result<(), CloseError> {
        let funded = self.closable()?;
        if funded.attempt.is_none() {
            self.begin(feerate, seed, None, now);
        }
        Ok(())
    }

    /// Begins an attempt that carries the rest over.
    pub(super) fn roll_over(
        &mut self,
        feerate: FeeRate,
        seed: [u8; 32],
        next: &Contract,
        now: Instant,
    ) -> Result<(), CloseError> {
        let funded = self.closable()?;
        // A second half is not given away for another next channel: one is enough to look out for.
        if funded.is_frozen() {
            return Err(CloseError::Closing);
        }
        if funded.promised == Amount::ZERO {
            return Err(CloseError::Unpaid);
        }
        let rest = funded.tranche.capacity().checked_sub(funded.promised);
        let left = rest.and_then(|rest| rest.checked_sub(next.open().capacity));
        let is_whole = left.is_some_and(|left| left == Amount::ZERO || left >= DUST_P2TR);
        // By its own key alone the payer finds the next channel again, if nothing else is left to it.
        let is_same_payee = next.accept().payee_key == funded.contract.accept().payee_key
            && next.open().payee == funded.contract.open().payee;
        if !is_whole || !is_same_payee {
            return Err(CloseError::Next);
        }
        self.begin(feerate, seed, Some((next.id(), next.output())), now);
        Ok(())
    }

    fn closable(&self) -> Result<&Funded, CloseError> {
        let State::Funded(funded) = &self.state else {
            return Err(CloseError::NothingLocked);
        };
        if funded.is_ending() {
            return Err(CloseError::Ending);
        }
        if self.phase() == Some(Phase::Expired) {
            return Err(CloseError::Expired);
        }
        Ok(funded)
    }

    fn begin(
        &mut self,
        feerate: FeeRate,
        seed: [u8; 32],
        next: Option<(ChannelId, TxOut)>,
        now: Instant,
    ) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let (next, output) = next.unzip();
        let tranche = &funded.tranche;
        let promised = (funded.promised > Amount::ZERO)
            .then(|| tranche.sign(&self.keypair, funded.promised))
            .and_then(Result::ok)
            .map(|voucher| (voucher.total, voucher.signature));
        let nonce = Nonce::new(seed, &self.keypair, tranche.scripts(), None);
        let close = Close {
            channel: tranche.channel(),
            tranche: tranche.index(),
            nonce: nonce.public(),
            promised,
            next,
        };
        funded.attempt = Some(Attempt {
            feerate,
            until: now.checked_add(CLOSE_PATIENCE).unwrap_or(now),
            next: output,
            step: Step::Asked {
                nonce: Box::new(nonce),
                close,
            },
        });
        self.resend = Resend::default();
        self.send_pending(now);
    }

    /// The expiry comes near: what is left may be carried over, if something was paid on it.
    pub(super) fn rollover_due(&mut self) {
        let Some(tip) = self.tip else { return };
        let blocks_left = tip.blocks_until(self.open.expiry);
        if let State::Funded(funded) = &self.state
            && !funded.is_ending()
            && !funded.is_frozen()
            && funded.chain == Chain::Confirmed
            && funded.promised > Amount::ZERO
        {
            self.notify(Event::RolloverDue { blocks_left });
        }
    }

    /// The payee asks for it: so does the node, unless it is on its way.
    pub(super) fn close_asked(&mut self) -> Result<(), Error> {
        let State::Funded(funded) = &self.state else {
            return Err(Error::Unexpected {
                kind: Kind::CloseAsk,
            });
        };
        if funded.attempt.is_none() && !funded.is_ending() {
            self.notify(Event::CloseWanted);
        }
        Ok(())
    }

    /// The payee's split. The first that answers our attempt is signed, if it is acceptable, and no
    /// other: the nonce is spent with it.
    pub(super) fn close_acked(&mut self, ack: CloseAck, now: Instant) -> Result<(), Error> {
        let unexpected = Error::Unexpected {
            kind: Kind::CloseAck,
        };
        let State::Funded(funded) = &mut self.state else {
            return Err(unexpected);
        };
        if ack.channel != funded.contract.id() || ack.tranche != funded.tranche.index() {
            return Err(unexpected);
        }
        let Some(attempt) = &funded.attempt else {
            self.refuse(RefusalCode::Attempt);
            return Ok(());
        };
        match &attempt.step {
            Step::Asked { close, .. } if close.attempt() == ack.attempt => {}
            Step::Signed { ack: signed, .. } if *signed == ack => {
                self.resend = Resend::default();
                self.send_pending(now);
                return Ok(());
            }
            Step::Asked { .. } | Step::Signed { .. } => return Err(unexpected),
        }
        let (tranche, promised) = (funded.ground(attempt.next.as_ref()), funded.promised);
        let digest = ack
            .split
            .check_for_payer(&tranche, promised, attempt.feerate)
            .and_then(|()| ack.split.digest(&tranche));
        let digest = match digest {
            Ok(digest) => digest,
            Err(error) => {
                self.refuse(RefusalCode::Split);
                self.close_failed(CloseFailure::Split(error), now);
                return Ok(());
            }
        };
        let Some(Attempt {
            feerate,
            until,
            next,
            step: Step::Asked { nonce, .. },
        }) = funded.attempt.take()
        else {
            return Err(unexpected);
        };
        let half = ClosePartial {
            channel: ack.channel,
            tranche: ack.tranche,
            attempt: ack.attempt,
            partial: nonce.sign(&self.keypair, tranche.scripts(), &digest, &ack.nonce),
        };
        let (tranche, total) = (ack.tranche, ack.split.total);
        let is_first = !std::mem::replace(&mut funded.is_half_signed, true);
        // What was given away for an earlier next channel is still looked out for.
        if next.is_some() {
            funded.next.clone_from(&next);
        }
        let next_known = funded.next.clone();
        funded.attempt = Some(Attempt {
            feerate,
            until,
            next,
            step: Step::Signed { ack, half },
        });
        self.persist(Fact::Splitting {
            tranche,
            total,
            next: next_known,
        });
        if is_first {
            self.notify(Event::HalfSigned { total });
        }
        self.resend = Resend::default();
        self.send_pending(now);
        Ok(())
    }

    /// The signature of both. It says of itself whether it is ours too, whatever we remember.
    pub(super) fn close_done(&mut self, done: &CloseDone) -> Result<(), Error> {
        let unexpected = Error::Unexpected {
            kind: Kind::CloseDone,
        };
        let funded = match &mut self.state {
            State::Funded(funded) => funded,
            State::Settled { contract, .. } if done.channel == contract.id() => return Ok(()),
            _ => return Err(unexpected),
        };
        if done.channel != funded.contract.id() || done.tranche != funded.tranche.index() {
            return Err(unexpected);
        }
        if funded.is_ending() {
            return Ok(());
        }
        let next = funded.next.as_ref();
        let signed = |tranche: &Tranche| done.split.signed(tranche, &done.signature);
        let signed = signed(&funded.tranche).or_else(|| signed(&funded.ground(Some(next?))));
        let tx = Box::new(signed.ok_or(Error::Signature)?);
        funded.attempt = None;
        funded.close = Some((*tx).clone());
        let txid = tx.compute_txid();
        self.resend = Resend::default();
        self.persist(Fact::Closing { tx: tx.clone() });
        self.outputs.push_back(Output::Broadcast(tx));
        self.notify(Event::Closing { txid });
        Ok(())
    }

    /// The payee does not close in this way, or not in this attempt.
    pub(super) fn close_refused(&mut self, code: RefusalCode, now: Instant) {
        // Busy is an answer to what came too soon; the same is sent again in its time.
        if code != RefusalCode::Busy {
            self.close_failed(CloseFailure::Refused(code), now);
        }
    }

    /// The payee cannot be reached.
    pub(super) fn close_unreachable(&mut self, now: Instant) {
        self.close_failed(CloseFailure::Unreachable, now);
    }

    pub(super) fn close_timed_out(&mut self, now: Instant) {
        if let State::Funded(funded) = &self.state
            && funded.attempt.as_ref().is_some_and(|it| it.until <= now)
        {
            self.close_failed(CloseFailure::Silent, now);
        }
    }

    /// The node is asked again for what is half signed: the payee may have ended it, or forgotten.
    pub(super) fn resume_close(&mut self) {
        if let State::Funded(funded) = &self.state
            && funded.is_half_signed
            && funded.attempt.is_none()
            && !funded.is_ending()
        {
            self.notify(Event::CloseWanted);
        }
    }

    /// Ends the attempt, if there is one. An unused nonce goes with it.
    fn close_failed(&mut self, failure: CloseFailure, now: Instant) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        if funded.attempt.take().is_none() {
            return;
        }
        let is_pending = funded.is_pending();
        self.resend = Resend::default();
        if is_pending {
            self.arm(now);
        }
        self.notify(Event::CloseFailed { failure });
    }

    fn refuse(&mut self, code: RefusalCode) {
        if let State::Funded(funded) = &self.state {
            let subject = *funded.contract.id().as_bytes();
            let refused = Message::Refused(Refused { subject, code });
            self.outputs.push_back(Output::Send(refused));
        }
    }
}

impl Funded {
    /// What a split is made from: the tranche, and the output of the next channel if there is one.
    fn ground(&self, next: Option<&TxOut>) -> Tranche {
        match next {
            Some(next) => self.tranche.carried_into(next.clone()),
            None => self.tranche.clone(),
        }
    }

    /// Whether the output is being spent, or a transaction that spends it is made.
    pub(super) const fn is_ending(&self) -> bool {
        self.spent.is_some() || self.refund.is_some() || self.close.is_some()
    }

    /// Whether nothing further may be promised, for now or for good: a split that is being signed
    /// fixes what is paid, and the payee may end the channel by it once our half is out.
    pub(super) const fn is_frozen(&self) -> bool {
        self.attempt.is_some() || self.is_half_signed
    }
}

impl Attempt {
    /// What was said last, and is said again until it is answered.
    pub(super) fn message(&self) -> Message {
        match &self.step {
            Step::Asked { close, .. } => Message::Close(Box::new(*close)),
            Step::Signed { half, .. } => Message::ClosePartial(*half),
        }
    }
}
