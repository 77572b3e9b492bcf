//! Golden vectors of what is encoded and not signed: requests for quotes, and the session's records,
//! which a later version must still read.
//!
//! What is signed is in `vectors.rs`.

use bitmesh_market::envelope::{Content, Network, Signed};
use bitmesh_market::identity::Ed25519Signer;
use bitmesh_market::lease::LeaseId;
use bitmesh_market::offer::{Rails, Tunnels};
use bitmesh_market::quote::{Mode, Rfq, RfqId};
use bitmesh_market::session::message::{Body, Extension, Final, Message, Standing};
use bitmesh_market::session::record::{Closed, Fact, Receipted};
use bitmesh_market::session::{CloseReason, Reading, Receipt, Record, Signatures};
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::{Bytes, BytesPerSecond, Msat};
use bitmesh_market::wire::Unknown;

const LEASE: LeaseId = LeaseId::from_bytes([7; 32]);

fn receipt() -> Receipt {
    Receipt {
        seq: 2,
        reading: Reading::new(Bytes::new(1_000_000), Bytes::new(9_000_000)),
        billed: Msat::from_msat(1_200),
        paid: Msat::from_msat(740_250),
    }
}

#[test]
fn a_request_for_a_quote_has_its_golden_bytes() {
    let rfq = Rfq {
        id: RfqId::from_bytes([3; 16]),
        quota: Bytes::new(1_000_000_000),
        rate: BytesPerSecond::new(2_500_000),
        min_rate: BytesPerSecond::new(125_000),
        mode: Mode::Prepaid,
        until: UnixTime::from_secs(1_767_229_200),
        rails: Rails::CHANNEL,
        tunnels: Tunnels::PROXY,
        unknown: Unknown::default(),
    };
    assert_eq!(
        hex::encode(rfq.to_bytes()),
        "a8015003030303030303030303030303030303021a3b9aca00031a002625a0041a0001e848056770726570616964061a6955c71007010801"
    );
    assert_eq!(Rfq::from_bytes(&rfq.to_bytes()), Ok(rfq));
    assert!(Rfq::from_bytes(&[0xa0; Rfq::MAX_BYTES + 1]).is_err());
}

#[test]
fn every_record_has_its_golden_bytes() {
    let extension = Extension {
        seq: 1,
        quota: Bytes::new(2_000_000_000),
    };
    // A record keeps a message as it came; here a short stand-in, since it is opaque to the encoding.
    let message = || vec![0xc0, 0xff, 0xee].into();
    let golden = [
        (
            Fact::Signed(receipt()),
            "a1667369676e6564a4010202a2011a000f4240021a00895440031904b0041a000b4b9a",
        ),
        (
            Fact::Countersigned(message()),
            "a16d636f756e7465727369676e656443c0ffee",
        ),
        (
            Fact::Receipted(Receipted {
                message: message(),
                own: Reading::new(Bytes::new(1_000_000), Bytes::new(9_065_536)),
            }),
            "a169726563656970746564a20143c0ffee02a2011a000f4240021a008a5440",
        ),
        (
            Fact::ExtensionAsked(extension),
            "a16f657874656e73696f6e5f61736b6564a20101021a77359400",
        ),
        (Fact::Extended(message()), "a168657874656e64656443c0ffee"),
        (
            Fact::Closing(CloseReason::BudgetSpent),
            "a167636c6f73696e676c6275646765745f7370656e74",
        ),
        (
            Fact::Closed(Closed {
                reason: CloseReason::Completed,
                signatures: Signatures::Both,
                receipt: Some(receipt()),
            }),
            "a166636c6f736564a30169636f6d706c657465640264626f746803a4010202a2011a000f4240021a00895440031904b0041a000b4b9a",
        ),
    ];
    for (fact, golden) in golden {
        let record = Record { lease: LEASE, fact };
        let lease = hex::encode(LEASE.as_bytes());
        assert_eq!(
            hex::encode(record.to_bytes()),
            format!("a2015820{lease}02{golden}"),
            "{record:?}"
        );
        assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
    }
}

#[test]
fn the_longest_messages_and_records_fit_their_caps() {
    let signer = Ed25519Signer::from_seed([1; 32]);
    let most = Bytes::new(u64::MAX);
    let receipt = Receipt {
        seq: u64::MAX,
        reading: Reading::new(most, most),
        billed: Msat::MAX,
        paid: Msat::MAX,
    };
    let seal = |body| {
        let message = Message { lease: LEASE, body };
        Signed::seal(message, &signer, Network::Regtest)
    };
    let close = seal(Body::Close(Final {
        reason: CloseReason::MeterDispute,
        receipt: Some(receipt),
    }));
    let attached = seal(Body::Attached(Standing {
        extension: Extension {
            seq: u32::MAX,
            quota: most,
        },
        paid: Msat::MAX,
        latest: Some(close.as_bytes().to_vec().into()),
    }));
    assert_eq!(
        (close.as_bytes().len(), attached.as_bytes().len()),
        (226, 418)
    );
    assert!(attached.as_bytes().len() <= Message::MAX_BYTES);

    let record = Record {
        lease: LEASE,
        fact: Fact::Receipted(Receipted {
            message: vec![0; Message::MAX_BYTES].into(),
            own: Reading::new(most, most),
        }),
    };
    assert!(record.to_bytes().len() <= Record::MAX_BYTES);
    assert!(Record::from_bytes(&[0xa0; Record::MAX_BYTES + 1]).is_err());
}
