//! What the link costs: CPU seconds per gigabyte on each side, at several packet sizes, over loopback.
//!
//! `cargo run --release -p transport --example link_cost [GIGABYTES]`. Primary and replica are processes of their
//! own; the logs at both ends do nothing (records come from one buffer and go nowhere), so that what is measured
//! is QUIC and the session alone.

#[path = "../tests/common/certs.rs"]
#[allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "the tests use more of it")]
mod certs;

use bytes::Bytes;
use certs::{Ca, Leaf, Validity, load, name};
use engine::peer::TakesBack;
use engine::peer::{Batch, Hello, Jump, Needs, Rebuff, Welcome};
use engine::types::{Checksum, Epoch, GroupId, Lsn, NodeId, Position, Reign};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use transport::link::dial::{self, Dialler, Target};
use transport::link::driver::{Fault, LinkState, Sink, Source, Standing};
use transport::link::quic;
use transport::link::sender::Want;
use transport::link::serve::{self, Grants, Listener, Trust};
use transport::link::tls::{Credentials, NodeName};

const RECORD: usize = 4096 + 80;
const MTUS: [u16; 5] = [1_452, 4_000, 8_952, 16_000, 65_527];

/// User and system time of this process so far, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = [11, 12].map(|at| fields[at].parse::<f64>().expect("a number")).iter().sum();
    ticks / 100.0
}

fn position(lsn: u64) -> Position {
    Position { epoch: Epoch(u64::from(lsn > 0)), lsn: Lsn(lsn), checksum: Checksum(0) }
}

struct Origin {
    buffer: Bytes,
    total: u64,
    durable: watch::Sender<Lsn>,
    acked: watch::Sender<u64>,
    up: watch::Sender<bool>,
}

impl Source for Origin {
    fn hello(&self) -> Option<Hello> {
        Some(Hello {
            name: "cost".into(),
            group: GroupId([1; 16]),
            node: NodeId([1; 16]),
            history: vec![Reign { epoch: Epoch(1), branch: Position::default(), node: NodeId([1; 16]) }],
            durable: position(self.durable.borrow().0),
            first: Lsn(1),
        })
    }

    fn attach(
        &self,
        _peer: &NodeName,
        _welcome: &Welcome,
        _needs: Option<&Needs>,
    ) -> Result<Option<Jump>, Fault> {
        Ok(None)
    }

    fn durable(&self) -> watch::Receiver<Lsn> {
        self.durable.subscribe()
    }

    fn read_cached(&self, want: Want) -> Result<Option<Batch>, Fault> {
        let count = ((want.max_bytes / RECORD) as u64).clamp(1, self.total - want.from.0 + 1);
        let bytes = vec![self.buffer.slice(..count as usize * RECORD)];
        Ok(Some(Batch { first: want.from, last: Lsn(want.from.0 + count - 1), bytes }))
    }

    fn read(&self, _want: Want) -> Result<Batch, Fault> {
        Err(Fault::Retired)
    }

    fn acked(&self, _peer: &NodeName, durable: Position) -> Result<(), Fault> {
        self.acked.send_replace(durable.lsn.0);
        Ok(())
    }

    fn rebuffed(&self, _peer: &NodeName, rebuff: &Rebuff) {
        eprintln!("{rebuff}");
    }

    fn link_changed(&self, _peer: &NodeName, state: &LinkState) {
        self.up.send_replace(matches!(state, LinkState::Streaming { .. }));
    }
}

#[derive(Default)]
struct Copy {
    standing: watch::Sender<Standing>,
}

impl Sink for Copy {
    fn hello(
        &self,
        _peer: &NodeName,
        _hello: &Hello,
        _takes_back: Option<TakesBack>,
    ) -> Result<(Needs, Welcome), Rebuff> {
        let durable = self.standing.borrow().durable;
        Ok((Needs::default(), Welcome { node: NodeId([2; 16]), durable, horizon: Lsn(0) }))
    }

    fn jump(&self, _group: &GroupId, _jump: Jump) -> Result<(), Rebuff> {
        Err(Rebuff::Failed)
    }

    fn append(&self, _group: &GroupId, batch: Batch) -> Result<(), Rebuff> {
        self.standing.send_modify(|standing| standing.durable = position(batch.last.0));
        Ok(())
    }

    fn standing(&self, _group: &GroupId) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }
}

fn quic_config(mtu: u16) -> quic::Config {
    quic::Config { max_mtu: mtu, ..quic::Config::default() }
}

/// The replica's process: its identity comes on stdin; it prints its address, and its CPU time when stdin ends.
async fn replica(mtu: u16) {
    let mut input = BufReader::new(std::io::stdin());
    let mut part = || {
        let mut text = String::new();
        while !text.ends_with("\n.\n") {
            if input.read_line(&mut text).expect("a pipe") == 0 {
                break;
            }
        }
        text.trim_end_matches(".\n").to_owned()
    };
    let (ca, chain, key) = (part(), part(), part());
    let credentials = load(&ca, &Leaf { chain, key }, "").expect("good credentials");
    let trust = watch::Sender::new(Arc::new(Trust {
        credentials,
        grants: Grants::none().and(&name("east"), "cost"),
    }));
    let config = serve::Config { quic: quic_config(mtu), ..serve::Config::default() };
    let endpoint = quic::bind("127.0.0.1:0".parse().expect("an address"), &config.quic).expect("a socket");
    println!("{}", endpoint.local_addr().expect("bound"));
    let listener =
        Listener::new(endpoint, Arc::new(Copy::default()), trust.subscribe(), config).expect("usable");
    tokio::spawn(listener.run());
    let before = cpu_seconds();
    tokio::task::spawn_blocking(move || input.read_to_string(&mut String::new()))
        .await
        .expect("runs")
        .expect("a pipe");
    println!("{}", cpu_seconds() - before);
}

/// Sends `total` records and reports.
async fn primary(mtu: u16, total: u64, ca: &Ca, east: Arc<Credentials>) {
    let west = ca.issue("west", 2, Validity::Now);
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["replica", &mtu.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut stdin = child.stdin.take().expect("piped");
    for part in [&ca.pem, &west.chain, &west.key] {
        writeln!(stdin, "{part}.").expect("a pipe");
    }
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a pipe");
    let address: SocketAddr = line.trim().parse().expect("an address");
    let origin = Arc::new(Origin {
        buffer: Bytes::from(vec![0xA5; 1 << 20]),
        total,
        durable: watch::Sender::new(Lsn(0)),
        acked: watch::Sender::new(0),
        up: watch::Sender::new(false),
    });
    let config = dial::Config { quic: quic_config(mtu), ..dial::Config::default() };
    let credentials = watch::Sender::new(east);
    let dialler = Dialler {
        endpoint: quic::bind("127.0.0.1:0".parse().expect("an address"), &config.quic).expect("a socket"),
        credentials: credentials.subscribe(),
        source: origin.clone(),
        target: Target { node: name("west"), address: address.to_string() },
        config,
        seed: 1,
    };
    let (mut up, mut acked) = (origin.up.subscribe(), origin.acked.subscribe());
    let task = tokio::spawn(async move { match dialler.run().await {} });
    up.wait_for(|up| *up).await.expect("the sender lives");
    let (start, before) = (Instant::now(), cpu_seconds());
    origin.durable.send_replace(Lsn(total));
    acked.wait_for(|acked| *acked == total).await.expect("the sender lives");
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
    drop(stdin);
    line.clear();
    stdout.read_line(&mut line).expect("a pipe");
    let there: f64 = line.trim().parse().expect("a number");
    task.abort();
    child.wait().expect("ends");
    let gigabytes = (total * RECORD as u64) as f64 / 1e9;
    println!(
        "{mtu:>6}  {:>9.0}  {:>14.2}  {:>14.2}",
        gigabytes * 1e3 / wall,
        cpu / gigabytes,
        there / gigabytes
    );
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, mtu] = &arguments[..]
        && role == "replica"
    {
        return runtime.block_on(replica(mtu.parse().expect("a number")));
    }
    let gigabytes: f64 = arguments.first().map_or(1.0, |text| text.parse().expect("a number of gigabytes"));
    let total = (gigabytes * 1e9) as u64 / RECORD as u64;
    let ca = Ca::new();
    let east = ca.node("east");
    println!("   MTU       MB/s   primary s/GB   replica s/GB");
    for mtu in MTUS {
        runtime.block_on(primary(mtu, total, &ca, east.clone()));
    }
}
