//! What all requests to other machines share: whom they trust, and what they call themselves.

use std::path::{Path, PathBuf};

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// What this program calls itself.
pub const USER_AGENT: &str = concat!("detoxd/", env!("CARGO_PKG_VERSION"));

/// The file of certificate authorities can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the certificates in {path}: {reason}")]
pub struct CertificatesError {
    path: String,
    reason: String,
}

/// The file of certificate authorities that `SSL_CERT_FILE` names: a proxy that opens TLS has its own.
pub fn certificates_from_env() -> Option<PathBuf> {
    std::env::var_os("SSL_CERT_FILE")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// TLS that trusts the certificate authorities of a PEM file instead of the built-in ones.
///
/// # Errors
/// When the file can't be read or holds no certificate.
pub fn tls(certificates: Option<&Path>) -> Result<TlsConfig, CertificatesError> {
    let roots = match certificates {
        Some(path) => read(path)?,
        None => RootCerts::WebPki,
    };
    Ok(TlsConfig::builder().root_certs(roots).build())
}

fn read(path: &Path) -> Result<RootCerts, CertificatesError> {
    let wrong = |reason: String| CertificatesError {
        path: path.display().to_string(),
        reason,
    };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(wrong("no certificate in it".to_owned()));
    }
    Ok(certificates.into())
}
