//! JSON Web Tokens: verifies them, and reads their permissions.

use jsonwebtoken::{
    Algorithm, EncodingKey, Header, Validation, decode, decode_header,
    errors::{Error, ErrorKind},
};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    denied::{Denied, TokenRefused},
    grant::{Grant, MAX_SUBJECT},
    jwks::Keys,
    keys::{Algorithms, KeySet},
    pattern::Patterns,
    secret::{Hidden, Secret},
};

/// Bytes of a token at most.
const MAX_TOKEN: usize = 8 << 10;
/// Requirements for a token, in addition to a valid signature.
#[derive(Clone, Debug, Default)]
pub(crate) struct JwtConfig {
    /// Accepted algorithms, among those of the key. If empty, all algorithms of the key are accepted.
    pub(crate) algorithms: Algorithms,
    /// The audience that a token has to name.
    pub(crate) audience: Option<String>,
    /// The issuer that a token has to name.
    pub(crate) issuer: Option<String>,
    /// Name of the cookie in which browsers keep the token.
    pub(crate) cookie: Option<String>,
    /// Seconds by which clocks may differ.
    pub(crate) leeway: u64,
}

/// Verifies tokens.
pub(crate) struct Verifier {
    config: JwtConfig,
    keys: Keys,
}

/// The claims that this gateway reads: those of RFC 7519, 4.1, and the channels.
#[derive(Deserialize)]
struct Claims {
    /// May have any type.
    #[serde(default)]
    aud: Value,
    sub: Option<String>,
    /// May be a fraction.
    exp: f64,
    #[serde(default)]
    subscribe: OneOrMany,
    #[serde(default)]
    publish: OneOrMany,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum OneOrMany {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Verifier {
    /// Verifies by these keys.
    pub(crate) fn new(config: JwtConfig, keys: Keys) -> Self {
        Self { config, keys }
    }

    /// Its keys, if this URL is their source.
    pub(crate) fn keys_of(&self, url: &Hidden<Url>) -> Option<Keys> {
        self.keys.are_of(url).then(|| self.keys.clone())
    }

    /// The name of the cookie that holds a token, if any does.
    pub(crate) fn cookie(&self) -> Option<&str> {
        self.config.cookie.as_deref()
    }

    /// The permissions of a token, if it is valid.
    pub(crate) async fn verify(&self, token: &str) -> Result<Grant, Denied> {
        if token.len() > MAX_TOKEN {
            return Err(TokenRefused::Malformed.into());
        }
        let header = decode_header(token).map_err(|error| refused(&error))?;
        // RFC 7515, 4.1.11: a receiver has to understand these extensions. This gateway understands none.
        if header.crit.is_some() {
            return Err(TokenRefused::Malformed.into());
        }
        let keys = self.keys.current().await.ok_or(Denied::Unavailable)?;
        match self.verify_with(&keys, &header, token) {
            // The issuer may have a new key.
            Err(why @ (TokenRefused::UnknownKey | TokenRefused::Signature))
                if self.keys.change() =>
            {
                match self.keys.refreshed().await {
                    Some(keys) => Ok(self.verify_with(&keys, &header, token)?),
                    // This stays unknown while the issuer cannot be asked.
                    None if why == TokenRefused::UnknownKey => Err(Denied::Unavailable),
                    None => Err(why.into()),
                }
            }
            verified => Ok(verified?),
        }
    }

    fn verify_with(
        &self,
        keys: &KeySet,
        header: &Header,
        token: &str,
    ) -> Result<Grant, TokenRefused> {
        let key = keys.find(header.kid.as_deref(), header.alg)?;
        if !self.config.algorithms.is_empty() && !self.config.algorithms.contains(&header.alg) {
            return Err(TokenRefused::Algorithm);
        }
        let mut required = vec!["exp"];
        let mut validation = Validation::new(header.alg);
        validation.leeway = self.config.leeway;
        validation.validate_nbf = true;
        // A token is no longer valid in the second of its `exp` (RFC 7519, 4.1.4).
        validation.reject_tokens_expiring_in_less_than = 1;
        // If no audience is configured, a token that names an audience is refused.
        validation.validate_aud = true;
        if let Some(audience) = &self.config.audience {
            required.push("aud");
            validation.set_audience(&[audience]);
        }
        if let Some(issuer) = &self.config.issuer {
            required.push("iss");
            validation.set_issuer(&[issuer]);
        }
        validation.set_required_spec_claims(&required);
        let claims: Claims = decode(token, &key.key, &validation)
            .map_err(|error| refused(&error))?
            .claims;
        // The library ignores an audience of another type.
        let is_for_another = match &claims.aud {
            Value::Null => false,
            Value::Array(audiences) => !audiences.is_empty(),
            _ => true,
        };
        if self.config.audience.is_none() && is_for_another {
            return Err(TokenRefused::Audience);
        }
        // A longer subject could not be revoked.
        if claims
            .sub
            .as_ref()
            .is_some_and(|sub| sub.len() > MAX_SUBJECT)
        {
            return Err(TokenRefused::Subject);
        }
        Ok(Grant {
            subject: claims.sub.filter(|sub| !sub.is_empty()).map(Into::into),
            publisher: None,
            subscribe: claims.subscribe.into(),
            publish: claims.publish.into(),
            // The leeway is added. Otherwise a client that was admitted within the leeway would be cut at once.
            expires: Some((claims.exp as u64).saturating_add(self.config.leeway)),
        })
    }
}

fn refused(error: &Error) -> TokenRefused {
    match error.kind() {
        ErrorKind::ExpiredSignature => TokenRefused::Expired,
        ErrorKind::ImmatureSignature => TokenRefused::NotYetValid,
        ErrorKind::InvalidAudience => TokenRefused::Audience,
        ErrorKind::InvalidIssuer => TokenRefused::Issuer,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => TokenRefused::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => TokenRefused::Issuer,
        ErrorKind::InvalidSignature => TokenRefused::Signature,
        ErrorKind::InvalidAlgorithm
        | ErrorKind::InvalidAlgorithmName
        | ErrorKind::UnsupportedAlgorithm
        | ErrorKind::MissingAlgorithm => TokenRefused::Algorithm,
        _ => TokenRefused::Malformed,
    }
}

impl From<OneOrMany> for Patterns {
    fn from(claim: OneOrMany) -> Self {
        match claim {
            OneOrMany::None => Self::default(),
            OneOrMany::One(pattern) => Self::new([pattern]),
            OneOrMany::Many(patterns) => Self::new(patterns),
        }
    }
}

/// A token for experiments.
pub(crate) fn sign(
    secret: &Secret,
    audience: Option<&str>,
    issuer: Option<&str>,
    subject: &str,
    subscribe: &[String],
    publish: &[String],
    expires: u64,
) -> Result<String, String> {
    let mut claims = json!({
        "sub": subject,
        "subscribe": subscribe,
        "publish": publish,
        "exp": expires,
    });
    if let Some(audience) = audience {
        claims["aud"] = audience.into();
    }
    if let Some(issuer) = issuer {
        claims["iss"] = issuer.into();
    }
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
        .map_err(|error| error.to_string())
}
