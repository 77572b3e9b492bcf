//! The hash table: who is in a cell, and where a node is.

use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::kad::{self, BucketInserts, Caching, RecordKey, StoreInserts};
use libp2p::{PeerId, StreamProtocol};

use bitmesh_market::envelope::Network;

use crate::protocol::names;
use crate::protocol::topic::{Cell, MAX_CELL_BYTES};

mod observed;
mod store;

pub(crate) use observed::{Change, Observed};
pub(crate) use store::CellStore;

/// How long others may name a node as one of a cell without hearing of it again.
const PROVIDER_TTL: Duration = Duration::from_secs(60 * 60);

/// How often a node tells that it is still there. Two of three may be lost.
const PROVIDER_INTERVAL: Duration = Duration::from_secs(20 * 60);

/// How long a lookup may take. Dead nodes cost a dial each; what has been found by then is enough.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);

/// Addresses kept for one node, in the routing table and in a cell.
pub(crate) const MAX_ADDRESSES: usize = 8;

pub(crate) type Behaviour = kad::Behaviour<CellStore>;

pub(crate) fn behaviour(local: PeerId, network: Network) -> Behaviour {
    let protocol = StreamProtocol::try_from_owned(names::kad(network))
        .expect("protocol names start with a slash");
    let mut config = kad::Config::new(protocol);
    config
        .set_query_timeout(QUERY_TIMEOUT)
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_caching(Caching::Disabled)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_record_ttl(Some(PROVIDER_TTL))
        .set_provider_publication_interval(Some(PROVIDER_INTERVAL))
        .set_parallelism(NonZeroUsize::new(3).expect("three is not zero"))
        .disjoint_query_paths(true);
    kad::Behaviour::with_config(local, CellStore::new(local), config)
}

/// The key under which the nodes of a cell are found.
pub(crate) fn key(cell: &Cell, network: Network) -> RecordKey {
    RecordKey::new(&format!("{}{cell}", names::cell_prefix(network)))
}

/// The cell a key is of; `None` if it is not exactly one that [`key`] makes for this network.
pub(crate) fn cell(key: &RecordKey, network: Network) -> Option<Cell> {
    let prefix = names::cell_prefix(network);
    let bytes: &[u8] = key.as_ref();
    if bytes.len() > prefix.len() + MAX_CELL_BYTES {
        return None;
    }
    std::str::from_utf8(bytes)
        .ok()?
        .strip_prefix(&prefix)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_one_cell_of_one_network() {
        let u33d: Cell = "u33d".parse().unwrap();
        let key_of_u33d = key(&u33d, Network::Regtest);

        assert_eq!(cell(&key_of_u33d, Network::Regtest), Some(u33d));
        assert_eq!(cell(&key_of_u33d, Network::Mainnet), None);
        assert_eq!(cell(&RecordKey::new(b"junk"), Network::Regtest), None);
        assert_eq!(
            cell(&RecordKey::new(&vec![b'a'; 10_000]), Network::Regtest),
            None
        );
    }
}
