//! The configuration file, as written.

use std::{fmt, path::Path, time::Duration};

use access::Hidden;
use broker::Rule;
use serde::{
    Deserialize, Deserializer,
    de::{self, Error as _},
};
use text::Time;

use crate::{
    http::events::{PARAMETERS, is_own_parameter},
    invalid::Invalid,
};

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default, deserialize_with = "rules")]
    channels: Vec<ChannelRule>,
    public_channels: Option<Vec<String>>,
    jwt: Option<access::Jwt>,
    forward_auth: Option<access::Forward>,
    #[serde(default)]
    publish: Vec<access::PublishRule>,
    #[serde(skip)]
    sections: Sections,
}

/// The parts of a file by their names, as written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sections(Hidden<toml::Table>);

impl Sections {
    /// The names of the sections that differ in another file.
    pub(crate) fn changed(&self, other: &Self) -> Vec<&'static str> {
        let names = [
            "channels",
            "public_channels",
            "jwt",
            "forward_auth",
            "publish",
        ];
        let differs = |name: &&str| self.0.0.get(*name) != other.0.0.get(*name);
        names.into_iter().filter(differs).collect()
    }
}

/// More events of history than this are probably a mistake.
const MUCH_HISTORY: u32 = 1_000_000;

/// One `[[channels]]` table. The first table whose pattern matches a channel applies.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct ChannelRule {
    r#match: String,
    history: Option<u32>,
    max_age: Option<Time>,
    expire: Option<Time>,
}

/// The `[[channels]]` tables.
fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ChannelRule>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Vec<ChannelRule>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("tables [[channels]]")
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(list))
        }

        fn visit_map<A: de::MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(A::Error::custom(
                "there may be several rules: each begins with [[channels]], in two pairs of brackets",
            ))
        }
    }
    deserializer.deserialize_any(Visitor)
}

impl File {
    pub(super) fn read_or_default(path: Option<&Path>) -> Result<Self, Invalid> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let show = path.display();
        let text =
            std::fs::read_to_string(path).map_err(|error| Invalid(format!("{show}: {error}")))?;
        Self::parse(&text).map_err(|Invalid(error)| Invalid(format!("{show}: {error}")))
    }

    pub(super) fn parse(text: &str) -> Result<Self, Invalid> {
        let parsed = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(text, span.start));
            let mut message = error.message().replace('\n', ", ");
            // This line may hold a secret in the wrong place, and the message may quote it.
            let there = text.lines().nth(line - 1).unwrap_or_default();
            if there.contains("publish") || there.contains("token") {
                "[[publish]] has token = \"...\" and channels = [...]".clone_into(&mut message);
            } else if there.contains("jwt") || there.contains("secret") {
                "[jwt] has secret = \"...\", key_file = \"...\" or jwks_url = \"...\""
                    .clone_into(&mut message);
            }
            Invalid(format!("line {line}: {message}"))
        });
        let mut file: Self = parsed?;
        file.check_parameters(text)?;
        file.sections = Sections(Hidden(text.parse().unwrap_or_default()));
        Ok(file)
    }

    /// Settings that are valid but probably mistakes.
    pub(super) fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        for rule in &self.channels {
            let pattern = &rule.r#match;
            if let Some(history) = rule.history.filter(|history| *history > MUCH_HISTORY) {
                doubts.push(format!(
                    "channels \"{pattern}\": history = {history} is more than {MUCH_HISTORY}: all of it is in the memory of \
                     redis, for each channel"
                ));
            }
            let time = |time: &Option<Time>| time.as_ref()?.parse().ok();
            if let (Some(max_age), Some(expire)) = (time(&rule.max_age), time(&rule.expire))
                && max_age > expire
                && let (Some(max_age), Some(expire)) = (&rule.max_age, &rule.expire)
            {
                let (max_age, expire) = (max_age.as_str(), expire.as_str());
                doubts.push(format!(
                    "channels \"{pattern}\": max_age = \"{max_age}\" is longer than expire = \"{expire}\": a channel without \
                     events loses its history after {expire}"
                ));
            }
        }
        doubts
    }

    /// Query parameters for a backend. Names that the gateway reads itself are refused, because they would have no
    /// effect.
    fn check_parameters(&self, text: &str) -> Result<(), Invalid> {
        let forward = self.forward_auth.as_ref();
        let Some(names) = forward.and_then(|forward| forward.parameters.as_ref()) else {
            return Ok(());
        };
        let wrong = |name: &&String| name.is_empty() || is_own_parameter(name);
        match names.get_ref().iter().find(wrong) {
            Some(name) => Err(Invalid(format!(
                "line {}: forward_auth: parameters: {name:?} cannot be one, because it is empty or the gateway's own ({}): \
                 name those that the backend reads, as in parameters = [\"session\"]",
                line_at(text, names.span().start),
                PARAMETERS.join(", ")
            ))),
            None => Ok(()),
        }
    }

    /// The rules of channels, those of access, and the file as written.
    pub(super) fn split(self) -> (Result<Vec<Rule>, Invalid>, access::File, Sections) {
        let channels = self.channels.into_iter().map(ChannelRule::into_rule);
        let access = access::File {
            public_channels: self.public_channels,
            jwt: self.jwt,
            forward_auth: self.forward_auth,
            publish: self.publish,
        };
        (channels.collect(), access, self.sections)
    }
}

/// The number of the line at an offset.
fn line_at(text: &str, offset: usize) -> usize {
    1 + text[..offset].matches('\n').count()
}

impl ChannelRule {
    fn into_rule(self) -> Result<Rule, Invalid> {
        let pattern = self.r#match;
        let default = Rule::default();
        let duration = |name: &str, time: Option<Time>, default: Duration| {
            let parsed = time.map_or(Ok(default), |time| time.parse());
            parsed.map_err(|error| Invalid(format!("channels \"{pattern}\": {name} = {error}")))
        };
        let max_age = duration("max_age", self.max_age, default.max_age)?;
        let expire = duration("expire", self.expire, default.expire)?;
        if pattern.is_empty() {
            return Err(Invalid("channels: match cannot be empty".to_owned()));
        }
        if expire < Duration::from_secs(1) {
            return Err(Invalid(format!(
                "channels \"{pattern}\": expire has to be at least 1s"
            )));
        }
        Ok(Rule {
            pattern,
            history: self.history.unwrap_or(default.history),
            max_age,
            expire,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_does_not_repeat_a_secret() {
        for file in [
            "[[publish]]\ntoken = 5113\n",
            "[[publish]]\ntoken = [\"5113\"]\n",
            "publish = [\"5113\"]\n",
            "publish = 5113\n",
            "[[publish]]\ntokn = \"5113\"\n",
            "[publish]\ntoken = \"5113\"\n",
            "[jwt]\nsecret = 5113\n",
            "[jwt]\nsecrets = \"5113\"\n",
            "jwt = \"5113\"\n",
        ] {
            let error = File::parse(file).unwrap_err().to_string();
            assert!(
                error.starts_with("line ") && !error.contains("5113"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_error_shows_the_correct_form() {
        for (file, expected) in [
            (
                "[[channels]]\nmatch = \"*\"\nmax_age = 3600\n",
                "line 3: 3600 has no unit: a time is needed, such as \"3600s\" or \"1h\"",
            ),
            (
                "[[channels]]\nmatch = \"*\"\nexpire = true\n",
                "line 3: invalid type: boolean `true`, expected a time with a unit, such as \"1h\"",
            ),
            (
                "[channels]\nmatch = \"*\"\n",
                "line 1: there may be several rules: each begins with [[channels]], in two pairs of brackets",
            ),
            (
                "[forward_auth]\nurl = \"http://x\"\ncache = 5\n",
                "line 3: 5 has no unit: ",
            ),
            (
                "[[channels]]\nmatch = \"*\"\nhistroy = 5\n",
                "line 3: unknown field `histroy`, expected one of",
            ),
            (
                "[forward_auth]\nurl = \"http://x\"\nparameters = [\"session\", \"since\"]\n",
                "line 3: forward_auth: parameters: \"since\" cannot",
            ),
            (
                "[forward_auth]\nurl = \"http://x\"\nparameters = [\"Last-Event-ID\"]\n",
                "line 3: forward_auth: parameters: \"Last-Event-ID\" cannot",
            ),
            (
                "[forward_auth]\nurl = \"http://x\"\nparameters = [\"access_token\"]\n",
                "line 3: forward_auth: parameters: \"access_token\" cannot",
            ),
            (
                "[forward_auth]\nurl = \"http://x\"\nparameters = [\"\"]\n",
                "line 3: forward_auth: parameters: \"\" cannot",
            ),
        ] {
            let error = File::parse(file).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn settings_that_are_probably_mistakes_are_reported() {
        for (file, expected) in [
            (
                "[[channels]]\nmatch = \"a\"\nhistory = 100000000\n",
                "channels \"a\": history = 100000000 is more than 1000000: ",
            ),
            (
                "[[channels]]\nmatch = \"a\"\nmax_age = \"2h\"\nexpire = \"1h\"\n",
                "channels \"a\": max_age = \"2h\" is longer than expire = \"1h\": ",
            ),
        ] {
            let doubts = File::parse(file).unwrap().doubts();
            assert!(
                doubts.len() == 1 && doubts[0].starts_with(expected),
                "{doubts:?}"
            );
        }
        let file = "[[channels]]\nmatch = \"a\"\nexpire = \"1m\"\n[[publish]]\ntoken = \"t\"\n";
        assert!(File::parse(file).unwrap().doubts().is_empty());
    }

    #[test]
    fn settings_that_a_rule_omits_have_defaults() {
        let file = "[[channels]]\nmatch = \"chat.*\"\nhistory = 5\nexpire = \"2h\"\n";
        let (channels, ..) = File::parse(file).unwrap().split();
        let rule = &channels.unwrap()[0];
        assert_eq!((rule.history, rule.expire.as_secs()), (5, 7200));
        assert_eq!(rule.max_age, Rule::default().max_age);
    }
}
