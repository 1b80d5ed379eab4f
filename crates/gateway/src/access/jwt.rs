//! JSON Web Tokens: verifies them, and reads their permissions.

use std::fmt;

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header,
    errors::{Error, ErrorKind},
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse},
};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Denied, Grant, Hidden, Keys, MAX_SUBJECT, Patterns, Secret};
use crate::code::Code;

/// Bytes of a token at most.
const MAX_TOKEN: usize = 8 << 10;
/// Bytes of a secret at least; RFC 7518, 3.2 for HS256.
const MIN_SECRET: usize = 32;

/// Accepted algorithms, among those of the key. If empty, all algorithms of the key are accepted.
pub(crate) type Algorithms = Vec<Algorithm>;

/// Requirements for a token, in addition to a valid signature.
#[derive(Clone, Debug, Default)]
pub(crate) struct JwtConfig {
    pub(crate) algorithms: Algorithms,
    pub(crate) audience: Option<String>,
    pub(crate) issuer: Option<String>,
    /// Name of the cookie in which browsers keep the token.
    pub(crate) cookie: Option<String>,
    /// Seconds by which clocks may differ.
    pub(crate) leeway: u64,
}

/// The reason why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefused {
    #[error("the token is unknown")]
    Unknown,
    #[error("the token is no JSON Web Token with the claims that are needed")]
    Malformed,
    #[error("the token is not signed with an algorithm that is taken")]
    Algorithm,
    #[error("the token names no key that is known")]
    UnknownKey,
    #[error("the token's signature is not that of its key")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token's sub has more than {MAX_SUBJECT} bytes")]
    Subject,
}

impl TokenRefused {
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Unknown => Code::TokenUnknown,
            Self::Malformed => Code::TokenMalformed,
            Self::Algorithm => Code::TokenAlgorithm,
            Self::UnknownKey => Code::TokenUnknownKey,
            Self::Signature => Code::TokenSignature,
            Self::Expired => Code::TokenExpired,
            Self::NotYetValid => Code::TokenNotYetValid,
            Self::Audience => Code::TokenAudience,
            Self::Issuer => Code::TokenIssuer,
            Self::Subject => Code::TokenSubject,
        }
    }
}

/// Verifies tokens.
pub(crate) struct Verifier {
    config: JwtConfig,
    keys: Keys,
}

/// A key and the algorithms that it verifies. A key of one kind never verifies a signature of another kind. Otherwise
/// an attacker could use a public key as a shared secret, and sign with it (RFC 8725, 2.1).
#[derive(Clone)]
pub(crate) struct Key {
    id: Option<String>,
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

/// All keys that are valid at one time.
#[derive(Clone)]
pub(crate) struct KeySet(Vec<Key>);

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
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
    pub(super) async fn verify(&self, token: &str) -> Result<Grant, Denied> {
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

impl KeySet {
    pub(crate) fn of_secret(secret: &Secret) -> Result<Self, String> {
        if secret.as_bytes().len() < MIN_SECRET {
            return Err(format!(
                "a secret has at least {MIN_SECRET} bytes (RFC 7518, 3.2)"
            ));
        }
        Ok(Self::of_key(DecodingKey::from_secret(secret.as_bytes())))
    }

    fn of_key(key: DecodingKey) -> Self {
        Self(vec![Key {
            id: None,
            algorithms: key.family().algorithms().to_vec(),
            key,
        }])
    }

    /// The algorithms of its keys.
    pub(crate) fn algorithms(&self) -> Algorithms {
        self.0
            .iter()
            .flat_map(|key| key.algorithms.clone())
            .collect()
    }

    /// The keys of a set (RFC 7517) that are public and verify signatures. Other keys are ignored.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let set: JwkSet = match serde_json::from_slice(text) {
            Ok(set) => set,
            Err(error) => return Err(format!("no set of JSON web keys: {error}")),
        };
        let keys: Vec<_> = set.keys.iter().filter_map(Key::of_jwk).collect();
        match keys.is_empty() {
            true => Err("a set of JSON web keys without a public key that signs".to_owned()),
            false => Ok(Self(keys)),
        }
    }

    /// Finds the one key that a token can mean. That is the key that the token names. If no key has this name, it is
    /// the only unnamed key for the algorithm. If the token names no key, it is the only key for the algorithm. The
    /// keys are never tried one after the other.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&Key, TokenRefused> {
        if let [only] = &self.0[..]
            && (only.id.is_none() || id.is_none())
        {
            return only.if_it_signs(algorithm);
        }
        let named: Vec<_> = self
            .0
            .iter()
            .filter(|key| key.id.as_deref() == id)
            .collect();
        match (&named[..], id) {
            ([key], Some(_)) => return key.if_it_signs(algorithm),
            ([], _) | (_, None) => {}
            (_, Some(_)) => return Err(TokenRefused::UnknownKey),
        }
        let signs =
            |key: &&Key| (id.is_none() || key.id.is_none()) && key.algorithms.contains(&algorithm);
        let mut fitting = self.0.iter().filter(signs);
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            _ => Err(TokenRefused::UnknownKey),
        }
    }
}

impl Key {
    fn if_it_signs(&self, algorithm: Algorithm) -> Result<&Self, TokenRefused> {
        match self.algorithms.contains(&algorithm) {
            true => Ok(self),
            false => Err(TokenRefused::Algorithm),
        }
    }

    fn of_jwk(jwk: &Jwk) -> Option<Self> {
        let purpose = &jwk.common;
        let verifies = |operations: &Vec<_>| operations.contains(&KeyOperations::Verify);
        if !matches!(purpose.public_key_use, None | Some(PublicKeyUse::Signature))
            || !purpose.key_operations.as_ref().is_none_or(verifies)
        {
            return None;
        }
        let of_kind = match &jwk.algorithm {
            // A secret that anyone can fetch is no secret.
            AlgorithmParameters::OctetKey(_) => return None,
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            // The key has 32 bytes (RFC 8032), in base64url.
            AlgorithmParameters::OctetKeyPair(key) if key.x.len() != 43 => return None,
            _ => Vec::new(),
        };
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let possible = match of_kind.is_empty() {
            true => key.family().algorithms().to_vec(),
            false => of_kind,
        };
        let algorithms = match purpose.key_algorithm {
            None => possible,
            // Any other algorithm is for another purpose, such as encryption.
            Some(named) => {
                let named = named.to_string().parse().ok()?;
                if !possible.contains(&named) {
                    return None;
                }
                vec![named]
            }
        };
        Some(Self {
            id: jwk.common.key_id.clone(),
            key,
            algorithms,
        })
    }
}

/// A public key in PEM, or a set of keys in JSON.
pub(crate) fn read_key(text: &[u8]) -> Result<KeySet, String> {
    if text.trim_ascii_start().starts_with(b"{") {
        return KeySet::parse(text);
    }
    if text.windows(11).any(|window| window == b"PRIVATE KEY") {
        return Err("a private key: the gateway needs the public one".to_owned());
    }
    let key = DecodingKey::from_rsa_pem(text)
        .or_else(|_| DecodingKey::from_ec_pem(text))
        .or_else(|_| DecodingKey::from_ed_pem(text));
    key.map(KeySet::of_key).map_err(|_| {
        "neither a public key in PEM (RSA, EC or Ed25519) nor a set of JSON web keys".to_owned()
    })
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

#[cfg(test)]
mod tests {
    use Algorithm::{ES256, ES384, EdDSA, RS256};

    use super::*;

    // Components of well-known keys.
    const RSA: &str = r#""kty":"RSA","e":"AQAB","n":"sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3JDXboIRROSBigeC5yjU1hGzHHyXss8UDprecbAYxknTcQkhslANGRUZmdTOQ5qTRsLAt6BTYuyvVRdhS8exSZEy_c4gs_7svlJJQ4H9_NxsiIoLwAEk7-Q3UXERGYw_75IDrGA84-lA_-Ct4eTlXHBIY2EaV7t7LjJaynVJCpkv4LKjTTAumiGUIuQhrNhZLuF_RJLqHpM2kgWFLU7-VTdL1VbC2tejvcI2BlMkEpk1BzBZI0KQB0GaDWFLN-aEAw3vRw""#;
    const P256: &str = r#""kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM""#;
    const ED: &str =
        r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;

    fn set(keys: &[String]) -> Result<KeySet, String> {
        KeySet::parse(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
    }

    fn key(body: &str, more: &str) -> String {
        format!("{{{body}{more}}}")
    }

    #[test]
    fn only_public_keys_for_signatures_are_read() {
        for more in [
            "",
            r#","use":"sig""#,
            r#","alg":"RS512""#,
            r#","key_ops":["verify"]"#,
        ] {
            assert!(set(&[key(RSA, more)]).is_ok(), "{more}");
        }
        for bad in [
            key(RSA, r#","use":"enc""#),
            key(RSA, r#","alg":"RSA-OAEP""#),
            key(RSA, r#","alg":"ES256""#),
            key(RSA, r#","alg":"nonsense""#),
            key(RSA, r#","key_ops":["encrypt"]"#),
            key(P256, r#","alg":"ES384""#),
            key(
                r#""kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T""#,
                "",
            ),
            key(r#""kty":"OKP","crv":"Ed25519","x":"AAAA""#, ""),
        ] {
            assert!(set(std::slice::from_ref(&bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_matches_one_key_or_none() {
        let named = |body, id: &str| key(body, &format!(",\"kid\":\"{id}\""));
        let find = |keys: &[String], id, algorithm| {
            let keys = set(keys).unwrap();
            keys.find(id, algorithm).map(|key| key.id.clone())
        };
        let mixed = [named(RSA, "a"), key(P256, ""), named(RSA, "c"), key(ED, "")];
        assert_eq!(find(&mixed, Some("a"), RS256), Ok(Some("a".to_owned())));
        assert_eq!(find(&mixed, Some("a"), ES256), Err(TokenRefused::Algorithm));
        assert_eq!(find(&mixed, None, ES256), Ok(None));
        assert_eq!(find(&mixed, None, EdDSA), Ok(None));
        assert_eq!(find(&mixed, None, RS256), Err(TokenRefused::UnknownKey));
        assert_eq!(find(&mixed, Some("x"), ES256), Ok(None));
        assert_eq!(
            find(&mixed, Some("x"), RS256),
            Err(TokenRefused::UnknownKey)
        );
        assert_eq!(find(&mixed, None, ES384), Err(TokenRefused::UnknownKey));
        let twice = [named(RSA, "a"), named(P256, "a")];
        assert_eq!(
            find(&twice, Some("a"), RS256),
            Err(TokenRefused::UnknownKey)
        );
    }
}
