//! Names made of random or hashed bytes.

/// Declares a newtype over a byte array that is shown and parsed as hex, and written as a byte string.
macro_rules! byte_id {
    ($(#[$meta:meta])* $vis:vis struct $name:ident([u8; $bytes:literal]);) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis struct $name([u8; $bytes]);

        impl $name {
            /// Makes an id of its bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The first eight hex digits: enough to tell ids apart in a table, not to name one.
            #[must_use]
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(&hex::encode(self.0))
            }
        }

        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::id::ParseIdError;

            fn from_str(text: &str) -> Result<Self, $crate::id::ParseIdError> {
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_| $crate::id::ParseIdError { digits: 2 * $bytes })?;
                Ok(Self(bytes))
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(::serde::de::Error::custom)
                } else {
                    let bytes = ::serde_bytes::ByteArray::<$bytes>::deserialize(deserializer)?;
                    Ok(Self(bytes.into_array()))
                }
            }
        }
    };
}
pub(crate) use byte_id;

/// The text is not the hex of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id: {digits} hex digits expected")]
pub struct ParseIdError {
    /// Hex digits the id has.
    pub digits: usize,
}

#[cfg(test)]
mod tests {
    use crate::quote::RfqId;

    #[test]
    fn an_id_reads_back_from_hex_and_from_bytes() {
        let id = RfqId::from_bytes([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "abababab");
        assert!(id.short().parse::<RfqId>().is_err());

        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<RfqId>(&json).unwrap(), id);

        let mut cbor = Vec::new();
        ciborium::into_writer(&id, &mut cbor).unwrap();
        assert_eq!(cbor.len(), 17);
        assert_eq!(ciborium::from_reader::<RfqId, _>(&cbor[..]).unwrap(), id);
    }
}
