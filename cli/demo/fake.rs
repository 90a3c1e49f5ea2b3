//! The demo against two made-up nodes in this process: that it passes when all is well, and that it notices each
//! way in which a recovery point can be wrong.
//!
//! The nodes speak the real control API and real NBD; behind them is one vector of writes. "Replication" is that
//! the second node sees all but the newest few of them.

use super::nodes::{Launcher, Process};
use super::{Options, play};
use crate::config::Config;
use crate::control::api::*;
use crate::control::{Operator, Server as ControlServer};
use crate::exit::Failure;
use crate::point::{BranchId, Point, Which};
use crate::scratch::Scratch;
use crate::time;
use bytes::Bytes;
use engine::guest::{Completion, Op, Piece, Refusal, Reply, Request};
use engine::types::{Epoch, Extent, Lsn, Timestamp};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use transport::block::{Catalog, Export, Later, Shape};
use transport::nbd;

/// Records that the replica does not have when its primary dies.
const LAG: usize = 7;

/// What is wrong with the second node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sabotage {
    Nothing,
    /// A write in the middle is missing.
    LosesOne,
    /// The newest write is there by halves.
    TearsLast,
    /// Two writes to the same place are swapped.
    Swaps,
    /// A byte differs.
    FlipsBit,
    /// One volume is older than the other.
    Skews,
    /// Points show one write less than they should.
    PointsLate,
    /// Points show one write more than they should.
    PointsEarly,
    /// What is written after the failover shows up in older points.
    PointsChange,
    /// The promoted volumes forget what is written to them.
    Forgets,
}

struct Record {
    time: Timestamp,
    /// `None`: a flush.
    write: Option<(String, u64, Bytes)>,
}

/// Both nodes.
struct World {
    sabotage: Sabotage,
    sizes: Mutex<BTreeMap<String, u64>>,
    log: Mutex<Vec<Record>>,
    /// Written after the failover.
    after: Mutex<Vec<(String, u64, Bytes)>>,
}

impl World {
    fn at(&self, lsn: usize) -> At {
        let log = self.log.lock().unwrap();
        At { lsn: Lsn(lsn as u64), time: Moment(log[lsn - 1].time) }
    }

    fn replicated(&self) -> usize {
        self.log.lock().unwrap().len() - LAG
    }

    /// A volume after the first `lsn` records.
    fn image(&self, volume: &str, lsn: usize, is_point: bool) -> Vec<u8> {
        let log = self.log.lock().unwrap();
        let mut end = lsn;
        match self.sabotage {
            Sabotage::PointsLate if is_point => {
                end = log[..lsn - 1].iter().rposition(|record| record.write.is_some()).unwrap();
            }
            Sabotage::PointsEarly if is_point => {
                end = lsn + 1 + log[lsn..].iter().position(|record| record.write.is_some()).unwrap_or(0);
            }
            Sabotage::Skews if volume == "files" && !is_point => end -= 3_000,
            _ => {}
        }
        let mut writes: Vec<(u64, Bytes)> = log[..end.min(log.len())]
            .iter()
            .filter_map(|record| record.write.clone())
            .filter(|(name, ..)| name == volume)
            .map(|(_, offset, data)| (offset, data))
            .collect();
        let last = writes.len().saturating_sub(1);
        match self.sabotage {
            Sabotage::LosesOne if volume == "journal" && !is_point => {
                let at = shown(&writes, |_| true);
                writes.remove(at);
            }
            Sabotage::TearsLast if volume == "journal" && !is_point => {
                let half = writes[last].1.len() / 2;
                writes[last].1.truncate(half);
            }
            Sabotage::Swaps if volume == "journal" && !is_point => {
                let later = shown(&writes, |at| writes[..at].iter().any(|write| write.0 == writes[at].0));
                let earlier = writes[..later].iter().rposition(|write| write.0 == writes[later].0).unwrap();
                let swapped = writes[later].1.clone();
                writes[later].1 = writes[earlier].1.clone();
                writes[earlier].1 = swapped;
            }
            _ => {}
        }
        if is_point && self.sabotage == Sabotage::PointsChange {
            let after = self.after.lock().unwrap();
            writes.extend(
                after.iter().filter(|write| write.0 == volume).map(|write| (write.1, write.2.clone())),
            );
        }
        let mut image = vec![0; usize::try_from(self.sizes.lock().unwrap()[volume]).unwrap()];
        for (offset, data) in writes {
            let start = usize::try_from(offset).unwrap();
            image[start..start + data.len()].copy_from_slice(&data);
        }
        if self.sabotage == Sabotage::FlipsBit && volume == "image" {
            image[1_000] ^= 1;
        }
        image
    }

    fn disks(self: &Arc<Self>, lsn: usize, is_point: bool) -> Arc<Disks> {
        let sizes = self.sizes.lock().unwrap().clone();
        let disk = |name: &String| {
            let image = Mutex::new(self.image(name, lsn, is_point));
            let kind = if is_point { Kind::Point } else { Kind::Promoted };
            (
                format!("demo/{name}"),
                Arc::new(Disk { name: name.clone(), image, kind, world: Arc::clone(self) }),
            )
        };
        Arc::new(Disks(sizes.keys().map(disk).collect()))
    }

    fn volumes(&self) -> Vec<Volume> {
        let sizes = self.sizes.lock().unwrap();
        let volume = |(name, size): (&String, &u64)| Volume {
            name: name.clone(),
            size_bytes: *size,
            export: Some(format!("demo/{name}")),
            connections: 0,
            seed: None,
        };
        sizes.iter().map(volume).collect()
    }
}

/// A write, not among the newest, that is not overwritten later: its absence shows.
fn shown(writes: &[(u64, Bytes)], wanted: impl Fn(usize) -> bool) -> usize {
    let shows = |at: &usize| writes[at + 1..].iter().all(|later| later.0 != writes[*at].0);
    (0..writes.len() - 40).rev().find(|at| shows(at) && wanted(*at)).expect("some write is not overwritten")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Primary,
    Promoted,
    Point,
}

struct Disk {
    name: String,
    image: Mutex<Vec<u8>>,
    kind: Kind,
    world: Arc<World>,
}

impl Disk {
    fn carry_out(&self, op: Op) -> Result<Reply, Refusal> {
        let mut image = self.image.lock().unwrap();
        match op {
            Op::Read(Extent { offset, len }) => {
                let start = usize::try_from(offset).unwrap();
                let bytes = Bytes::copy_from_slice(&image[start..start + usize::try_from(len).unwrap()]);
                Ok(Reply::Data(vec![Piece::Bytes(bytes)]))
            }
            Op::Write { .. } if self.kind == Kind::Point => Err(Refusal::ReadOnly),
            Op::Write { offset, data } => {
                let start = usize::try_from(offset).unwrap();
                let write = (self.name.clone(), offset, data.clone());
                if self.kind == Kind::Primary {
                    self.world.log.lock().unwrap().push(Record { time: time::now(), write: Some(write) });
                } else {
                    self.world.after.lock().unwrap().push(write);
                }
                if self.kind == Kind::Primary || self.world.sabotage != Sabotage::Forgets {
                    image[start..start + data.len()].copy_from_slice(&data);
                }
                Ok(Reply::Done)
            }
            Op::Flush => {
                if self.kind == Kind::Primary {
                    self.world.log.lock().unwrap().push(Record { time: time::now(), write: None });
                }
                Ok(Reply::Done)
            }
            _ => Err(Refusal::Invalid),
        }
    }
}

impl Export for Disk {
    fn shape(&self) -> Shape {
        let size = self.image.lock().unwrap().len() as u64;
        Shape { size, read_only: self.kind == Kind::Point, description: String::new() }
    }

    fn submit(&self, requests: &mut Vec<Request>, ready: &mut Vec<Completion>, _later: &Arc<dyn Later>) {
        let answer =
            |request: Request| Completion { cookie: request.cookie, result: self.carry_out(request.op) };
        ready.extend(requests.drain(..).map(answer));
    }
}

struct Disks(BTreeMap<String, Arc<Disk>>);

impl Catalog for Disks {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Export>> {
        Some(Arc::clone(self.0.get(name)?) as Arc<dyn Export>)
    }
}

fn serve(disks: Arc<Disks>, socket: &Path) -> nbd::Server {
    let server = nbd::Server::new(disks, nbd::Config::default());
    server.bind_unix(socket, nbd::Tls::Off).unwrap();
    server
}

/// One of the nodes.
struct FakeNode {
    world: Arc<World>,
    role: Role,
    name: String,
    dir: PathBuf,
    servers: Mutex<BTreeMap<u64, nbd::Server>>,
}

impl Operator for FakeNode {
    fn status(&self) -> Result<Status, Fault> {
        let link = Link { state: LinkState::Connected, since: None, rtt_us: None, reason: None };
        let replica = Replica {
            name: "west".to_owned(),
            address: String::new(),
            link,
            durable: None,
            lag: Stretch::default(),
            catching_up: None,
            alarms: Vec::new(),
        };
        let appended = Lsn(self.world.log.lock().unwrap().len() as u64);
        let group = Group {
            name: "demo".to_owned(),
            id: None,
            role: self.role,
            state: State::Serving,
            epoch: Epoch(1),
            positions: Positions { appended, ..Positions::default() },
            replicas: vec![replica],
            primary: None,
            volumes: self.world.volumes(),
            log: Log::default(),
            window: None,
            uncommitted: None,
            takes_back: false,
            round: None,
            verified: None,
            at_rest: AtRest::default(),
            checks: None,
            alarms: Vec::new(),
        };
        let node = Node {
            name: self.name.clone(),
            id: String::new(),
            version: String::new(),
            pid: 1,
            since: Moment(time::now()),
            listen: Some("127.0.0.1:10900".parse().unwrap()),
            nbd: vec![Endpoint::Unix(self.dir.join("nbd.sock"))],
        };
        Ok(Status { node, groups: vec![group], mounts: Vec::new() })
    }

    fn points(&self, _request: &PointsRequest) -> Result<Points, Fault> {
        Err(Fault::new(FaultCode::Refused, "not asked by the demo"))
    }

    fn mount(&self, request: &MountRequest) -> Result<Mount, Fault> {
        let lsn = match request.at.which {
            Which::Lsn(lsn) => usize::try_from(lsn.0).unwrap(),
            Which::Latest => self.world.replicated(),
            Which::Mark(_) | Which::LatestApp => unreachable!("the demo does not mark"),
            Which::Time(at) => {
                self.world.log.lock().unwrap().iter().rposition(|record| record.time <= at).unwrap() + 1
            }
        };
        let mut servers = self.servers.lock().unwrap();
        let id = servers.last_key_value().unwrap().0 + 1;
        let socket = self.dir.join(format!("mount-{id}.sock"));
        servers.insert(id, serve(self.world.disks(lsn, true), &socket));
        Ok(Mount {
            mount: MountId(id),
            group: request.group.clone(),
            at: self.world.at(lsn),
            branch: None,
            endpoint: Endpoint::Unix(socket),
            volumes: self.world.volumes(),
            scratch: None,
            drill: None,
            pin: None,
            mark: None,
        })
    }

    fn unmount(&self, mount: MountId) -> Result<(), Fault> {
        let server = self.servers.lock().unwrap().remove(&mount.0);
        server.map(drop).ok_or_else(|| Fault::new(FaultCode::NotFound, "no such mount"))
    }

    fn plan_failover(&self, group: &str, _to: Point) -> Result<Plan, Fault> {
        let to = self.world.at(self.world.replicated());
        Ok(Plan {
            group: group.to_owned(),
            role: self.role,
            to,
            branch: None,
            mark: None,
            from: None,
            latest: to,
            epoch: Epoch(2),
            set_aside: Stretch::default(),
            not_received: Stretch::default(),
            last_contact: None,
            warnings: Vec::new(),
        })
    }

    fn handover(&self, _group: &str) -> Result<Promotion, Fault> {
        Err(Fault::new(FaultCode::Refused, "the demo's primary is killed, not asked"))
    }

    fn commit(&self, _group: &str) -> Result<Committed, Fault> {
        Ok(Committed { at: None })
    }

    fn reprotect(&self, _group: &str) -> Result<Reprotected, Fault> {
        Err(Fault::new(FaultCode::Refused, "there is nothing to take back"))
    }

    fn branches(&self, _group: &str) -> Result<Vec<Branch>, Fault> {
        Ok(Vec::new())
    }

    fn drop_branch(&self, _group: &str, _branch: BranchId) -> Result<(), Fault> {
        Err(Fault::new(FaultCode::NotFound, "there is no such branch"))
    }

    fn loss(&self, _group: &str) -> Result<Loss, Fault> {
        Err(Fault::new(FaultCode::Refused, "nothing was lost"))
    }

    fn resync(&self, _request: &Resync) -> Result<(), Fault> {
        Err(Fault::new(FaultCode::Refused, "no replica needs it"))
    }

    fn mark(&self, _request: &MarkRequest) -> Result<Mark, Fault> {
        unreachable!("the demo does not mark")
    }

    fn resize(&self, _request: &Resize) -> Result<Resized, Fault> {
        unreachable!("the demo does not resize")
    }

    fn protect(&self, _group: &str, _volume: &str) -> Result<Protected, Fault> {
        Err(Fault::new(FaultCode::Refused, "there is nothing to protect"))
    }

    fn seed(&self, _group: &str, _volume: &str) -> Result<Seeded, Fault> {
        Err(Fault::new(FaultCode::Refused, "there is nothing to seed"))
    }

    fn verify(&self, _request: &Verify) -> Result<Round, Fault> {
        Err(Fault::new(FaultCode::Refused, "there is nothing to verify"))
    }

    fn record(&self, _group: &str, _lsn: Lsn) -> Result<crate::control::api::Record, Fault> {
        Err(Fault::new(FaultCode::NotFound, "no such record"))
    }

    fn failover(&self, request: &Failover) -> Result<Promotion, Fault> {
        let lsn = usize::try_from(request.to.0).unwrap();
        let socket = self.dir.join("promoted.sock");
        self.servers.lock().unwrap().insert(1, serve(self.world.disks(lsn, false), &socket));
        Ok(Promotion {
            group: request.group.clone(),
            epoch: request.epoch,
            to: self.world.at(lsn),
            already: false,
            took_ms: 1,
            nbd: vec![Endpoint::Unix(socket)],
            volumes: self.world.volumes(),
        })
    }
}

struct Running {
    node: Arc<FakeNode>,
    control: Option<ControlServer>,
}

impl Process for Running {
    fn kill(&mut self) -> Result<(), Failure> {
        self.control = None;
        // Each connection is cut where it stands.
        self.node.servers.lock().unwrap().clear();
        Ok(())
    }

    fn ended(&mut self) -> Option<String> {
        self.control.is_none().then(|| "killed".to_owned())
    }
}

struct FakeLauncher(Arc<World>);

impl Launcher for FakeLauncher {
    fn start(&self, command: &str, config: &Path, _log: &Path) -> Result<Box<dyn Process>, Failure> {
        let config = Config::load(config)?;
        crate::certs::load(&config.node.certificates, &config.node.name)?;
        crate::certs::make_dir(&config.node.data_dir)?;
        let role = if command == "agent" { Role::Primary } else { Role::Replica };
        let mut servers = BTreeMap::new();
        if role == Role::Primary {
            let mut disks = BTreeMap::new();
            for volume in &config.groups[0].volumes {
                let size = volume.size.unwrap().0;
                self.0.sizes.lock().unwrap().insert(volume.name.clone(), size);
                let image = Mutex::new(vec![0; usize::try_from(size).unwrap()]);
                let (name, world) = (volume.name.clone(), Arc::clone(&self.0));
                let disk = Disk { name: name.clone(), image, kind: Kind::Primary, world };
                disks.insert(format!("demo/{name}"), Arc::new(disk));
            }
            servers.insert(0, serve(Arc::new(Disks(disks)), &config.nbd.socket));
        }
        let node = Arc::new(FakeNode {
            world: Arc::clone(&self.0),
            role,
            name: config.node.name.clone(),
            dir: config.node.data_dir.clone(),
            servers: Mutex::new(servers),
        });
        let control = ControlServer::start(&config.node.control, Arc::clone(&node) as Arc<dyn Operator>)?;
        Ok(Box::new(Running { node, control: Some(control) }))
    }
}

fn played(sabotage: Sabotage, image: bool) -> Result<super::Report, Failure> {
    let scratch = Scratch::new("demo-test")?;
    let world = World { sabotage, sizes: Mutex::default(), log: Mutex::default(), after: Mutex::default() };
    let image = image.then(|| {
        let path = scratch.path().join("disk.img");
        // Not whole sectors, with a hole.
        let mut bytes = vec![7; 1_000_001];
        bytes[300_000..700_000].fill(0);
        std::fs::write(&path, bytes).unwrap();
        (path, 1_000_448)
    });
    let options =
        Options { image, load: Duration::from_millis(400), files_bytes: 24 << 20, journal_bytes: 8 << 20 };
    play(&FakeLauncher(Arc::new(world)), &scratch.path().join("nodes"), &options)
}

#[test]
fn a_good_failover_passes_and_its_losses_are_counted() {
    let report = played(Sabotage::Nothing, true).unwrap();
    assert!(report.ok(), "{}", report.text());
    // The records that the replica does not have, but for flushes among them.
    assert!((1..=LAG as u64).contains(&report.rpo.writes), "{}", report.text());
    assert!(report.rpo.bytes >= 512 * report.rpo.writes, "{}", report.text());
    assert!(report.writes > 1_000, "{}", report.text());
    assert_eq!(report.checks.len(), 8, "{}", report.text());
}

/// Each of these is a defect whose absence the demo exists to show. Cases R16, R17 and R23.
#[test]
fn each_wrong_recovery_is_noticed_by_the_check_that_is_for_it() {
    for (sabotage, failing) in [
        (Sabotage::LosesOne, "the state that was taken over"),
        (Sabotage::TearsLast, "the state that was taken over"),
        (Sabotage::Swaps, "the state that was taken over"),
        (Sabotage::FlipsBit, "your image, byte for byte"),
        (Sabotage::Skews, "the state that was taken over"),
        (Sabotage::PointsLate, ": before the load"),
        (Sabotage::PointsEarly, ": before the load"),
        (Sabotage::PointsChange, ": before the load"),
        (Sabotage::Forgets, "new writes on the promoted volumes"),
    ] {
        let report = played(sabotage, sabotage == Sabotage::FlipsBit).unwrap();
        let failed = |check: &&super::Check| !check.ok && check.what.contains(failing);
        assert!(report.checks.iter().any(|check| failed(&check)), "{sabotage:?}: {}", report.text());
        assert!(!report.ok());
    }
}
