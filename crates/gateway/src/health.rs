//! `sse-gateway healthcheck`: whether the gateway on this machine is ready, for images without curl.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::{doctor, tls};

/// An answer that takes longer is none.
const ANSWER: Duration = Duration::from_secs(2);

/// Asks the gateway whose address for operators this is, as it was told to listen on, and answers what it says.
///
/// # Errors
/// When it is not ready, with what it says; when it does not answer.
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

/// Where somebody is reached who listens on all addresses.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}
