//! Refuses requests to a foreign host name, where everything is public because only this machine can connect.
//!
//! The owner of any site can let its name resolve to 127.0.0.1 (DNS rebinding). Requests from its pages are then of the
//! same origin as the gateway, so a page could read events that are meant for programs on this machine. Such a request
//! still names the host of its site.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header, uri::Authority};

/// Whether a request names this machine as its host. A name that resolves to this machine may belong to anyone. An
/// address cannot.
pub(crate) fn is_local(uri: &Uri, headers: &HeaderMap) -> bool {
    let authority = match (uri.authority(), headers.get(header::HOST)) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => match host.to_str().unwrap_or_default().parse::<Authority>() {
            Ok(authority) => authority,
            Err(_) => return false,
        },
        // HTTP/1.0. Browsers always name the host.
        (None, None) => return true,
    };
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    bare.unwrap_or(host).parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_name_this_machine() {
        for (host, expected) in [
            ("127.0.0.1:8080", true),
            ("127.0.0.1", true),
            ("[::1]:8080", true),
            ("localhost", true),
            ("LocalHost:8080", true),
            ("app.localhost:3000", true),
            ("localhost.", true),
            ("192.168.1.5:8080", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
            ("a b", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            let path = Uri::from_static("/events");
            assert_eq!(is_local(&path, &headers), expected, "{host}");
        }
        // The target of the request has precedence over the header (RFC 9112, 3.2.2).
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "localhost".parse().unwrap());
        let target = Uri::from_static("http://evil.example/events");
        assert!(!is_local(&target, &headers));
        assert!(is_local(&Uri::from_static("/"), &HeaderMap::new()));
    }
}
