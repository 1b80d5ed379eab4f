//! The content of the headers of a request: credentials, and the site whose page sends it.

use http::{HeaderMap, HeaderValue, Uri, header};

/// Whether a page of another origin sends the request. `None` if there is no Sec-Fetch-Site. A page of the same site but
/// another origin counts as well. The value `none` is a request by the user.
pub(crate) fn is_foreign(headers: &HeaderMap) -> Option<bool> {
    let site = headers.get("sec-fetch-site")?.as_bytes();
    Some(matches!(site, b"cross-site" | b"same-site"))
}

/// Whether an origin names the host that the request is for. The scheme is not compared: TLS may end at a proxy.
pub(crate) fn is_same_origin(origin: &[u8], headers: &HeaderMap, uri: &Uri) -> bool {
    // HTTP/2 has the host in the URI.
    let host = uri.authority().map(|authority| authority.as_str());
    let host = host.or_else(|| headers.get(header::HOST)?.to_str().ok());
    let origin = std::str::from_utf8(origin).ok();
    let origin = origin.and_then(|origin| origin.split_once("://"));
    let Some((host, (scheme, origin))) = host.zip(origin) else {
        return false;
    };
    // Browsers leave out the default port of a scheme. Other clients may not.
    let port = if scheme == "https" { ":443" } else { ":80" };
    let bare = |host: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    bare(host) == bare(origin)
}

/// Whether a page of another origin sends the request and cannot read the answer. Such a request uses up a place of its
/// visitor's address for nothing.
pub(crate) fn is_unreadable(headers: &HeaderMap) -> bool {
    let mode = headers.get("sec-fetch-mode").map(HeaderValue::as_bytes);
    mode == Some(b"no-cors") && is_foreign(headers) == Some(true)
}

/// The token of `Authorization: Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    // RFC 9110, 11.1: the name of a scheme is case-insensitive.
    let is_bearer = scheme.eq_ignore_ascii_case("Bearer");
    is_bearer.then_some(token.trim())
}

/// A cookie's value. If several cookies have the name, the first one counts. It has the longest path (RFC 6265, 5.4).
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(header::COOKIE).into_iter();
    let pairs = values.filter_map(|value| value.to_str().ok());
    let mut pairs = pairs
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    // RFC 6265, 4.1.1: a value may be quoted.
    let quoted = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'));
    Some(quoted.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_bearer_token_is_read_in_any_case() {
        let read = |value| bearer(&headers("authorization", &[value])).map(str::to_owned);
        assert_eq!(read("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(read("bEARER  abc ").as_deref(), Some("abc"));
        assert_eq!(read("Basic abc"), None);
        assert_eq!(read("Bearer"), None);
    }

    #[test]
    fn an_origin_is_compared_with_the_host() {
        let is_same = |origin: &str, host: &'static str, uri: &str| {
            let headers = headers("host", &[host]);
            is_same_origin(origin.as_bytes(), &headers, &uri.parse().unwrap())
        };
        for (origin, host) in [
            ("https://example.com", "example.com"),
            ("https://Example.com", "example.com:443"),
            ("http://example.com", "example.com:80"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            assert!(is_same(origin, host, "/events"), "{origin} {host}");
        }
        for (origin, host) in [
            ("https://evil.example", "example.com"),
            ("https://example.com.evil.example", "example.com"),
            ("https://example.com:8443", "example.com"),
            ("https://example.com", "example.com:80"),
            ("null", "example.com"),
            ("", "example.com"),
            ("example.com", "example.com"),
        ] {
            assert!(!is_same(origin, host, "/events"), "{origin} {host}");
        }
        assert!(is_same(
            "https://a.example",
            "b.example",
            "https://a.example/events"
        ));
        assert!(!is_same(
            "https://b.example",
            "b.example",
            "https://a.example/events"
        ));
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let read =
            |values: &[&'static str]| cookie(&headers("cookie", values), "t").map(str::to_owned);
        assert_eq!(read(&["a=1; t=x; b=2"]).as_deref(), Some("x"));
        assert_eq!(read(&["a=1", "t=\"x\""]).as_deref(), Some("x"));
        assert_eq!(read(&["t=first; t=second"]).as_deref(), Some("first"));
        assert_eq!(read(&["tt=x; at=y; t"]), None);
    }
}
