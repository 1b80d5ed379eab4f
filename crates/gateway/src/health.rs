//! `sse-gateway healthcheck`: checks whether the gateway on this machine is ready. It serves images without curl.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::{doctor, tls};

/// A slower answer counts as none.
const ANSWER: Duration = Duration::from_secs(2);

/// Asks the gateway at this admin address, which is the configured listen address. Returns its answer.
///
/// # Errors When it is not ready, with its answer. When it does not answer.
pub async fn check(admin: SocketAddr) -> Result<String, String> {
    tls::choose_provider();
    let address = SocketAddr::new(reachable(admin.ip()), admin.port());
    let client = reqwest::Client::builder()
        .timeout(ANSWER)
        .no_proxy()
        .build();
    let asked = async {
        let response = client?
            .get(format!("http://{address}/readyz"))
            .send()
            .await?;
        Ok::<_, reqwest::Error>((response.status(), response.text().await?))
    };
    match asked.await {
        Ok((status, text)) if status.is_success() => Ok(text.trim().to_owned()),
        Ok((_, text)) => Err(text.trim().to_owned()),
        Err(error) => Err(format!(
            "{address} does not answer: {}",
            doctor::describe(&error)
        )),
    }
}

/// The address to connect to. A wildcard address becomes the loopback address.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}
