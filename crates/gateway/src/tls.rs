//! TLS on the public port, with a certificate that is read again when its file changes.

use std::{
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use tokio::time::sleep;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};

use crate::current::Current;

/// Time between two checks of the files.
const LOOK: Duration = Duration::from_secs(5);

/// The files of the TLS configuration.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    /// A chain in PEM, the server's own certificate first.
    pub(crate) certificate: PathBuf,
    /// Its key in PEM.
    pub(crate) key: PathBuf,
}

/// TLS on the public port.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct TlsConfig {
    /// Certificate chain in PEM for TLS on the public port. It is read again when it changes.
    #[arg(
        long,
        env = "SSE_GATEWAY_TLS_CERTIFICATE",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_certificate: Option<PathBuf>,

    /// Key in PEM of --tls-certificate.
    #[arg(
        long,
        env = "SSE_GATEWAY_TLS_KEY",
        value_name = "FILE",
        requires = "tls_certificate"
    )]
    tls_key: Option<PathBuf>,
}

impl TlsConfig {
    /// The files, if there is TLS.
    pub(crate) fn files(&self) -> Option<TlsFiles> {
        let files = self.tls_certificate.clone().zip(self.tls_key.clone());
        files.map(|(certificate, key)| TlsFiles { certificate, key })
    }
}

/// Accepts TLS connections.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    shown: Arc<Shown>,
}

/// A certificate and its key, as read.
#[derive(Debug)]
pub(crate) struct Certificate {
    key: CertifiedKey,
    /// When the files were last changed, as far as that is known.
    changed: Option<(SystemTime, SystemTime)>,
}

#[derive(Debug)]
struct Shown {
    files: TlsFiles,
    key: Current<CertifiedKey>,
    /// When the files were last changed, as far as that is known.
    changed: Mutex<Option<(SystemTime, SystemTime)>>,
}

/// Makes *ring* the cryptography of all TLS in this process, so that one library is built.
pub(crate) fn choose_provider() {
    // An earlier call made the same choice.
    let _chosen = CryptoProvider::install_default(ring::default_provider());
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be read, or do not belong together.
    pub(crate) fn new(files: TlsFiles) -> Result<Self, String> {
        let Certificate { key, changed } = files.read()?;
        let shown = Arc::new(Shown {
            files,
            key: Current::new(key),
            changed: Mutex::new(changed),
        });
        let resolver: Arc<Shown> = Arc::clone(&shown);
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { acceptor, shown })
    }

    /// Reads the files again whenever they have changed, as long as the process lives. An unusable certificate does not
    /// replace a usable one.
    pub(crate) async fn watch(self) {
        loop {
            sleep(LOOK).await;
            self.shown.look();
        }
    }

    /// Reads the files, whether they have changed or not.
    pub(crate) fn read(&self) -> Result<Certificate, String> {
        self.shown.files.read()
    }

    /// Presents this one to clients from now on.
    pub(crate) fn set(&self, certificate: Certificate) {
        self.shown.set(certificate);
    }
}

impl Shown {
    fn set(&self, Certificate { key, changed }: Certificate) {
        self.key.set(key);
        *self.changed.lock() = changed;
    }

    fn look(&self) {
        let changed = self.files.changed();
        let known = *self.changed.lock();
        if changed.is_none() || known == changed {
            return;
        }
        match self.files.read() {
            Ok(certificate) => {
                self.set(certificate);
                tracing::info!("the certificate has changed");
            }
            // Perhaps only one of the two files is new yet. They are checked again.
            Err(error) => tracing::error!(%error, "the new certificate cannot be used"),
        }
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.get())
    }
}

impl TlsFiles {
    fn changed(&self) -> Option<(SystemTime, SystemTime)> {
        let modified = |path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
        modified(&self.certificate).zip(modified(&self.key))
    }

    /// # Errors
    /// When they cannot be read, or do not belong together.
    pub(crate) fn read(&self) -> Result<Certificate, String> {
        // Read first. So a file that changes during the read is checked again.
        let changed = self.changed();
        let read = |path: &PathBuf| {
            fs::read(path).map_err(|error: io::Error| format!("{}: {error}", path.display()))
        };
        let wrong = |path: &PathBuf, what: &str| format!("{}: {what}", path.display());
        let certificates = read(&self.certificate)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificates).collect();
        let chain = chain
            .ok()
            .filter(|chain| !chain.is_empty())
            .ok_or_else(|| wrong(&self.certificate, "no certificate in PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|_| wrong(&self.key, "no private key in PEM"))?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|error| wrong(&self.key, &error.to_string()))?;
        Ok(Certificate { key, changed })
    }
}
