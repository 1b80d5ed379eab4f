//! Which other sites' pages may use this gateway, with their users' cookies: CORS.

use std::{str::FromStr, time::Duration};

use axum::http::{HeaderName, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// For so long browsers do not ask again; none of them takes more.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Origins by pattern: `*` stands for any run of letters, digits, `-` and `.`, as in
/// `https://*.example.com`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origins(Vec<String>);

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let origins: Vec<_> = parts.map(str::to_ascii_lowercase).collect();
        for origin in &origins {
            let host = origin.split_once("://").map(|(_, host)| host);
            let is_origin = host.is_some_and(|host| {
                // Cookies are sent along: a pattern for all sites would hand over every user.
                let rest = host.trim_start_matches(['*', '.']);
                !rest.is_empty() && !rest.starts_with(':') && !host.contains(['/', '?', '#'])
            });
            if !is_origin {
                return Err(format!(
                    "\"{origin}\" is no origin such as https://app.example.com or https://*.example.com"
                ));
            }
        }
        Ok(Self(origins))
    }
}

impl Origins {
    fn allow(&self, origin: &[u8]) -> bool {
        let mut patterns = self.0.iter();
        patterns.any(|pattern| matches(pattern.as_bytes(), origin))
    }

    /// None if no other site may.
    pub(super) fn layer(self) -> Option<CorsLayer> {
        if self.0.is_empty() {
            return None;
        }
        let allow = AllowOrigin::predicate(move |origin, _| self.allow(origin.as_bytes()));
        let layer = CorsLayer::new()
            .allow_origin(allow)
            .allow_credentials(true)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([
                header::ACCEPT,
                header::AUTHORIZATION,
                header::CACHE_CONTROL,
                header::CONTENT_TYPE,
                HeaderName::from_static("idempotency-key"),
                HeaderName::from_static("last-event-id"),
            ])
            .expose_headers([header::RETRY_AFTER, header::WWW_AUTHENTICATE])
            .max_age(MAX_AGE);
        Some(layer)
    }
}

fn matches(pattern: &[u8], origin: &[u8]) -> bool {
    match pattern.split_first() {
        None => origin.is_empty(),
        Some((b'*', rest)) => {
            let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.".contains(byte);
            let run = origin.iter().take_while(|byte| is_name(byte)).count();
            (0..=run).any(|end| matches(rest, &origin[end..]))
        }
        Some((byte, rest)) => {
            let first = origin.split_first();
            first.is_some_and(|(first, origin)| first == byte && matches(rest, origin))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_matched_whole() {
        let origins: Origins = "https://*.Example.com, http://localhost:3000"
            .parse()
            .unwrap();
        for origin in [
            "https://a.example.com",
            "https://a-b.c.example.com",
            "http://localhost:3000",
        ] {
            assert!(origins.allow(origin.as_bytes()), "{origin}");
        }
        for origin in [
            "https://example.com",
            "http://a.example.com",
            "https://evil.com/.example.com",
            "https://evil.com:1.example.com",
            "https://a.example.com.evil.com",
            "https://a.example.com:8443",
            "http://localhost:30001",
            "null",
            "",
        ] {
            assert!(!origins.allow(origin.as_bytes()), "{origin}");
        }
    }

    #[test]
    fn nobody_lists_all_sites() {
        for text in [
            "*",
            "https://*",
            "https://*:443",
            "example.com",
            "https://",
            "https://a/b",
            "null",
        ] {
            assert!(text.parse::<Origins>().is_err(), "{text}");
        }
        assert_eq!("".parse::<Origins>().unwrap(), Origins::default());
    }
}
