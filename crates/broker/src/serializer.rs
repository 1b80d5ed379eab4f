//! `Serializer`: recognizes payloads that a publisher's library has serialized, although its user meant a text.

use strum::{IntoStaticStr, VariantArray};

use crate::payload::{Payload, Rejected};

/// The serializer of a payload, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Serializer {
    /// Java serialization, the default of Spring's `RedisTemplate`.
    Java,
    /// A binary form that begins with a control character, as that of Kryo, the default of Redisson.
    Binary,
    /// Python's pickle.
    Pickle,
    /// Compressed data.
    Compressed,
    /// JSON with the name of a Java class, which is no envelope.
    JsonClass,
    /// An envelope that was written as a JSON string.
    JsonString,
}

impl Serializer {
    /// The word in metrics and answers. It is stable, even if the name in the code changes.
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// An envelope as a JSON string begins so.
const QUOTED: [&[u8]; 4] = [
    br#""{\"data\""#,
    br#""{\"event\""#,
    br#""{\"retry\""#,
    br#""{\"end\""#,
];

/// Whether a raw message of at most that many bytes can be an event, and the serializer that most likely wrote it.
pub(crate) fn examine(payload: &[u8], max_payload: usize) -> Result<Option<Serializer>, Rejected> {
    if payload.len() > max_payload {
        return Err(Rejected::TooLarge);
    }
    Payload::parse(payload)?;
    Ok(Serializer::of(payload))
}

impl Serializer {
    /// The serializer that most likely wrote this payload; none if it looks like a text.
    pub(crate) fn of(payload: &[u8]) -> Option<Self> {
        match payload {
            [0xAC, 0xED, 0x00, 0x05, ..] => Some(Self::Java),
            [0x80, 2..=5, ..] => Some(Self::Pickle),
            [0x1F, 0x8B, ..] | [0x28, 0xB5, 0x2F, 0xFD, ..] => Some(Self::Compressed),
            [b'\t' | b'\n' | b'\r', ..] => None,
            [..0x20, ..] => Some(Self::Binary),
            _ if payload.starts_with(br#"{"@class":"#) => Some(Self::JsonClass),
            _ if QUOTED.iter().any(|begin| payload.starts_with(begin)) => Some(Self::JsonString),
            _ => None,
        }
    }

    /// The change that the publisher has to make.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Java => {
                "Java serialization: publish with StringRedisTemplate, or Redisson's StringCodec"
            }
            Self::Binary => {
                "a binary serializer, such as Redisson's default: publish with StringCodec"
            }
            Self::Pickle => "Python's pickle: publish a str",
            Self::Compressed => "compressed data: publish it as it is",
            Self::JsonClass => {
                "a JSON serializer has added @class, so this is no envelope: publish with StringRedisTemplate, or with a \
                 serializer that adds no types"
            }
            Self::JsonString => {
                "an envelope that was serialized as a JSON string: publish the text itself, without a JSON serializer"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serializers_are_recognised_by_their_first_bytes() {
        use Serializer::*;
        let cases: [(&[u8], Option<Serializer>); 16] = [
            (b"\xac\xed\x00\x05t\x00\x05hello", Some(Java)),
            (b"\x03hello", Some(Binary)),
            (b"\x02T", Some(Binary)),
            (b"\x80\x04\x95", Some(Pickle)),
            (b"\x1f\x8b\x08", Some(Compressed)),
            (b"\x28\xb5\x2f\xfd\x00", Some(Compressed)),
            (
                br#"{"@class":"com.example.Price","data":1}"#,
                Some(JsonClass),
            ),
            (br#""{\"event\":\"price\",\"data\":1}""#, Some(JsonString)),
            (br#""{\"data\":1}""#, Some(JsonString)),
            (b"hello", None),
            (b"", None),
            (b"\nhello", None),
            (br#""hello""#, None),
            (br#""{}""#, None),
            (br#"{"data":"{\"@class\":1}"}"#, None),
            ("\u{20ac} 5".as_bytes(), None),
        ];
        for (payload, serializer) in cases {
            assert_eq!(Serializer::of(payload), serializer, "{payload:?}");
        }
    }
}
