//! Where gossip goes: one topic per network, kind of message and cell.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use bitmesh_market::envelope::Network;

use super::names;

/// Largest gossiped message, in bytes. Offers stay below 1 KiB; the rest is room for later kinds.
pub const MAX_GOSSIP_BYTES: usize = 2 * 1024;

/// Longest cell name, in bytes. A geohash of the finest use is 6; the rest is room for region names.
pub const MAX_CELL_BYTES: usize = 16;

/// A place in which offers are of interest: a geohash (`u33d`) or the name of a region (`eu`).
///
/// Invariant: 1 to [`MAX_CELL_BYTES`] of `a–z`, `0–9` and `-`, not starting or ending with `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell(String);

/// A text is not the name of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a cell is 1 to {MAX_CELL_BYTES} of a-z, 0-9 and inner hyphens, such as u33d or eu")]
pub struct CellError;

impl Cell {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Cell {
    type Err = CellError;

    fn from_str(text: &str) -> Result<Self, CellError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = (1..=MAX_CELL_BYTES).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(CellError)
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// What a topic carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TopicKind {
    /// Signed offers and their withdrawals.
    Offers,
}

impl TopicKind {
    const ALL: [Self; 1] = [Self::Offers];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Offers => "offers",
        }
    }
}

/// A stream of gossip one can subscribe to. The network is not part of it: a mesh belongs to one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic {
    /// What is said there.
    pub kind: TopicKind,
    /// Which place it concerns.
    pub cell: Cell,
}

impl Topic {
    /// The offers of one cell.
    #[must_use]
    pub const fn offers(cell: Cell) -> Self {
        Self {
            kind: TopicKind::Offers,
            cell,
        }
    }

    /// The name on the wire: `/bitmesh/<network>/gossip/<kind>/1/<cell>`.
    #[must_use]
    pub fn name(&self, network: Network) -> String {
        format!(
            "{}/{}/1/{}",
            names::gossip_prefix(network),
            self.kind.as_str(),
            self.cell
        )
    }

    /// Reads a name; `None` if it is not exactly one that [`name`](Self::name) makes for this network.
    #[must_use]
    pub fn from_name(name: &str, network: Network) -> Option<Self> {
        let rest = name
            .strip_prefix(&names::gossip_prefix(network))?
            .strip_prefix('/')?;
        let (kind, rest) = rest.split_once('/')?;
        let cell = rest.strip_prefix("1/")?.parse().ok()?;
        let kind = TopicKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind)?;
        Some(Self { kind, cell })
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.cell)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cell(text: &str) -> Cell {
        text.parse().unwrap()
    }

    #[test]
    fn a_cell_is_a_short_plain_word() {
        for good in ["u33d", "eu", "us-west", "0", "abcdefghijklmnop"] {
            assert_eq!(cell(good).as_str(), good);
        }
        for bad in [
            "",
            "U33D",
            "u33d/",
            "-a",
            "a-",
            "a b",
            "ü",
            "abcdefghijklmnopq",
        ] {
            assert_eq!(bad.parse::<Cell>(), Err(CellError), "{bad:?}");
        }
    }

    #[test]
    fn a_topic_of_one_network_means_nothing_on_another() {
        let topic = Topic::offers(cell("u33d"));

        let name = topic.name(Network::Regtest);

        assert_eq!(name, "/bitmesh/regtest/gossip/offers/1/u33d");
        assert_eq!(Topic::from_name(&name, Network::Regtest), Some(topic));
        assert_eq!(Topic::from_name(&name, Network::Mainnet), None);
    }

    #[test]
    fn names_that_are_nearly_right_are_refused() {
        for bad in [
            "/bitmesh/regtest/gossip/offers/1/",
            "/bitmesh/regtest/gossip/offers/2/u33d",
            "/bitmesh/regtest/gossip/wants/1/u33d",
            "/bitmesh/regtest/gossip/offers/1/u33d/",
            "/bitmesh/regtest/gossip/offers/1/u33d/x",
            "bitmesh/regtest/gossip/offers/1/u33d",
        ] {
            assert_eq!(Topic::from_name(bad, Network::Regtest), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_name_that_is_read_is_written_the_same(name in "/bitmesh/regtest/gossip/[a-z]{0,8}/[0-9]/[a-z0-9/-]{0,20}") {
            if let Some(topic) = Topic::from_name(&name, Network::Regtest) {
                prop_assert_eq!(topic.name(Network::Regtest), name);
            }
        }
    }
}
