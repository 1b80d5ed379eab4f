//! `Time`: a time with its unit, in a configuration file.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// A time with its unit, as written.
#[derive(Debug)]
pub struct Time(String);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Time;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with a unit, such as \"1h\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                Ok(Time(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Time, E> {
                Err(E::custom(format!(
                    "{number} has no unit: a time is needed, such as \"{number}s\" or \"1h\""
                )))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Time {
    /// The time.
    ///
    /// # Errors
    /// When it cannot be read. The error quotes it.
    pub fn parse(&self) -> Result<Duration, String> {
        let Self(text) = self;
        humantime::parse_duration(text).map_err(|error| format!("\"{text}\": {error}"))
    }

    /// The time as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
