//! From an error to an exit status: the one place.

use std::io;

use snapstore::control::client::ClientError;
use snapstore::control::{Failure, FailureKind};

/// A command line that makes no sense: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// An exit status for which everything has been said already.
#[derive(Debug, thiserror::Error)]
#[error("exit status {0}")]
pub struct Told(pub u8);

/// How the program ends.
#[derive(PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Exit 0.
    Done,
    /// Exit 0: whoever read our output has read enough.
    BrokenPipe,
    /// This exit status, without another word.
    Told(u8),
    /// This exit status, and this sentence.
    Failed { status: u8, message: String },
    /// Exit 1; the panic hook has said what happened.
    Panicked,
}

/// The exit statuses, for the end of every `--help`.
pub const EXIT_STATUSES: &str = "\
Exit status:
  0  done
  1  failed
  2  wrong usage
  3  no such height
  4  not a tmfs data dir
  5  busy (open files, held, locked)
  6  damaged data found";

/// How the program ends with this result.
pub fn outcome(result: &anyhow::Result<()>) -> Outcome {
    let Err(error) = result else { return Outcome::Done };
    if let Some(Told(status)) = error.downcast_ref() {
        return Outcome::Told(*status);
    }
    if is_broken_pipe(error) {
        return Outcome::BrokenPipe;
    }
    let kind = kind(error);
    Outcome::Failed { status: kind.exit_status(), message: format!("{error:#}") }
}

/// What kind of failure an error is.
pub fn kind(error: &anyhow::Error) -> FailureKind {
    for cause in error.chain() {
        if cause.is::<Usage>() || cause.is::<clap::Error>() {
            return FailureKind::Usage;
        }
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.kind;
        }
        if let Some(error) = cause.downcast_ref::<snapstore::Error>() {
            return FailureKind::of(error);
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return error.kind();
        }
    }
    FailureKind::Failed
}

/// Whether the error is that stdout is closed. Errors of other pipes and sockets are wrapped in types of their own, and
/// stay errors.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A failure of this kind, with this sentence.
pub fn failure(kind: FailureKind, message: impl Into<String>) -> anyhow::Error {
    Failure { kind, message: message.into() }.into()
}

/// Wrong usage, with this sentence.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use snapstore::{Error, Height};

    fn status(error: impl Into<anyhow::Error>) -> u8 {
        match outcome(&Err(error.into())) {
            Outcome::Failed { status, .. } => status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_error_has_its_status() {
        assert_eq!(outcome(&Ok(())), Outcome::Done);
        assert_eq!(outcome(&Err(Told(7).into())), Outcome::Told(7));
        assert_eq!(outcome(&Err(io::Error::from(io::ErrorKind::BrokenPipe).into())), Outcome::BrokenPipe);
        assert_eq!(status(io::Error::from(io::ErrorKind::NotFound)), 1);
        assert_eq!(status(usage("no")), 2);
        assert_eq!(status(Error::NoSuchHeight { height: Height(1), nearest: None }), 3);
        assert_eq!(status(Error::NotAStore { path: "/d".into() }), 4);
        assert_eq!(status(ClientError::NotMounted { data_dir: "/d".into() }), 4);
        assert_eq!(status(Error::Held { height: Height(1) }), 5);
        assert_eq!(status(Error::Damaged { what: "row", detail: "short".into() }), 6);
        let wrapped: Result<(), _> = Err(failure(FailureKind::Busy, "in use"));
        let wrapped = wrapped.context("cannot roll back").unwrap_err();
        assert_eq!(
            outcome(&Err(wrapped)),
            Outcome::Failed { status: 5, message: "cannot roll back: in use".into() }
        );
    }

    #[test]
    fn the_help_lists_what_the_kinds_say() {
        for (kind, words) in [
            (FailureKind::Failed, "failed"),
            (FailureKind::Usage, "wrong usage"),
            (FailureKind::NoSuchHeight, "no such height"),
            (FailureKind::NotAStore, "not a tmfs data dir"),
            (FailureKind::Busy, "busy (open files, held, locked)"),
            (FailureKind::Damaged, "damaged data found"),
        ] {
            assert!(EXIT_STATUSES.contains(&format!("\n  {}  {words}", kind.exit_status())));
        }
    }
}
