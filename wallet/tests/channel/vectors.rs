//! Golden vectors: whoever changes one of these breaks the wire or the disk.

use bitcoin::secp256k1::Secp256k1;
use bitcoin::{Amount, Txid, hashes::Hash};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::message::{
    Close, CloseAck, CloseAsk, CloseDone, ClosePartial, DecodeError, Depth, Funding,
    MAX_MESSAGE_BYTES, MAX_SMALL_MESSAGE_BYTES, Message, RefusalCode, Refused,
};
use bitmesh_wallet::channel::musig::{PartialSignature, PublicNonce};
use bitmesh_wallet::channel::record::{End, Fact, Record, Settlement};
use bitmesh_wallet::channel::split::Split;
use bitmesh_wallet::channel::voucher::TotalError;
use bitmesh_wallet::channel::{ChannelId, TrancheIndex};

use crate::bip341;
use crate::fixture::*;

fn messages() -> Vec<Message> {
    let (open, contract, tranche) = (open(), contract(), tranche());
    let voucher = tranche.sign(&keypair(PAYER), sat(12_345)).unwrap();
    let depth = Depth {
        channel: contract.id(),
        tranche: TrancheIndex::FIRST,
        confirmations: 1,
        limit: sat(50_000),
        held: Some((voucher.total, voucher.signature)),
    };
    let tx = funding_tx(contract.scripts().output(), CAPACITY);
    let funding = Funding {
        channel: contract.id(),
        tranche: TrancheIndex::FIRST,
        tx,
        vout: 1,
    };
    let subject = *contract.id().as_bytes();
    vec![
        Message::Accept(accept(&open)),
        Message::Open(open),
        Message::Funding(Box::new(funding)),
        Message::Depth(Depth {
            held: None,
            ..depth.clone()
        }),
        Message::Depth(depth),
        Message::Voucher(voucher),
        Message::Refused(Refused {
            subject,
            code: RefusalCode::Closing,
        }),
        Message::Refused(Refused {
            subject,
            code: RefusalCode::Other(200),
        }),
    ]
}

fn records() -> Vec<Record> {
    let (open, contract, tranche) = (open(), contract(), tranche());
    let voucher = tranche.sign(&keypair(PAYER), sat(12_345)).unwrap();
    let tx = Box::new(funding_tx(contract.scripts().output(), CAPACITY));
    let settlement = Settlement {
        end: End::Commitment,
        txid: Txid::from_byte_array([9; 32]),
        height: BlockHeight::new(800_100),
        returned: sat(87_655),
        received: sat(12_140),
        fee: sat(205),
    };
    let first = TrancheIndex::FIRST;
    let facts = [
        Fact::Proposed {
            open: open.clone(),
            key_index: 4,
            max_min_first: sat(1_000),
            from: None,
        },
        Fact::Accepted {
            accept: accept(&open),
        },
        Fact::Agreed {
            accept: accept(&open),
            open,
            key_index: 9,
            from: None,
        },
        Fact::Funded {
            tranche: first,
            tx: tx.clone(),
            vout: 1,
            fee: sat(154),
        },
        Fact::Promised {
            tranche: first,
            total: sat(12_345),
        },
        Fact::Held {
            tranche: first,
            total: sat(12_345),
            signature: voucher.signature,
        },
        Fact::Closing { tx: tx.clone() },
        Fact::Refunding { tx },
        Fact::Settled(settlement),
        Fact::Settled(Settlement {
            end: End::Refund,
            received: Amount::ZERO,
            ..settlement
        }),
        Fact::Abandoned,
    ];
    facts
        .map(|fact| Record {
            proposal: contract.proposal(),
            fact,
        })
        .into()
}

fn digest(bytes: impl IntoIterator<Item = Vec<u8>>) -> String {
    hex::encode(bip341::sha(&[&bytes
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()]))
}

#[test]
fn ids_are_what_they_always_were() {
    let contract = contract();

    assert_eq!(
        contract.proposal().to_string(),
        "e5ec96ce746351269e954acb496dd4290f0de42a2964b78503387b54466f0c08"
    );
    assert_eq!(
        contract.id().to_string(),
        "3afaef585d23e3938ebc2a13eda7aed331c52e9ad6e0928a51d0dce2bfbc8b96"
    );
    let open = bip341::sha(&[&contract.open().to_bytes()]);
    let accept = bip341::sha(&[&contract.accept().to_bytes()]);
    assert_eq!(
        *contract.proposal().as_bytes(),
        bip341::tagged("bitmesh/channel/open", &[&open])
    );
    assert_eq!(
        *contract.id().as_bytes(),
        bip341::tagged("bitmesh/channel", &[&open, &accept])
    );
}

#[test]
fn the_output_is_what_it_always_was() {
    assert_eq!(
        contract().scripts().output().to_hex_string(),
        "51207db73960d3bcdad15b30799803319374e6bf77b4b1bdfdc85a82f237b5150ff1"
    );
    assert_eq!(
        tranche().outpoint().to_string(),
        "d4e49126eefe03704eaaacd074ad336a989390a618696a889285ee44f44e06b9:1"
    );
}

#[test]
fn digests_and_signatures_are_what_they_always_were() {
    let tranche = tranche();
    let sign = |total| {
        tranche
            .sign(&keypair(PAYER), total)
            .unwrap()
            .signature
            .to_string()
    };

    assert_eq!(
        hex::encode(tranche.digest(sat(12_345)).unwrap()),
        "9201e04509291febcc2d4aff02c39f30da63dfa948e3aba6f4a0733dbd26e65a"
    );
    assert_eq!(
        sign(sat(12_345)),
        "589c198b4c8e5843907861d1bae9373c761fc03a279e8d8fbfea3c25a9b6084980ef4d5c53dc9942ce3bc041a451d6b5577259f81d238775c7cf22409fcf371e"
    );
    assert_eq!(
        hex::encode(tranche.digest(CAPACITY).unwrap()),
        "ae184197a47a36b9faf8316526a95b5cebbeee69292a43aa233b37b81bb326ac"
    );
    assert_eq!(
        sign(CAPACITY),
        "2ea088d0cf1d947a6b795ba1f08192f567a42891fe7cb5c3254fa1f82df06d167b8b0b2d3625f988ece564ba10c584b25144c188c1b334e8950cb430ef5edaa4"
    );
}

#[test]
fn digests_are_those_of_a_second_implementation() {
    use bitmesh_wallet::channel::tx::template;
    let tranche = tranche();
    let leaf = bip341::leaf_hash(tranche.scripts().update().script.as_bytes());

    for (total, hash_type) in
        [(1, 0x83), (740, 0x83), (99_670, 0x83), (100_000, 0x82)].map(|(n, t)| (sat(n), t))
    {
        let legal = tranche.legal(total).unwrap();
        let tx = template(&tranche, legal);
        let expected = bip341::sighash(&tx, 0, &[tranche.prevout()], hash_type, Some(leaf));
        assert_eq!(tranche.digest(total).unwrap(), expected);
        let signature = tranche.sign(&keypair(PAYER), total).unwrap().signature;
        let message = bitcoin::secp256k1::Message::from_digest(expected);
        let key = keypair(PAYER).x_only_public_key().0;
        Secp256k1::new()
            .verify_schnorr(&signature, &message, &key)
            .unwrap();
    }
}

#[test]
fn messages_are_what_they_always_were() {
    let lengths: Vec<_> = messages()
        .iter()
        .map(|message| message.to_bytes().len())
        .collect();

    assert_eq!(lengths, [102, 202, 245, 43, 110, 106, 37, 38]);
    assert_eq!(
        digest(messages().iter().map(Message::to_bytes)),
        "34d24cdb04b71164f928f3c6f60ddab9c4ebda190e33735d456f99583602baea"
    );
    assert_eq!(
        hex::encode(messages()[5].to_bytes()),
        "850558203afaef585d23e3938ebc2a13eda7aed331c52e9ad6e0928a51d0dce2bfbc8b96001930395840589c198b4c8e5843907861d1bae9373c761fc03a279e8d8fbfea3c25a9b6084980ef4d5c53dc9942ce3bc041a451d6b5577259f81d238775c7cf22409fcf371e"
    );
}

#[test]
fn messages_and_records_of_a_close_together_are_what_they_always_were() {
    let contract = contract();
    let key = |seed| {
        // Any two points do for a nonce on the wire.
        let mut point = [2; 33];
        point[1..].copy_from_slice(&keypair(seed).x_only_public_key().0.serialize());
        point
    };
    let nonce = [key(PAYER), key(PAYEE)].concat().try_into().unwrap();
    let nonce = PublicNonce::from_byte_array(&nonce).unwrap();
    let (channel, tranche) = (contract.id(), TrancheIndex::FIRST);
    let voucher = crate::fixture::tranche()
        .sign(&keypair(PAYER), sat(12_345))
        .unwrap();
    let split = Split {
        total: sat(12_345),
        payout: p2tr(0xaa),
        fee: sat(154),
    };
    let close = Close {
        channel,
        tranche,
        nonce,
        promised: Some((voucher.total, voucher.signature)),
        next: None,
    };
    let unpaid = Close {
        promised: None,
        ..close
    };
    let attempt = close.attempt();
    let messages = [
        Message::CloseAsk(CloseAsk { channel, tranche }),
        Message::Close(Box::new(unpaid)),
        Message::Close(Box::new(close)),
        Message::CloseAck(Box::new(CloseAck {
            channel,
            tranche,
            attempt,
            nonce,
            split: split.clone(),
        })),
        Message::ClosePartial(ClosePartial {
            channel,
            tranche,
            attempt,
            partial: PartialSignature::from_byte_array(&[7; 32]).unwrap(),
        }),
        Message::CloseDone(CloseDone {
            channel,
            tranche,
            split,
            signature: voucher.signature,
        }),
    ];
    for message in &messages {
        let bytes = message.to_bytes();
        assert_eq!(Message::from_bytes(&bytes).as_ref(), Ok(message));
        assert!(bytes.len() <= MAX_SMALL_MESSAGE_BYTES - 32);
        let trailing = [&bytes[..], &[0]].concat();
        assert!(Message::from_bytes(&trailing).is_err());
    }
    let facts = [
        Fact::Splitting {
            tranche,
            total: sat(12_345),
            next: None,
        },
        Fact::Settled(Settlement {
            end: End::Together,
            txid: Txid::from_byte_array([9; 32]),
            height: BlockHeight::new(800_100),
            returned: sat(87_655),
            received: sat(12_191),
            fee: sat(154),
        }),
    ];
    let proposal = contract.proposal();
    let records = facts.map(|fact| Record { proposal, fact });
    for record in &records {
        assert_eq!(Record::from_bytes(&record.to_bytes()).unwrap(), *record);
    }
    assert_eq!(
        digest(messages.iter().map(Message::to_bytes)),
        "cbc76306b5f398e37beb5ce948c8ddd7acaf60ac02a24668de63ab6a4c68d7ef"
    );
    assert_eq!(
        digest(records.iter().map(Record::to_bytes)),
        "7a9cc45a35d6fd3f8843610ad2ef985db0e53c174b9a73bf977cc4dc3598839f"
    );
    // A nonce that is no pair of points is none.
    let mut bytes = Message::Close(Box::new(unpaid)).to_bytes();
    bytes[40..72].fill(0xff);
    assert!(Message::from_bytes(&bytes).is_err());
}

#[test]
fn records_are_what_they_always_were() {
    assert_eq!(
        digest(records().iter().map(Record::to_bytes)),
        "230704d5864a66ede34e6530116befdaf247c7c2eedc213a21a9a69e7627e2c6"
    );
}

#[test]
fn messages_and_records_survive_the_round_trip() {
    for message in messages() {
        assert_eq!(Message::from_bytes(&message.to_bytes()).unwrap(), message);
    }
    for record in records() {
        assert_eq!(Record::from_bytes(&record.to_bytes()).unwrap(), record);
    }
}

#[test]
fn a_message_has_one_encoding() {
    for message in messages() {
        let bytes = message.to_bytes();

        let trailing = [&bytes[..], &[0]].concat();
        assert!(Message::from_bytes(&trailing).is_err());

        // The kind as a two-byte integer, which CBOR allows and we do not.
        let long_kind = [&bytes[..1], &[0x18], &bytes[1..]].concat();
        assert!(Message::from_bytes(&long_kind).is_err());

        // An array of unknown length.
        let mut indefinite = [&[0x9f], &bytes[1..], &[0xff]].concat();
        assert!(Message::from_bytes(&indefinite).is_err());
        indefinite[0] = bytes[0] + 1;
        assert!(Message::from_bytes(&indefinite).is_err());

        for cut in 0..bytes.len() {
            assert!(Message::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}

#[test]
fn a_message_longer_than_its_kind_allows_is_not_parsed() {
    for message in messages() {
        let max = match message {
            Message::Funding(_) => MAX_MESSAGE_BYTES,
            _ => MAX_SMALL_MESSAGE_BYTES,
        };
        let mut bytes = message.to_bytes();
        bytes.resize(max + 1, 0);
        assert_eq!(
            Message::from_bytes(&bytes),
            Err(DecodeError::TooLong { got: max + 1, max })
        );
    }
}

#[test]
fn every_message_but_the_funding_fits_its_cap_with_room_for_the_largest_values() {
    for message in messages()
        .iter()
        .filter(|message| !matches!(message, Message::Funding(_)))
    {
        assert!(
            message.to_bytes().len() <= MAX_SMALL_MESSAGE_BYTES - 32,
            "{message:?}"
        );
    }
}

#[test]
fn an_open_of_another_version_is_refused_by_name() {
    let mut bytes = open().to_bytes();
    bytes[2] = 2;

    assert_eq!(
        Message::from_bytes(&bytes),
        Err(DecodeError::Version { got: 2 })
    );
}

#[test]
fn amounts_beyond_all_money_are_refused() {
    let mut voucher = match &messages()[5] {
        Message::Voucher(voucher) => *voucher,
        other => panic!("{other:?}"),
    };
    voucher.total = Amount::MAX_MONEY + Amount::ONE_SAT;
    let bytes = Message::Voucher(voucher).to_bytes();

    assert_eq!(
        Message::from_bytes(&bytes),
        Err(DecodeError::Field("total"))
    );
}

#[test]
fn noise_is_never_a_message_and_never_a_panic() {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let valid: Vec<_> = messages().iter().map(Message::to_bytes).collect();
    for round in 0..20_000usize {
        let mut bytes = valid[round % valid.len()].clone();
        for _ in 0..=round % 4 {
            let at = usize::from(next()) * bytes.len() / 256;
            bytes[at] ^= next();
        }
        if let Ok(message) = Message::from_bytes(&bytes) {
            assert_eq!(message.to_bytes(), bytes);
        }
        let _ = Record::from_bytes(&bytes);
    }
}

#[test]
fn totals_in_the_dust_gap_are_not_legal() {
    let tranche = tranche();
    let capacity = CAPACITY.to_sat();

    assert_eq!(tranche.legal(Amount::ZERO), Err(TotalError::Zero));
    assert!(tranche.legal(sat(1)).is_ok());
    assert!(tranche.legal(sat(capacity - 330)).is_ok());
    for total in capacity - 329..capacity {
        let change = sat(capacity - total);
        let total = sat(total);
        assert_eq!(
            tranche.legal(total),
            Err(TotalError::DustGap { total, change })
        );
        assert_eq!(tranche.legal_at_least(total), Ok(CAPACITY));
    }
    assert!(tranche.legal(CAPACITY).is_ok());
    assert!(matches!(
        tranche.legal(sat(capacity + 1)),
        Err(TotalError::OverCapacity { .. })
    ));
}

#[test]
fn a_channel_id_reads_as_hex() {
    let id = ChannelId::from_bytes([0xab; 32]);

    assert_eq!(id.to_string(), "ab".repeat(32));
    assert_eq!(format!("{id:?}"), "ChannelId(abababab)");
}
