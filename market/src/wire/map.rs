//! Structs as CBOR maps with small integer keys: compact, and open to fields of later versions.

use std::fmt;

use ciborium::Value;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// The first key that a reader may skip if it does not know it.
///
/// Keys below must be understood: an unknown one is refused. The split is at 24 because CBOR keys
/// below 24 take one byte, and what everybody must know should be small.
pub const FIRST_OPTIONAL_KEY: u64 = 24;

/// Fields of a later version: kept as they came, covered by the signature, never acted upon.
///
/// Their keys are all above those this version knows, because keys are given out in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unknown(Vec<(u64, Value)>);

// Values are equal to themselves: the wire form has no floats.
impl Eq for Unknown {}

impl Unknown {
    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|(key, _)| *key)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &(u64, Value)> {
        self.0.iter()
    }

    pub(crate) fn push(&mut self, key: u64, value: Value) {
        self.0.push((key, value));
    }
}

/// A field number as it is read.
pub(crate) struct Key(pub(crate) u64);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = Key;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field number")
            }
            fn visit_u64<E: de::Error>(self, key: u64) -> Result<Key, E> {
                Ok(Key(key))
            }
        }
        deserializer.deserialize_u64(KeyVisitor)
    }
}

/// Declares a struct that is written as a CBOR map with integer keys.
///
/// ```ignore
/// cbor_map! {
///     /// Docs.
///     #[derive(Clone, Debug, PartialEq, Eq)]
///     pub struct Sample {
///         /// Always there.
///         1 => pub price: Price,
///         ; // below this: `Option`s, left out when `None`
///         /// Sometimes there.
///         2 => pub region: Region,
///     }
/// }
/// ```
///
/// Keys must ascend in the order of declaration. An unknown key is refused. With `open struct` the
/// struct gets a further field `pub unknown: Unknown`, which keeps unknown keys from
/// [`FIRST_OPTIONAL_KEY`] up.
macro_rules! cbor_map {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[$rmeta:meta])* $rkey:literal => $rvis:vis $rname:ident : $rtype:ty ),* $(,)?
            $( ; $( $(#[$ometa:meta])* $okey:literal => $ovis:vis $oname:ident : $otype:ty ),* $(,)? )?
        }
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $( $(#[$rmeta])* $rvis $rname : $rtype, )*
            $( $( $(#[$ometa])* $ovis $oname : Option<$otype>, )* )?
        }
        $crate::wire::cbor_map!(@impl closed $name
            { $( $rkey => $rname : $rtype, )* } { $( $( $okey => $oname : $otype, )* )? });
    };
    (
        $(#[$meta:meta])*
        $vis:vis open struct $name:ident {
            $( $(#[$rmeta:meta])* $rkey:literal => $rvis:vis $rname:ident : $rtype:ty ),* $(,)?
            $( ; $( $(#[$ometa:meta])* $okey:literal => $ovis:vis $oname:ident : $otype:ty ),* $(,)? )?
        }
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $( $(#[$rmeta])* $rvis $rname : $rtype, )*
            $( $( $(#[$ometa])* $ovis $oname : Option<$otype>, )* )?
            /// Fields of a later version, kept as they came.
            pub unknown: $crate::wire::Unknown,
        }
        $crate::wire::cbor_map!(@impl open $name
            { $( $rkey => $rname : $rtype, )* } { $( $( $okey => $oname : $otype, )* )? });
    };

    (@impl $mode:ident $name:ident
        { $( $rkey:literal => $rname:ident : $rtype:ty, )* }
        { $( $okey:literal => $oname:ident : $otype:ty, )* }
    ) => {
        const _: () = {
            let keys: &[u64] = &[ $( $rkey, )* $( $okey, )* ];
            let mut index = 1;
            while index < keys.len() {
                assert!(keys[index - 1] < keys[index], "field numbers must ascend");
                index += 1;
            }
        };

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use ::serde::ser::SerializeMap as _;
                let known = [ $( { let _ = $rkey; true }, )* $( self.$oname.is_some(), )* ];
                let known = known.into_iter().filter(|is_there| *is_there).count();
                let length = known + $crate::wire::cbor_map!(@unknown_len $mode self);
                let mut map = serializer.serialize_map(Some(length))?;
                $( map.serialize_entry(&($rkey as u64), &self.$rname)?; )*
                $( if let Some(value) = &self.$oname {
                    map.serialize_entry(&($okey as u64), value)?;
                } )*
                $crate::wire::cbor_map!(@unknown_write $mode self map);
                map.end()
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> ::serde::de::Visitor<'de> for Fields {
                    type Value = $name;

                    fn expecting(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                        f.write_str(concat!("the numbered fields of ", stringify!($name)))
                    }

                    fn visit_map<A: ::serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        use ::serde::de::Error as _;
                        $( let mut $rname: Option<$rtype> = None; )*
                        $( let mut $oname: Option<$otype> = None; )*
                        #[allow(unused_mut)]
                        let mut unknown = $crate::wire::Unknown::default();
                        while let Some($crate::wire::map::Key(key)) = map.next_key()? {
                            match key {
                                $( $rkey => {
                                    if $rname.replace(map.next_value()?).is_some() {
                                        return Err(A::Error::duplicate_field(stringify!($rname)));
                                    }
                                } )*
                                $( $okey => {
                                    if $oname.replace(map.next_value()?).is_some() {
                                        return Err(A::Error::duplicate_field(stringify!($oname)));
                                    }
                                } )*
                                _ => $crate::wire::cbor_map!(@unknown_read $mode A map key unknown),
                            }
                        }
                        let _ = &unknown;
                        Ok($crate::wire::cbor_map!(@build $mode $name unknown {
                            $( $rname: $rname.ok_or_else(
                                || A::Error::missing_field(stringify!($rname)))?, )*
                            $( $oname, )*
                        }))
                    }
                }
                deserializer.deserialize_map(Fields)
            }
        }
    };

    (@unknown_len closed $self:ident) => { 0 };
    (@unknown_len open $self:ident) => { $self.unknown.len() };
    (@unknown_write closed $self:ident $map:ident) => {};
    (@unknown_write open $self:ident $map:ident) => {
        for (key, value) in $self.unknown.entries() {
            $map.serialize_entry(key, value)?;
        }
    };
    (@unknown_read closed $access:ident $map:ident $key:ident $unknown:ident) => {
        return Err($access::Error::custom(format_args!("unknown field {}", $key)))
    };
    (@unknown_read open $access:ident $map:ident $key:ident $unknown:ident) => {{
        if $key < $crate::wire::FIRST_OPTIONAL_KEY {
            return Err($access::Error::custom(format_args!("unknown field {}", $key)));
        }
        $unknown.push($key, $map.next_value()?);
    }};
    (@build closed $name:ident $unknown:ident { $($fields:tt)* }) => { $name { $($fields)* } };
    (@build open $name:ident $unknown:ident { $($fields:tt)* }) => {
        $name { $($fields)* unknown: $unknown }
    };
}
pub(crate) use cbor_map;
