//! Small sets of choices, one bit each. Bits of later versions are kept and match nothing here.

use std::fmt;
use std::ops::BitOr;

use serde::{Deserialize, Serialize};

macro_rules! flags {
    ($(#[$meta:meta])* $name:ident { $( $(#[$fmeta:meta])* $flag:ident = $bit:literal, $text:literal; )* }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u32);

        impl $name {
            $( $(#[$fmeta])* pub const $flag: Self = Self(1 << $bit); )*

            /// None of them.
            pub const NONE: Self = Self(0);

            const NAMES: &[(Self, &str)] = &[ $( (Self::$flag, $text), )* ];

            /// Makes a set of raw bits, known to this version or not.
            #[must_use]
            pub const fn from_bits(bits: u32) -> Self {
                Self(bits)
            }

            /// The raw bits.
            #[must_use]
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// Whether nothing is in the set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Whether all of `other` is in this set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether the two sets have anything in common.
            #[must_use]
            pub const fn intersects(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }

            /// The names of those known to this version, in order.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                Self::NAMES
                    .iter()
                    .filter(move |(flag, _)| self.contains(*flag))
                    .map(|(_, name)| *name)
            }

            /// The flag with this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                let (flag, _) = Self::NAMES.iter().find(|(_, known)| *known == name)?;
                Some(*flag)
            }
        }

        impl BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let names: Vec<_> = self.names().collect();
                f.pad(&names.join(","))
            }
        }
    };
}

flags! {
    /// What a seller sells.
    Services {
        /// A way to the internet through the seller's uplink.
        EXIT = 0, "exit";
        /// Access to the local network by radio or cable.
        HOTSPOT = 1, "hotspot";
        /// A way to another node.
        RELAY = 2, "relay";
    }
}

flags! {
    /// Ways of paying.
    Rails {
        /// A payment channel on the chain.
        CHANNEL = 0, "channel";
        /// Lightning.
        LIGHTNING = 1, "lightning";
        /// Ecash tokens of a mint.
        ECASH = 2, "ecash";
    }
}

flags! {
    /// Whether payment comes before or after carrying.
    Modes {
        /// The buyer pays ahead, a credit window at a time.
        PREPAID = 0, "prepaid";
        /// The seller carries ahead, up to an agreed credit limit.
        POSTPAID = 1, "postpaid";
    }
}

flags! {
    /// Kinds of tunnel.
    Tunnels {
        /// Flows of bytes through a proxy; needs no privileges.
        PROXY = 0, "proxy";
        /// Whole packets through a network interface.
        PACKET = 1, "packet";
    }
}

flags! {
    /// What a seller's egress lets through.
    ///
    /// A summary for choosing. The seller's egress never reaches private addresses, whatever this
    /// says.
    Egress {
        /// Destinations on IPv4.
        IPV4 = 0, "ipv4";
        /// Destinations on IPv6.
        IPV6 = 1, "ipv6";
        /// Datagrams.
        UDP = 2, "udp";
        /// Ports beyond the web, except mail and file sharing.
        ALL_PORTS = 3, "all-ports";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_named_by_what_it_holds() {
        let egress = Egress::IPV4 | Egress::UDP;
        assert_eq!(egress.to_string(), "ipv4,udp");
        assert!(egress.contains(Egress::UDP) && !egress.contains(Egress::IPV4 | Egress::IPV6));
        assert!(egress.intersects(Egress::IPV4 | Egress::IPV6));
        assert_eq!(Egress::from_name("udp"), Some(Egress::UDP));
        assert_eq!(Egress::from_name("tcp"), None);
    }

    #[test]
    fn bits_of_later_versions_are_kept_and_match_nothing() {
        let later = Rails::from_bits(1 << 9);
        assert_eq!(later.bits(), 1 << 9);
        assert!(!later.intersects(Rails::CHANNEL | Rails::LIGHTNING | Rails::ECASH));
        assert_eq!(later.to_string(), "");
    }
}
