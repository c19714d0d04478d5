//! HTTP to a node: one request, one answer, both small, within a time.
//!
//! The peer is not trusted: it may answer slowly, without end, or with something else. An answer has a size that it may
//! not exceed and the whole exchange a time; nothing is redirected, no proxy of the environment is used, no connection
//! is kept. TLS there is none: a node is followed on its own machine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::command::Cancel;
use crate::read;
use crate::source::Problem;

/// No answer that is needed comes near: the largest are an EVM block's transaction hashes.
const MOST: usize = 4 << 20;

/// A cookie file has a name, a colon and a secret.
const LONGEST_COOKIE: usize = 4096;

/// Where a node answers, and how it knows us.
pub(crate) struct Http {
    agent: ureq::Agent,
    url: Url,
    cookie: Option<PathBuf>,
    limit: Duration,
    cancel: Cancel,
}

/// An `http://` URL, its user and password apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Url {
    /// `user:password`, as it is sent.
    user: Option<String>,
    /// Host, port and path, without a slash at the end.
    place: String,
}

impl Url {
    /// Reads `http://[user:password@]host[:port][/path]`; the scheme may be missing.
    pub(crate) fn new(text: &str) -> Result<Url, &'static str> {
        let rest = match text.split_once("://") {
            None => text,
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                return Err(
                    "https is not spoken: follow a node of this machine by http, or a local proxy to another",
                );
            }
            Some(_) => return Err("a URL begins with http://"),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(decoded(user)?), host),
            None => (None, authority),
        };
        if user.as_ref().is_some_and(|user| !user.contains(':')) {
            return Err("a URL with a user needs a password: http://user:password@host");
        }
        let place = format!("{host}{}", path.trim_end_matches('/'));
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte);
        let port = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map(|(_, port)| port);
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err("a port is a number from 0 to 65535");
        }
        if host.is_empty() || host.starts_with(':') || !place.bytes().all(plain) {
            return Err("a URL is http://host:port, with a path if the node wants one");
        }
        if ureq::http::Uri::try_from(format!("http://{place}")).is_err() {
            return Err("a URL is http://host:port, with a path if the node wants one");
        }
        Ok(Url { user, place })
    }

    /// Without user and password.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }
}

/// Percent-encoded bytes as they are.
fn decoded(text: &str) -> Result<String, &'static str> {
    let wrong = "a % in a URL is followed by two hexadecimal digits";
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(wrong);
        bytes.push((digit()? << 4 | digit()?) as u8);
    }
    String::from_utf8(bytes).map_err(|_| wrong)
}

impl Http {
    pub(crate) fn new(url: Url, limit: Duration, cancel: Cancel) -> Http {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(limit))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(0)
            .proxy(None)
            .user_agent(concat!("tmfs/", env!("CARGO_PKG_VERSION")))
            .build();
        Http { agent: config.into(), url, cookie: None, limit, cancel }
    }

    /// Without a user in the URL, the name and secret in this file are sent. It is read for each request: a node writes
    /// another at each start.
    pub(crate) fn with_cookie(self, cookie: Option<PathBuf>) -> Http {
        Http { cookie, ..self }
    }

    /// A request with any method; gives back the status and the answer.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> Result<(u16, Vec<u8>), Problem> {
        let place = self.url.place();
        let down = |reason: String| Problem::Down { place: place.to_owned(), reason };
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{place}{path}"));
        if let Some(user) = self.user()? {
            request = request.header("Authorization", format!("Basic {}", base64(user.as_bytes())));
        }
        let answer = match body {
            Some(body) => {
                let request = request.header("Content-Type", "application/json").body(body);
                self.agent.run(request.map_err(|error| down(error.to_string()))?)
            }
            None => self.agent.run(request.body(()).map_err(|error| down(error.to_string()))?),
        };
        let mut answer = answer.map_err(|error| down(error.to_string()))?;
        let status = answer.status().as_u16();
        let mut bytes = Vec::new();
        let mut reader = answer.body_mut().as_reader().take(MOST as u64 + 1);
        reader.read_to_end(&mut bytes).map_err(|error| down(error.to_string()))?;
        match bytes.len() > MOST {
            true => Err(Problem::TooLong { place: place.to_owned(), most: MOST }),
            false => Ok((status, bytes)),
        }
    }

    /// `GET`; the answer must be JSON.
    pub(crate) fn get(&self, path: &str) -> Result<Value, Problem> {
        let (status, bytes) = self.request("GET", path, None)?;
        let value = self.json(status, &bytes)?;
        match status {
            200 => Ok(value),
            // The node says itself what is wrong.
            _ if value.get("error").is_some() => Ok(value),
            _ => Err(self.refused(status)),
        }
    }

    /// A call of JSON-RPC, `"1.0"` or `"2.0"`; gives back the result.
    pub(crate) fn call(
        &self,
        version: &str,
        path: &str,
        method: &str,
        params: Value,
    ) -> Result<Value, Problem> {
        let request = json!({"jsonrpc": version, "id": 1, "method": method, "params": params});
        let (status, bytes) = self.request("POST", path, Some(&request.to_string()))?;
        // JSON-RPC 1.0 tells of an error by the HTTP status as well.
        let mut answer = self.json(status, &bytes)?;
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            return Err(Problem::Rpc {
                place: self.url.place().to_owned(),
                method: method.to_owned(),
                code: error.get("code").and_then(Value::as_i64).unwrap_or(0),
                message: short(error.get("message").and_then(Value::as_str).unwrap_or("no reason given")),
            });
        }
        if status != 200 {
            return Err(self.refused(status));
        }
        // Some nodes answer "1" to 1.
        if !answer.get("id").is_some_and(|id| *id == json!(1) || *id == json!("1")) {
            return Err(self.garbage("it answers another request"));
        }
        match answer.get_mut("result").map(Value::take) {
            Some(result) => Ok(result),
            None => Err(self.garbage("it has neither a result nor an error")),
        }
    }

    fn json(&self, status: u16, bytes: &[u8]) -> Result<Value, Problem> {
        serde_json::from_slice(bytes).map_err(|_| match status {
            200 => self.garbage("it is not JSON"),
            _ => self.refused(status),
        })
    }

    fn refused(&self, status: u16) -> Problem {
        Problem::Status { place: self.url.place().to_owned(), status }
    }

    /// No answer, for this reason.
    pub(crate) fn down(&self, reason: &str) -> Problem {
        Problem::Down { place: self.url.place().to_owned(), reason: reason.to_owned() }
    }

    /// An answer that makes no sense.
    pub(crate) fn garbage(&self, what: &'static str) -> Problem {
        Problem::Garbage { place: self.url.place().to_owned(), what }
    }

    fn user(&self) -> Result<Option<String>, Problem> {
        match (&self.url.user, &self.cookie) {
            (Some(user), _) => Ok(Some(user.clone())),
            (None, None) => Ok(None),
            (None, Some(path)) => cookie(path, self.limit, &self.cancel).map(Some),
        }
    }
}

fn cookie(path: &Path, limit: Duration, cancel: &Cancel) -> Result<String, Problem> {
    let file = |reason: String| Problem::File { path: path.to_owned(), reason };
    let bytes = read::read(path, LONGEST_COOKIE, limit, cancel).map_err(|error| file(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| file("not a cookie".into()))?;
    match text.trim_end() {
        text if text.contains(':') && !text.contains('\n') => Ok(text.to_owned()),
        _ => Err(file("not a cookie".into())),
    }
}

/// What a peer says, cut to what a log can bear.
pub(crate) fn short(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(200).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            match at <= group.len() {
                true => text.push(char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = Url::new("http://user:p%40ss%3a@127.0.0.1:8332/wallet/").unwrap();
        assert_eq!((url.user.as_deref(), url.place()), (Some("user:p@ss:"), "127.0.0.1:8332/wallet"));
        assert_eq!(Url::new("127.0.0.1:8545").unwrap().place(), "127.0.0.1:8545");
        assert_eq!(Url::new("http://[::1]:8545").unwrap().place(), "[::1]:8545");
        for bad in [
            "",
            "http://",
            "https://h",
            "ftp://h",
            "http://user@h",
            "http://a:%4@h",
            "http://a:%zz@h",
            "h h",
            "h\n",
            ":80",
            "http://:80/",
            "h:99999999",
            "h#x",
        ] {
            assert!(Url::new(bad).is_err(), "{bad:?}");
        }
        assert!(Url::new("https://h").unwrap_err().contains("local proxy"));
    }

    #[test]
    fn base64_of_rfc_4648() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
