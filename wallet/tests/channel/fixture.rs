//! Two parties, their keys, and transactions to play with.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Keypair, Message as Digest, Secp256k1, SecretKey, schnorr};
use bitcoin::taproot::ControlBlock;
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, FeeRate, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid,
    Witness,
};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::exposure::ExposureTable;
use bitmesh_wallet::channel::message::{Accept, Open};
use bitmesh_wallet::channel::params::{Contract, Parties, PayeePolicy, PayerPolicy, Tranche};
use bitmesh_wallet::channel::payee::{self, Acceptance, Payee};
use bitmesh_wallet::channel::payer::{self, Payer, Proposal};
use bitmesh_wallet::channel::script::Scripts;
use bitmesh_wallet::channel::tx::min_first_payment;
use bitmesh_wallet::channel::{PartyId, params};

use crate::bip341;

pub(crate) const NETWORK: Network = Network::Regtest;
pub(crate) const CAPACITY: Amount = Amount::from_sat(100_000);
pub(crate) const TIP: BlockHeight = BlockHeight::new(800_000);
pub(crate) const EXPIRY: BlockHeight = BlockHeight::new(800_000 + params::DEFAULT_TERM);
pub(crate) const ONE: FeeRate = FeeRate::from_sat_per_vb_u32(1);
pub(crate) const PAYER: u8 = 1;
pub(crate) const PAYEE: u8 = 2;

#[expect(
    clippy::disallowed_methods,
    reason = "any instant will do as the beginning of time"
)]
pub(crate) fn epoch() -> Instant {
    Instant::now()
}

pub(crate) fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

pub(crate) fn keypair(seed: u8) -> Keypair {
    let secret = SecretKey::from_slice(&[seed; 32]).unwrap();
    Keypair::from_secret_key(&Secp256k1::new(), &secret)
}

/// The pay-to-taproot script a wallet would give out.
pub(crate) fn p2tr(seed: u8) -> ScriptBuf {
    ScriptBuf::new_p2tr(&Secp256k1::new(), keypair(seed).x_only_public_key().0, None)
}

pub(crate) fn scripts(payer: u8, payee: u8, expiry: u32) -> Scripts {
    let key = |seed| keypair(seed).x_only_public_key().0;
    Scripts::new(key(payer), key(payee), BlockHeight::new(expiry))
}

pub(crate) fn parties() -> Parties {
    Parties {
        payer: PartyId::from_bytes([0xb0; 32]),
        payee: PartyId::from_bytes([0x5e; 32]),
    }
}

pub(crate) fn open() -> Open {
    Open {
        nonce: [7; 16],
        chain: params::genesis(NETWORK),
        payer: parties().payer,
        payee: parties().payee,
        payer_key: keypair(PAYER).x_only_public_key().0,
        capacity: CAPACITY,
        expiry: EXPIRY,
        change_script: p2tr(0xcb),
    }
}

pub(crate) fn accept(open: &Open) -> Accept {
    Accept {
        proposal: open.proposal(),
        payee_key: keypair(PAYEE).x_only_public_key().0,
        min_first: min_first_payment(ONE).unwrap(),
        exposure: ExposureTable::default(),
    }
}

pub(crate) fn contract() -> Contract {
    static CONTRACT: LazyLock<Contract> = LazyLock::new(|| {
        let open = open();
        let accept = accept(&open);
        Contract::new(open, accept).unwrap()
    });
    CONTRACT.clone()
}

/// A version 3 transaction that looks signed and pays `amount` to `script` at index 1.
pub(crate) fn funding_tx(script: &ScriptBuf, amount: Amount) -> Transaction {
    let input = TxIn {
        previous_output: OutPoint::new(Txid::from_byte_array([0xf0; 32]), 3),
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::from_slice(&[[0x55; 64]]),
    };
    let change = TxOut {
        value: sat(777_777),
        script_pubkey: p2tr(0xc0),
    };
    let output = vec![
        change,
        TxOut {
            value: amount,
            script_pubkey: script.clone(),
        },
    ];
    Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: vec![input],
        output,
    }
}

pub(crate) fn tranche() -> Tranche {
    static TRANCHE: LazyLock<Tranche> = LazyLock::new(|| {
        let contract = contract();
        let tx = funding_tx(contract.scripts().output(), CAPACITY);
        contract.fund(&tx, 1).unwrap()
    });
    TRANCHE.clone()
}

pub(crate) fn proposal() -> Proposal {
    Proposal {
        nonce: [7; 16],
        network: NETWORK,
        parties: parties(),
        capacity: CAPACITY,
        expiry: EXPIRY,
        change_script: p2tr(0xcb),
        max_min_first: sat(1_000),
        key_index: 4,
        from: None,
    }
}

pub(crate) fn acceptance() -> Acceptance {
    Acceptance {
        network: NETWORK,
        parties: parties(),
        min_first: min_first_payment(ONE).unwrap(),
        tip: TIP,
        key_index: 9,
        from: None,
    }
}

pub(crate) fn payer(now: Instant) -> Payer {
    Payer::propose(proposal(), keypair(PAYER), PayerPolicy::default(), now)
}

pub(crate) fn payee() -> Payee {
    Payee::accept(
        open(),
        &acceptance(),
        keypair(PAYEE),
        PayeePolicy::default(),
    )
    .unwrap()
}

pub(crate) fn drain_payer(payer: &mut Payer) -> Vec<payer::Output> {
    std::iter::from_fn(|| payer.poll_output()).collect()
}

pub(crate) fn drain_payee(payee: &mut Payee) -> Vec<payee::Output> {
    std::iter::from_fn(|| payee.poll_output()).collect()
}

pub(crate) fn events(outputs: &[payee::Output]) -> Vec<payee::Event> {
    let event = |output: &payee::Output| match output {
        payee::Output::Notify(event) => Some(*event),
        _ => None,
    };
    outputs.iter().filter_map(event).collect()
}

pub(crate) fn payer_events(outputs: &[payer::Output]) -> Vec<payer::Event> {
    let event = |output: &payer::Output| match output {
        payer::Output::Notify(event) => Some(*event),
        _ => None,
    };
    outputs.iter().filter_map(event).collect()
}

/// A payee whose channel is funded and `confirmations` deep, with nothing left to do.
pub(crate) fn funded_payee(confirmations: u32) -> Payee {
    let mut payee = payee();
    let now = epoch();
    let tx = funding_tx(payee.contract().scripts().output(), CAPACITY);
    let funding = bitmesh_wallet::channel::message::Funding {
        channel: payee.channel(),
        tranche: bitmesh_wallet::channel::TrancheIndex::FIRST,
        tx,
        vout: 1,
    };
    let message = bitmesh_wallet::channel::message::Message::Funding(Box::new(funding));
    payee.handle(payee::Input::Received(message), now).unwrap();
    if confirmations > 0 {
        payee
            .handle(payee::Input::FundingConfirmed { confirmations }, now)
            .unwrap();
    }
    drain_payee(&mut payee);
    payee
}

pub(crate) const SOON: Duration = Duration::from_secs(1);

/// What a node's script engine would say to `tx` spending `tranche` at height `height`, by the
/// second implementation in [`bip341`].
pub(crate) fn check_spend(tranche: &Tranche, tx: &Transaction, height: u32) -> Result<(), String> {
    check_spends(std::slice::from_ref(tranche), tx, height)
}

/// The same for a transaction that spends all of `tranches`, in their order, and nothing else.
pub(crate) fn check_spends(
    tranches: &[Tranche],
    tx: &Transaction,
    height: u32,
) -> Result<(), String> {
    let prevouts: Vec<TxOut> = tranches.iter().map(Tranche::prevout).collect();
    let held: Amount = prevouts.iter().map(|prevout| prevout.value).sum();
    let spent: Amount = tx.output.iter().map(|output| output.value).sum();
    ensure(spent <= held, "creates money")?;
    ensure(tx.version == Version(3), "version")?;
    let inputs = tx.input.iter().map(|input| input.previous_output);
    ensure(inputs.eq(tranches.iter().map(Tranche::outpoint)), "inputs")?;
    ensure(
        tx.output
            .iter()
            .all(|o| o.value >= o.script_pubkey.minimal_non_dust()),
        "dust",
    )?;
    if let LockTime::Blocks(lock) = tx.lock_time {
        let is_final = tx.input.iter().all(|i| i.sequence == Sequence::MAX);
        ensure(is_final || lock.to_consensus_u32() < height, "non-final")?;
    }
    let mut inputs = tranches.iter().enumerate();
    inputs.try_for_each(|(index, tranche)| check_input(tranche, tx, index, &prevouts))
}

fn check_input(
    tranche: &Tranche,
    tx: &Transaction,
    index: usize,
    prevouts: &[TxOut],
) -> Result<(), String> {
    let (input, prevout) = (&tx.input[index], &prevouts[index]);
    let items: Vec<&[u8]> = input.witness.iter().collect();
    let schnorr = |signature: &[u8], digest: [u8; 32], key: &[u8]| {
        let signature = schnorr::Signature::from_slice(signature).map_err(|e| e.to_string())?;
        let key = bitcoin::XOnlyPublicKey::from_slice(key).map_err(|e| e.to_string())?;
        Secp256k1::new()
            .verify_schnorr(&signature, &Digest::from_digest(digest), &key)
            .map_err(|_| "invalid Schnorr signature".to_owned())
    };
    if let [signature] = &items[..] {
        let digest = bip341::sighash(tx, index, prevouts, 0, None);
        return schnorr(signature, digest, &prevout.script_pubkey.as_bytes()[2..]);
    }
    let [stack @ .., script, control] = &items[..] else {
        return Err("witness".into());
    };
    let control = ControlBlock::decode(control).map_err(|e| e.to_string())?;
    let output_key = bitcoin::XOnlyPublicKey::from_slice(&prevout.script_pubkey.as_bytes()[2..]);
    let script_buf = ScriptBuf::from_bytes(script.to_vec());
    let commits =
        control.verify_taproot_commitment(&Secp256k1::new(), output_key.unwrap(), &script_buf);
    ensure(commits, "commitment")?;
    let leaf = bip341::leaf_hash(script);
    let verify = |signature: &[u8], key: &[u8]| {
        let (bytes, hash_type) = match signature.len() {
            64 => (signature, 0),
            65 if signature[64] != 0 => (&signature[..64], signature[64]),
            length => return Err(format!("signature of {length} bytes")),
        };
        if hash_type & 3 == 3 && index >= tx.output.len() {
            return Err("no output to sign".into());
        }
        let digest = bip341::sighash(tx, index, prevouts, hash_type, Some(leaf));
        schnorr(bytes, digest, key)
    };
    match (stack, script.len()) {
        ([payee, payer], 68) => {
            verify(payer, &script[1..33])?;
            verify(payee, &script[35..67])
        }
        ([payer], 38 | 39) => {
            verify(payer, &script[1..33])?;
            let expiry = tranche.expiry().get();
            ensure(
                tx.lock_time >= LockTime::from_height(expiry).unwrap(),
                "CLTV",
            )?;
            ensure(
                input.sequence != Sequence::MAX,
                "CLTV with a final sequence",
            )
        }
        _ => Err("stack".into()),
    }
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(what.to_owned()),
    }
}
