//! Coins for the asking: the miner's, under a key that everybody knows.
//!
//! bitcoind may be built without a wallet, so the faucet signs by itself; and it keeps nothing, so any
//! process may use it. It finds its coins by asking bitcoind for the outputs to its address.

use bitcoin::{
    Address, Amount, Network, OutPoint, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn,
    TxOut, Txid, Witness,
    absolute::LockTime,
    key::{Keypair, Secp256k1, TapTweak, UntweakedKeypair},
    secp256k1::{All, Message},
    sighash::{Prevouts, SighashCache},
    taproot::Signature,
    transaction::Version,
};
use serde::Deserialize;
use serde_json::json;

use super::{Chain, ChainError};

/// How many blocks a coin of the miner has to wait.
const MATURITY: u32 = 100;

/// Fee rate of the faucet, in sat per virtual byte: above the least of every bitcoind.
const FEE_RATE: u64 = 2;

/// How often another coin is tried when another process spent the one that was picked.
const TRIES: usize = 8;

fn keys() -> (Secp256k1<All>, UntweakedKeypair) {
    let secp = Secp256k1::new();
    let keys = Keypair::from_seckey_slice(&secp, b"bitmesh regtest faucet, not safe")
        .expect("32 bytes below the order of the curve are a secret key");
    (secp, keys)
}

/// The address that mined coins go to.
pub(super) fn address() -> Address {
    let (secp, keys) = keys();
    Address::p2tr(&secp, keys.x_only_public_key().0, None, Network::Regtest)
}

#[derive(Debug, Deserialize)]
struct Scan {
    height: u32,
    unspents: Vec<Coin>,
}

#[derive(Debug, Deserialize)]
struct Coin {
    txid: Txid,
    vout: u32,
    #[serde(with = "bitcoin::amount::serde::as_btc")]
    amount: Amount,
    height: u32,
    coinbase: bool,
}

/// Pays each of `to`, and the change back.
pub(super) fn pay(chain: &Chain, to: &[(Address, Amount)]) -> Result<Txid, ChainError> {
    let total: Amount = to.iter().map(|(_, amount)| *amount).sum();
    let output = |(address, value): &(Address, Amount)| TxOut {
        value: *value,
        script_pubkey: address.script_pubkey(),
    };
    let outputs: Vec<TxOut> = to.iter().map(output).collect();

    let mut coins = coins(chain)?;
    // Which coin is the first is chance, so that two processes seldom pick the same.
    let turn = rand::random_range(0..coins.len().max(1));
    coins.rotate_left(turn);
    let mut last = None;
    for coin in coins {
        let outpoint = OutPoint::new(coin.txid, coin.vout);
        let Some(transaction) = spend(outpoint, coin.amount, total, &outputs) else {
            continue;
        };
        let spent: Option<serde_json::Value> = chain.call(
            "gettxout",
            &[json!(coin.txid), json!(coin.vout), json!(true)],
        )?;
        if spent.is_none() {
            continue;
        }
        match chain.broadcast(&transaction) {
            Ok(txid) => return Ok(txid),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(ChainError::Dry(total)))
}

/// The coins that may be spent in the next block, some of which the mempool may have spent.
fn coins(chain: &Chain) -> Result<Vec<Coin>, ChainError> {
    let descriptor = format!("raw({})", address().script_pubkey().to_hex_string());
    let mut tries = 0;
    let scan: Scan = loop {
        tries += 1;
        // bitcoind makes one scan at a time and refuses another one meanwhile.
        match chain.call("scantxoutset", &[json!("start"), json!([descriptor])]) {
            Ok(scan) => break scan,
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(25)),
        }
    };
    let spendable = |coin: &Coin| !coin.coinbase || scan.height + 1 >= coin.height + MATURITY;
    Ok(scan.unspents.into_iter().filter(spendable).collect())
}

/// A signed transaction that spends one coin, or `None` if the coin is too small.
fn spend(coin: OutPoint, value: Amount, total: Amount, outputs: &[TxOut]) -> Option<Transaction> {
    let (secp, keys) = keys();
    let script = address().script_pubkey();
    let mut transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: coin,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::p2tr_key_spend(&Signature::from_slice(&[1; 64]).ok()?),
        }],
        output: outputs.to_vec(),
    };
    transaction.output.push(TxOut {
        value: Amount::ZERO,
        script_pubkey: script.clone(),
    });
    let fee = Amount::from_sat(transaction.vsize() as u64 * FEE_RATE);
    let change = value.checked_sub(total)?.checked_sub(fee)?;
    if change < script.minimal_non_dust() {
        return None;
    }
    transaction.output.last_mut()?.value = change;

    let spent = [TxOut {
        value,
        script_pubkey: script,
    }];
    let hash = SighashCache::new(&transaction)
        .taproot_key_spend_signature_hash(0, &Prevouts::All(&spent), TapSighashType::Default)
        .expect("one input and the output that it spends");
    let keys = keys.tap_tweak(&secp, None).to_keypair();
    let signature = secp.sign_schnorr(&Message::from_digest_slice(hash.as_ref()).ok()?, &keys);
    let signature = Signature {
        signature,
        sighash_type: TapSighashType::Default,
    };
    transaction.input.first_mut()?.witness = Witness::p2tr_key_spend(&signature);
    Some(transaction)
}
