//! A relay for a link's datagrams: it counts them, and can drop them all.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often a thread looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// No datagram is longer.
const MAX_BYTES: usize = 65_536;

#[derive(Debug, Default)]
struct Shared {
    ends: AtomicBool,
    is_cut: AtomicBool,
    there: AtomicU64,
    back: AtomicU64,
}

/// Relays to one place, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    pub fn to(target: SocketAddr) -> Relay {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a port is free"));
        socket.set_read_timeout(Some(LOOK_EVERY)).expect("a timeout");
        let address = socket.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = thread::spawn(move || of_thread.relay(&socket, target));
        Relay { address, shared, thread: Some(thread) }
    }

    /// Drops everything, or no longer.
    pub fn cut(&self, is_cut: bool) {
        self.shared.is_cut.store(is_cut, Ordering::SeqCst);
    }

    /// Bytes of datagrams that were relayed so far, to the place and back.
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.there.load(Ordering::SeqCst), self.shared.back.load(Ordering::SeqCst))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Each caller gets a socket of its own towards the place, so that answers find their way.
    fn relay(self: &Arc<Shared>, socket: &Arc<UdpSocket>, target: SocketAddr) {
        let mut callers: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut threads = Vec::new();
        let mut datagram = vec![0; MAX_BYTES];
        while !self.ends.load(Ordering::SeqCst) {
            let Ok((len, caller)) = socket.recv_from(&mut datagram) else { continue };
            if self.is_cut.load(Ordering::SeqCst) {
                continue;
            }
            let there = callers.entry(caller).or_insert_with(|| {
                let there = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a port is free"));
                there.connect(target).expect("an address");
                there.set_read_timeout(Some(LOOK_EVERY)).expect("a timeout");
                let (of_thread, from, to) = (self.clone(), there.clone(), socket.clone());
                threads.push(thread::spawn(move || of_thread.answer(&from, &to, caller)));
                there
            });
            if there.send(&datagram[..len]).is_ok() {
                self.there.fetch_add(len as u64, Ordering::SeqCst);
            }
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn answer(&self, from: &UdpSocket, to: &UdpSocket, caller: SocketAddr) {
        let mut datagram = vec![0; MAX_BYTES];
        while !self.ends.load(Ordering::SeqCst) {
            let Ok(len) = from.recv(&mut datagram) else { continue };
            if !self.is_cut.load(Ordering::SeqCst) && to.send_to(&datagram[..len], caller).is_ok() {
                self.back.fetch_add(len as u64, Ordering::SeqCst);
            }
        }
    }
}
