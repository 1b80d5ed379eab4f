//! `Config`: the checked access rules.

mod file;
mod flags;

use std::{fs, path::PathBuf, time::Duration};

use http::{HeaderName, header};
use reqwest::Url;
use text::{Time, list};
use toml::Spanned;

pub use self::{
    file::{File, Forward, Jwt, PublishRule},
    flags::AccessFlags,
};
use crate::{
    credential::Credential,
    forward::ForwardConfig,
    invalid::Invalid,
    jwt::JwtConfig,
    keys::{KeySet, read_key},
    origins::Origins,
    pattern::Patterns,
    secret::{Hidden, Secret},
};

/// A token of fewer bytes can be guessed: 16 letters and digits at random are 2^95.
const SHORT_TOKEN: usize = 16;
/// Time by which the clocks of issuers may differ from this one.
const LEEWAY: Duration = Duration::from_secs(5);
const MAX_LEEWAY: Duration = Duration::from_secs(300);
/// Time for which an answer of a backend is cached.
const CACHE: Duration = Duration::from_secs(5);
const MAX_CACHE: Duration = Duration::from_secs(3600);
/// Headers of the client that are passed on to the backend.
const FORWARDED: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::ORIGIN,
    header::USER_AGENT,
];

/// The access rules of flags and file.
#[derive(Clone, Debug)]
pub struct Config {
    /// Channels that need no credential.
    pub(crate) public: Patterns,
    pub(crate) jwt: Option<(JwtConfig, KeySource)>,
    pub(crate) forward: Option<ForwardConfig>,
    pub(crate) publishers: Vec<Credential>,
    /// Sites whose pages may use their visitors' cookies.
    pub(crate) origins: Origins,
    /// The configuration has a rule for subscribers, even if that rule admits no one.
    is_explicit: bool,
}

/// The source of the keys that verify tokens.
#[derive(Clone, Debug)]
pub(crate) enum KeySource {
    Fixed(KeySet),
    /// Read once already, and read again later.
    File(PathBuf, KeySet),
    Url(Hidden<Url>),
}

impl Config {
    /// Checks the rules, and reads the key file.
    ///
    /// # Errors
    /// When a rule is wrong, or the key file cannot be read.
    pub fn new(file: File, flags: AccessFlags) -> Result<Self, Invalid> {
        let owned = |public| list(public).map(str::to_owned).collect::<Vec<_>>();
        let listed = flags.public_channels.as_deref().map(owned);
        let is_explicit = listed.is_some()
            || file.public_channels.is_some()
            || file.jwt.is_some()
            || file.forward_auth.is_some();
        let public = listed.into_iter().chain(file.public_channels).flatten();
        Ok(Self {
            public: Patterns::new(public),
            jwt: file.jwt.map(read_jwt).transpose()?,
            forward: file.forward_auth.map(read_forward).transpose()?,
            publishers: credentials(flags.publish_token, file.publish)?,
            origins: flags.cors_origins.unwrap_or_default(),
            is_explicit,
        })
    }

    /// Known publishers keep their numbers, and new publishers receive numbers that were never used. Quotas, tickets
    /// and idempotency keys belong to a number. `greatest` is the greatest number before the call. Returns the greatest
    /// number after it.
    pub(crate) fn keep_numbers(&mut self, before: &[Credential], mut greatest: usize) -> usize {
        for publisher in &mut self.publishers {
            let known = before.iter().find(|old| old.token == publisher.token);
            publisher.number = known.map_or_else(
                || {
                    greatest += 1;
                    greatest
                },
                |old| old.number,
            );
        }
        greatest
    }

    /// Settings that are valid but probably mistakes. `is_loopback`: only programs on this machine can connect.
    pub fn doubts(&self, is_loopback: bool) -> Vec<String> {
        let mut doubts = Vec::new();
        let asks = self.jwt.is_some() || self.forward.is_some();
        let has_publishers = !self.publishers.is_empty();
        if self.is_explicit && self.public.is_empty() && !asks {
            doubts.push(match has_publishers {
                true => "no channel is public, and there is neither [jwt] nor [forward_auth]: every subscriber needs a \
                         ticket"
                    .to_owned(),
                false => "no one can subscribe: no channel is public, there is neither [jwt] nor [forward_auth], and no \
                          publisher can ask for tickets"
                    .to_owned(),
            });
        }
        let is_short = |publisher: &Credential| publisher.token.len() < SHORT_TOKEN;
        if !is_loopback && self.publishers.iter().any(is_short) {
            doubts.push(format!(
                "a publish token has fewer than {SHORT_TOKEN} characters, so it can be guessed: take one such as \
                 `openssl rand -hex 16` prints"
            ));
        }
        doubts.extend(self.origins.of_many_owners().map(|origin| {
            format!(
                "--cors-origins {origin} covers sites of different owners: the pages of all of them may use this gateway \
                 with their visitors' cookies"
            )
        }));
        doubts
    }

    /// Whether the configuration has a rule for subscribers.
    pub fn has_rule(&self) -> bool {
        self.is_explicit
    }

    /// Whether everything is public because the configuration has no rule for subscribers.
    pub(crate) fn is_local_only(&self) -> bool {
        !self.is_explicit
    }

    /// Sites whose pages may use their visitors' cookies.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// How many publishers have a token of their own.
    pub fn publishers(&self) -> usize {
        self.publishers.len()
    }

    /// The tables of the file that are set, by their names.
    pub fn tables(&self) -> impl Iterator<Item = &'static str> {
        let jwt = self.jwt.as_ref().map(|_| "[jwt]");
        jwt.into_iter()
            .chain(self.forward.as_ref().map(|_| "[forward_auth]"))
    }

    /// Whether the rules need requests to other servers, over HTTP.
    pub fn asks_backends(&self) -> bool {
        let fetches = matches!(self.jwt, Some((_, KeySource::Url(_))));
        fetches || self.forward.is_some()
    }

    /// Lets every program that can connect subscribe to every channel. For an address of this machine alone.
    pub fn allow_all(&mut self) {
        self.public = Patterns::every();
    }
}

fn read_jwt(jwt: Jwt) -> Result<(JwtConfig, KeySource), Invalid> {
    let invalid = |text: String| Invalid::new(format!("jwt: {text}"));
    let keys = match (&jwt.secret, jwt.key_file, jwt.jwks_url) {
        (Some(secret), None, None) => {
            let keys = KeySet::of_secret(secret);
            KeySource::Fixed(keys.map_err(|error| invalid(format!("secret: {error}")))?)
        }
        (None, Some(path), None) => {
            let wrong = |error: String| invalid(format!("key_file {}: {error}", path.display()));
            let text = fs::read(&path).map_err(|error| wrong(error.to_string()))?;
            let keys = read_key(&text).map_err(wrong)?;
            KeySource::File(path, keys)
        }
        (None, None, Some(url)) => KeySource::Url(read_url("jwt: jwks_url", &url)?),
        _ => {
            let text = "set one of secret, key_file and jwks_url";
            return Err(invalid(text.to_owned()));
        }
    };
    // Keys of a URL may be of any kind.
    let signs = match &keys {
        KeySource::Fixed(keys) | KeySource::File(_, keys) => keys.algorithms(),
        KeySource::Url(_) => jwt.algorithms.clone(),
    };
    if !jwt.algorithms.is_empty() && !jwt.algorithms.iter().any(|one| signs.contains(one)) {
        let key = if jwt.secret.is_some() {
            "secret"
        } else {
            "key_file"
        };
        return Err(invalid(format!(
            "algorithms = {:?}: no token can be valid, because the key of {key} is for {signs:?}",
            jwt.algorithms
        )));
    }
    if jwt.cookie.as_deref() == Some("") {
        return Err(invalid("cookie cannot be empty".to_owned()));
    }
    let leeway = duration("jwt", "leeway", jwt.leeway)?.unwrap_or(LEEWAY);
    if leeway > MAX_LEEWAY {
        return Err(invalid(
            "leeway is for clocks that differ a little: at most 5m".to_owned(),
        ));
    }
    let config = JwtConfig {
        algorithms: jwt.algorithms,
        audience: jwt.audience,
        issuer: jwt.issuer,
        cookie: jwt.cookie,
        leeway: leeway.as_secs(),
    };
    Ok((config, keys))
}

fn read_forward(forward: Forward) -> Result<ForwardConfig, Invalid> {
    let headers = match forward.headers {
        None => FORWARDED.to_vec(),
        Some(names) => {
            let names = names.iter().map(|name| {
                let parsed = name.parse::<HeaderName>();
                parsed.map_err(|_| {
                    Invalid::new(format!("forward_auth: headers: \"{name}\" is no name"))
                })
            });
            names.collect::<Result<_, _>>()?
        }
    };
    let cache = duration("forward_auth", "cache", forward.cache)?.unwrap_or(CACHE);
    if cache > MAX_CACHE {
        return Err(Invalid::new("forward_auth: cache is at most 1h".to_owned()));
    }
    Ok(ForwardConfig {
        url: read_url("forward_auth: url", &forward.url)?,
        parameters: forward
            .parameters
            .map_or_else(Vec::new, Spanned::into_inner),
        headers,
        cache,
    })
}

/// An optional time of a table.
fn duration(table: &str, name: &str, time: Option<Time>) -> Result<Option<Duration>, Invalid> {
    let time = time.map(|time| {
        let parsed = time.parse();
        parsed.map_err(|error| Invalid::new(format!("{table}: {name} = {error}")))
    });
    time.transpose()
}

/// The URL may contain a secret, so errors do not quote it.
fn read_url(what: &str, url: &str) -> Result<Hidden<Url>, Invalid> {
    match url.parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(Hidden(url)),
        _ => Err(Invalid::new(format!(
            "{what} has to begin with http:// or https://"
        ))),
    }
}

/// The credentials of the flag and of the file.
fn credentials(token: Option<Secret>, rules: Vec<PublishRule>) -> Result<Vec<Credential>, Invalid> {
    let invalid = |text: &str| Invalid::new(format!("publish: {text}"));
    let token = token.map(|token| PublishRule {
        token,
        channels: None,
    });
    let mut all = Vec::<Credential>::new();
    for PublishRule { token, channels } in token.into_iter().chain(rules) {
        if !token.is_token() {
            return Err(invalid(
                "a token has at least one character, all of them visible ASCII",
            ));
        }
        if all.iter().any(|other| other.token == token) {
            return Err(invalid("two credentials have the same token"));
        }
        all.push(Credential {
            number: all.len() + 1,
            token,
            channels: channels.map_or_else(Patterns::every, Patterns::new),
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(file: &str) -> Result<Config, String> {
        let file = toml::from_str(file).map_err(|error| error.message().to_owned())?;
        Config::new(file, AccessFlags::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_credential_can_be_sent_and_is_unique() {
        for tokens in [
            "token = \"\"",
            "token = \"a b\"",
            "token = \"a\"\n[[publish]]\ntoken = \"a\"",
        ] {
            config(&format!("[[publish]]\n{tokens}\n")).unwrap_err();
        }
    }

    #[test]
    fn every_rule_for_subscribers_is_one() {
        let jwt = "[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";
        for file in [
            "public_channels = []\n",
            jwt,
            "[forward_auth]\nurl = \"http://x\"\n",
        ] {
            let config = config(file).unwrap();
            assert!(config.has_rule() && !config.public.matches("a"), "{file}");
        }
        for file in ["", "[[publish]]\ntoken = \"a\"\n"] {
            let mut config = config(file).unwrap();
            assert!(!config.has_rule() && !config.public.matches("a"), "{file}");
            config.allow_all();
            assert!(config.public.matches("a") && config.is_local_only());
        }
    }

    #[test]
    fn keys_are_checked_at_the_start() {
        for (file, expected) in [
            ("[jwt]\n", "jwt: set one of"),
            (
                "[jwt]\nsecret = \"short\"\n",
                "jwt: secret: a secret has at least 32",
            ),
            (
                "[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\nalgorithms = [\"ES256\"]\n",
                "jwt: algorithms = [ES256]: no token can be valid, because the key of secret is for [HS256, HS384, HS512]",
            ),
            (
                "[jwt]\nkey_file = \"/no/such\"\n",
                "jwt: key_file /no/such: ",
            ),
            ("[jwt]\njwks_url = \"ftp://x\"\n", "jwt: jwks_url has to"),
            (
                "[jwt]\njwks_url = \"http://x\"\nkey_file = \"y\"\n",
                "jwt: set one of",
            ),
            (
                "[jwt]\njwks_url = \"http://x\"\nalgorithms = [\"none\"]\n",
                "unknown variant `none`",
            ),
            (
                "[jwt]\njwks_url = \"http://x\"\nleeway = \"x\"\n",
                "jwt: leeway = ",
            ),
            (
                "[forward_auth]\nurl = \"/auth\"\n",
                "forward_auth: url has to",
            ),
            (
                "[forward_auth]\nurl = \"http://x\"\nheaders = [\"a b\"]\n",
                "forward_auth: headers: ",
            ),
        ] {
            let error = config(file).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
