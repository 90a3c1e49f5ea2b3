//! One session at a time for each group of a replica.
//!
//! A primary whose connection is half open dials again long before the replica notices (R12). The new session
//! then takes over, and the rules that make this safe are kept here:
//!
//! - Judging a hello and appending (jumps among it) happen in turns, so that the position in a welcome is not overtaken by
//!   a batch of an older session.
//! - A session that has been replaced appends nothing more, and no longer speaks for the state of the link.
//! - However long a sink blocks and however often a primary dials, one group holds up one thread at most.

use super::driver::{End, LinkState, Sink, Turn};
use super::tls::NodeName;
use engine::peer::{Batch, Hello, Jump, Needs, Rebuff, TakesBack, Welcome};
use engine::seeds::Thin;
use engine::types::GroupId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
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
    turn: Turn,
    owner: watch::Sender<u64>,
    /// Held while the state of the link is told, so that the end of an old session is not told after the
    /// beginning of the new one.
    telling: Mutex<()>,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { turn: Turn::default(), owner: watch::Sender::new(0), telling: Mutex::default() }
    }
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) name: NodeName,
    pub(super) address: SocketAddr,
}

/// What a session brings for the log.
#[derive(Debug)]
pub(super) enum Received {
    Batch(Batch),
    Thin(Thin),
    Jump(Jump),
}

/// How a welcome comes about: what the replica lacks, where it stands, and the session's right to append.
pub(super) type Opened<S> = (Needs, Welcome, Arc<Session<S>>);

/// How an append ended that did not succeed.
#[derive(Debug)]
pub(super) enum Refused {
    /// A newer session was welcomed: nothing was appended.
    Replaced,
    /// The sink's answer.
    Rebuff(Rebuff),
    /// A seed does not hold what this node said it holds.
    Seed(std::io::Error),
}

/// One session's right to append.
pub(super) struct Session<S: Sink> {
    gate: Arc<Gate>,
    sink: Arc<S>,
    peer: Peer,
    ticket: u64,
    group: GroupId,
    /// Whether the end of the session was told.
    ended: Mutex<bool>,
}

impl Gate {
    /// Lets the sink judge a hello; if it is welcomed, the session it opens replaces any other. A refused hello
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// [`End::OwnerGone`] if the sink panics.
    pub(super) async fn open<S: Sink>(
        self: Arc<Gate>,
        sink: Arc<S>,
        peer: Peer,
        hello: Hello,
        takes_back: Option<TakesBack>,
    ) -> Result<Result<Opened<S>, Rebuff>, End> {
        let turn = self.turn.clone();
        turn.run(move || {
            let (needs, welcome) = sink.hello(&peer.name, &hello, takes_back)?;
            let (group, ended) = (hello.group, Mutex::new(false));
            let telling = locked(&self.telling);
            let ticket = *self.owner.borrow() + 1;
            self.owner.send_replace(ticket);
            tracing::info!(peer = %peer.name, address = %peer.address, %group, "the link is up");
            sink.link_changed(&group, &peer.name, &LinkState::Streaming { address: peer.address });
            drop(telling);
            Ok((needs, welcome, Arc::new(Session { gate: self, sink, peer, ticket, group, ended })))
        })
        .await
    }
}

impl<S: Sink> Session<S> {
    /// Appends what was received, in order, until something is refused.
    ///
    /// # Errors
    ///
    /// [`End::OwnerGone`] if the sink panics.
    pub(super) async fn append(self: Arc<Self>, received: Vec<Received>) -> Result<Result<(), Refused>, End> {
        let turn = self.gate.turn.clone();
        turn.run(move || {
            for received in received {
                if !self.owns() {
                    return Err(Refused::Replaced);
                }
                let taken = match received {
                    Received::Batch(batch) => self.sink.append(&self.group, batch),
                    Received::Thin(thin) => {
                        let filled = thin.fill(|held| self.sink.read_seed(&self.group, held));
                        self.sink.append(&self.group, filled.map_err(Refused::Seed)?)
                    }
                    Received::Jump(jump) => self.sink.jump(&self.group, jump),
                };
                taken.map_err(Refused::Rebuff)?;
            }
            Ok(())
        })
        .await
    }

    /// The group that the session brings records for.
    pub(super) fn group(&self) -> GroupId {
        self.group
    }

    /// Waits until another session has taken over.
    pub(super) async fn replaced(&self) {
        let mut owner = self.gate.owner.subscribe();
        // The gate lives as long as this session.
        drop(owner.wait_for(|owner| *owner != self.ticket).await);
    }

    /// Tells that the session is over, once, if no other has taken its place.
    pub(super) fn end(&self, why: &str) {
        let _telling = locked(&self.gate.telling);
        if !std::mem::replace(&mut *locked(&self.ended), true) && self.owns() {
            tracing::info!(peer = %self.peer.name, group = %self.group, reason = why, "the link is down");
            let state = LinkState::Down { reason: why.to_owned() };
            self.sink.link_changed(&self.group, &self.peer.name, &state);
        }
    }

    fn owns(&self) -> bool {
        *self.gate.owner.borrow() == self.ticket
    }
}

impl<S: Sink> Drop for Session<S> {
    fn drop(&mut self) {
        self.end("the listener has stopped");
    }
}

/// The locks here guard no state that a panic could leave half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::driver::Standing;
    use super::*;
    use engine::log::chain::Tip;
    use engine::types::{Lsn, NodeId, Position};

    /// Welcomes all but the group named "no", and remembers what it is told.
    #[derive(Default)]
    struct Log {
        appended: Mutex<Vec<Lsn>>,
        ups: Mutex<Vec<bool>>,
    }

    impl Sink for Log {
        fn hello(
            &self,
            _peer: &NodeName,
            hello: &Hello,
            _takes_back: Option<TakesBack>,
        ) -> Result<(Needs, Welcome), Rebuff> {
            let welcome = Welcome { node: NodeId::default(), durable: hello.durable, horizon: Lsn::ZERO };
            match hello.name.as_str() {
                "no" => Err(Rebuff::NoSpace),
                _ => Ok((Needs::default(), welcome)),
            }
        }

        fn jump(&self, _group: &GroupId, jump: Jump) -> Result<(), Rebuff> {
            locked(&self.appended).push(jump.to.lsn);
            Ok(())
        }

        fn append(&self, _group: &GroupId, batch: Batch) -> Result<(), Rebuff> {
            assert_ne!(batch.first, Lsn(99), "a sink may panic");
            if batch.first == Lsn(13) {
                return Err(Rebuff::Failed);
            }
            locked(&self.appended).push(batch.first);
            Ok(())
        }

        fn standing(&self, _group: &GroupId) -> watch::Receiver<Standing> {
            watch::Sender::default().subscribe()
        }

        fn link_changed(&self, _group: &GroupId, _peer: &NodeName, state: &LinkState) {
            locked(&self.ups).push(matches!(state, LinkState::Streaming { .. }));
        }
    }

    async fn open(gates: &Gates, log: &Arc<Log>, name: &str) -> Result<Arc<Session<Log>>, Rebuff> {
        let hello = Hello {
            name: name.to_owned(),
            group: GroupId::default(),
            node: NodeId::default(),
            history: Vec::new(),
            durable: Position::default(),
            first: Lsn(1),
        };
        let peer = Peer {
            name: NodeName::new("east").expect("a name"),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
        };
        let opening = gates.of("orders").open(log.clone(), peer, hello, Some(TakesBack::No));
        opening.await.expect("no panic").map(|(_, _, session)| session)
    }

    fn batches(lsns: &[u64]) -> Vec<Received> {
        let batch = |lsn: &u64| Batch {
            first: Lsn(*lsn),
            last: Lsn(*lsn),
            bytes: vec![bytes::Bytes::from_static(b"x")],
        };
        lsns.iter().map(batch).map(Received::Batch).collect()
    }

    fn jump(to: u64) -> Vec<Received> {
        let to = Tip { lsn: Lsn(to), ..Tip::default() };
        vec![Received::Jump(Jump { from: Position::default(), to })]
    }

    /// R06, R12: a jump comes to the log in its place among the batches, and from the current session only.
    #[tokio::test]
    async fn a_jump_is_taken_in_its_turn() {
        let (log, gates) = (Arc::new(Log::default()), Gates::default());
        let old = open(&gates, &log, "orders").await.expect("a welcome");
        let new = open(&gates, &log, "orders").await.expect("a welcome");
        assert!(matches!(old.append(jump(70)).await, Ok(Err(Refused::Replaced))));
        let received = jump(80).into_iter().chain(batches(&[81])).collect();
        assert!(matches!(new.append(received).await, Ok(Ok(()))));
        assert_eq!(*locked(&log.appended), [80, 81].map(Lsn));
    }

    /// R12: after a takeover nothing of the old session is appended, even if it does not know yet.
    #[tokio::test]
    async fn the_session_welcomed_last_appends_alone() {
        let (log, gates) = (Arc::new(Log::default()), Gates::default());
        let old = open(&gates, &log, "orders").await.expect("a welcome");
        assert!(matches!(old.clone().append(batches(&[1, 2])).await, Ok(Ok(()))));
        // Refused by the log: the old session is not replaced.
        assert_eq!(open(&gates, &log, "no").await.err(), Some(Rebuff::NoSpace));
        assert!(matches!(old.clone().append(batches(&[3])).await, Ok(Ok(()))));
        let new = open(&gates, &log, "orders").await.expect("a welcome");
        old.replaced().await;
        assert!(matches!(old.append(batches(&[4])).await, Ok(Err(Refused::Replaced))));
        assert!(matches!(new.clone().append(batches(&[5])).await, Ok(Ok(()))));
        // Behind a refused batch nothing is appended.
        let refused = new.append(batches(&[6, 13, 14])).await;
        assert!(matches!(refused, Ok(Err(Refused::Rebuff(Rebuff::Failed)))));
        assert_eq!(*locked(&log.appended), [1, 2, 3, 5, 6].map(Lsn));
    }

    /// The end of a replaced session is no news about the link; that of the current one is, once.
    #[tokio::test]
    async fn the_last_word_about_the_link_is_the_current_sessions() {
        let (log, gates) = (Arc::new(Log::default()), Gates::default());
        let old = open(&gates, &log, "orders").await.expect("a welcome");
        let new = open(&gates, &log, "orders").await.expect("a welcome");
        old.end("replaced");
        drop(old);
        assert_eq!(*locked(&log.ups), [true, true]);
        new.end("lost");
        drop(new);
        assert_eq!(*locked(&log.ups), [true, true, false]);
        drop(open(&gates, &log, "orders").await.expect("a welcome"));
        assert_eq!(*locked(&log.ups), [true, true, false, true, false]);
    }

    /// A sink that panics ends the session that called it, and no other.
    #[tokio::test]
    async fn a_panic_stays_in_its_session() {
        let (log, gates) = (Arc::new(Log::default()), Gates::default());
        let first = open(&gates, &log, "orders").await.expect("a welcome");
        assert!(matches!(first.append(batches(&[99])).await, Err(End::OwnerGone)));
        let second = open(&gates, &log, "orders").await.expect("a welcome");
        assert!(matches!(second.append(batches(&[1])).await, Ok(Ok(()))));
    }
}
