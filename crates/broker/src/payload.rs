//! `Payload`: the payload of a publisher, read as an envelope or as the data itself, and written as an envelope.

use std::{borrow::Cow, fmt};

use serde::{
    Serialize,
    de::{self, Deserializer, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use strum::{IntoStaticStr, VariantArray};

/// Shortest reconnection time that a publisher can give to clients, in milliseconds. With less, a client of an ended
/// channel would reconnect without a pause.
pub const MIN_RETRY: u32 = 100;
/// Longest one. Clients that are disconnected have to reconnect at some time.
pub const MAX_RETRY: u32 = 60 * 60 * 1000;

/// An event as its publisher meant it.
#[derive(Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The event's type; none for the default, `message`.
    pub event: Option<Cow<'a, str>>,
    /// The event's data.
    pub data: Cow<'a, str>,
    /// Reconnection time, in milliseconds; between [`MIN_RETRY`] and [`MAX_RETRY`].
    pub retry: Option<u32>,
    /// The channel is complete with this event.
    pub end: bool,
}

/// Why a payload cannot be an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray, thiserror::Error)]
#[strum(serialize_all = "snake_case")]
pub enum Rejected {
    /// Larger than the configured limit.
    #[error("the payload is too large")]
    TooLarge,
    /// Not UTF-8, which is all that an event stream can carry.
    #[error("the payload is not UTF-8")]
    NotUtf8,
    /// An envelope whose `event`, `retry` or `end` is of the wrong type.
    #[error("event has to be a string, retry a whole number of milliseconds, end true or false")]
    BadEnvelope,
    /// An envelope whose `event` would break the stream, or is reserved for the gateway or EventSource.
    #[error(
        "event cannot hold CR, LF or NUL, start with gateway., nor be error or open: in browsers these two are events of EventSource itself"
    )]
    BadEvent,
}

impl Rejected {
    /// The word in metrics and answers. It is stable, even if the name in the code changes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl<'a> Payload<'a> {
    /// Reads a payload.
    ///
    /// A JSON object whose keys are all among `event`, `data`, `retry` and `end`, each at most
    /// once, and that has `data`, is an envelope. Everything else is the data itself, untouched.
    ///
    /// # Errors
    /// When it cannot be an event.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Rejected> {
        let text = std::str::from_utf8(bytes).map_err(|_| Rejected::NotUtf8)?;
        if !text
            .trim_start_matches([' ', '\t', '\r', '\n'])
            .starts_with('{')
        {
            return Ok(Self::data(text));
        }
        match serde_json::from_str::<Envelope<'a>>(text) {
            Ok(envelope) if envelope.is_text() => envelope.open(),
            _ => Ok(Self::data(text)),
        }
    }

    /// The envelope that [`Payload::parse`] reads as this event.
    pub fn encode(&self) -> Vec<u8> {
        json(&Written {
            event: self.event.as_deref(),
            data: &self.data,
            retry: self.retry,
            end: self.end.then_some(true),
        })
    }

    /// The same for a stored payload. A payload that cannot be an event is the data itself, so all replicas read it
    /// alike.
    pub(crate) fn stored(bytes: &'a [u8]) -> Self {
        Self::parse(bytes).unwrap_or_else(|_| Self {
            event: None,
            data: String::from_utf8_lossy(bytes),
            retry: None,
            end: false,
        })
    }

    fn data(text: &'a str) -> Self {
        Self {
            event: None,
            data: Cow::Borrowed(text),
            retry: None,
            end: false,
        }
    }
}

/// The values of an envelope, as they are in the JSON text.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The event's type.
    pub event: Option<&'a RawValue>,
    /// The event's data.
    pub data: &'a RawValue,
    /// Reconnection time, in milliseconds.
    pub retry: Option<&'a RawValue>,
    /// Whether the channel is complete with this event.
    pub end: Option<&'a RawValue>,
}

/// An envelope as it is stored.
#[derive(Serialize)]
struct Written<V, D, R, E> {
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<V>,
    data: D,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<E>,
}

fn json(envelope: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(envelope).expect("strings and numbers can be written as JSON")
}

impl<'a> Envelope<'a> {
    /// The payload to store. The values are not checked: [`Payload::parse`] does that.
    pub fn encode(&self) -> Vec<u8> {
        json(&Written {
            event: self.event,
            data: self.data,
            retry: self.retry,
            end: self.end,
        })
    }

    /// Whether `event`, if it is a string, is a text. Half a surrogate pair is not a text: to Lua such a payload is not
    /// JSON.
    fn is_text(&self) -> bool {
        self.event.is_none_or(|raw| {
            !raw.get().starts_with('"') || serde_json::from_str::<Text<'_>>(raw.get()).is_ok()
        })
    }

    fn open(self) -> Result<Payload<'a>, Rejected> {
        let event: Option<Cow<'a, str>> = match self.event {
            Some(raw) => optional::<Text<'a>>(raw)?.map(|text| text.0),
            None => None,
        };
        if let Some(event) = &event
            && (sse::Line::new(event).is_err() || is_reserved(event))
        {
            return Err(Rejected::BadEvent);
        }
        let retry = match self.retry {
            Some(raw) => whole(raw)?,
            None => None,
        };
        let end = match self.end {
            Some(raw) => optional(raw)?.unwrap_or(false),
            None => false,
        };
        let data = match serde_json::from_str::<Text<'a>>(self.data.get()) {
            Ok(text) => text.0,
            Err(_) => compact(self.data.get()),
        };
        Ok(Payload {
            event: event.filter(|event| !event.is_empty()),
            data,
            // Not refused, because that would lose a raw message. Stored payloads are read here as well.
            retry: retry.map(|retry| retry.clamp(MIN_RETRY, MAX_RETRY)),
            end,
        })
    }
}

/// Whether events of this type are reserved for the gateway, or for EventSource itself. An `error` event would call
/// `onerror`, and a page that reconnects there would reconnect again and again.
fn is_reserved(event: &str) -> bool {
    event.starts_with("gateway.") || matches!(event, "error" | "open")
}

/// A value that may be null.
fn optional<'a, T: de::Deserialize<'a>>(raw: &'a RawValue) -> Result<Option<T>, Rejected> {
    serde_json::from_str(raw.get()).map_err(|_| Rejected::BadEnvelope)
}

/// A whole number in any form of JSON, or null. To a publisher, 5, 5.0 and 5e0 are the same number.
fn whole(raw: &RawValue) -> Result<Option<u32>, Rejected> {
    if raw.get() == "null" {
        return Ok(None);
    }
    // Other values of JSON do not parse as a number in Rust either.
    let number: f64 = raw.get().parse().map_err(|_| Rejected::BadEnvelope)?;
    if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) {
        return Ok(Some(number as u32));
    }
    Err(Rejected::BadEnvelope)
}

/// A JSON string, borrowed if it has no escape.
struct Text<'a>(Cow<'a, str>);

impl<'a> de::Deserialize<'a> for Text<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'a> Visitor<'a> for TextVisitor {
            type Value = Text<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

impl<'a> de::Deserialize<'a> for Envelope<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct EnvelopeVisitor;
        impl<'a> Visitor<'a> for EnvelopeVisitor {
            type Value = Envelope<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an envelope")
            }

            /// Gives up at the first key that no envelope has, because most JSON is not an envelope.
            fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Envelope<'a>, M::Error> {
                let (mut event, mut data, mut retry, mut end) = (None, None, None, None);
                while let Some(Text(key)) = map.next_key::<Text<'a>>()? {
                    let field = match &*key {
                        "event" => &mut event,
                        "data" => &mut data,
                        "retry" => &mut retry,
                        "end" => &mut end,
                        _ => return Err(de::Error::custom("a key of the payload's own")),
                    };
                    if field.replace(map.next_value::<&'a RawValue>()?).is_some() {
                        return Err(de::Error::custom("a key twice"));
                    }
                }
                let data = data.ok_or_else(|| de::Error::custom("no data"))?;
                Ok(Envelope {
                    event,
                    data,
                    retry,
                    end,
                })
            }
        }
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

/// JSON without the white space between its tokens; numbers and strings stay as they were written.
fn compact(json: &str) -> Cow<'_, str> {
    if !json.contains([' ', '\t', '\r', '\n']) {
        return Cow::Borrowed(json);
    }
    let (mut in_string, mut escaped) = (false, false);
    let keep = |c: &char| {
        if in_string {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
            return true;
        }
        in_string = *c == '"';
        !matches!(c, ' ' | '\t' | '\r' | '\n')
    };
    Cow::Owned(json.chars().filter(keep).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A JSON value of any kind, with white space between its tokens.
    fn any_json() -> impl Strategy<Value = String> {
        let text = any::<String>().prop_map(|text| json_text(&text));
        let number = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>()
                .prop_filter("JSON has no other numbers", |number| number.is_finite())
                .prop_map(|number| format!("{number:e}")),
        ];
        let word = prop_oneof![Just("null"), Just("true"), Just("false")];
        let leaf = prop_oneof![text, number, word.prop_map(str::to_owned)];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|values| format!("[ {} ]", values.join(" ,\n"))),
                (any::<String>(), inner)
                    .prop_map(|(key, value)| format!("{{\t{} : {value}\r}}", json_text(&key))),
            ]
        })
    }

    fn json_text(text: &str) -> String {
        serde_json::to_string(text).unwrap()
    }

    proptest! {
        #[test]
        fn an_encoded_event_is_parsed_to_the_same(
            event in prop::option::of("[^\r\n\0]{1,20}"),
            data in any::<String>(),
            retry in prop::option::of(MIN_RETRY..=MAX_RETRY),
            end in any::<bool>(),
        ) {
            prop_assume!(event.as_deref().is_none_or(|event| !is_reserved(event)));
            let payload = Payload {
                event: event.map(Cow::from),
                data: data.into(),
                retry,
                end,
            };
            let encoded = payload.encode();
            prop_assert_eq!(Payload::parse(&encoded), Ok(payload));
        }

        #[test]
        fn an_encoded_envelope_is_parsed_like_the_original(
            event in prop::option::of(any_json()),
            data in any_json(),
            retry in prop::option::of(any_json()),
            end in prop::option::of(any_json()),
        ) {
            let fields = [
                ("end", &end),
                ("retry", &retry),
                ("data", &Some(data.clone())),
                ("event", &event),
            ];
            let fields = fields
                .into_iter()
                .filter_map(|(key, value)| Some(format!(" \"{key}\" : {}", value.as_ref()?)));
            let original = format!("{{{} }}", fields.collect::<Vec<_>>().join(","));
            let raw = |json: &String| RawValue::from_string(json.clone()).unwrap();
            let [event, retry, end] = [&event, &retry, &end].map(|json| json.as_ref().map(raw));
            let envelope = Envelope {
                event: event.as_deref(),
                data: &raw(&data),
                retry: retry.as_deref(),
                end: end.as_deref(),
            };
            let encoded = envelope.encode();
            prop_assert_eq!(Payload::parse(&encoded), Payload::parse(original.as_bytes()));
        }
    }

    #[test]
    fn an_envelope_is_opened() {
        let check = |text: &str, event: Option<&str>, data: &str, retry, end| {
            let payload = Payload::parse(text.as_bytes()).unwrap();
            let event = event.map(Cow::from);
            let data = Cow::from(data);
            assert_eq!(
                payload,
                Payload {
                    event,
                    data,
                    retry,
                    end
                },
                "{text}"
            );
        };
        check(r#"{"data":"x"}"#, None, "x", None, false);
        check(
            r#"{"event":"e","data":"a\nb"}"#,
            Some("e"),
            "a\nb",
            None,
            false,
        );
        check(
            r#"{"data":{"a": [1, "b c"]},"end":true}"#,
            None,
            r#"{"a":[1,"b c"]}"#,
            None,
            true,
        );
        check(
            r#"{"data":1.50,"retry":500}"#,
            None,
            "1.50",
            Some(500),
            false,
        );
        for (retry, number) in [
            ("500.0", 500),
            ("1e3", 1000),
            ("2.5e2", 250),
            ("99", MIN_RETRY),
            ("-0", MIN_RETRY),
            ("-0.0", MIN_RETRY),
            ("3600001", MAX_RETRY),
            ("4294967295.0", MAX_RETRY),
        ] {
            let text = format!(r#"{{"data":"x","retry":{retry}}}"#);
            check(&text, None, "x", Some(number), false);
        }
        check(r#"{"data":null}"#, None, "null", None, false);
        check(r#"{"data":"\"\\ "}"#, None, "\"\\ ", None, false);
        check(
            r#"{"event":null,"data":"","retry":null,"end":null}"#,
            None,
            "",
            None,
            false,
        );
        check(r#"{"event":"","data":""}"#, None, "", None, false);
        check(" {\"data\" : \"x\" }\n", None, "x", None, false);
        check(
            "{\"data\":[ \"a\\\" b\" , 1 ]}",
            None,
            "[\"a\\\" b\",1]",
            None,
            false,
        );
    }

    #[test]
    fn other_payloads_are_the_data() {
        for text in [
            "",
            "hello",
            "{",
            "[1]",
            "5",
            "\"x\"",
            r#"{"data":"x","id":1}"#,
            r#"{"event":"x"}"#,
            "{}",
            r#"{"data":1,"data":2}"#,
            r#"{"data":1}x"#,
            "\u{feff}{\"data\":1}",
            r#"{"event":"\ud800","data":1}"#,
            r#"{"retry":05,"data":1}"#,
            r#"{"retry":NaN,"data":1}"#,
            "a\0b",
            "\r\n",
        ] {
            let payload = Payload::parse(text.as_bytes()).unwrap();
            assert_eq!(payload, Payload::data(text), "{text:?}");
        }
    }

    #[test]
    fn an_envelope_that_would_break_the_stream_is_rejected() {
        for (text, reason) in [
            (&b"\xff"[..], Rejected::NotUtf8),
            (br#"{"event":"a\nb","data":1}"#, Rejected::BadEvent),
            (br#"{"event":"a\u0000","data":1}"#, Rejected::BadEvent),
            (br#"{"event":"gateway.open","data":1}"#, Rejected::BadEvent),
            (br#"{"event":"error","data":1}"#, Rejected::BadEvent),
            (br#"{"event":"\u006fpen","data":1}"#, Rejected::BadEvent),
            (br#"{"event":5,"data":1}"#, Rejected::BadEnvelope),
            (br#"{"retry":-1,"data":1}"#, Rejected::BadEnvelope),
            (br#"{"retry":1.5,"data":1}"#, Rejected::BadEnvelope),
            (br#"{"retry":"5","data":1}"#, Rejected::BadEnvelope),
            (br#"{"retry":4294967296,"data":1}"#, Rejected::BadEnvelope),
            (br#"{"retry":1e999,"data":1}"#, Rejected::BadEnvelope),
            (br#"{"end":1,"data":1}"#, Rejected::BadEnvelope),
        ] {
            assert_eq!(Payload::parse(text), Err(reason), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn stored_payloads_are_always_readable() {
        assert_eq!(Payload::stored(b"a\xff").data, "a\u{fffd}");
        for odd in [
            r#"{"event":"a\nb","data":1}"#,
            r#"{"event":"error","data":1}"#,
        ] {
            assert_eq!(Payload::stored(odd.as_bytes()), Payload::data(odd));
        }
    }
}
