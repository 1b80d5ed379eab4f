//! The address of a client, from its connection or from trusted proxies.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use axum::http::HeaderMap;
use ipnet::IpNet;
use ppp::v2::{Addresses, Command, Header};
use text::list;
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// The longest PROXY header that is read. The addresses take 36 bytes at most, and the rest is options.
const MAX_PROXY_HEADER: usize = 2 << 10;
/// Length of the fixed part of the header.
const PROXY_PREFIX: usize = 16;

/// The trusted proxies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxies(Vec<IpNet>);

impl Proxies {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first network that is larger than any private one. A client in it could claim any address.
    pub(crate) fn too_wide(&self) -> Option<IpNet> {
        let least = |net: &IpNet| match net {
            IpNet::V4(_) => 8,
            IpNet::V6(_) => 7,
        };
        self.0
            .iter()
            .copied()
            .find(|net| net.prefix_len() < least(net))
    }

    /// Trusts one more address.
    pub(crate) fn add(&mut self, address: IpAddr) {
        self.0.push(address.into());
    }

    pub(crate) fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&address))
    }

    /// The client of a request that came from `peer`. Each proxy adds the address that it saw at the end of
    /// `X-Forwarded-For`. So the list is read from its end, as long as trusted proxies wrote the entries. A client may
    /// have forged the earlier entries.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        let values = headers.get_all("x-forwarded-for").into_iter();
        let mut hops = values
            .rev()
            .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        while self.trust(client)
            && let Some(hop) = hops.next().and_then(parse_hop)
        {
            client = hop;
        }
        client
    }
}

impl FromStr for Proxies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let nets = list(text).map(|part| {
            let net = part.parse::<IpNet>();
            let net = net.or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
            let net = net.map_err(|_| {
                format!("\"{part}\" is neither an address nor a network such as 10.0.0.0/8")
            })?;
            // Which of the two is meant makes the difference between one proxy and a whole network.
            match net.addr() == net.network() {
                true => Ok(net),
                false => Err(format!(
                    "\"{part}\" is neither the network {} nor the address {}: name one of them",
                    net.trunc(),
                    net.addr()
                )),
            }
        });
        nets.collect::<Result<_, _>>().map(Self)
    }
}

/// An address, with or without a port.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']'));
    let address = bare.unwrap_or(hop).parse::<IpAddr>();
    let address = address.or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

/// Reads the header of the PROXY protocol, version 2, and not a byte more. Returns the client's address, or none if the
/// connection is the proxy's own, such as a health check.
///
/// # Errors When the header is missing or malformed.
pub(crate) async fn read_proxy_header(socket: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut bytes = vec![0; PROXY_PREFIX];
    socket.read_exact(&mut bytes).await?;
    if !bytes.starts_with(ppp::v2::PROTOCOL_PREFIX) {
        return Err(invalid(
            "no header of the PROXY protocol, version 2".to_owned(),
        ));
    }
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if length > MAX_PROXY_HEADER {
        return Err(invalid(
            "too long a header of the PROXY protocol".to_owned(),
        ));
    }
    bytes.resize(PROXY_PREFIX + length, 0);
    socket.read_exact(&mut bytes[PROXY_PREFIX..]).await?;
    let header = Header::try_from(&bytes[..]).map_err(|error| invalid(error.to_string()))?;
    if header.command == Command::Local {
        return Ok(None);
    }
    Ok(match header.addresses {
        Addresses::IPv4(addresses) => Some(addresses.source_address.into()),
        Addresses::IPv6(addresses) => Some(IpAddr::from(addresses.source_address).to_canonical()),
        Addresses::Unspecified | Addresses::Unix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(proxies: &str, peer: &str, headers: &[&'static str]) -> String {
        let proxies: Proxies = proxies.parse().unwrap();
        let mut map = HeaderMap::new();
        for header in headers {
            let value = HeaderValue::from_bytes(header.as_bytes()).unwrap();
            map.append("x-forwarded-for", value);
        }
        proxies.client(peer.parse().unwrap(), &map).to_string()
    }

    #[test]
    fn only_what_trusted_proxies_added_is_believed() {
        let check = |peer, headers: &[&'static str], expected: &str| {
            let found = client("10.0.0.0/8, 192.0.2.1", peer, headers);
            assert_eq!(found, expected, "{peer} {headers:?}");
        };
        check("203.0.113.9", &["1.2.3.4"], "203.0.113.9");
        check("10.0.0.1", &["1.2.3.4"], "1.2.3.4");
        // The client wrote the first itself.
        check("10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4");
        check("10.0.0.1", &["6.6.6.6", "1.2.3.4"], "1.2.3.4");
        check("10.0.0.1", &["6.6.6.6, 1.2.3.4, 192.0.2.1"], "1.2.3.4");
        // Entries before an unreadable one are not trusted.
        check("10.0.0.1", &["1.2.3.4, unknown"], "10.0.0.1");
        check("10.0.0.1", &["1.2.3.4, unknown, 10.1.1.1"], "10.1.1.1");
        check("10.0.0.1", &["\u{e9}, 1.2.3.4"], "1.2.3.4");
        check("10.0.0.1", &["6.6.6.6", "\u{e9}"], "10.0.0.1");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["[2001:db8::1]:443"], "2001:db8::1");
        check("10.0.0.1", &["1.2.3.4:5678"], "1.2.3.4");
        check("10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4");
    }

    #[test]
    fn proxies_are_read_strictly() {
        for text in ["10.0.0.0/33", "localhost", "10.0.0.1/8/8", "10.0.0.1/8"] {
            assert!(text.parse::<Proxies>().is_err(), "{text}");
        }
        assert!("".parse::<Proxies>().unwrap().is_empty());
    }
}
