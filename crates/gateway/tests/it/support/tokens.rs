//! Tokens as an issuer makes them, good and bad.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::{Value, json};

use super::Dir;

/// A secret that is long enough.
pub(crate) const SECRET: &str = "a secret of thirty-two bytes, or more";

/// Pairs of keys that are public, and so only for tests.
pub(crate) const RSA: [&str; 2] = [
    include_str!("../keys/rsa1.pem"),
    include_str!("../keys/rsa1.pub.pem"),
];
pub(crate) const RSA2: [&str; 2] = [
    include_str!("../keys/rsa2.pem"),
    include_str!("../keys/rsa2.pub.pem"),
];
pub(crate) const P256: [&str; 2] = [
    include_str!("../keys/p256.pem"),
    include_str!("../keys/p256.pub.pem"),
];
pub(crate) const P384: [&str; 2] = [
    include_str!("../keys/p384.pem"),
    include_str!("../keys/p384.pub.pem"),
];
pub(crate) const ED25519: [&str; 2] = [
    include_str!("../keys/ed25519.pem"),
    include_str!("../keys/ed25519.pub.pem"),
];

/// `[jwt]` with the secret, and more lines.
pub(crate) fn with_secret(lines: &str) -> String {
    format!("[jwt]\nsecret = \"{SECRET}\"\n{lines}\n")
}

/// `[jwt]` with a key in a file, and more lines. The file exists as long as the directory.
pub(crate) fn with_key(dir: &Dir, key: &str, lines: &str) -> String {
    let name = format!("key{}", key.len());
    let path = dir.write(&name, key);
    format!("[jwt]\nkey_file = \"{path}\"\n{lines}\n")
}

/// A time in seconds since 1970, `seconds` from now, as claims have it.
pub(crate) fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970");
    i64::try_from(now.as_secs()).expect("it is before the end of time") + seconds
}

/// Claims of anna, valid for an hour, for channels that match these patterns.
pub(crate) fn claims(subscribe: &[&str]) -> Value {
    json!({ "sub": "anna", "exp": in_seconds(3600), "subscribe": subscribe })
}

/// Signed with the secret.
pub(crate) fn token(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), claims, &key).expect("claims are JSON")
}

/// Signed with a private key in PEM.
pub(crate) fn signed(algorithm: Algorithm, pem: &str, kid: Option<&str>, claims: &Value) -> String {
    let mut header = Header::new(algorithm);
    header.kid = kid.map(str::to_owned);
    encode(&header, claims, &private(algorithm, pem)).expect("the key is for the algorithm")
}

/// A set of the public keys to these private ones.
pub(crate) fn key_set(keys: &[(Algorithm, &str, &str)]) -> String {
    let jwk = |(algorithm, pem, kid): &(Algorithm, &str, &str)| {
        let mut jwk =
            Jwk::from_encoding_key(&private(*algorithm, pem), *algorithm).expect("a key of a kind");
        jwk.common.key_id = Some((*kid).to_owned());
        jwk
    };
    json!({ "keys": keys.iter().map(jwk).collect::<Vec<_>>() }).to_string()
}

fn private(algorithm: Algorithm, pem: &str) -> EncodingKey {
    let key = match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(pem.as_bytes()),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()),
        _ => EncodingKey::from_rsa_pem(pem.as_bytes()),
    };
    key.expect("a private key in PEM")
}

/// A header with a bearer token.
pub(crate) fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}
