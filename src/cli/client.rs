//! A client of a running service: what `jobs`, `adapter` and `dataset` share.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use ureq::http::{Method, Request, Response, Uri};
use ureq::{Agent, AsSendBody, Body};

/// Which service, and as whom.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Address of the running service
    #[arg(
        long,
        env = "DETOXD_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        global = true
    )]
    server: String,
    /// Key of the service, where it asks for one
    #[arg(
        long,
        env = "DETOXD_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        global = true
    )]
    api_key: Option<String>,
}

/// A running service.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    server: String,
    key: Option<String>,
}

/// Why the service did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It can't be reached.
    #[error("cannot reach {server}: {reason}; is `detoxd serve` running there? Choose another address with --server")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why.
        reason: String,
    },
    /// It refused.
    #[error("{0}")]
    Refused(Refusal),
    /// Its answer is not understood: it is something else, or a newer program.
    #[error("{server} answered with something that is not understood: {reason}")]
    Strange {
        /// Its address.
        server: String,
        /// What.
        reason: String,
    },
    /// A file that was to be sent can't be read.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: String,
        /// Why.
        reason: std::io::Error,
    },
}

/// A problem document (RFC 9457).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    title: String,
    detail: String,
    errors: Vec<Wrong>,
}

/// A field that is wrong.
#[derive(Debug, Deserialize)]
struct Wrong {
    field: String,
    detail: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errors.is_empty() {
            write!(f, "{}", self.detail)?;
        } else {
            write!(f, "{}", self.title)?;
            for wrong in &self.errors {
                write!(f, "\n  {}: {}", wrong.field, wrong.detail)?;
            }
        }
        match self.status {
            401 => write!(f, "\ngive the key with --api-key or DETOXD_API_KEY"),
            _ => Ok(()),
        }
    }
}

impl ServerArgs {
    /// A client of it.
    ///
    /// # Errors
    /// When the address is none.
    pub fn client(&self) -> anyhow::Result<Client> {
        let (server, host) = self.address()?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            // A stream says something every 15 s; an activation loads its adapter before it answers.
            .timeout_per_read(Some(Duration::from_secs(120)));
        if is_loopback(&host) {
            // A proxy is another machine, with another loopback address.
            config = config.proxy(None);
        }
        Ok(Client {
            agent: config.build().new_agent(),
            server,
            key: self.key(),
        })
    }

    /// Its address without a slash at the end, and the host in it.
    ///
    /// # Errors
    /// When the address is none.
    pub fn address(&self) -> anyhow::Result<(String, String)> {
        let server = self.server.trim_end_matches('/').to_owned();
        let uri: Uri = match server.parse() {
            Ok(uri) => uri,
            Err(error) => anyhow::bail!("--server {server}: {error}; expected http://HOST:PORT"),
        };
        let (Some("http" | "https"), Some(host)) = (uri.scheme_str(), uri.host()) else {
            anyhow::bail!("--server {server}: expected http://HOST:PORT");
        };
        Ok((server, host.to_owned()))
    }

    /// The key, if there is one.
    pub fn key(&self) -> Option<String> {
        self.api_key.clone().filter(|key| !key.is_empty())
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl Client {
    /// What a path has.
    ///
    /// # Errors
    /// When the service can't be reached or refuses.
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.json(self.send(Method::GET, path, &[], ())?)
    }

    /// Sends JSON to a path; the answer's status and JSON, which is `null` when there is none.
    ///
    /// # Errors
    /// When the service can't be reached or refuses.
    pub fn send_json(&self, method: Method, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.send_json_with(method, path, body, &[])
    }

    /// As [`Self::send_json`], with headers.
    ///
    /// # Errors
    /// As there.
    pub fn send_json_with(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Result<Value, ClientError> {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.json(self.send(method, path, &headers, body.to_string())?)
    }

    /// Posts to a path that needs no body.
    ///
    /// # Errors
    /// When the service can't be reached or refuses.
    pub fn post(&self, path: &str) -> Result<Value, ClientError> {
        self.send_json(Method::POST, path, &Value::Object(serde_json::Map::new()))
    }

    /// Deletes what a path has.
    ///
    /// # Errors
    /// When the service can't be reached or refuses.
    pub fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.json(self.send(Method::DELETE, path, &[], ())?)
    }

    /// Posts a file, which is never in memory as a whole.
    ///
    /// # Errors
    /// When the file can't be read, or the service can't be reached or refuses.
    pub fn upload(&self, path: &str, kind: &str, file: File) -> Result<Value, ClientError> {
        // Whoever will refuse it by its size or for want of a key says so before it is sent.
        let headers = [("content-type", kind), ("expect", "100-continue")];
        self.json(self.send(Method::POST, path, &headers, file)?)
    }

    /// What a path has, as it comes.
    ///
    /// # Errors
    /// When the service can't be reached or refuses.
    pub fn read(&self, path: &str, headers: &[(&str, &str)]) -> Result<(u16, impl Read + use<>), ClientError> {
        let response = self.send(Method::GET, path, headers, ())?;
        let status = response.status().as_u16();
        Ok((status, BufReader::new(response.into_body().into_reader())))
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Response<Body>, ClientError> {
        let url = format!("{}{path}", self.server);
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(body).map_err(|error| self.strange(error))?;
        let mut response = self.agent.run(request).map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.body_mut().read_to_string().unwrap_or_default();
        match serde_json::from_str::<Refusal>(&text) {
            Ok(refusal) if !refusal.title.is_empty() => Err(ClientError::Refused(refusal)),
            _ => Err(self.strange(format!("status {status} without a problem document"))),
        }
    }

    fn json(&self, mut response: Response<Body>) -> Result<Value, ClientError> {
        let text = response
            .body_mut()
            .read_to_string()
            .map_err(|error| self.unreachable(&error))?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| self.strange(error))
    }

    fn unreachable(&self, error: &ureq::Error) -> ClientError {
        ClientError::Unreachable {
            server: self.server.clone(),
            reason: error.to_string(),
        }
    }

    fn strange(&self, reason: impl fmt::Display) -> ClientError {
        ClientError::Strange {
            server: self.server.clone(),
            reason: reason.to_string(),
        }
    }
}

/// A value as a query has it.
pub fn encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_shown_with_its_fields() {
        let refusal: Refusal = serde_json::from_str(
            r#"{"type": "urn:x", "title": "A field has a value that is not allowed", "status": 422, "detail": "both",
                "errors": [{"field": "name", "detail": "is missing"}, {"field": "dataset", "detail": "is missing"}]}"#,
        )
        .unwrap();
        assert_eq!(
            refusal.to_string(),
            "A field has a value that is not allowed\n  name: is missing\n  dataset: is missing"
        );
        let refusal: Refusal =
            serde_json::from_str(r#"{"title": "A key is needed", "status": 401, "detail": "this route needs a key"}"#)
                .unwrap();
        assert!(
            refusal.to_string().starts_with("this route needs a key\n") && refusal.to_string().contains("--api-key")
        );
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded("a b&c=ü~1"), "a%20b%26c%3D%C3%BC~1");
    }

    #[test]
    fn loopback_is_told_from_elsewhere() {
        for (host, here) in [
            ("127.0.0.1", true),
            ("[::1]", true),
            ("localhost", true),
            ("example.org", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(host), here, "{host}");
        }
    }
}
