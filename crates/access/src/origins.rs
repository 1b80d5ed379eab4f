//! `Origins`: which other sites' pages may use this gateway, with their users' cookies.

use std::str::FromStr;

use text::list;

/// A set of origins: exact ones, and all hosts below `https://*.example.com`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<Origin>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Exact(String),
    /// The text before and after the variable part of the host, including the dot.
    Below(String, String),
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        list(text)
            .map(Origin::read)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Origin {
    /// Browsers send cookies along. A pattern that covers sites of other owners would expose every user to them.
    fn read(text: &str) -> Result<Self, String> {
        let origin = text.to_ascii_lowercase();
        let wrong = || {
            format!(
                "\"{text}\" is no origin such as https://app.example.com or https://*.example.com"
            )
        };
        let (scheme, host) = origin.split_once("://").ok_or_else(wrong)?;
        let (below, host) = match host.strip_prefix("*.") {
            Some(host) => (true, host),
            None => (false, host),
        };
        let name = host.split(':').next().unwrap_or_default();
        let is_name = !name.is_empty() && name.split('.').all(|label| !label.is_empty());
        if scheme.is_empty()
            || !is_name
            || (below && !name.contains('.'))
            || host.contains(['/', '?', '#', '*', ' ', '@'])
        {
            return Err(wrong());
        }
        Ok(match below {
            true => Self::Below(format!("{scheme}://"), format!(".{host}")),
            false => Self::Exact(origin),
        })
    }

    fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Exact(own) => own == origin,
            Self::Below(before, behind) => {
                let rest = origin.strip_prefix(&**before);
                let rest = rest.and_then(|rest| rest.strip_suffix(&**behind));
                let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
                rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(is_part))
            }
        }
    }
}

impl Origins {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first that covers sites of different owners, such as `https://*.co.uk` or `https://*.github.io`: its host is a
    /// public suffix.
    pub fn of_many_owners(&self) -> Option<String> {
        self.0.iter().find_map(|origin| match origin {
            Origin::Below(scheme, host) => {
                let host = host.trim_start_matches('.');
                let name = host.split(':').next().unwrap_or(host);
                let suffix = psl::suffix(name.as_bytes())?;
                (suffix.is_known() && suffix.as_bytes() == name.as_bytes())
                    .then(|| format!("{scheme}*.{host}"))
            }
            Origin::Exact(_) => None,
        })
    }

    /// Whether this is one of them.
    pub fn allow(&self, origin: &[u8]) -> bool {
        let origin = std::str::from_utf8(origin);
        origin.is_ok_and(|origin| self.0.iter().any(|own| own.allows(origin)))
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
            "https://.example.com",
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
    fn a_list_of_all_sites_is_refused() {
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
