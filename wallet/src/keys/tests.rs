use bitcoin::Address;
use bitcoin::secp256k1::XOnlyPublicKey;

use super::*;

/// The mnemonic of BIP-86's own test vectors.
const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                       abandon abandon about";

fn abandon(network: Network) -> Keys {
    Keys::from_words(ABANDON, network).unwrap()
}

fn address(descriptor: &str, index: u32, network: Network) -> Address {
    miniscript::Descriptor::<miniscript::DescriptorPublicKey>::from_str(descriptor)
        .unwrap()
        .at_derivation_index(index)
        .unwrap()
        .address(network)
        .unwrap()
}

#[test]
fn the_coins_match_the_vectors_of_bip_86() {
    let descriptors = abandon(Network::Bitcoin).descriptors();

    let receive = |index| address(&descriptors.external, index, Network::Bitcoin).to_string();
    assert_eq!(
        receive(0),
        "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr"
    );
    assert_eq!(
        receive(1),
        "bc1p4qhjn9zdvkux4e44uhx8tc55attvtyu358kutcqkudyccelu0was9fqzwh"
    );

    let change = address(&descriptors.internal, 0, Network::Bitcoin).to_string();
    assert_eq!(
        change,
        "bc1p3qkhfews2uk44qtvauqyr2ttdsw7svhkl9nkm9s9c3x4ax5h60wqwruhk7"
    );
}

#[test]
fn words_in_any_case_and_spacing_restore_the_same_keys() {
    let shouted = format!("  {}\n", ABANDON.to_uppercase().replace(' ', "\t\n "));
    let restored = Keys::from_words(&shouted, Network::Regtest).unwrap();

    assert_eq!(restored.words().as_str(), ABANDON);
    assert_eq!(
        restored.descriptors(),
        abandon(Network::Regtest).descriptors()
    );
    assert_eq!(
        restored.identity_seed(),
        abandon(Network::Regtest).identity_seed()
    );
}

#[test]
fn generated_words_restore_the_keys_and_are_never_the_same_twice() {
    let first = Keys::generate(Network::Signet);
    let second = Keys::generate(Network::Signet);

    let restored = Keys::from_words(&first.words(), Network::Signet).unwrap();
    assert_eq!(restored.identity_seed(), first.identity_seed());
    assert_eq!(first.words().split(' ').count(), MNEMONIC_WORDS);
    assert_ne!(first.words(), second.words());
}

#[test]
fn wrong_words_say_which_one_is_wrong_without_repeating_it() {
    let refused = |words: &str| Keys::from_words(words, Network::Regtest).unwrap_err();

    assert_eq!(refused(""), WordsError::Count { got: 0 });
    assert_eq!(refused("abandon about"), WordsError::Count { got: 2 });
    assert_eq!(
        refused(&ABANDON.replacen("abandon", "hunter2", 1)),
        WordsError::Unknown { position: 1 }
    );
    assert_eq!(
        refused(&ABANDON.replace("about", "abandon")),
        WordsError::Checksum
    );
    assert!(
        !refused(&ABANDON.replace("about", "hunter2"))
            .to_string()
            .contains("hunter2")
    );
}

#[test]
fn twenty_four_words_are_refused_because_restoring_half_a_wallet_is_worse() {
    let long = format!("{ABANDON} {ABANDON}");
    assert_eq!(
        Keys::from_words(&long, Network::Regtest).unwrap_err(),
        WordsError::Count { got: 24 }
    );
}

#[test]
fn the_purpose_derivations_are_frozen() {
    let keys = abandon(Network::Regtest);
    let public = |role, index| {
        keys.channel_keypair(role, index)
            .unwrap()
            .x_only_public_key()
            .0
    };

    assert_eq!(
        hex::encode(keys.identity_seed().as_slice()),
        GOLDEN_IDENTITY_TEST
    );
    assert_eq!(
        hex::encode(abandon(Network::Bitcoin).identity_seed().as_slice()),
        GOLDEN_IDENTITY_MAIN
    );
    assert_eq!(public(Role::Payer, 0).to_string(), GOLDEN_PAYER_0);
    assert_eq!(public(Role::Payer, 7).to_string(), GOLDEN_PAYER_7);
    assert_eq!(public(Role::Payee, 0).to_string(), GOLDEN_PAYEE_0);
    assert_eq!(
        public(Role::Payee, (1 << 31) - 1).to_string(),
        GOLDEN_PAYEE_LAST
    );
    assert_eq!(keys.fingerprint().to_string(), "73c5da0a");
}

// Computed apart from this code: BIP-32 and RFC 5869 in sixty lines of Python's standard library.
const GOLDEN_IDENTITY_TEST: &str =
    "f60009c518c17c36787fd5f46915f0975aa0a9808e6a2aced7ede704092c0c0f";
const GOLDEN_IDENTITY_MAIN: &str =
    "ef3a006498a83ea24b7d6af4375330567ea1ae392bdd5d5366949a5be7e95a84";
const GOLDEN_PAYER_0: &str = "2a089a45e21a4fd77a4f4ea7629152e6fc9809431ee3b3f9ee3b164ec8af0e51";
const GOLDEN_PAYER_7: &str = "66d68fb564b19c7af0fcb5fc8464908deaf7380c53f5d074ed88fd6eddf5235a";
const GOLDEN_PAYEE_0: &str = "4aeaeb30c3ad823c9f1838c66cb8779288050d04c67c9b61c8c8819e2afc0241";
const GOLDEN_PAYEE_LAST: &str = "bf233c5f756a07a02dfc827c60e4ee5d7e1cd308b22ee9238422bcc897f8af3f";

#[test]
fn test_networks_share_keys_and_mainnet_has_its_own() {
    let keys: Vec<XOnlyPublicKey> = [Network::Regtest, Network::Signet, Network::Bitcoin]
        .into_iter()
        .map(|network| {
            abandon(network)
                .channel_keypair(Role::Payer, 0)
                .unwrap()
                .x_only_public_key()
                .0
        })
        .collect();
    assert_eq!(keys[0], keys[1]);
    assert_ne!(keys[0], keys[2]);
}

#[test]
fn a_channel_index_beyond_the_last_is_an_error() {
    let keys = abandon(Network::Regtest);
    assert_eq!(
        keys.channel_keypair(Role::Payer, 1 << 31).unwrap_err(),
        KeyIndexError { index: 1 << 31 }
    );
}

#[test]
fn debug_shows_no_secret() {
    let keys = abandon(Network::Regtest);
    let shown = format!("{keys:?} {keys:#?}");
    assert!(shown.contains("73c5da0a"));
    assert!(!shown.contains("abandon") && !shown.contains("entropy") && !shown.contains("seed"));
}

mod files {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_secret_file_is_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");

        write_secret(&path, ABANDON.as_bytes()).unwrap();

        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(read_secret(&path).unwrap().as_str(), ABANDON);
        assert_eq!(
            dir.path().read_dir().unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn a_secret_file_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");
        write_secret(&path, b"first").unwrap();

        let again = write_secret(&path, b"second");

        assert!(matches!(again, Err(SecretFileError::Exists { .. })));
        assert_eq!(read_secret(&path).unwrap().as_str(), "first");
        assert_eq!(
            dir.path().read_dir().unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn a_secret_file_that_others_may_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");
        write_secret(&path, b"x").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o660] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let refused = read_secret(&path).unwrap_err();
            assert!(refused.to_string().contains("chmod 600"), "{refused}");
        }
    }

    #[test]
    fn a_symlink_is_not_followed_in_either_direction() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        write_secret(&target, b"x").unwrap();
        let link = dir.path().join("words");
        symlink(&target, &link).unwrap();

        assert!(matches!(
            read_secret(&link),
            Err(SecretFileError::Io { .. })
        ));
        assert!(matches!(
            write_secret(&link, b"y"),
            Err(SecretFileError::Exists { .. })
        ));
        assert_eq!(read_secret(&target).unwrap().as_str(), "x");
    }

    #[test]
    fn a_file_too_large_or_not_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large");
        write_secret(&large, &[b'a'; 5000]).unwrap();
        let binary = dir.path().join("binary");
        write_secret(&binary, &[0xff, 0xfe]).unwrap();

        assert!(matches!(
            read_secret(&large),
            Err(SecretFileError::Malformed { .. })
        ));
        assert!(matches!(
            read_secret(&binary),
            Err(SecretFileError::Malformed { .. })
        ));
        assert!(matches!(
            read_secret(dir.path()),
            Err(SecretFileError::Malformed { .. })
        ));
    }
}
