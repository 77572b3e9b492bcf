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

use std::time::Instant;

use bitcoin::{Amount, FeeRate};

use super::Payer;
use super::state::{Attempt, Funded, Resend, State, Step};
use crate::channel::deadline::Phase;
use crate::channel::message::{
    Close, CloseAck, CloseDone, ClosePartial, Kind, Message, RefusalCode, Refused,
};
use crate::channel::musig::Nonce;
use crate::channel::params::CLOSE_PATIENCE;
use crate::channel::payer::{CloseError, Error, Event, Output};
use crate::channel::record::Fact;
use crate::channel::split::CloseFailure;

impl Payer {
    /// Begins an attempt. One that goes on already goes on.
    pub(super) fn close_together(
        &mut self,
        feerate: FeeRate,
        seed: [u8; 32],
        now: Instant,
    ) -> Result<(), CloseError> {
        let phase = self.phase();
        let State::Funded(funded) = &mut self.state else {
            return Err(CloseError::NothingLocked);
        };
        if funded.spent.is_some() || funded.refund.is_some() || funded.close.is_some() {
            return Err(CloseError::Ending);
        }
        if phase == Some(Phase::Expired) {
            return Err(CloseError::Expired);
        }
        if funded.attempt.is_some() {
            return Ok(());
        }
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
        };
        funded.attempt = Some(Attempt {
            feerate,
            until: now.checked_add(CLOSE_PATIENCE).unwrap_or(now),
            step: Step::Asked { nonce, close },
        });
        self.resend = Resend::default();
        self.send_pending(now);
        Ok(())
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
        let (tranche, promised) = (&funded.tranche, funded.promised);
        let digest = ack
            .split
            .check_for_payer(tranche, promised, attempt.feerate)
            .and_then(|()| ack.split.digest(tranche));
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
        funded.attempt = Some(Attempt {
            feerate,
            until,
            step: Step::Signed { ack, half },
        });
        self.persist(Fact::Splitting { tranche, total });
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
        let signed = done.split.signed(&funded.tranche, &done.signature);
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
