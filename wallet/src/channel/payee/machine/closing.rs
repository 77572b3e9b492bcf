//! Closing together, the payee's part: it names the split, and signs last.
//!
//! From its split on it takes no voucher that pays more, until the attempt is over: the payer could
//! end the channel by the split and pay less. Its own half never leaves it without the whole
//! transaction, so an attempt that came to nothing binds it to nothing.

use std::time::Instant;

use bitcoin::{FeeRate, ScriptBuf, TxOut};

use super::Payee;
use super::state::{Attempt, Chain, Funded, State, Step, Wish};
use crate::channel::deadline::Phase;
use crate::channel::message::{
    Close, CloseAck, CloseAsk, CloseDone, ClosePartial, Kind, Message, RefusalCode, Refused,
};
use crate::channel::musig::{self, Nonce};
use crate::channel::params::{CLOSE_PATIENCE, CLOSE_RESPITE, Tranche};
use crate::channel::payee::{CloseError, Error, Event, Output};
use crate::channel::record::Fact;
use crate::channel::split::{CloseFailure, Split};
use crate::channel::voucher::Voucher;

impl Payee {
    /// Asks the payer to begin an attempt. One that goes on already goes on.
    pub(super) fn close_together(&mut self, wish: Wish, now: Instant) -> Result<(), CloseError> {
        let State::Funded(funded) = &mut self.state else {
            return Err(CloseError::NothingHeld);
        };
        if funded.close.is_some() || funded.spent.is_some() {
            return Err(CloseError::Ending);
        }
        match &mut funded.attempt {
            Some(attempt) => attempt.wish = attempt.wish.max(Some(wish)),
            None => {
                funded.attempt = Some(Attempt {
                    until: now.checked_add(CLOSE_PATIENCE).unwrap_or(now),
                    wish: Some(wish),
                    step: Step::Asked { again: None },
                });
                self.ask(now);
            }
        }
        Ok(())
    }

    /// The payer begins an attempt, or says again that it does.
    pub(super) fn close_begun(&mut self, close: Close, now: Instant) -> Result<(), Error> {
        let min = self.contract.accept().min_first;
        let funded = self.closing(close.channel, close.tranche, Kind::Close)?;
        if let Some(done) = funded.done() {
            self.send(Message::CloseDone(done));
            return Ok(());
        }
        if funded.close.is_some() || funded.spent.is_some() {
            return Err(Error::Closing);
        }
        if funded.chain.is_lost() {
            return Err(Error::Frozen);
        }
        if close.next.is_some() {
            self.check_rollover(&close)?;
        }
        let funded = self.closing(close.channel, close.tranche, Kind::Close)?;
        let (wish, until) = match &funded.attempt {
            Some(Attempt {
                step: Step::Offered { ack, .. },
                ..
            }) if ack.attempt == close.attempt() => {
                let ack = Message::CloseAck(ack.clone());
                self.send(ack);
                return Ok(());
            }
            Some(Attempt {
                step: Step::Wanted { close: known },
                ..
            }) if *known == close => return Ok(()),
            Some(attempt) => (attempt.wish, attempt.wish.map(|_| attempt.until)),
            None => (None, None),
        };
        // An honest payer comes with a new nonce after it gave up or crashed, not sooner.
        let is_early = |last: Instant| now.saturating_duration_since(last) < CLOSE_RESPITE;
        if funded.begun.is_some_and(is_early) {
            return Err(Error::Frozen);
        }
        let voucher = close.promised.map(|(total, signature)| Voucher {
            channel: close.channel,
            tranche: close.tranche,
            total,
            signature,
        });
        let voucher = voucher.filter(|voucher| voucher.total > funded.held_total());
        if let Some(voucher) = &voucher {
            if voucher.total < min {
                let got = voucher.total;
                return Err(Error::BelowFirst { got, min });
            }
            funded.tranche.verify(voucher)?;
        }
        funded.begun = Some(now);
        funded.attempt = Some(Attempt {
            until: until
                .or_else(|| now.checked_add(CLOSE_PATIENCE))
                .unwrap_or(now),
            wish,
            step: Step::Wanted { close },
        });
        if let Some(voucher) = voucher {
            self.hold(voucher);
        }
        self.notify(match close.next {
            None => Event::SplitDue,
            Some(next) => Event::RolloverWanted { next },
        });
        Ok(())
    }

    /// A rollover is begun only where it can be trusted unconfirmed, and where nothing but a rollover can
    /// come of the attempt: an operator that wants to close does not want to carry over.
    fn check_rollover(&self, close: &Close) -> Result<(), Error> {
        let State::Funded(funded) = &self.state else {
            return Err(Error::Closing);
        };
        let phase = self
            .tip
            .map(|tip| self.policy.margins.phase(self.contract.open().expiry, tip));
        let wants_end = funded
            .attempt
            .as_ref()
            .is_some_and(|attempt| attempt.wish == Some(Wish::Operator));
        if phase.is_none_or(|phase| phase >= Phase::Close) || wants_end {
            return Err(Error::Closing);
        }
        // The voucher that comes with it counts as held.
        let is_paid = close.promised.is_some() || funded.held.is_some();
        let is_deep = match funded.chain {
            Chain::Confirmed { confirmations } => {
                confirmations >= self.contract.accept().exposure.final_depth()
            }
            Chain::Unseen | Chain::Mempool { .. } | Chain::Dropped | Chain::Conflicted => false,
        };
        match is_paid && is_deep {
            true => Ok(()),
            false => Err(Error::Frozen),
        }
    }

    /// There is no channel of that id to carry over into; the payer is told.
    pub(super) fn rollover_unknown(&mut self) {
        let State::Funded(funded) = &self.state else {
            return;
        };
        let step = funded.attempt.as_ref().map(|attempt| &attempt.step);
        if let Some(Step::Wanted { close }) = step
            && close.next.is_some()
        {
            let (subject, code) = (*self.contract.id().as_bytes(), RefusalCode::Unknown);
            self.send(Message::Refused(Refused { subject, code }));
            self.close_failed(CloseFailure::NoNext);
        }
    }

    /// The node's answer to [`Event::SplitDue`]. Too late, it changes nothing.
    pub(super) fn split_chosen(
        &mut self,
        payout: &ScriptBuf,
        feerate: FeeRate,
        seed: [u8; 32],
        next: Option<TxOut>,
    ) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let Some(Attempt {
            wish,
            step: Step::Wanted { close },
            ..
        }) = &funded.attempt
        else {
            return;
        };
        if close.next.is_some() != next.is_some() {
            return;
        }
        let (close, is_operators) = (*close, *wish == Some(Wish::Operator));
        let tranche = &funded.ground(next.as_ref());
        let split = match Split::new(tranche, funded.held_total(), payout, feerate) {
            Ok(split) if is_operators || split.is_worth_it_for_payee() => split,
            Ok(Split { fee, total, .. }) => {
                return self.close_impossible(CloseFailure::NotWorthIt { fee, total });
            }
            Err(error) => return self.close_impossible(CloseFailure::Build(error)),
        };
        let Ok(digest) = split.digest(tranche) else {
            return;
        };
        let context = Some((&digest, &close.nonce));
        let nonce = Nonce::new(seed, &self.keypair, tranche.scripts(), context);
        let ack = Box::new(CloseAck {
            channel: tranche.channel(),
            tranche: tranche.index(),
            attempt: close.attempt(),
            nonce: nonce.public(),
            split,
        });
        if let Some(attempt) = &mut funded.attempt {
            attempt.step = Step::Offered {
                nonce,
                theirs: close.nonce,
                digest,
                ack: ack.clone(),
                next,
            };
        }
        self.send(Message::CloseAck(ack));
    }

    /// The payer's half. Verified before ours is made, so that a wrong one costs no nonce.
    pub(super) fn close_signed(&mut self, half: ClosePartial) -> Result<(), Error> {
        let key = self.contract.open().payer_key;
        let keypair = self.keypair;
        let funded = self.closing(half.channel, half.tranche, Kind::ClosePartial)?;
        if let Some(done) = funded.done() {
            self.send(Message::CloseDone(done));
            return Ok(());
        }
        let scripts = funded.tranche.scripts();
        let step = funded.attempt.as_ref().map(|attempt| &attempt.step);
        let Some(Step::Offered {
            nonce,
            theirs,
            digest,
            ack,
            ..
        }) = step
        else {
            return Err(Error::NoAttempt);
        };
        if ack.attempt != half.attempt {
            return Err(Error::NoAttempt);
        }
        let pair = (&nonce.public(), theirs);
        if !musig::is_valid(scripts, digest, pair, key, &half.partial) {
            return Err(Error::Partial);
        }
        let Some(Attempt {
            step:
                Step::Offered {
                    nonce,
                    theirs,
                    digest,
                    ack,
                    next,
                },
            ..
        }) = funded.attempt.take()
        else {
            return Err(Error::NoAttempt);
        };
        let ours = (nonce.public(), theirs);
        let scripts = funded.tranche.scripts();
        let partial = nonce.sign(&keypair, scripts, &digest, &theirs);
        let pair = (&ours.0, &ours.1);
        let signature = musig::join(scripts, &digest, pair, [&half.partial, &partial]);
        let split = ack.split;
        let ground = funded.ground(next.as_ref());
        let tx = signature.and_then(|signature| split.signed(&ground, &signature));
        // Two valid halves always make a whole; if ever not, nothing was given away.
        let tx = Box::new(tx.ok_or(Error::Partial)?);
        funded.close = Some((*tx).clone());
        let (done, txid) = (funded.done(), tx.compute_txid());
        self.persist(Fact::Closing { tx: tx.clone() });
        self.outputs.push_back(Output::Broadcast(tx));
        if let Some(done) = done {
            self.send(Message::CloseDone(done));
        }
        self.notify(Event::Closing { txid });
        self.limit_may_have_changed();
        Ok(())
    }

    /// The payer does not close like this, or not in this attempt.
    pub(super) fn close_refused(&mut self, refused: Refused) -> Result<(), Error> {
        let is_ours = refused.subject == *self.contract.id().as_bytes();
        let State::Funded(funded) = &self.state else {
            return Err(Error::Unexpected {
                kind: Kind::Refused,
            });
        };
        if !is_ours || funded.attempt.is_none() {
            return Err(Error::Unexpected {
                kind: Kind::Refused,
            });
        }
        self.close_failed(CloseFailure::Refused(refused.code));
        Ok(())
    }

    /// The payer cannot be reached.
    pub(super) fn close_unreachable(&mut self) {
        self.close_failed(CloseFailure::Unreachable);
    }

    pub(super) fn close_timed_out(&mut self, now: Instant) {
        let State::Funded(funded) = &self.state else {
            return;
        };
        match &funded.attempt {
            Some(attempt) if attempt.until <= now => self.close_failed(CloseFailure::Silent),
            Some(Attempt {
                step: Step::Asked { again: Some(at) },
                ..
            }) if *at <= now => self.ask(now),
            Some(_) | None => {}
        }
    }

    fn ask(&mut self, now: Instant) {
        let channel = self.contract.id();
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let tranche = funded.tranche.index();
        if let Some(Attempt {
            step: Step::Asked { again },
            ..
        }) = &mut funded.attempt
        {
            *again = now.checked_add(CLOSE_RESPITE.saturating_mul(3));
        }
        self.send(Message::CloseAsk(CloseAsk { channel, tranche }));
    }

    /// Our own policy does not allow it at this fee rate; the payer is told.
    fn close_impossible(&mut self, failure: CloseFailure) {
        let subject = *self.contract.id().as_bytes();
        let code = RefusalCode::Split;
        self.send(Message::Refused(Refused { subject, code }));
        self.close_failed(failure);
    }

    /// Ends the attempt, if there is one. An unused nonce goes with it.
    fn close_failed(&mut self, failure: CloseFailure) {
        if let State::Funded(funded) = &mut self.state
            && funded.attempt.take().is_some()
        {
            self.notify(Event::CloseFailed { failure });
        }
    }

    fn closing(
        &mut self,
        channel: crate::channel::ChannelId,
        tranche: crate::channel::TrancheIndex,
        kind: Kind,
    ) -> Result<&mut Funded, Error> {
        match &mut self.state {
            State::Funded(funded)
                if channel == funded.tranche.channel() && tranche == funded.tranche.index() =>
            {
                Ok(funded)
            }
            State::Accepted | State::Funded(_) | State::Settled { .. } | State::Abandoned => {
                Err(Error::Unexpected { kind })
            }
        }
    }

    fn send(&mut self, message: Message) {
        self.outputs.push_back(Output::Send(message));
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

    /// Whether a split is on offer: a voucher that pays more has to wait.
    pub(super) fn is_frozen(&self) -> bool {
        let step = self.attempt.as_ref().map(|attempt| &attempt.step);
        matches!(step, Some(Step::Offered { .. }))
    }

    /// What to say of a close that both have signed, if that is what was made.
    fn done(&self) -> Option<CloseDone> {
        let (split, signature) = Split::read(&self.tranche, self.close.as_ref()?)?;
        Some(CloseDone {
            channel: self.tranche.channel(),
            tranche: self.tranche.index(),
            split,
            signature,
        })
    }
}

impl Attempt {
    /// When something is to be done about it.
    pub(super) fn poll_timeout(&self) -> Instant {
        match self.step {
            Step::Asked { again: Some(at) } => at.min(self.until),
            Step::Asked { again: None } | Step::Wanted { .. } | Step::Offered { .. } => self.until,
        }
    }
}
