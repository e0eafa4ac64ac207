//! A file from a model hub, by HTTP.

use std::{
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use ureq::{
    Agent,
    http::header,
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::progress::Meter;
use super::pull::Network;

/// Short: without a route to the hub, the next source should have its turn soon.
const CONNECT: Duration = Duration::from_secs(5);
/// A server that says nothing for this long, before or within the body, is given up.
const STALL: Duration = Duration::from_secs(30);

/// Why the hub did not give the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum HubError {
    #[error("HF_HUB_OFFLINE is set")]
    Offline,
    #[error("{url} answered {status}{hint}")]
    Status {
        url: String,
        status: u16,
        hint: &'static str,
    },
    #[error("{url}: {source}")]
    Unreachable { url: String, source: ureq::Error },
    #[error("{url} has {found} bytes, expected {expected}")]
    Size { url: String, found: u64, expected: u64 },
    #[error("{url} has more than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("{url} broke off after {bytes} bytes: {source}")]
    BrokeOff {
        url: String,
        bytes: u64,
        source: std::io::Error,
    },
    #[error("writing what came: {0}")]
    Write(std::io::Error),
    #[error("the certificates in {path}: {reason}")]
    Certificates { path: String, reason: String },
}

/// Why a file of a repository could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HubFailure(String);

/// A file of a repository, of `limit` bytes at most. Its content is not known beforehand, so it is not checked here.
///
/// # Errors
/// When the hub is not reached, does not give the file, or the file is larger.
pub fn read_from_hub(
    network: &Network,
    repository: &str,
    revision: &str,
    file: &str,
    limit: u64,
) -> Result<Vec<u8>, HubFailure> {
    let url = network.hub.address(repository, revision, file);
    network
        .hub
        .read(&url, limit)
        .map_err(|error| HubFailure(error.to_string()))
}

/// The hub and how to speak to it.
#[derive(Debug, Clone)]
pub(super) struct Hub {
    /// Base address, without a slash at its end.
    pub endpoint: String,
    /// Sent to the endpoint only, never to where it redirects.
    pub token: Option<String>,
    pub offline: bool,
    /// A PEM file of certificate authorities to trust instead of the built-in ones (a proxy that opens TLS has its own).
    pub certificates: Option<std::path::PathBuf>,
}

impl Hub {
    pub fn address(&self, repository: &str, revision: &str, file: &str) -> String {
        format!("{}/{repository}/resolve/{revision}/{file}", self.endpoint)
    }

    /// Writes the body at `url` to `sink`. `expected` is its size in bytes.
    pub fn fetch(&self, url: &str, expected: u64, sink: &mut impl Write, meter: &mut Meter) -> Result<(), HubError> {
        let url = url.to_owned();
        let response = self.get(&url)?;
        if let Some(found) = response.body().content_length()
            && found != expected
        {
            return Err(HubError::Size { url, found, expected });
        }
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut bytes = 0;
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(source) => return Err(HubError::BrokeOff { url, bytes, source }),
            };
            bytes += read as u64;
            if bytes > expected {
                break;
            }
            sink.write_all(&buffer[..read]).map_err(HubError::Write)?;
            meter.set(bytes);
        }
        if bytes != expected {
            return Err(HubError::Size {
                url,
                found: bytes,
                expected,
            });
        }
        Ok(())
    }

    /// The body at `url`, which has `limit` bytes at most.
    pub fn read(&self, url: &str, limit: u64) -> Result<Vec<u8>, HubError> {
        let response = self.get(url)?;
        let too_large = || HubError::TooLarge {
            url: url.to_owned(),
            limit,
        };
        if response.body().content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let mut reader = response.into_body().into_reader().take(limit.saturating_add(1));
        if let Err(source) = reader.read_to_end(&mut bytes) {
            return Err(HubError::BrokeOff {
                url: url.to_owned(),
                bytes: bytes.len() as u64,
                source,
            });
        }
        if bytes.len() as u64 > limit {
            return Err(too_large());
        }
        Ok(bytes)
    }

    fn get(&self, url: &str) -> Result<ureq::http::Response<ureq::Body>, HubError> {
        let url = url.to_owned();
        if self.offline {
            return Err(HubError::Offline);
        }
        let mut request = self.agent()?.get(&url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        match request.call() {
            Ok(response) => Ok(response),
            Err(ureq::Error::StatusCode(status)) => {
                let hint = match status {
                    401 | 403 if self.token.is_some() => ": HF_TOKEN gives no access to it",
                    401 | 403 => ": it may need HF_TOKEN",
                    _ => "",
                };
                Err(HubError::Status { url, status, hint })
            }
            Err(source) => Err(HubError::Unreachable { url, source }),
        }
    }

    fn agent(&self) -> Result<Agent, HubError> {
        let roots = match &self.certificates {
            Some(path) => certificates(path)?,
            None => RootCerts::WebPki,
        };
        // Proxies: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY are ureq's default.
        let config = Agent::config_builder()
            .user_agent(concat!("detoxd/", env!("CARGO_PKG_VERSION")))
            // As it is: the size is compared with what is announced.
            .accept_encoding("identity")
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(STALL))
            .timeout_per_read(Some(STALL))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        Ok(config.into())
    }
}

fn certificates(path: &Path) -> Result<RootCerts, HubError> {
    let wrong = |reason: String| HubError::Certificates {
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
