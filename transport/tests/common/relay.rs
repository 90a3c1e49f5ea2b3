//! A network between two nodes: a UDP relay on loopback that delays, loses, duplicates, cuts and rebinds.
//!
//! Faults are data, changed at any time from the test; healing is setting them back to the default.

use super::Rng;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What the network does to the packets of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Nothing gets through.
    pub cut: bool,
    /// Packets are kept, and released in order when this is set back.
    pub hold: bool,
    /// Of 1,000 packets, this many are lost.
    pub loss: u64,
    /// Of 1,000 packets, this many come twice.
    pub duplicate: u64,
    /// How long each packet takes.
    pub delay_ms: u64,
    /// And up to this much longer, at random: packets overtake each other.
    pub jitter_ms: u64,
    /// Longer packets are lost without a word (an MTU black hole).
    pub max_bytes: Option<usize>,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever dialled the relay to the target.
    There = 0,
    /// From the target.
    Back = 1,
}

/// The relay. It ends when this is dropped.
pub struct Relay {
    /// Dial this instead of the target.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    faults: Mutex<[Faults; 2]>,
    rebinds: Mutex<u64>,
    target: SocketAddr,
    longest: Mutex<[usize; 2]>,
}

impl Relay {
    /// A perfect network to `target`.
    pub async fn to(target: SocketAddr, seed: u64) -> Relay {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a socket"));
        let address = socket.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            faults: Mutex::default(),
            rebinds: Mutex::default(),
            target,
            longest: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(socket, shared.clone(), Rng(seed)));
        Relay { address, shared, _tasks: tasks }
    }

    /// Sets the faults of one direction.
    pub fn set(&self, way: Way, faults: Faults) {
        self.shared.faults.lock().expect("no panic inside")[way as usize] = faults;
    }

    /// Sets the faults of both directions.
    pub fn set_both(&self, faults: Faults) {
        self.set(Way::There, faults);
        self.set(Way::Back, faults);
    }

    /// From now on the target sees another source port, as when a NAT has forgotten a mapping.
    pub fn rebind(&self) {
        *self.shared.rebinds.lock().expect("no panic inside") += 1;
    }

    /// The longest packet that got through so far, in bytes.
    pub fn longest(&self, way: Way) -> usize {
        self.shared.longest.lock().expect("no panic inside")[way as usize]
    }
}

/// The way of one dialler to the target.
struct Upstream {
    /// [`Relay::rebind`] calls before it was made.
    rebinds: u64,
    there: mpsc::UnboundedSender<Vec<u8>>,
    _tasks: JoinSet<()>,
}

/// Takes what diallers send; each has an upstream socket of its own.
async fn listen(socket: Arc<UdpSocket>, shared: Arc<Shared>, mut rng: Rng) {
    let mut upstream: BTreeMap<SocketAddr, Upstream> = BTreeMap::new();
    let mut packet = vec![0; 65_536];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut packet).await else { continue };
        let rebinds = *shared.rebinds.lock().expect("no panic inside");
        if upstream.get(&from).is_none_or(|upstream| upstream.rebinds != rebinds) {
            let out = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a socket"));
            let mut tasks = JoinSet::new();
            let there = lane(out.clone(), shared.target, Way::There, shared.clone(), rng.next(), &mut tasks);
            let back = lane(socket.clone(), from, Way::Back, shared.clone(), rng.next(), &mut tasks);
            tasks.spawn(async move {
                let mut packet = vec![0; 65_536];
                loop {
                    // A refused port (nobody listens at the target) is reported here; a network says nothing.
                    let Ok((len, _)) = out.recv_from(&mut packet).await else { continue };
                    drop(back.send(packet[..len].to_vec()));
                }
            });
            upstream.insert(from, Upstream { rebinds, there, _tasks: tasks });
        }
        drop(upstream[&from].there.send(packet[..len].to_vec()));
    }
}

/// One direction of one pair: applies the faults of the moment.
fn lane(
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    way: Way,
    shared: Arc<Shared>,
    seed: u64,
    tasks: &mut JoinSet<()>,
) -> mpsc::UnboundedSender<Vec<u8>> {
    let (sender, mut receiver) = mpsc::unbounded_channel::<Vec<u8>>();
    let mut rng = Rng(seed);
    tasks.spawn(async move {
        let mut due: BTreeMap<(Instant, u64), Vec<u8>> = BTreeMap::new();
        let mut serial = 0;
        let faults = |shared: &Shared| shared.faults.lock().expect("no panic inside")[way as usize];
        loop {
            let next = due.first_key_value().map(|((at, _), _)| *at);
            let wait = next.unwrap_or_else(|| Instant::now() + Duration::from_millis(20));
            tokio::select! {
                packet = receiver.recv() => {
                    let Some(packet) = packet else { return };
                    let now = faults(&shared);
                    let too_long = now.max_bytes.is_some_and(|max| packet.len() > max);
                    if now.cut || too_long || rng.below(1_000) < now.loss {
                        continue;
                    }
                    let copies = 1 + usize::from(rng.below(1_000) < now.duplicate);
                    for _ in 0..copies {
                        let delay = now.delay_ms + rng.below(now.jitter_ms + 1);
                        serial += 1;
                        due.insert((Instant::now() + Duration::from_millis(delay), serial), packet.clone());
                    }
                }
                () = tokio::time::sleep_until(wait) => {}
            }
            if faults(&shared).hold {
                // What is due waits; look again in a moment.
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            while let Some(entry) = due.first_entry()
                && entry.key().0 <= Instant::now()
            {
                let packet = entry.remove();
                if socket.send_to(&packet, to).await.is_ok() {
                    let longest = &mut shared.longest.lock().expect("no panic inside")[way as usize];
                    *longest = packet.len().max(*longest);
                }
            }
        }
    });
    sender
}
