//! The lines that cross the control socket.
//!
//! One JSON object a line, in UTF-8, ended by a newline. A request carries its verb and the version beside each other,
//! `{"v":1,"verb":"show","height":1190}`; a reply is `{"v":1,"ok":{"reply":…,"data":…}}` or
//! `{"v":1,"error":{"kind":…,"message":…}}`. The version is read before anything else of a line, so that a peer of
//! another version is told so, whatever else its lines hold.

use std::io;

use serde::{Deserialize, Serialize};

use super::{Failure, FailureKind, PROTOCOL, Reply, Request};

/// The longest line a server reads, in bytes, its newline included.
pub const MAX_REQUEST: usize = 1 << 20;

/// Why a line could not be understood.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The message says it.
pub enum WireError {
    #[error("the peer speaks version {0} of the control protocol, this program version {PROTOCOL}")]
    Version(u64),
    #[error("not a line of the control protocol: {0}")]
    Garbage(#[from] serde_json::Error),
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Failure {
        let hint = match error {
            WireError::Version(_) => "; use the tmfs that serves the mount, or mount again with the new one",
            WireError::Garbage(_) => "",
        };
        Failure { kind: FailureKind::Usage, message: format!("{error}{hint}") }
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(Reply),
    Error(Failure),
}

/// An answer as it is read: one of the two. Without anything to be put aside on the way, a list of ten thousand heights
/// takes a third of the time.
#[derive(Deserialize)]
struct Answered {
    ok: Option<Reply>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Version {
    v: u64,
}

/// The line of a request, with its newline.
pub fn request_line(request: &Request) -> io::Result<Vec<u8>> {
    line(Envelope { v: PROTOCOL, content: request })
}

/// The line of an answer, with its newline.
pub fn answer_line(answer: Result<Reply, Failure>) -> io::Result<Vec<u8>> {
    let content = match answer {
        Ok(reply) => Answer::Ok(reply),
        Err(failure) => Answer::Error(failure),
    };
    line(Envelope { v: PROTOCOL, content })
}

/// Reads the line of a request.
pub fn read_request(line: &[u8]) -> Result<Request, WireError> {
    check_version(line)?;
    Ok(serde_json::from_slice(line)?)
}

/// Reads the line of an answer.
pub fn read_answer(line: &[u8]) -> Result<Result<Reply, Failure>, WireError> {
    check_version(line)?;
    match serde_json::from_slice(line)? {
        Answered { ok: Some(reply), error: None } => Ok(Ok(reply)),
        Answered { error: Some(failure), ok: None } => Ok(Err(failure)),
        _ => Err(WireError::Garbage(serde::de::Error::custom("neither an answer nor an error"))),
    }
}

fn check_version(line: &[u8]) -> Result<(), WireError> {
    let Version { v } = serde_json::from_slice(line)?;
    if v == u64::from(PROTOCOL) { Ok(()) } else { Err(WireError::Version(v)) }
}

fn line(content: impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&content)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{HeightQuery, SnapshotOptions};
    use crate::control::{Selection, Side};
    use crate::types::Height;

    fn text(request: &Request) -> String {
        String::from_utf8(request_line(request).unwrap()).unwrap()
    }

    #[test]
    fn requests_survive_the_wire() {
        let height = Height(u64::MAX);
        let options = SnapshotOptions {
            hash: Some("00ff".into()),
            labels: [("k\n".to_string(), "v\"\u{1}é".to_string())].into(),
            hold: true,
        };
        for request in [
            Request::Status,
            Request::Snapshot { height, options, wait: true },
            Request::List,
            Request::Show { height },
            Request::Rollback {
                to: HeightQuery::AtOrBelow(height),
                preserve: vec!["a/b".into()],
                only: true,
                force: true,
                dry_run: false,
            },
            Request::Rollback {
                to: HeightQuery::Newest,
                preserve: vec![],
                only: false,
                force: false,
                dry_run: true,
            },
            Request::UndoRollback { only: false, force: false, dry_run: true },
            Request::Delete { selection: Selection::Range(Height(1), height), dry_run: true },
            Request::Delete { selection: Selection::Heights(vec![height]), dry_run: false },
            Request::Delete { selection: Selection::Abandoned, dry_run: false },
            Request::Hold { height },
            Request::Release { height },
            Request::Diff { a: Side::Live, b: Side::Height(height), path: Some("p".into()) },
            Request::Diff { a: Side::Live, b: Side::Live, path: None },
            Request::Settle,
            Request::Unmount,
        ] {
            let text = text(&request);
            assert_eq!(text.find('\n'), Some(text.len() - 1), "one line: {text}");
            assert_eq!(read_request(text.as_bytes()).unwrap(), request, "{text}");
        }
    }

    #[test]
    fn the_lines_are_as_documented() {
        assert_eq!(text(&Request::List), "{\"v\":1,\"verb\":\"list\"}\n");
        assert_eq!(
            text(&Request::Snapshot { height: Height(7), options: SnapshotOptions::default(), wait: true }),
            "{\"v\":1,\"verb\":\"snapshot\",\"height\":7,\"hash\":null,\"labels\":{},\"hold\":false,\"wait\":true}\n"
        );
        // Someone who writes the line by hand may leave out what has a default.
        read_request(br#"{"verb":"snapshot","height":7,"wait":false,"v":1}"#).unwrap();
        read_request(br#"{"v":1,"verb":"diff","a":"live","b":{"height":7}}"#).unwrap();
    }

    #[test]
    fn answers_survive_the_wire() {
        let failure = Failure { kind: FailureKind::NoSuchHeight, message: "no\nsuch".into() };
        for answer in [Ok(Reply::Done), Ok(Reply::List(vec![])), Err(failure)] {
            let line = answer_line(answer.clone()).unwrap();
            assert_eq!(read_answer(&line).unwrap(), answer);
        }
        assert_eq!(answer_line(Ok(Reply::Done)).unwrap(), b"{\"v\":1,\"ok\":{\"reply\":\"done\"}}\n");
    }

    #[test]
    fn another_version_is_named() {
        let failure: Failure = read_request(br#"{"v":2,"something":"else"}"#).unwrap_err().into();
        assert_eq!(
            failure.message,
            "the peer speaks version 2 of the control protocol, this program version 1; \
             use the tmfs that serves the mount, or mount again with the new one"
        );
        for garbage in ["", "{}", "[]", "7", "{\"v\":1}", "{\"v\":1,\"verb\":\"fly\"}", "{\"v\":-1}", "\u{0}"]
        {
            let error = read_request(garbage.as_bytes()).unwrap_err();
            assert!(matches!(error, WireError::Garbage(_)), "{garbage}: {error}");
        }
    }
}
