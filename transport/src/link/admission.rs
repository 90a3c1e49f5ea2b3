//! Who gets in: which peer may send which group, and how many connections there may be.

use super::tls::{Credentials, NodeName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which node may be the primary of which group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants(BTreeSet<(NodeName, String)>);

impl Grants {
    /// Nobody may do anything.
    #[must_use]
    pub fn none() -> Grants {
        Grants::default()
    }

    /// As these, and `node` may send the group named `group`.
    #[must_use]
    pub fn and(mut self, node: &NodeName, group: &str) -> Grants {
        self.0.insert((node.clone(), group.to_owned()));
        self
    }

    /// Whether `node` may send the group named `group`.
    #[must_use]
    pub fn allows(&self, node: &NodeName, group: &str) -> bool {
        self.0.contains(&(node.clone(), group.to_owned()))
    }
}

/// Whom a listener believes, and what they may do. Replaced as a whole when certificates or configuration are
/// reloaded; every established session is then checked again.
#[derive(Clone, Debug)]
pub struct Trust {
    /// This node's identity and CA.
    pub credentials: Arc<Credentials>,
    /// The rights.
    pub grants: Grants,
}

/// What has happened at a listener since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connection attempts turned away by a limit.
    pub over_limit: u64,
    /// Handshakes that failed or took too long: strangers, mostly.
    pub handshakes_failed: u64,
    /// Hellos from a node without the right to the group.
    pub not_allowed: u64,
    /// Sessions that were welcomed.
    pub welcomed: u64,
    /// Sessions that a newer one replaced.
    pub replaced: u64,
    /// Sessions that ended because the peer broke the protocol.
    pub violations: u64,
}

/// [`Counts`] as they are counted.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) over_limit: AtomicU64,
    pub(super) handshakes_failed: AtomicU64,
    pub(super) not_allowed: AtomicU64,
    pub(super) welcomed: AtomicU64,
    pub(super) replaced: AtomicU64,
    pub(super) violations: AtomicU64,
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// The numbers of this moment.
    pub(super) fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            over_limit: read(&self.over_limit),
            handshakes_failed: read(&self.handshakes_failed),
            not_allowed: read(&self.not_allowed),
            welcomed: read(&self.welcomed),
            replaced: read(&self.replaced),
            violations: read(&self.violations),
        }
    }
}

/// Counts connections, in all and by address.
pub(super) struct Admission {
    max: usize,
    max_per_address: usize,
    admitted: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A place among the connections, given back when it is dropped.
pub(super) struct Permit {
    admission: Arc<Admission>,
    key: IpAddr,
}

impl Admission {
    pub(super) fn new(max: usize, max_per_address: usize) -> Admission {
        Admission { max, max_per_address, admitted: Mutex::default() }
    }

    /// A place for a connection from `address`, if there is one.
    pub(super) fn admit(self: &Arc<Admission>, address: IpAddr) -> Option<Permit> {
        let key = network(address);
        let mut admitted = self.admitted();
        let all: usize = admitted.values().sum();
        let here = admitted.get(&key).copied().unwrap_or_default();
        if all >= self.max || here >= self.max_per_address {
            return None;
        }
        admitted.insert(key, here + 1);
        Some(Permit { admission: self.clone(), key })
    }

    fn admitted(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut admitted = self.admission.admitted();
        match admitted.get_mut(&self.key) {
            Some(here) if *here > 1 => *here -= 1,
            _ => drop(admitted.remove(&self.key)),
        }
    }
}

/// What one address is counted under: who has one IPv6 address has the 2^64 around it, too.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_in_all_and_by_network() {
        let admission = Arc::new(Admission::new(4, 2));
        let admit = |address: &str| admission.admit(address.parse().expect("an address"));
        let first = admit("2001:db8::1");
        let second = admit("2001:db8::ffff:1");
        assert!(first.is_some() && second.is_some());
        assert!(admit("2001:db8::2").is_none(), "the same /64");
        let third = admit("::ffff:10.0.0.1");
        let fourth = admit("10.0.0.1");
        assert!(third.is_some() && fourth.is_some());
        assert!(admit("10.0.0.1").is_none(), "the same address in two spellings");
        assert!(admit("10.0.0.2").is_none(), "four in all");
        drop(first);
        let fifth = admit("2001:db8::3");
        assert!(fifth.is_some());
        drop((second, third, fourth, fifth));
        assert!(admission.admitted().is_empty(), "nothing is kept of who has left");
    }

    #[test]
    fn a_grant_is_for_one_node_and_one_group() {
        let [east, west] = ["east", "west"].map(|name| NodeName::new(name).expect("a name"));
        let grants = Grants::none().and(&east, "orders").and(&west, "mail");
        assert!(grants.allows(&east, "orders") && grants.allows(&west, "mail"));
        assert!(!grants.allows(&east, "mail") && !grants.allows(&west, "orders"));
        assert!(!grants.allows(&east, "") && !grants.allows(&east, "orders2"));
    }
}
