//! One session at a time for each group of a replica.
//!
//! A primary whose connection is half open dials again long before the replica notices (R12). The new session
//! then takes over, and the rule that makes this safe is kept here: judging a hello and appending a batch happen
//! under one lock, so that the position in a welcome cannot be overtaken by a batch of an older session.

use super::driver::Sink;
use super::tls::NodeName;
use engine::peer::{Batch, Hello, Rebuff, Welcome};
use engine::types::GroupId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The gates of all groups, by name. A name gets in only after it was checked against the grants, so there are
/// no more of them than the configuration has groups.
#[derive(Default)]
pub(super) struct Gates(Mutex<BTreeMap<String, Arc<Gate>>>);

impl Gates {
    /// The gate of the group of that name.
    pub(super) fn of(&self, name: &str) -> Arc<Gate> {
        locked(&self.0).entry(name.to_owned()).or_default().clone()
    }
}

/// Who may append to one group: the session that was welcomed last.
pub(super) struct Gate {
    lock: Mutex<()>,
    owner: watch::Sender<u64>,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { lock: Mutex::new(()), owner: watch::Sender::new(0) }
    }
}

/// How an append ended that did not succeed.
pub(super) enum Refused {
    /// A newer session was welcomed: nothing was appended.
    Replaced,
    /// The sink's answer.
    Rebuff(Rebuff),
}

/// One session's right to append.
pub(super) struct Session {
    gate: Arc<Gate>,
    ticket: u64,
    group: GroupId,
    /// Changes when another session takes over.
    owner: watch::Receiver<u64>,
}

impl Gate {
    /// Lets the sink judge a hello; if it is welcomed, the session it opens replaces any other. A refused hello
    /// changes nothing. (Blocking.)
    pub(super) fn open<S: Sink>(
        self: &Arc<Gate>,
        sink: &S,
        peer: &NodeName,
        hello: &Hello,
    ) -> Result<(Welcome, Session), Rebuff> {
        let _exclusive = locked(&self.lock);
        let welcome = sink.hello(peer, hello)?;
        let ticket = *self.owner.borrow() + 1;
        self.owner.send_replace(ticket);
        let mut owner = self.owner.subscribe();
        owner.mark_unchanged();
        Ok((welcome, Session { gate: self.clone(), ticket, group: hello.group, owner }))
    }
}

impl Session {
    /// Appends the batches in order, until one is refused. (Blocking.)
    pub(super) fn append<S: Sink>(&self, sink: &S, batches: Vec<Batch>) -> Result<(), Refused> {
        for batch in batches {
            let _exclusive = locked(&self.gate.lock);
            if *self.gate.owner.borrow() != self.ticket {
                return Err(Refused::Replaced);
            }
            sink.append(&self.group, batch).map_err(Refused::Rebuff)?;
        }
        Ok(())
    }

    /// The group that the session brings records for.
    pub(super) fn group(&self) -> GroupId {
        self.group
    }

    /// Tells when another session has taken over.
    pub(super) fn takeover(&self) -> watch::Receiver<u64> {
        self.owner.clone()
    }
}

/// The lock guards no data of its own, so a sink's panic in another session leaves nothing half done here: the
/// sink has to stand it, and this session finds out by calling it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
