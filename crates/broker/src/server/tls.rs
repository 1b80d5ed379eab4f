//! Certificates for connections to Redis.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use redis::TlsCertificates;
use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::Misconfigured;

/// Reads the certificates. If they contain no authorities, adds those of the system. Otherwise each new connection
/// would read them again.
pub(super) fn tls_config(
    certificates: &mut TlsCertificates,
) -> Result<ClientConfig, Misconfigured> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = &certificates.root_cert {
        for certificate in chain(pem).ok_or(Misconfigured::Authority)? {
            let added = roots.add(certificate);
            added.map_err(|_| Misconfigured::Authority)?;
        }
    } else {
        let mut pem = String::new();
        for certificate in rustls_native_certs::load_native_certs().certs {
            let text = BASE64.encode(&certificate);
            if roots.add(certificate).is_ok() {
                let written = write!(
                    pem,
                    "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
                );
                written.expect("a string takes all");
            }
        }
        if roots.is_empty() {
            return Err(Misconfigured::NoAuthorities);
        }
        certificates.root_cert = Some(pem.into_bytes());
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    let Some(identity) = &certificates.client_tls else {
        return Ok(config.with_no_client_auth());
    };
    let wrong = |what: &str| Misconfigured::Identity(what.to_owned());
    let chain = chain(&identity.client_cert).ok_or_else(|| wrong("no certificate in PEM"))?;
    let key = PrivateKeyDer::from_pem_slice(&identity.client_key)
        .map_err(|_| wrong("no private key in PEM"))?;
    let config = config.with_client_auth_cert(chain, key);
    config.map_err(|error: rustls::Error| wrong(&error.to_string()))
}

/// The certificates in a file, at least one.
fn chain(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|chain| !chain.is_empty())
}
