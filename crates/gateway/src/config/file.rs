//! The configuration file, as written.

use std::path::{Path, PathBuf};

use broker::Rule;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::Invalid;
use crate::{
    access::{Algorithms, Secret, sign},
    http::{PARAMETERS, is_own_parameter},
};

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    channels: Vec<ChannelRule>,
    public: Option<Vec<String>>,
    jwt: Option<Jwt>,
    forward_auth: Option<Forward>,
    #[serde(default)]
    publish: Vec<PublishRule>,
}

/// The part that says who may do what.
#[derive(Debug, Default)]
pub(super) struct AccessFile {
    pub(super) public: Option<Vec<String>>,
    pub(super) jwt: Option<Jwt>,
    pub(super) forward_auth: Option<Forward>,
    pub(super) publish: Vec<PublishRule>,
}

/// How the message on wrong names of parameters begins.
const PARAMETERS_WRONG: &str = "forward_auth: parameters: ";

/// One `[[channels]]` table. The first whose pattern matches a channel counts.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct ChannelRule {
    r#match: String,
    history: Option<u32>,
    max_age: Option<String>,
    expire: Option<String>,
}

/// The `[jwt]` table.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Jwt {
    pub(super) secret: Option<Secret>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) jwks_url: Option<String>,
    #[serde(default)]
    pub(super) algorithms: Algorithms,
    pub(super) audience: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) cookie: Option<String>,
    pub(super) leeway: Option<String>,
}

/// The `[forward_auth]` table.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Forward {
    pub(super) url: String,
    pub(super) headers: Option<Vec<String>>,
    #[serde(default, deserialize_with = "parameters")]
    pub(super) parameters: Vec<String>,
    pub(super) cache: Option<String>,
}

/// One `[[publish]]` table: a secret, and the channels that it is for.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishRule {
    pub(super) token: Secret,
    pub(super) channels: Option<Vec<String>>,
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
        toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let mut message = error.message().replace('\n', ", ");
            // This line may hold a secret in the wrong place, and the message may quote it.
            let there = text.lines().nth(line - 1).unwrap_or_default();
            if message.starts_with(PARAMETERS_WRONG) {
                // Names are no secrets.
            } else if there.contains("publish") || there.contains("token") {
                "[[publish]] has token = \"...\" and channels = [...]".clone_into(&mut message);
            } else if there.contains("jwt") || there.contains("secret") {
                "[jwt] has secret = \"...\", key_file = \"...\" or jwks_url = \"...\""
                    .clone_into(&mut message);
            }
            Invalid(format!("line {line}: {message}"))
        })
    }

    pub(super) fn split(self) -> (Result<Vec<Rule>, Invalid>, AccessFile) {
        let channels = self.channels.into_iter().map(ChannelRule::into_rule);
        let access = AccessFile {
            public: self.public,
            jwt: self.jwt,
            forward_auth: self.forward_auth,
            publish: self.publish,
        };
        (channels.collect(), access)
    }

    /// A token as `[jwt]` wants them.
    pub(super) fn sign(
        self,
        subject: &str,
        subscribe: &[String],
        publish: &[String],
        expires: u64,
    ) -> Result<String, Invalid> {
        let Some(Jwt {
            secret: Some(secret),
            audience,
            issuer,
            ..
        }) = self.jwt
        else {
            return Err(Invalid(
                "token: --config has to name a file with [jwt] secret = \"...\"".to_owned(),
            ));
        };
        let (audience, issuer) = (audience.as_deref(), issuer.as_deref());
        sign(
            &secret, audience, issuer, subject, subscribe, publish, expires,
        )
        .map_err(Invalid)
    }
}

impl ChannelRule {
    fn into_rule(self) -> Result<Rule, Invalid> {
        let pattern = self.r#match;
        let default = Rule::default();
        let what = format!("channels \"{pattern}\"");
        let duration = |name, value, default| {
            duration(&what, name, value).map(|value| value.unwrap_or(default))
        };
        let max_age = duration("max_age", self.max_age, default.max_age)?;
        let expire = duration("expire", self.expire, default.expire)?;
        if pattern.is_empty() {
            return Err(Invalid("channels: match cannot be empty".to_owned()));
        }
        if expire < std::time::Duration::from_secs(1) {
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

/// Query parameters for a backend. A name of the gateway's own would have no effect: the gateway reads it itself.
fn parameters<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let wrong = |name: &&String| name.is_empty() || is_own_parameter(name);
    match names.iter().find(wrong) {
        Some(name) => Err(D::Error::custom(format!(
            "{PARAMETERS_WRONG}{name:?} cannot be one, because it is empty or the gateway's own ({}): name those \
             that the backend reads, as in parameters = [\"session\"]",
            PARAMETERS.join(", ")
        ))),
        None => Ok(names),
    }
}

/// A time that may have been left out.
pub(super) fn duration(
    what: &str,
    name: &str,
    value: Option<String>,
) -> Result<Option<std::time::Duration>, Invalid> {
    let Some(text) = value else {
        return Ok(None);
    };
    match humantime::parse_duration(&text) {
        Ok(duration) => Ok(Some(duration)),
        Err(error) => Err(Invalid(format!("{what}: {name} = \"{text}\": {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_repeated() {
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
    fn rules_fill_up_with_the_defaults() {
        let file = "[[channels]]\nmatch = \"chat.*\"\nhistory = 5\nexpire = \"2h\"\n";
        let (channels, _) = File::parse(file).unwrap().split();
        let rule = &channels.unwrap()[0];
        assert_eq!((rule.history, rule.expire.as_secs()), (5, 7200));
        assert_eq!(rule.max_age, Rule::default().max_age);
    }
}
