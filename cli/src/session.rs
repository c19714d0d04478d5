//! Somebody who answers for a data dir: the daemon of its mount, or the store itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapstore::backend::Backend;
use snapstore::control::client::Client;
use snapstore::control::offline::Offline;
use snapstore::control::{Reply, Request, Verbs};
use snapstore::progress::Progress;
use snapstore::store;

use crate::extras;
use crate::failure::failure;
use crate::output;
use crate::progress::Bar;
use crate::target::{self, State};

/// A data dir and who answers for it.
pub struct Session {
    /// The data dir: absolute, without symlinks.
    pub data_dir: PathBuf,
    reach: Reach,
}

enum Reach {
    Mounted(Client),
    Offline {
        verbs: Offline,
        backend: Arc<dyn Backend>,
        /// Why it is not known what a rollback is to carry over.
        unknown: Option<anyhow::Error>,
    },
}

impl Session {
    /// Finds the data dir that is meant, and whoever answers for it.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Session> {
        let data_dir = target::data_dir(path)?;
        let reach = match target::state(&data_dir, None)? {
            State::Mounted(client) => Reach::Mounted(client),
            State::Dead => return Err(target::dead(&data_dir)),
            State::Plain => return Err(target::plain(&data_dir)),
            State::Adopted(located) => {
                let (backend, recovery) = store::open(&located.store, &store::OpenOptions::default())?;
                output::tell_recovery(&recovery);
                let (preserve, unknown) = match extras::saved_preserve(&located.store) {
                    Ok(preserve) => (preserve, None),
                    Err(error) => (Vec::new(), Some(error)),
                };
                let verbs = Offline::new(backend.clone(), located);
                let verbs = verbs.preserving(preserve).telling(Box::new(Bar::default()));
                Reach::Offline { verbs, backend, unknown }
            }
        };
        Ok(Session { data_dir, reach })
    }

    /// Asks one thing and is done. A store that was opened for it is closed, whatever the answer.
    pub fn ask(mut self, request: Request) -> anyhow::Result<Reply> {
        if let Request::Rollback { only: false, .. } | Request::UndoRollback { only: false, .. } = &request
            && let Reach::Offline { unknown, .. } = &mut self.reach
            && let Some(error) = unknown.take()
        {
            self.close()?;
            return Err(error);
        }
        match &self.reach {
            Reach::Mounted(client) => Ok(client.ask(&request)?),
            Reach::Offline { verbs, .. } => {
                let answer = verbs.call(request);
                let closed = self.close();
                let reply = answer?;
                closed?;
                Ok(reply)
            }
        }
    }

    /// Asks for something long, with a bar for whoever waits. A daemon is asked how far it is.
    pub fn ask_with_bar(self, request: Request) -> anyhow::Result<Reply> {
        let Reach::Mounted(client) = &self.reach else { return self.ask(request) };
        let bar = Bar::default();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| client.ask(&request));
            let mut shown = 0;
            while !asked.is_finished() {
                std::thread::sleep(std::time::Duration::from_millis(100));
                if let Ok(Reply::Status(status)) = client.ask(&Request::Status)
                    && let Some(now) = status.verifying
                {
                    if shown == 0 || now.done < shown {
                        bar.step("reading", Some(now.total));
                        shown = 0;
                    }
                    bar.advance(now.done - shown);
                    shown = now.done;
                }
            }
            Ok(asked.join().expect("asking does not panic")?)
        })
    }

    /// Is done without asking.
    pub fn close(self) -> anyhow::Result<()> {
        match self.reach {
            Reach::Mounted(_) => Ok(()),
            Reach::Offline { backend, .. } => Ok(backend.close()?),
        }
    }
}

/// What to say when a reply does not fit the request.
pub fn unexpected() -> anyhow::Error {
    let error = snapstore::control::client::ClientError::Unexpected;
    failure(error.kind(), error.to_string())
}
