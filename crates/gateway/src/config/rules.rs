//! The checked access rules.

use std::{fs, path::PathBuf, time::Duration};

use axum::http::{HeaderName, header};
use reqwest::Url;
use text::list;

use super::{
    Invalid,
    file::{AccessFile, Forward, Jwt, PublishRule, duration},
};
use crate::{
    access::{Credential, ForwardConfig, Hidden, JwtConfig, KeySet, Patterns, Secret, read_key},
    listener::ListenAddress,
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

#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) public: Patterns,
    pub(crate) jwt: Option<(JwtConfig, JwtKeys)>,
    pub(crate) forward: Option<ForwardConfig>,
    pub(crate) publishers: Vec<Credential>,
    /// The configuration has a rule for subscribers, even if that rule admits no one.
    is_explicit: bool,
}

/// The source of the keys that verify tokens.
#[derive(Clone, Debug)]
pub(crate) enum JwtKeys {
    Fixed(KeySet),
    /// Read once already, and read again later.
    File(PathBuf, KeySet),
    Url(Hidden<Url>),
}

impl Rules {
    pub(super) fn new(
        file: AccessFile,
        publish_token: Option<Secret>,
        public: Option<&str>,
    ) -> Result<Self, Invalid> {
        let owned = |public| list(public).map(str::to_owned).collect::<Vec<_>>();
        let listed = public.map(owned);
        let is_explicit = listed.is_some()
            || file.public_channels.is_some()
            || file.jwt.is_some()
            || file.forward_auth.is_some();
        let public = listed.into_iter().chain(file.public_channels).flatten();
        Ok(Self {
            public: Patterns::new(public),
            jwt: file.jwt.map(read_jwt).transpose()?,
            forward: file.forward_auth.map(read_forward).transpose()?,
            publishers: credentials(publish_token, file.publish)?,
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

    /// Settings that are valid but probably mistakes.
    pub(super) fn doubts(&self, listen: &ListenAddress) -> Vec<String> {
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
        if !listen.is_loopback() && self.publishers.iter().any(is_short) {
            doubts.push(format!(
                "a publish token has fewer than {SHORT_TOKEN} characters, so it can be guessed: take one such as \
                 `openssl rand -hex 16` prints"
            ));
        }
        doubts
    }

    /// Whether everything is public because the configuration has no rule for subscribers.
    pub(crate) fn is_default(&self) -> bool {
        !self.is_explicit
    }

    /// Whether the rules need requests to other servers, over HTTP.
    pub(crate) fn ask_backends(&self) -> bool {
        let fetches = matches!(self.jwt, Some((_, JwtKeys::Url(_))));
        fetches || self.forward.is_some()
    }

    /// Without a rule for subscribers, all programs on this machine may subscribe. Any other address needs a rule.
    pub(super) fn for_address(self, listen: &ListenAddress) -> Result<Self, Invalid> {
        if self.is_explicit {
            return Ok(self);
        }
        if !listen.is_loopback() {
            return Err(Invalid(format!(
                "--listen {listen} is not only for this machine, and no rule says who may subscribe: \
                 set --public-channels (--public-channels '*' for everybody, everything), or [jwt] or [forward_auth] in \
                 the configuration file"
            )));
        }
        Ok(Self {
            public: Patterns::every(),
            ..self
        })
    }
}

fn read_jwt(jwt: Jwt) -> Result<(JwtConfig, JwtKeys), Invalid> {
    let invalid = |text: String| Invalid(format!("jwt: {text}"));
    let keys = match (&jwt.secret, jwt.key_file, jwt.jwks_url) {
        (Some(secret), None, None) => {
            let keys = KeySet::of_secret(secret);
            JwtKeys::Fixed(keys.map_err(|error| invalid(format!("secret: {error}")))?)
        }
        (None, Some(path), None) => {
            let wrong = |error: String| invalid(format!("key_file {}: {error}", path.display()));
            let text = fs::read(&path).map_err(|error| wrong(error.to_string()))?;
            let keys = read_key(&text).map_err(wrong)?;
            JwtKeys::File(path, keys)
        }
        (None, None, Some(url)) => JwtKeys::Url(read_url("jwt: jwks_url", &url)?),
        _ => {
            let text = "set one of secret, key_file and jwks_url";
            return Err(invalid(text.to_owned()));
        }
    };
    // Keys of a URL may be of any kind.
    let signs = match &keys {
        JwtKeys::Fixed(keys) | JwtKeys::File(_, keys) => keys.algorithms(),
        JwtKeys::Url(_) => jwt.algorithms.clone(),
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
                parsed.map_err(|_| Invalid(format!("forward_auth: headers: \"{name}\" is no name")))
            });
            names.collect::<Result<_, _>>()?
        }
    };
    let cache = duration("forward_auth", "cache", forward.cache)?.unwrap_or(CACHE);
    if cache > MAX_CACHE {
        return Err(Invalid("forward_auth: cache is at most 1h".to_owned()));
    }
    Ok(ForwardConfig {
        url: read_url("forward_auth: url", &forward.url)?,
        parameters: forward.parameters,
        headers,
        cache,
    })
}

/// The URL may contain a secret, so errors do not quote it.
fn read_url(what: &str, url: &str) -> Result<Hidden<Url>, Invalid> {
    match url.parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(Hidden(url)),
        _ => Err(Invalid(format!(
            "{what} has to begin with http:// or https://"
        ))),
    }
}

/// The credentials of the flag and of the file.
fn credentials(token: Option<Secret>, rules: Vec<PublishRule>) -> Result<Vec<Credential>, Invalid> {
    let invalid = |text: &str| Invalid(format!("publish: {text}"));
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
    use crate::config::file::File;

    fn rules(file: &str) -> Result<Rules, Invalid> {
        let (_, access, _) = File::parse(file)?.split();
        Rules::new(access, None, None)
    }

    #[test]
    fn a_credential_can_be_sent_and_is_unique() {
        for tokens in [
            "token = \"\"",
            "token = \"a b\"",
            "token = \"a\"\n[[publish]]\ntoken = \"a\"",
        ] {
            rules(&format!("[[publish]]\n{tokens}\n")).unwrap_err();
        }
    }

    #[test]
    fn a_public_address_needs_a_rule_for_subscribers() {
        let (local, open) = ("127.0.0.1:80", "0.0.0.0:80");
        let check = |file: &str, address: &str| {
            let address = address.parse().unwrap();
            rules(file).unwrap().for_address(&address)
        };
        assert!(check("", local).unwrap().public.matches("a"));
        assert!(check("", "[::1]:80").unwrap().public.matches("a"));
        check("", "unix:/run/a").unwrap_err();
        let error = check("", open).unwrap_err().to_string();
        assert!(error.contains("--public-channels"), "{error}");
        check("[[publish]]\ntoken = \"a\"\n", open).unwrap_err();
        assert!(
            !check("public_channels = []\n", local)
                .unwrap()
                .public
                .matches("a")
        );
        check("public_channels = []\n", open).unwrap();
        let jwt = "[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";
        assert!(!check(jwt, local).unwrap().public.matches("a"));
        check(jwt, open).unwrap();
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
                "line 3: ",
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
            let error = rules(file).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
