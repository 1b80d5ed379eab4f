//! Who may do what: credentials from the configuration, and the channels they name.

use std::fmt;

use hub::Channel;
use serde::{Deserialize, Deserializer, de::Error as _};
use subtle::ConstantTimeEq as _;

/// A text that is shown nowhere: neither in logs nor in what is said of a wrong configuration.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("...")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer);
        text.map(Self)
            .map_err(|_| D::Error::custom("a token has to be a string"))
    }
}

impl Secret {
    /// What can stand in a header.
    pub(crate) fn is_token(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

/// Channel names by pattern: `*` stands for any run of characters, everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(String);

impl Pattern {
    pub(crate) fn new(pattern: String) -> Self {
        Self(pattern)
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        // There is always a first part, if an empty one.
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        for part in parts {
            let Some(found) = rest.find(part) else {
                return false;
            };
            rest = &rest[found + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// A secret, and the channels that whoever has it may publish to.
#[derive(Clone, Debug)]
pub(crate) struct Credential {
    pub(crate) token: Secret,
    channels: Vec<Pattern>,
}

impl Credential {
    pub(crate) fn new(token: Secret, channels: Vec<Pattern>) -> Self {
        Self { token, channels }
    }

    /// Takes as long whether the first byte is wrong or the last.
    pub(crate) fn is(&self, token: &str) -> bool {
        self.token.0.as_bytes().ct_eq(token.as_bytes()).into()
    }

    pub(crate) fn allows(&self, channel: &Channel) -> bool {
        let mut patterns = self.channels.iter();
        patterns.any(|pattern| pattern.matches(channel.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_run_of_characters() {
        let check = |pattern: &str, yes: &[&str], no: &[&str]| {
            let compiled = Pattern::new(pattern.to_owned());
            for name in yes {
                assert!(compiled.matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!compiled.matches(name), "{pattern} {name}");
            }
        };
        check("*", &["", "a", "a.b"], &[]);
        check(
            "chat.*",
            &["chat.", "chat.a", "chat.a.b"],
            &["chat", "achat.a", ""],
        );
        check("*.log", &[".log", "a.log", "a.log.log"], &["a.log.", "log"]);
        check(
            "a*b*c",
            &["abc", "a-b-c", "abbc", "abcbc"],
            &["ac", "ab", "acb", "abcd"],
        );
        // What is at both ends is not the same piece.
        check("aba*aba", &["abaaba", "aba-aba"], &["aba", "ababa"]);
        check("a.b", &["a.b"], &["axb", "a.b.", ""]);
        check("", &[""], &["a"]);
        check("a?[b]%d", &["a?[b]%d"], &["axb1"]);
    }

    #[test]
    fn a_secret_is_compared_whole_and_never_shown() {
        let credential = Credential::new("secret".into(), vec![]);
        assert!(credential.is("secret"));
        for wrong in ["", "secre", "secret2", "Secret"] {
            assert!(!credential.is(wrong), "{wrong}");
        }
        assert!(!format!("{credential:?}").contains("secret"));
    }
}
