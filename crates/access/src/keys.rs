//! `KeySet`: the keys that verify tokens.

use std::fmt;

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse},
};

use crate::{denied::TokenRefused, secret::Secret};

/// Bytes of a secret at least; RFC 7518, 3.2 for HS256.
const MIN_SECRET: usize = 32;

/// Algorithms of signatures.
pub(crate) type Algorithms = Vec<Algorithm>;

/// A key and the algorithms that it verifies. A key of one kind never verifies a signature of another kind. Otherwise
/// an attacker could use a public key as a shared secret, and sign with it (RFC 8725, 2.1).
#[derive(Clone)]
pub(crate) struct Key {
    id: Option<String>,
    pub(crate) key: DecodingKey,
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

impl KeySet {
    /// The key of a shared secret.
    ///
    /// # Errors
    /// When the secret is too short.
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
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
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
    pub(crate) fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<&Key, TokenRefused> {
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
///
/// # Errors
/// When it is neither.
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
