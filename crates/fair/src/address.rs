//! `counted`: the addresses that are one client.

use std::net::{IpAddr, Ipv6Addr};

/// The address that counts as one client. An IPv6 client can choose its address from a network of 64 bits.
pub fn counted(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::from(u64::MAX) << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_client_is_its_network() {
        let net = |text: &str| counted(text.parse().unwrap());
        assert_eq!(net("2001:db8:1:2:3:4:5:6"), net("2001:db8:1:2::9"));
        assert_ne!(net("2001:db8:1:2::9"), net("2001:db8:1:3::9"));
        assert_ne!(net("192.0.2.1"), net("192.0.2.2"));
    }
}
