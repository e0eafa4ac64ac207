//! A file from a model hub, by HTTP.

use std::{
    io::{Read, Write},
    time::Duration,
};

use ureq::{Agent, config::RedirectAuthHeaders, http::header};

use super::progress::Meter;
use super::pull::Network;
use crate::outgoing::{self, CertificatesError};

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
    #[error("{url} gave no list of files; HF_ENDPOINT must be the address of a hub")]
    NoListing { url: String },
    #[error("writing what came: {0}")]
    Write(std::io::Error),
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
}

impl HubError {
    /// Whether the hub said nothing, or only that it can't answer now: what was fetched before may serve.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::BrokeOff { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
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
    /// Sent to the endpoint only, never to another host to which it redirects.
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
        self.fetch_rest(url, 0, expected, sink, meter)
    }

    /// Writes the body at `url` from byte `start` on to `sink`. `expected` is the size of the whole in bytes.
    pub fn fetch_rest(
        &self,
        url: &str,
        start: u64,
        expected: u64,
        sink: &mut impl Write,
        meter: &mut Meter,
    ) -> Result<(), HubError> {
        let url = url.to_owned();
        let response = self.get_from(&url, start)?;
        // A server that knows no ranges sends the whole: what is there already is passed over.
        let mut skip = if response.status() == 206 { 0 } else { start };
        if let Some(found) = response.body().content_length()
            && found != expected - start + skip
        {
            return Err(HubError::Size { url, found, expected });
        }
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut bytes = start;
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(source) => return Err(HubError::BrokeOff { url, bytes, source }),
            };
            let passed = (skip.min(read as u64)) as usize;
            skip -= passed as u64;
            bytes += (read - passed) as u64;
            if bytes > expected {
                break;
            }
            sink.write_all(&buffer[passed..read]).map_err(HubError::Write)?;
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
        self.get_from(url, 0)
    }

    fn get_from(&self, url: &str, start: u64) -> Result<ureq::http::Response<ureq::Body>, HubError> {
        let url = url.to_owned();
        if self.offline {
            return Err(HubError::Offline);
        }
        let mut request = self.agent()?.get(&url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header(header::RANGE, format!("bytes={start}-"));
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
        // Proxies: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY are ureq's default.
        let config = Agent::config_builder()
            .user_agent(outgoing::USER_AGENT)
            // As it is: the size is compared with what is announced.
            .accept_encoding("identity")
            // A hub sends from a name to another on itself, and to other hosts for large files.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(STALL))
            .timeout_per_read(Some(STALL))
            .tls_config(outgoing::tls(self.certificates.as_deref())?)
            .build();
        Ok(config.into())
    }
}
