//! A second implementation of what the channel relies on, written from BIP-340, BIP-341 and
//! BIP-327, held against the vectors of those documents, and then used to check the product.

use bitcoin::consensus::encode::serialize;
use bitcoin::hashes::{Hash, HashEngine, sha256};
use bitcoin::secp256k1::{PublicKey, Scalar, Secp256k1, SecretKey};
use bitcoin::{Transaction, TxOut, consensus};

pub(crate) fn sha(parts: &[&[u8]]) -> [u8; 32] {
    let mut engine = sha256::Hash::engine();
    parts.iter().for_each(|part| engine.input(part));
    sha256::Hash::from_engine(engine).to_byte_array()
}

pub(crate) fn tagged(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let tag = sha(&[tag.as_bytes()]);
    let mut all: Vec<&[u8]> = vec![&tag, &tag];
    all.extend(parts);
    sha(&all)
}

/// The signature hash of BIP-341, with the extension of BIP-342 if `leaf` is given.
pub(crate) fn sighash(
    tx: &Transaction,
    index: usize,
    prevouts: &[TxOut],
    hash_type: u8,
    leaf: Option<[u8; 32]>,
) -> [u8; 32] {
    let (output_type, anyone) = (hash_type & 3, hash_type & 0x80 != 0);
    let mut message = vec![0, hash_type];
    message.extend(serialize(&tx.version));
    message.extend(serialize(&tx.lock_time));
    if !anyone {
        let concat = |f: &dyn Fn(usize) -> Vec<u8>| {
            sha(&[&(0..tx.input.len()).flat_map(f).collect::<Vec<_>>()])
        };
        message.extend(concat(&|i| serialize(&tx.input[i].previous_output)));
        message.extend(concat(&|i| serialize(&prevouts[i].value)));
        message.extend(concat(&|i| serialize(&prevouts[i].script_pubkey)));
        message.extend(concat(&|i| serialize(&tx.input[i].sequence)));
    }
    if output_type != 2 && output_type != 3 {
        message.extend(sha(&[&tx
            .output
            .iter()
            .flat_map(serialize)
            .collect::<Vec<_>>()]));
    }
    message.push(if leaf.is_some() { 2 } else { 0 });
    if anyone {
        message.extend(serialize(&tx.input[index].previous_output));
        message.extend(serialize(&prevouts[index].value));
        message.extend(serialize(&prevouts[index].script_pubkey));
        message.extend(serialize(&tx.input[index].sequence));
    } else {
        message.extend((index as u32).to_le_bytes());
    }
    if output_type == 3 {
        message.extend(sha(&[&serialize(&tx.output[index])]));
    }
    if let Some(leaf) = leaf {
        message.extend(leaf);
        message.push(0);
        message.extend(u32::MAX.to_le_bytes());
    }
    tagged("TapSighash", &[&message])
}

pub(crate) fn leaf_hash(script: &[u8]) -> [u8; 32] {
    assert!(script.len() < 0xfd);
    tagged("TapLeaf", &[&[0xc0, script.len() as u8], script])
}

pub(crate) fn branch(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    tagged("TapBranch", &[&low, &high])
}

/// The output script of a key and a tree.
pub(crate) fn output_script(internal: [u8; 32], root: [u8; 32]) -> Vec<u8> {
    let secp = Secp256k1::new();
    let tweak = Scalar::from_be_bytes(tagged("TapTweak", &[&internal, &root])).unwrap();
    let point = even(&internal).add_exp_tweak(&secp, &tweak).unwrap();
    [&[0x51, 0x20], &point.x_only_public_key().0.serialize()[..]].concat()
}

pub(crate) fn even(x: &[u8; 32]) -> PublicKey {
    PublicKey::from_slice(&[&[2], &x[..]].concat()).unwrap()
}

/// `KeyAgg` of BIP-327.
pub(crate) fn key_agg(keys: &[PublicKey]) -> [u8; 32] {
    let secp = Secp256k1::new();
    let bytes: Vec<[u8; 33]> = keys.iter().map(PublicKey::serialize).collect();
    let list = tagged("KeyAgg list", &[&bytes.concat()]);
    let second = bytes.iter().find(|key| **key != bytes[0]);
    let terms: Vec<PublicKey> = keys
        .iter()
        .zip(&bytes)
        .map(|(key, bytes)| {
            if Some(bytes) == second {
                return *key;
            }
            let coefficient = tagged("KeyAgg coefficient", &[&list, bytes]);
            key.mul_tweak(&secp, &Scalar::from_be_bytes(coefficient).unwrap())
                .unwrap()
        })
        .collect();
    let sum = PublicKey::combine_keys(&terms.iter().collect::<Vec<_>>()).unwrap();
    sum.x_only_public_key().0.serialize()
}

fn vectors() -> serde_json::Value {
    serde_json::from_str(include_str!("../vectors/bip341_wallet_vectors.json")).unwrap()
}

fn bytes32(value: &serde_json::Value) -> [u8; 32] {
    hex::decode(value.as_str().unwrap())
        .unwrap()
        .try_into()
        .unwrap()
}

#[test]
fn the_signature_hash_matches_the_vectors_of_bip_341() {
    let vectors = vectors();
    let case = &vectors["keyPathSpending"][0];
    let raw = hex::decode(case["given"]["rawUnsignedTx"].as_str().unwrap()).unwrap();
    let tx: Transaction = consensus::deserialize(&raw).unwrap();
    let prevouts: Vec<TxOut> = case["given"]["utxosSpent"]
        .as_array()
        .unwrap()
        .iter()
        .map(|utxo| TxOut {
            value: bitcoin::Amount::from_sat(utxo["amountSats"].as_u64().unwrap()),
            script_pubkey: bitcoin::ScriptBuf::from_hex(utxo["scriptPubKey"].as_str().unwrap())
                .unwrap(),
        })
        .collect();
    let mut types = Vec::new();

    for input in case["inputSpending"].as_array().unwrap() {
        let index = input["given"]["txinIndex"].as_u64().unwrap() as usize;
        let hash_type = input["given"]["hashType"].as_u64().unwrap() as u8;
        let expected = bytes32(&input["intermediary"]["sigHash"]);
        assert_eq!(
            sighash(&tx, index, &prevouts, hash_type, None),
            expected,
            "{hash_type:#x}"
        );
        types.push(hash_type);
    }

    assert!([0x00, 0x82, 0x83].iter().all(|used| types.contains(used)));
}

#[test]
fn output_scripts_match_the_vectors_of_bip_341() {
    let vectors = vectors();
    let mut trees = 0;

    for case in vectors["scriptPubKey"].as_array().unwrap() {
        let Some([a, b]) = case["given"]["scriptTree"].as_array().map(Vec::as_slice) else {
            continue;
        };
        if [a, b].iter().any(|leaf| leaf["leafVersion"] != 192) {
            continue;
        }
        let leaf = |leaf: &serde_json::Value| {
            leaf_hash(&hex::decode(leaf["script"].as_str().unwrap()).unwrap())
        };
        let root = branch(leaf(a), leaf(b));
        assert_eq!(root, bytes32(&case["intermediary"]["merkleRoot"]));
        let internal = bytes32(&case["given"]["internalPubkey"]);
        let expected = case["expected"]["scriptPubKey"].as_str().unwrap();
        assert_eq!(hex::encode(output_script(internal, root)), expected);
        trees += 1;
    }

    assert_eq!(trees, 1, "the vectors hold one tree of two tapscripts");
}

#[test]
fn key_aggregation_matches_the_vectors_of_bip_327() {
    let keys = [
        "02F9308A019258C31049344F85F89D5229B531C845836F99B08601F113BCE036F9",
        "03DFF1D77F2A671C5F36183726DB2341BE58FEAE1DA2DECED843240F7B502BA659",
        "023590A94E768F8E1815C2F24B4D80A8E3149316C3518CE7B7AD338368D038CA66",
    ]
    .map(|key| key.to_lowercase().parse::<PublicKey>().unwrap());

    let aggregate = |order: &[usize]| {
        hex::encode_upper(key_agg(&order.iter().map(|i| keys[*i]).collect::<Vec<_>>()))
    };

    assert_eq!(
        aggregate(&[0, 1, 2]),
        "90539EEDE565F5D054F32CC0C220126889ED1E5D193BAF15AEF344FE59D4610C"
    );
    assert_eq!(
        aggregate(&[2, 1, 0]),
        "6204DE8B083426DC6EAF9502D27024D53FC826BF7D2012148A0575435DF54B2B"
    );
    assert_eq!(
        aggregate(&[0, 0, 0]),
        "B436E3BAD62B8CD409969A224731C193D051162D8C5AE8B109306127DA3AA935"
    );
}

#[test]
fn the_scripts_of_a_channel_are_those_of_the_documents() {
    use crate::fixture::{keypair, scripts};

    for seed in 1..40 {
        let (payer, payee) = (keypair(seed), keypair(seed + 100));
        let expiry = 100 + u32::from(seed) * 30_000;
        let (b, s) = (payer.x_only_public_key().0, payee.x_only_public_key().0);
        let scripts = scripts(seed, seed + 100, expiry);
        let mut sorted = [even(&b.serialize()), even(&s.serialize())];
        sorted.sort_by_key(PublicKey::serialize);
        let internal = key_agg(&sorted);

        let height: miniscript::AbsLockTime =
            miniscript::AbsLockTime::from_consensus(expiry).unwrap();
        let update: miniscript::Miniscript<bitcoin::XOnlyPublicKey, miniscript::Tap> =
            format!("and_v(v:pk({b}),pk({s}))").parse().unwrap();
        let refund: miniscript::Miniscript<bitcoin::XOnlyPublicKey, miniscript::Tap> =
            format!("and_v(v:pk({b}),after({height}))").parse().unwrap();
        let (update, refund) = (update.encode(), refund.encode());
        let root = branch(leaf_hash(update.as_bytes()), leaf_hash(refund.as_bytes()));

        assert_eq!(scripts.internal_key().serialize(), internal);
        assert_eq!(scripts.update().script, update);
        assert_eq!(scripts.update().script.len(), 68);
        assert_eq!(scripts.refund().script, refund);
        assert!((38..=39).contains(&scripts.refund().script.len()));
        assert_eq!(scripts.output().as_bytes(), output_script(internal, root));
        assert_eq!(scripts.update().control.size(), 65);
        assert_eq!(scripts.refund().control.size(), 65);
    }
}

#[test]
fn the_order_of_the_parties_does_not_change_the_aggregate() {
    use bitmesh_wallet::channel::script::aggregate;
    let key = |seed: u8| {
        let secret = SecretKey::from_slice(&[seed; 32]).unwrap();
        secret.x_only_public_key(&Secp256k1::new()).0
    };

    assert_eq!(aggregate(key(1), key(2)), aggregate(key(2), key(1)));
    assert_ne!(aggregate(key(1), key(2)), aggregate(key(1), key(3)));
}
