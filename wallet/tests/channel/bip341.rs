//! A second implementation of what the channel relies on, written from BIP-340 and BIP-341: held
//! against the vectors of those documents, and then used to check the product.

use bitcoin::consensus::encode::serialize;
use bitcoin::hashes::{Hash, HashEngine, sha256};
use bitcoin::secp256k1::{Parity, PublicKey, Scalar, Secp256k1};
use bitcoin::{Transaction, TxOut};

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
    leaf_hash_of(0xc0, script)
}

fn leaf_hash_of(version: u8, script: &[u8]) -> [u8; 32] {
    assert!(script.len() < 0xfd);
    tagged("TapLeaf", &[&[version, script.len() as u8], script])
}

pub(crate) fn branch(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    tagged("TapBranch", &[&low, &high])
}

/// The output key of a key and the root of a tree, if there is one, and whether its Y is odd.
pub(crate) fn output_key(internal: [u8; 32], root: &[u8]) -> ([u8; 32], bool) {
    let secp = Secp256k1::new();
    let tweak = Scalar::from_be_bytes(tagged("TapTweak", &[&internal, root])).unwrap();
    let point = even(&internal).add_exp_tweak(&secp, &tweak).unwrap();
    let (key, parity) = point.x_only_public_key();
    (key.serialize(), parity == Parity::Odd)
}

pub(crate) fn even(x: &[u8; 32]) -> PublicKey {
    PublicKey::from_slice(&[&[2], &x[..]].concat()).unwrap()
}

#[cfg(test)]
mod tests {
    use bitcoin::consensus;
    use bitcoin::key::TapTweak;
    use bitcoin::secp256k1::{Keypair, SecretKey};
    use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
    use bitcoin::taproot::{LeafVersion, TaprootBuilder};

    use super::*;

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../vectors/bip341_wallet_vectors.json")).unwrap()
    }

    fn bytes32(value: &serde_json::Value) -> [u8; 32] {
        hex::decode(value.as_str().unwrap())
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// The transaction that the vectors sign, and what it spends.
    fn spending(case: &serde_json::Value) -> (Transaction, Vec<TxOut>) {
        let raw = hex::decode(case["given"]["rawUnsignedTx"].as_str().unwrap()).unwrap();
        let prevouts = case["given"]["utxosSpent"].as_array().unwrap().iter();
        let prevouts = prevouts.map(|utxo| TxOut {
            value: bitcoin::Amount::from_sat(utxo["amountSats"].as_u64().unwrap()),
            script_pubkey: bitcoin::ScriptBuf::from_hex(utxo["scriptPubKey"].as_str().unwrap())
                .unwrap(),
        });
        (consensus::deserialize(&raw).unwrap(), prevouts.collect())
    }

    #[test]
    fn digests_and_signatures_match_the_vectors_of_bip_341() {
        let vectors = vectors();
        let case = &vectors["keyPathSpending"][0];
        let (tx, prevouts) = spending(case);
        let secp = Secp256k1::new();
        let mut types = Vec::new();

        for input in case["inputSpending"].as_array().unwrap() {
            let (given, steps) = (&input["given"], &input["intermediary"]);
            let index = given["txinIndex"].as_u64().unwrap() as usize;
            let hash_type = given["hashType"].as_u64().unwrap() as u8;
            let digest = sighash(&tx, index, &prevouts, hash_type, None);
            assert_eq!(digest, bytes32(&steps["sigHash"]), "{hash_type:#x}");

            // The library that the product signs with comes to the same, from the same facts as it does:
            // one prevout where the signature covers one input, all of them elsewhere.
            let kind = TapSighashType::from_consensus_u8(hash_type).unwrap();
            let prevouts = match hash_type & 0x80 {
                0 => Prevouts::All(&prevouts),
                _ => Prevouts::One(index, prevouts[index].clone()),
            };
            let mut cache = SighashCache::new(&tx);
            let theirs = cache.taproot_key_spend_signature_hash(index, &prevouts, kind);
            assert_eq!(theirs.unwrap().to_byte_array(), digest, "{hash_type:#x}");

            let key = SecretKey::from_slice(&bytes32(&given["internalPrivkey"])).unwrap();
            let keypair = Keypair::from_secret_key(&secp, &key);
            let internal = keypair.x_only_public_key().0.serialize();
            assert_eq!(internal, bytes32(&steps["internalPubkey"]));
            let root = given["merkleRoot"]
                .as_str()
                .map(|_| bytes32(&given["merkleRoot"]));
            let tweak = tagged("TapTweak", &[&internal, &root.map_or(vec![], Vec::from)]);
            assert_eq!(tweak, bytes32(&steps["tweak"]));
            let root = root.map(bitcoin::TapNodeHash::from_byte_array);
            let tweaked = keypair.tap_tweak(&secp, root).to_keypair();
            assert_eq!(tweaked.secret_bytes(), bytes32(&steps["tweakedPrivkey"]));

            // The signatures of the vectors are without randomness, like ours.
            let message = bitcoin::secp256k1::Message::from_digest(digest);
            let signature = bitcoin::taproot::Signature {
                signature: secp.sign_schnorr_no_aux_rand(&message, &tweaked),
                sighash_type: kind,
            };
            let expected = input["expected"]["witness"][0].as_str().unwrap();
            assert_eq!(hex::encode(signature.to_vec()), expected, "{hash_type:#x}");
            types.push(hash_type);
        }

        types.sort_unstable();
        assert_eq!(types, [0x00, 0x01, 0x02, 0x03, 0x81, 0x82, 0x83]);
    }

    /// A leaf of a tree, its hash, and the path from it to the root.
    struct Place {
        hash: [u8; 32],
        version: u8,
        script: Vec<u8>,
        path: Vec<[u8; 32]>,
    }

    /// The root of a tree, and its leaves in order.
    fn tree(node: &serde_json::Value) -> ([u8; 32], Vec<Place>) {
        if let Some([left, right]) = node.as_array().map(Vec::as_slice) {
            let ((left, mut leaves), (right, mut others)) = (tree(left), tree(right));
            leaves.iter_mut().for_each(|leaf| leaf.path.push(right));
            others.iter_mut().for_each(|leaf| leaf.path.push(left));
            leaves.append(&mut others);
            return (branch(left, right), leaves);
        }
        let script = hex::decode(node["script"].as_str().unwrap()).unwrap();
        let version = node["leafVersion"].as_u64().unwrap() as u8;
        let hash = leaf_hash_of(version, &script);
        let leaf = Place {
            hash,
            version,
            script,
            path: Vec::new(),
        };
        (hash, vec![leaf])
    }

    #[test]
    fn trees_tweaks_and_control_blocks_match_the_vectors_of_bip_341() {
        let vectors = vectors();
        let secp = Secp256k1::new();
        let (mut trees, mut leaves) = (0, 0);

        for case in vectors["scriptPubKey"].as_array().unwrap() {
            let (given, steps, expected) =
                (&case["given"], &case["intermediary"], &case["expected"]);
            let internal = bytes32(&given["internalPubkey"]);
            let (root, places) = match given["scriptTree"].is_null() {
                true => (None, Vec::new()),
                false => {
                    let (root, places) = tree(&given["scriptTree"]);
                    assert_eq!(root, bytes32(&steps["merkleRoot"]));
                    (Some(root), places)
                }
            };
            let root_bytes = root.map_or(vec![], Vec::from);
            let tweak = tagged("TapTweak", &[&internal, &root_bytes]);
            assert_eq!(tweak, bytes32(&steps["tweak"]));
            let (key, is_odd) = output_key(internal, &root_bytes);
            assert_eq!(key, bytes32(&steps["tweakedPubkey"]));
            let script = [&[0x51, 0x20], &key[..]].concat();
            assert_eq!(
                hex::encode(&script),
                expected["scriptPubKey"].as_str().unwrap()
            );

            // The library that the product builds its output with.
            let mut builder = TaprootBuilder::new();
            for leaf in &places {
                let version = LeafVersion::from_consensus(leaf.version).unwrap();
                let script = bitcoin::ScriptBuf::from_bytes(leaf.script.clone());
                let depth = leaf.path.len() as u8;
                builder = builder.add_leaf_with_ver(depth, script, version).unwrap();
            }
            let internal_key = bitcoin::XOnlyPublicKey::from_slice(&internal).unwrap();
            let spend = builder.finalize(&secp, internal_key).unwrap();
            let theirs = bitcoin::ScriptBuf::new_p2tr_tweaked(spend.output_key());
            assert_eq!(theirs.as_bytes(), script);
            let address = bitcoin::Address::from_script(&theirs, bitcoin::Network::Bitcoin);
            assert_eq!(
                address.unwrap().to_string(),
                expected["bip350Address"].as_str().unwrap()
            );
            trees += 1;

            for (at, leaf) in places.iter().enumerate() {
                assert_eq!(leaf.hash, bytes32(&steps["leafHashes"][at]));
                let first = leaf.version | u8::from(is_odd);
                let control = [&[first], &internal[..], &leaf.path.concat()].concat();
                let wanted = expected["scriptPathControlBlocks"][at].as_str().unwrap();
                assert_eq!(hex::encode(&control), wanted);
                let script = bitcoin::ScriptBuf::from_bytes(leaf.script.clone());
                let version = LeafVersion::from_consensus(leaf.version).unwrap();
                let theirs = spend.control_block(&(script, version)).unwrap();
                assert_eq!(theirs.serialize(), control);
                leaves += 1;
            }
        }

        assert_eq!((trees, leaves), (7, 12));
    }
}
