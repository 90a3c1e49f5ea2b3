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

#[cfg(test)]
mod tests {
    use super::super::driver::Standing;
    use super::*;
    use engine::types::{Lsn, NodeId, Position};

    /// Welcomes all but the group named "no", and counts what is appended.
    #[derive(Default)]
    struct Log(Mutex<Vec<Lsn>>);

    impl Sink for Log {
        fn hello(&self, _peer: &NodeName, hello: &Hello) -> Result<Welcome, Rebuff> {
            match hello.name.as_str() {
                "no" => Err(Rebuff::NoSpace),
                _ => Ok(Welcome { node: NodeId::default(), durable: hello.durable, horizon: Lsn::ZERO }),
            }
        }

        fn append(&self, _group: &GroupId, batch: Batch) -> Result<(), Rebuff> {
            if batch.first == Lsn(13) {
                return Err(Rebuff::Failed);
            }
            locked(&self.0).push(batch.first);
            Ok(())
        }

        fn standing(&self, _group: &GroupId) -> watch::Receiver<Standing> {
            watch::Sender::default().subscribe()
        }
    }

    fn hello(name: &str) -> Hello {
        Hello {
            name: name.to_owned(),
            group: GroupId::default(),
            node: NodeId::default(),
            history: Vec::new(),
            durable: Position::default(),
            first: Lsn(1),
        }
    }

    fn batch(lsn: u64) -> Batch {
        Batch { first: Lsn(lsn), last: Lsn(lsn), bytes: vec![bytes::Bytes::from_static(b"x")] }
    }

    /// R12: after a takeover nothing of the old session is appended, even if it does not know yet.
    #[test]
    fn the_session_welcomed_last_appends_alone() {
        let (log, gates) = (Log::default(), Gates::default());
        let peer = NodeName::new("east").expect("a name");
        let open = |name: &str| gates.of("orders").open(&log, &peer, &hello(name));
        let Ok((_, old)) = open("orders") else { panic!("welcome") };
        assert!(old.append(&log, vec![batch(1), batch(2)]).is_ok());
        // Refused, by the log: the old session is not replaced.
        assert!(matches!(open("no"), Err(Rebuff::NoSpace)));
        assert!(!old.takeover().has_changed().expect("the gate is there"));
        assert!(old.append(&log, vec![batch(3)]).is_ok());
        let Ok((_, new)) = open("orders") else { panic!("welcome") };
        assert!(old.takeover().has_changed().expect("the gate is there"));
        assert!(!new.takeover().has_changed().expect("the gate is there"));
        assert!(matches!(old.append(&log, vec![batch(4)]), Err(Refused::Replaced)));
        assert!(new.append(&log, vec![batch(5)]).is_ok());
        // Behind a refused batch nothing is appended.
        let refused = new.append(&log, vec![batch(6), batch(13), batch(14)]);
        assert!(matches!(refused, Err(Refused::Rebuff(Rebuff::Failed))));
        assert_eq!(*locked(&log.0), [1, 2, 3, 5, 6].map(Lsn));
    }
}
