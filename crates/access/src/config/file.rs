//! The access rules of the configuration file, as written.

use std::path::PathBuf;

use serde::Deserialize;
use text::Time;
use toml::Spanned;

use crate::{invalid::Invalid, jwt::sign, keys::Algorithms, secret::Secret};

/// The parts of the file about access.
#[derive(Deserialize, Debug, Default)]
pub struct File {
    /// Patterns of channels that need no credential.
    pub public_channels: Option<Vec<String>>,
    /// Tokens.
    pub jwt: Option<Jwt>,
    /// The backend that authorizes requests.
    pub forward_auth: Option<Forward>,
    /// Publishers.
    #[serde(default)]
    pub publish: Vec<PublishRule>,
}

/// The `[jwt]` table.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// The secret that issuer and gateway share.
    pub secret: Option<Secret>,
    /// A file with a public key, or a set of keys.
    pub key_file: Option<PathBuf>,
    /// Where the issuer publishes its keys.
    pub jwks_url: Option<String>,
    /// Algorithms that are accepted; all of the key if there is none.
    #[serde(default)]
    pub algorithms: Algorithms,
    /// The audience that a token has to name.
    pub audience: Option<String>,
    /// The issuer that a token has to name.
    pub issuer: Option<String>,
    /// The cookie that holds a token.
    pub cookie: Option<String>,
    /// Time by which the clocks of issuer and gateway may differ.
    pub leeway: Option<Time>,
}

/// The `[forward_auth]` table.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// The URL that is asked.
    pub url: String,
    /// Headers of the client that are passed on.
    pub headers: Option<Vec<String>>,
    /// Query parameters that the backend reads, and their place in the file.
    pub parameters: Option<Spanned<Vec<String>>>,
    /// Time for which an answer is cached.
    pub cache: Option<Time>,
}

/// One `[[publish]]` table: a secret, and the channels that it is for.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct PublishRule {
    /// The secret.
    pub token: Secret,
    /// Channels that it may publish to; all if there is no list.
    pub channels: Option<Vec<String>>,
}

impl File {
    /// Settings that are valid but probably mistakes.
    pub fn doubts(&self) -> impl Iterator<Item = String> {
        let rules = self.publish.iter().enumerate();
        let empty = rules.filter(|(_, rule)| rule.channels.as_ref().is_some_and(Vec::is_empty));
        empty.map(|(number, _)| {
            format!(
                "[[publish]] number {}: channels = [] allows nothing: name some, or leave the line out for all of them",
                number + 1
            )
        })
    }

    /// A token that fits the `[jwt]` table.
    ///
    /// # Errors
    /// When the table has no secret.
    pub fn sign(
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
            return Err(Invalid::new(
                "token: --config has to name a file with [jwt] secret = \"...\"".to_owned(),
            ));
        };
        let (audience, issuer) = (audience.as_deref(), issuer.as_deref());
        sign(
            &secret, audience, issuer, subject, subscribe, publish, expires,
        )
        .map_err(Invalid::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_without_channels_is_probably_a_mistake() {
        let doubts = |file: &str| {
            toml::from_str::<File>(file)
                .unwrap()
                .doubts()
                .collect::<Vec<_>>()
        };
        let empty = doubts("[[publish]]\ntoken = \"5113\"\nchannels = []\n");
        assert!(
            empty.len() == 1 && empty[0].starts_with("[[publish]] number 1: "),
            "{empty:?}"
        );
        assert!(!empty[0].contains("5113"), "{empty:?}");
        assert!(doubts("[[publish]]\ntoken = \"t\"\n").is_empty());
    }
}
