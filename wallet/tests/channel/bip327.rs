//! A second implementation of what a close together relies on, written from BIP-327: both it and the
//! library that signs are held against the vectors of that document, and then it checks the product.

use bitcoin::secp256k1::{PublicKey, Scalar, Secp256k1, SecretKey};
use secp256k1_musig as library;
use secp256k1_musig::musig::{
    AggregatedNonce, KeyAggCache, PartialSignature, PublicNonce, SecretNonce, Session,
    SessionSecretRand, new_nonce_pair,
};
use serde_json::Value;

use crate::bip341::{branch, even, leaf_hash, output_key, tagged};

/// `key_agg_and_tweak`: the key, and what its tweaks have made of the keys in it.
struct Aggregate {
    key: PublicKey,
    keys: Vec<PublicKey>,
    /// Whether the tweaks have turned the sign of the keys around.
    is_negated: bool,
    /// What they have added, if they have.
    added: Option<SecretKey>,
}

/// `get_session_values`.
struct Values {
    noncecoef: [u8; 32],
    nonce: PublicKey,
    challenge: [u8; 32],
}

/// A point, or the point at infinity.
type Point = Option<PublicKey>;

fn scalar(bytes: [u8; 32]) -> Scalar {
    Scalar::from_be_bytes(bytes).unwrap()
}

fn times(point: &PublicKey, by: [u8; 32]) -> PublicKey {
    point.mul_tweak(&Secp256k1::new(), &scalar(by)).unwrap()
}

fn negated(point: &PublicKey) -> PublicKey {
    point.negate(&Secp256k1::new())
}

fn plus(a: Point, b: Point) -> Point {
    match (a, b) {
        (Some(a), Some(b)) => a.combine(&b).ok(),
        (a, None) => a,
        (None, b) => b,
    }
}

fn is_odd(point: &PublicKey) -> bool {
    point.serialize()[0] == 3
}

fn x(point: &PublicKey) -> [u8; 32] {
    point.x_only_public_key().0.serialize()
}

/// The scalar modulo the order of the group, which no hash here ever reaches.
fn hash(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let hash = tagged(tag, parts);
    assert!(Scalar::from_be_bytes(hash).is_ok());
    hash
}

impl Aggregate {
    fn new(keys: Vec<PublicKey>) -> Self {
        let terms = keys.iter().map(|key| times(key, coefficient(&keys, key)));
        let key = terms.fold(None, |sum, term| plus(sum, Some(term))).unwrap();
        Self {
            key,
            keys,
            is_negated: false,
            added: None,
        }
    }

    /// `apply_tweak`. `None` if the tweak is none, or leads to infinity.
    fn tweak(mut self, tweak: [u8; 32], is_xonly: bool) -> Option<Self> {
        let secp = Secp256k1::new();
        let tweak = Scalar::from_be_bytes(tweak).ok()?;
        if is_xonly && is_odd(&self.key) {
            self.key = negated(&self.key);
            self.is_negated ^= true;
            self.added = self.added.map(SecretKey::negate);
        }
        self.key = self.key.add_exp_tweak(&secp, &tweak).ok()?;
        self.added = Some(match self.added {
            Some(added) => added.add_tweak(&tweak).unwrap(),
            None => SecretKey::from_slice(&tweak.to_be_bytes()).unwrap(),
        });
        Some(self)
    }

    fn values(&self, nonces: [Point; 2], message: &[u8]) -> Values {
        let aggregate = nonces.map(compressed).concat();
        let key = x(&self.key);
        let noncecoef = hash("MuSig/noncecoef", &[&aggregate, &key, message]);
        let [first, second] = nonces;
        let second = second.map(|second| times(&second, noncecoef));
        // Where they cancel out, the generator stands for them.
        let nonce = plus(first, second).unwrap_or_else(generator);
        let challenge = hash("BIP0340/challenge", &[&x(&nonce), &key, message]);
        Values {
            noncecoef,
            nonce,
            challenge,
        }
    }

    /// `partial_sig_verify_internal`.
    fn is_half(
        &self,
        half: &[u8],
        theirs: [Point; 2],
        key: &PublicKey,
        nonces: [Point; 2],
        message: &[u8],
    ) -> bool {
        let Ok(half) = SecretKey::from_slice(half) else {
            return false;
        };
        let values = self.values(nonces, message);
        let [first, second] = theirs;
        let second = second.map(|second| times(&second, values.noncecoef));
        let mut nonce = plus(first, second);
        if is_odd(&values.nonce) {
            nonce = nonce.as_ref().map(negated);
        }
        let weight = coefficient(&self.keys, key);
        let mut share = times(&times(key, weight), values.challenge);
        if self.is_negated ^ is_odd(&self.key) {
            share = negated(&share);
        }
        Some(half.public_key(&Secp256k1::new())) == plus(nonce, Some(share))
    }

    /// `partial_sig_agg`.
    fn join(&self, halves: &[Vec<u8>], nonces: [Point; 2], message: &[u8]) -> Option<[u8; 64]> {
        let values = self.values(nonces, message);
        let mut halves = halves.iter().map(|half| SecretKey::from_slice(half).ok());
        let first = halves.next()??;
        let add = |sum: SecretKey, half: Option<SecretKey>| sum.add_tweak(&half?.into()).ok();
        let mut sum = halves.try_fold(first, add)?;
        if let Some(mut added) = self.added {
            if is_odd(&self.key) {
                added = added.negate();
            }
            let added = added.mul_tweak(&scalar(values.challenge)).ok()?;
            sum = sum.add_tweak(&added.into()).ok()?;
        }
        let bytes = [x(&values.nonce), sum.secret_bytes()].concat();
        bytes.try_into().ok()
    }
}

/// `key_agg_coeff`.
fn coefficient(keys: &[PublicKey], key: &PublicKey) -> [u8; 32] {
    const ONE: [u8; 32] = SCALAR_ONE;
    let second = keys.iter().find(|other| *other != &keys[0]);
    if second == Some(key) {
        return ONE;
    }
    let all: Vec<[u8; 33]> = keys.iter().map(PublicKey::serialize).collect();
    let list = tagged("KeyAgg list", &[&all.concat()]);
    hash("KeyAgg coefficient", &[&list, &key.serialize()])
}

const SCALAR_ONE: [u8; 32] = {
    let mut one = [0; 32];
    one[31] = 1;
    one
};

fn generator() -> PublicKey {
    let one = SecretKey::from_slice(&SCALAR_ONE).unwrap();
    one.public_key(&Secp256k1::new())
}

fn compressed(point: Point) -> [u8; 33] {
    point.map_or([0; 33], |point| point.serialize())
}

/// Both points of a nonce; of an aggregate, zeros are the point at infinity.
fn points(nonce: &[u8]) -> [Point; 2] {
    [&nonce[..33], &nonce[33..]].map(|half| match half.iter().all(|byte| *byte == 0) {
        true => None,
        false => Some(PublicKey::from_slice(half).unwrap()),
    })
}

fn vectors(name: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("../vectors/bip327_musig2.json")).unwrap();
    all[name].clone()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

/// Those of `all` that `indices` names.
fn chosen<'a>(all: &'a Value, indices: &Value) -> Vec<&'a Value> {
    let indices = list(indices).iter().map(|index| index.as_u64().unwrap());
    indices.map(|index| &all[index as usize]).collect()
}

fn at<'a>(all: &'a Value, index: &Value) -> &'a Value {
    &all[index.as_u64().unwrap() as usize]
}

fn key(value: &Value) -> library::PublicKey {
    library::PublicKey::from_slice(&bytes(value)).unwrap()
}

fn aggregate(keys: &[&Value]) -> Aggregate {
    let keys = keys.iter().map(|key| PublicKey::from_slice(&bytes(key)));
    Aggregate::new(keys.collect::<Result<_, _>>().unwrap())
}

fn cache(keys: &[&Value]) -> KeyAggCache {
    let keys: Vec<library::PublicKey> = keys.iter().map(|value| key(value)).collect();
    KeyAggCache::new(&keys.iter().collect::<Vec<_>>())
}

/// Puts the tweaks of `case` on both. `None` if either refuses.
fn tweaked(all: &Value, case: &Value) -> Option<(Aggregate, KeyAggCache)> {
    let keys = chosen(&all["pubkeys"], &case["key_indices"]);
    let (mut ours, mut theirs) = (aggregate(&keys), cache(&keys));
    let tweaks = chosen(&all["tweaks"], &case["tweak_indices"]);
    for (tweak, is_xonly) in tweaks.into_iter().zip(list(&case["is_xonly"])) {
        let (tweak, is_xonly) = (array(tweak), is_xonly.as_bool().unwrap());
        let added = library::Scalar::from_be_bytes(tweak).ok().and_then(|it| {
            let added = match is_xonly {
                true => theirs.pubkey_xonly_tweak_add(&it),
                false => theirs.pubkey_ec_tweak_add(&it),
            };
            added.ok()
        });
        let Some(next) = ours.tweak(tweak, is_xonly) else {
            assert_eq!(added, None, "only one of two refuses a tweak");
            return None;
        };
        ours = next;
        assert_eq!(added.unwrap().serialize(), ours.key.serialize());
    }
    Some((ours, theirs))
}

/// The library takes no secret nonce from outside, so the two numbers of the vector are put into
/// one that it has made for the same key.
fn secret_nonce(vector: &Value, signer: &library::Keypair) -> SecretNonce {
    let secret = library::SecretKey::from_keypair(signer);
    let random = SessionSecretRand::assume_uniformly_random([7; 32]);
    let (made, _) = new_nonce_pair(random, None, Some(secret), signer.public_key(), None, None);
    let mut made = made.dangerous_into_bytes();
    // Four bytes say that it is one, and its key follows.
    made[4..68].copy_from_slice(&bytes(vector)[..64]);
    SecretNonce::dangerous_from_bytes(made)
}

fn signer(all: &Value) -> library::Keypair {
    let secret = library::SecretKey::from_secret_bytes(array(&all["sk"])).unwrap();
    library::Keypair::from_secret_key(&secret)
}

#[test]
fn keys_are_sorted_as_bip_327_sorts_them() {
    use bitcoin::XOnlyPublicKey;
    use bitmesh_wallet::channel::script;
    let all = vectors("key_sort");
    let sorted = list(&all["sorted_pubkeys"]);
    let mut pairs = 0;

    // A channel's keys are those with even Y.
    let is_even = |value: &&Value| bytes(value)[0] == 2;
    let sorted: Vec<&Value> = sorted.iter().filter(is_even).collect();
    let only = |value: &Value| XOnlyPublicKey::from_slice(&bytes(value)[1..]).unwrap();
    for (place, first) in sorted.iter().enumerate() {
        for second in &sorted[place..] {
            let expected = cache(&[first, second]).agg_pk().to_byte_array();
            for pair in [(first, second), (second, first)] {
                let aggregate = script::aggregate(only(pair.0), only(pair.1));
                assert_eq!(aggregate.serialize(), expected);
            }
            pairs += 1;
        }
    }

    assert_eq!(pairs, 15);
}

#[test]
fn keys_are_aggregated_as_bip_327_aggregates_them() {
    let all = vectors("key_agg");
    let (mut valid, mut invalid) = (0, 0);

    for case in list(&all["valid_test_cases"]) {
        let keys = chosen(&all["pubkeys"], &case["key_indices"]);
        assert_eq!(x(&aggregate(&keys).key).to_vec(), bytes(&case["expected"]));
        let theirs = cache(&keys).agg_pk().to_byte_array();
        assert_eq!(theirs.to_vec(), bytes(&case["expected"]));
        valid += 1;
    }
    for case in list(&all["error_test_cases"]) {
        let keys = chosen(&all["pubkeys"], &case["key_indices"]);
        let are_keys = keys
            .iter()
            .all(|key| library::PublicKey::from_slice(&bytes(key)).is_ok());
        assert_eq!(are_keys, case["error"] == "MUSIG_TWEAK", "{case}");
        assert!(!are_keys || tweaked(&all, case).is_none(), "{case}");
        invalid += 1;
    }

    assert_eq!((valid, invalid), (4, 5));
}

/// The other vector for nonces is for an aggregate that belongs to no keys, and the library takes none
/// but of keys.
#[test]
fn a_nonce_of_a_key_alone_is_made_as_bip_327_makes_it() {
    let all = vectors("nonce_gen");
    let mut made = 0;

    for case in list(&all["test_cases"]) {
        if !case["aggpk"].is_null() {
            continue;
        }
        assert!(case["msg"].is_null() && case["extra_in"].is_null() && case["sk"].is_null());
        let random = SessionSecretRand::assume_uniformly_random(array(&case["rand_"]));
        let (secret, public) = new_nonce_pair(random, None, None, key(&case["pk"]), None, None);
        let secret = secret.dangerous_into_bytes();
        assert_eq!(secret[4..68], bytes(&case["expected_secnonce"])[..64]);
        let expected = bytes(&case["expected_pubnonce"]);
        assert_eq!(public.serialize().to_vec(), expected);
        made += 1;
    }

    assert_eq!(made, 1);
}

#[test]
fn nonces_are_aggregated_as_bip_327_aggregates_them() {
    let all = vectors("nonce_agg");
    let (mut valid, mut invalid) = (0, 0);

    for case in list(&all["valid_test_cases"]) {
        let nonces = chosen(&all["pnonces"], &case["pnonce_indices"]);
        let parsed = nonces.iter().map(|nonce| array(nonce));
        let parsed: Vec<_> = parsed
            .map(|nonce| PublicNonce::from_byte_array(&nonce).unwrap())
            .collect();
        let theirs = AggregatedNonce::new(&parsed.iter().collect::<Vec<_>>());
        assert_eq!(theirs.serialize().to_vec(), bytes(&case["expected"]));
        let sum = sum(&nonces);
        assert_eq!(sum.map(compressed).concat(), bytes(&case["expected"]));
        valid += 1;
    }
    for case in list(&all["error_test_cases"]) {
        let nonces = chosen(&all["pnonces"], &case["pnonce_indices"]);
        let is_wrong = |nonce: &&Value| PublicNonce::from_byte_array(&array(nonce)).is_err();
        assert_eq!(
            nonces.iter().position(is_wrong).map(|at| at as u64),
            case["signer"].as_u64()
        );
        invalid += 1;
    }

    assert_eq!((valid, invalid), (2, 3));
}

fn sum(nonces: &[&Value]) -> [Point; 2] {
    let mut sum = [None; 2];
    for nonce in nonces {
        let [first, second] = points(&bytes(nonce));
        sum = [plus(sum[0], first), plus(sum[1], second)];
    }
    sum
}

#[test]
fn halves_are_signed_and_verified_as_bip_327_does() {
    let all = vectors("sign_verify");
    let signer = signer(&all);
    let (mut signed, mut wrong, mut refused) = (0, 0, 0);

    for case in list(&all["valid_test_cases"]) {
        let keys = chosen(&all["pubkeys"], &case["key_indices"]);
        let (ours, theirs) = (aggregate(&keys), cache(&keys));
        let message: [u8; 32] = array(at(&all["msgs"], &case["msg_index"]));
        let nonce = at(&all["aggnonces"], &case["aggnonce_index"]);
        let expected = bytes(&case["expected"]);
        let session = AggregatedNonce::from_byte_array(&array(nonce)).unwrap();
        let session = Session::new(&theirs, session, &message);
        let secret = secret_nonce(&all["secnonces"][0], &signer);
        let half = session.partial_sign(secret, &signer, &theirs);
        assert_eq!(half.serialize().to_vec(), expected);
        // The signer's nonce is the first of the public ones.
        let public = &all["pnonces"][0];
        let parsed = PublicNonce::from_byte_array(&array(public)).unwrap();
        assert!(session.partial_verify(&theirs, &half, &parsed, signer.public_key()));
        let own = PublicKey::from_slice(&signer.public_key().serialize()).unwrap();
        let (public, nonce) = (points(&bytes(public)), points(&bytes(nonce)));
        assert!(ours.is_half(&expected, public, &own, nonce, &message));
        signed += 1;
    }
    for case in list(&all["verify_fail_test_cases"]) {
        let keys = chosen(&all["pubkeys"], &case["key_indices"]);
        let nonces = chosen(&all["pnonces"], &case["nonce_indices"]);
        let message: [u8; 32] = array(at(&all["msgs"], &case["msg_index"]));
        let place = case["signer_index"].as_u64().unwrap() as usize;
        let parsed = nonces.iter().map(|nonce| array(nonce));
        let parsed: Vec<_> = parsed
            .map(|nonce| PublicNonce::from_byte_array(&nonce).unwrap())
            .collect();
        let theirs = cache(&keys);
        let session = AggregatedNonce::new(&parsed.iter().collect::<Vec<_>>());
        let session = Session::new(&theirs, session, &message);
        let half = PartialSignature::from_byte_array(&array(&case["sig"]));
        assert_eq!(half.is_err(), case["error"] == "MUSIG_SIG");
        if let Ok(half) = half {
            let signer = key(keys[place]);
            assert!(!session.partial_verify(&theirs, &half, &parsed[place], signer));
        }
        let ours = aggregate(&keys);
        let (public, own) = (points(&bytes(nonces[place])), ours.keys[place]);
        let half = bytes(&case["sig"]);
        assert!(!ours.is_half(&half, public, &own, sum(&nonces), &message));
        wrong += 1;
    }
    for case in list(&all["sign_error_test_cases"]) {
        // Not run: a key that is not among those that sign, which BIP-327 leaves open, and a secret
        // nonce of zeros, on which the library stops the program. Ours is never given twice.
        let keys = chosen(&all["pubkeys"], &case["key_indices"]);
        let key = |key: &&Value| library::PublicKey::from_slice(&bytes(key)).is_err();
        let nonce = array(at(&all["aggnonces"], &case["aggnonce_index"]));
        let nonce = AggregatedNonce::from_byte_array(&nonce).is_err();
        refused += u32::from(keys.iter().any(key) || nonce);
    }
    for case in list(&all["verify_error_test_cases"]) {
        let keys = chosen(&all["pubkeys"], &case["key_indices"]);
        let nonces = chosen(&all["pnonces"], &case["nonce_indices"]);
        let key = |key: &&Value| library::PublicKey::from_slice(&bytes(key)).is_err();
        let nonce = |nonce: &&Value| PublicNonce::from_byte_array(&array(nonce)).is_err();
        assert!(keys.iter().any(key) || nonces.iter().any(nonce), "{case}");
        refused += 1;
    }

    assert_eq!((signed, wrong, refused), (4, 3, 6));
}

#[test]
fn halves_under_a_tweaked_key_are_those_of_bip_327() {
    let all = vectors("tweak");
    let signer = signer(&all);
    let message: [u8; 32] = array(&all["msg"]);
    let (mut valid, mut invalid) = (0, 0);

    for case in list(&all["valid_test_cases"]) {
        let (ours, theirs) = tweaked(&all, case).unwrap();
        let expected = bytes(&case["expected"]);
        let nonce = AggregatedNonce::from_byte_array(&array(&all["aggnonce"])).unwrap();
        let session = Session::new(&theirs, nonce, &message);
        let secret = secret_nonce(&all["secnonce"], &signer);
        let half = session.partial_sign(secret, &signer, &theirs);
        assert_eq!(half.serialize().to_vec(), expected);
        let place = case["signer_index"].as_u64().unwrap() as usize;
        let nonces = chosen(&all["pnonces"], &case["nonce_indices"]);
        let public = points(&bytes(nonces[place]));
        let own = ours.keys[place];
        assert!(ours.is_half(&expected, public, &own, sum(&nonces), &message));
        valid += 1;
    }
    for case in list(&all["error_test_cases"]) {
        assert!(tweaked(&all, case).is_none(), "{case}");
        invalid += 1;
    }

    assert_eq!((valid, invalid), (5, 1));
}

#[test]
fn halves_are_joined_as_bip_327_joins_them() {
    let all = vectors("sig_agg");
    let message: [u8; 32] = array(&all["msg"]);
    let (mut valid, mut invalid) = (0, 0);

    for case in list(&all["valid_test_cases"]) {
        let (ours, theirs) = tweaked(&all, case).unwrap();
        let halves = chosen(&all["psigs"], &case["psig_indices"]);
        let nonce = points(&bytes(&case["aggnonce"]));
        let plain: Vec<Vec<u8>> = halves.iter().map(|half| bytes(half)).collect();
        let joined = ours.join(&plain, nonce, &message).unwrap();
        assert_eq!(joined.to_vec(), bytes(&case["expected"]));
        let nonce = AggregatedNonce::from_byte_array(&array(&case["aggnonce"])).unwrap();
        let session = Session::new(&theirs, nonce, &message);
        let halves = halves.iter().map(|half| array(half));
        let halves: Vec<_> = halves
            .map(|half| PartialSignature::from_byte_array(&half).unwrap())
            .collect();
        let joined = session.partial_sig_agg(&halves.iter().collect::<Vec<_>>());
        let joined = joined.verify(&theirs.agg_pk(), &message).unwrap();
        assert_eq!(joined.to_byte_array().to_vec(), bytes(&case["expected"]));
        valid += 1;
    }
    for case in list(&all["error_test_cases"]) {
        let halves = chosen(&all["psigs"], &case["psig_indices"]);
        let is_wrong = |half: &&Value| PartialSignature::from_byte_array(&array(half)).is_err();
        let place = halves.iter().position(is_wrong);
        assert_eq!(place.map(|at| at as u64), case["signer"].as_u64());
        invalid += 1;
    }

    assert_eq!((valid, invalid), (4, 1));
}

/// What both sides of a channel say to each other, by the second implementation.
#[test]
fn the_halves_of_a_close_together_are_those_of_bip_327() {
    use crate::fixture::*;
    use crate::together::Two;
    use bitmesh_wallet::channel::split::Split;

    for total in [740, 40_000, 99_670, 100_000] {
        let mut two = Two::paid(total);
        let (close, ack, half) = two.said();
        let tx = two.closed();
        let scripts = tranche().scripts().clone();
        let (payer, payee) = scripts.keys();
        let mut keys = [payer, payee].map(|key| even(&key.serialize()));
        keys.sort_by_key(PublicKey::serialize);
        let aggregate = Aggregate::new(keys.to_vec());
        let root = bitcoin::hashes::Hash::to_byte_array(scripts.merkle_root());
        let tweak = tagged("TapTweak", &[&x(&aggregate.key), &root]);
        let aggregate = aggregate.tweak(tweak, true).unwrap();
        assert_eq!(x(&aggregate.key), scripts.output_key().serialize());

        let (_, signature) = Split::read(&tranche(), &tx).unwrap();
        let digest = crate::bip341::sighash(&tx, 0, &[tranche().prevout()], 0, None);
        let nonces = [close.nonce, ack.nonce].map(|nonce| points(&nonce.serialize()));
        let [[first, second], [other, another]] = nonces;
        let sum = [plus(first, other), plus(second, another)];
        let payers = half.partial.serialize();
        let payer = even(&payer.serialize());
        assert!(aggregate.is_half(&payers, nonces[0], &payer, sum, &digest));

        // The payee's half never leaves it, but what it joined has the payer's in it.
        let whole = signature.serialize();
        let rest = aggregate.join(&[payers.to_vec()], sum, &digest).unwrap();
        assert_eq!(whole[..32], rest[..32]);
        let rest = SecretKey::from_slice(&rest[32..]).unwrap().negate();
        let payees = SecretKey::from_slice(&whole[32..]).unwrap();
        let payees = payees.add_tweak(&rest.into()).unwrap().secret_bytes();
        let payee = even(&payee.serialize());
        assert!(aggregate.is_half(&payees, nonces[1], &payee, sum, &digest));
        assert!(!aggregate.is_half(&payees, nonces[0], &payee, sum, &digest));
    }
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
        let internal = x(&Aggregate::new(sorted.to_vec()).key);

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
        let (output, _) = output_key(internal, &root);
        let output = [&[0x51, 0x20], &output[..]].concat();
        assert_eq!(scripts.output().as_bytes(), output);
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
