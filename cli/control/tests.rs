//! The control socket with a made-up daemon behind it: every method, and every kind of bad input.

use super::api::*;
use super::*;
use crate::commands::status;
use crate::exit::{Code, Failure};
use crate::point::Which;
use crate::scratch::Scratch;
use engine::types::{Epoch, Lsn};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

/// Answers with a fixed status; remembers mounts and failovers.
#[derive(Default)]
struct Fake {
    mounts: Mutex<BTreeSet<u64>>,
    changed: Condvar,
    promoted: Mutex<Option<Epoch>>,
}

impl Fake {
    fn wait_for_mounts(&self, expected: &[u64]) {
        let mut mounts = self.mounts.lock().unwrap();
        while !mounts.iter().eq(expected.iter()) {
            mounts = self.changed.wait(mounts).unwrap();
        }
    }
}

fn round() -> Round {
    Round {
        number: 7,
        on_mismatch: OnMismatch::Repair,
        begun: status::tests::sample().node.since,
        ended: None,
        done_bytes: 0,
        total_bytes: 1 << 30,
        records: 0,
        busy_bytes: 0,
        unreadable_bytes: 0,
        waits: true,
        replicas: Vec::new(),
    }
}

impl Operator for Fake {
    fn status(&self) -> Result<Status, Fault> {
        Ok(status::tests::sample())
    }

    fn points(&self, request: &PointsRequest) -> Result<Points, Fault> {
        let group = request.group.as_str();
        assert_ne!(group, "defect", "a defect that a test asks for");
        if group != "db" {
            let fault = Fault::new(FaultCode::NotFound, format_args!("there is no group `{group}` here"));
            return Err(Fault { next: Some("see `landfall status`".to_owned()), ..fault });
        }
        Ok(Points {
            spans: Vec::new(),
            group: group.to_owned(),
            window: None,
            reigns: Vec::new(),
            marks: Vec::new(),
            kept: Vec::new(),
            periodic_marks: PeriodicMarks::default(),
            branches: Vec::new(),
        })
    }

    fn mount(&self, request: &MountRequest) -> Result<Mount, Fault> {
        let mut mounts = self.mounts.lock().unwrap();
        let id = mounts.last().map_or(1, |last| last + 1);
        mounts.insert(id);
        self.changed.notify_all();
        let mut mount = status::tests::sample().mounts.remove(0);
        mount.mount = MountId(id);
        mount.endpoint = request.endpoint.clone().unwrap_or(mount.endpoint);
        Ok(mount)
    }

    fn unmount(&self, mount: MountId) -> Result<(), Fault> {
        let removed = self.mounts.lock().unwrap().remove(&mount.0);
        self.changed.notify_all();
        if removed { Ok(()) } else { Err(Fault::new(FaultCode::NotFound, "there is no such mount")) }
    }

    fn plan_failover(&self, group: &str, to: Point) -> Result<Plan, Fault> {
        let window = status::tests::sample().groups[0].window.clone().unwrap();
        let to = match to.which {
            Which::Lsn(lsn) => At { lsn, ..window.latest },
            _ => window.latest,
        };
        Ok(Plan {
            group: group.to_owned(),
            role: Role::Replica,
            to,
            branch: None,
            mark: None,
            from: None,
            latest: window.latest,
            epoch: Epoch(4),
            set_aside: Stretch::default(),
            not_received: Stretch::default(),
            last_contact: None,
            warnings: Vec::new(),
        })
    }

    fn handover(&self, _group: &str) -> Result<Promotion, Fault> {
        Err(Fault::new(FaultCode::Refused, "the primary is not connected"))
    }

    fn commit(&self, _group: &str) -> Result<Committed, Fault> {
        let promoted = self.promoted.lock().unwrap();
        Ok(Committed { at: promoted.map(|_| Lsn(90)) })
    }

    fn reprotect(&self, _group: &str) -> Result<Reprotected, Fault> {
        Err(Fault::new(FaultCode::Refused, "the failover is not committed"))
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

    fn resync(&self, request: &Resync) -> Result<(), Fault> {
        let known = request.replica == "west";
        if known { Ok(()) } else { Err(Fault::new(FaultCode::NotFound, "no such replica")) }
    }

    fn mark(&self, request: &MarkRequest) -> Result<Mark, Fault> {
        let at = status::tests::sample().groups[0].window.clone().unwrap().latest;
        Ok(Mark { at, name: request.name.clone(), kind: request.kind })
    }

    fn resize(&self, request: &api::Resize) -> Result<Resized, Fault> {
        let export = format!("{}/{}", request.group, request.volume);
        Ok(Resized { export, before_bytes: 512, size_bytes: request.size_bytes })
    }

    fn seed(&self, group: &str, volume: &str) -> Result<Seeded, Fault> {
        Err(Fault::new(FaultCode::NotFound, format_args!("no seed of {group}/{volume}")))
    }

    fn protect(&self, group: &str, volume: &str) -> Result<Protected, Fault> {
        Ok(Protected { export: format!("{group}/{volume}"), size_bytes: 512, replicas: 0 })
    }

    fn verify(&self, request: &Verify) -> Result<Round, Fault> {
        match request.on_mismatch {
            OnMismatch::Repair => Ok(round()),
            OnMismatch::Report => Err(Fault::new(FaultCode::Conflict, "another round is under way")),
        }
    }

    fn record(&self, _group: &str, lsn: Lsn) -> Result<Record, Fault> {
        Ok(Record {
            at: At { lsn, ..status::tests::sample().mounts[0].at },
            epoch: Epoch(1),
            kind: "write".to_owned(),
            volume: Some("data".to_owned()),
            offset_bytes: 4096,
            len_bytes: 512,
        })
    }

    fn failover(&self, request: &Failover) -> Result<Promotion, Fault> {
        let mut promoted = self.promoted.lock().unwrap();
        let already = *promoted == Some(request.epoch);
        if promoted.is_some() && !already {
            return Err(Fault::new(FaultCode::Conflict, "epoch 4 has been taken"));
        }
        *promoted = Some(request.epoch);
        let status = status::tests::sample();
        let to = At { lsn: request.to, ..status.mounts[0].at };
        Ok(Promotion {
            group: request.group.clone(),
            epoch: request.epoch,
            to,
            already,
            took_ms: 1,
            nbd: status.node.nbd,
            volumes: Vec::new(),
        })
    }
}

struct World {
    fake: Arc<Fake>,
    server: Server,
    path: PathBuf,
    _scratch: Scratch,
}

fn world(what: &str) -> World {
    let scratch = Scratch::new(what).unwrap();
    let path = scratch.path().join("control.sock");
    let fake = Arc::new(Fake::default());
    let server = Server::start(&path, Arc::clone(&fake) as Arc<dyn Operator>).unwrap();
    World { fake, server, path, _scratch: scratch }
}

impl World {
    fn raw(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(&self.path).unwrap())
    }
}

/// Sends bytes, reads one line.
fn exchange(stream: &mut BufReader<UnixStream>, request: &[u8]) -> String {
    stream.get_mut().write_all(request).unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line
}

#[test]
fn every_method_answers() {
    let world = world("control-methods");
    let mut client = Client::connect(&world.path).unwrap();
    assert_eq!(client.status().unwrap(), status::tests::sample());
    assert_eq!(client.points("db").unwrap().group, "db");
    let request = MountRequest {
        endpoint: Some(Endpoint::Unix("/run/x.sock".into())),
        hold: Hold::UntilUnmount,
        access: Access::Writable { scratch_bytes: 1 << 30 },
        drill_ms: Some(60_000),
        ..MountRequest::read_only("db", Point::lsn(Lsn(7), None))
    };
    let mount = client.mount(request).unwrap();
    assert_eq!(mount.endpoint, Endpoint::Unix("/run/x.sock".into()));
    client.unmount(mount.mount).unwrap();
    let record = client.record("db", Lsn(5)).unwrap();
    assert_eq!((record.at.lsn, record.offset_bytes), (Lsn(5), 4096));
    let plan = client.plan_failover("db", Point::lsn(Lsn(80), None)).unwrap();
    assert_eq!((plan.to.lsn, plan.epoch), (Lsn(80), Epoch(4)));
    let request = api::Failover { group: "db".to_owned(), to: plan.to.lsn, branch: None, epoch: plan.epoch };
    assert!(!client.failover(request.clone()).unwrap().already);
    assert!(client.failover(request.clone()).unwrap().already);
    let failure = client.failover(api::Failover { epoch: Epoch(9), ..request }).unwrap_err();
    assert_eq!(failure, Failure::refused("epoch 4 has been taken"));
}

#[test]
fn a_fault_keeps_its_code_and_advice() {
    let world = world("control-fault");
    let mut client = Client::connect(&world.path).unwrap();
    let failure = client.points("dbb").unwrap_err();
    assert_eq!(failure.code, Code::Refused);
    assert_eq!(failure.to_string(), "there is no group `dbb` here\n  next: see `landfall status`");
    // The connection goes on.
    client.points("db").unwrap();
}

#[test]
fn bad_input_gets_one_answer_and_the_connection_goes_on() {
    let world = world("control-bad");
    let mut stream = world.raw();
    let cases: [(&[u8], &str); 13] = [
        (b"\n", "not a request: EOF while parsing a value at line 1 column 0"),
        (b"hello\n", "not a request: expected value at line 1 column 1"),
        (b"\xff\xfe\n", "not a request: expected value at line 1 column 1"),
        (b"[]\n", "not a request: a JSON object is expected"),
        (b"{\"method\":\"status\"}\n", "not a request: missing field `version`"),
        (b"{\"version\":2,\"method\":\"new\"}\n", "version 2 is asked for, this daemon speaks version 1"),
        (b"{\"version\":1,\"method\":\"explode\"}\n", "unknown method `explode`"),
        (
            b"{\"version\":1,\"method\":\"status\",\"extra\":1}\n",
            "not a request: unknown field `extra`, expected one of `version`, `method`, `params`",
        ),
        (b"{\"version\":1,\"method\":\"status\",\"params\":{}}\n", "`status` takes no parameters"),
        (
            b"{\"version\":1,\"method\":\"points\"}\n",
            "parameters of `points`: invalid type: null, expected struct PointsRequest",
        ),
        (
            b"{\"version\":1,\"method\":\"points\",\"params\":{\"group\":\"db\",\"force\":true}}\n",
            "parameters of `points`: unknown field `force`, expected `group` or `all_marks`",
        ),
        (
            b"{\"version\":1,\"method\":\"mount\",\"params\":{\"group\":\"db\",\"at\":\"time:-10m\"}}\n",
            "parameters of `mount`: a span is not a fixed point: send a moment",
        ),
        (
            b"{\"version\":1,\"method\":\"failover\",\"params\":{\"group\":\"db\",\"to\":-1,\"epoch\":1}}\n",
            "parameters of `failover`: invalid value: integer `-1`, expected u64",
        ),
    ];
    for (request, message) in cases {
        let line = exchange(&mut stream, request);
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["error"]["message"], message);
        assert_eq!(answer["version"], 1);
        assert_eq!(answer.get("ok"), None);
    }
    let request = b"{\"version\":1,\"method\":\"points\",\"params\":{\"group\":\"db\"}}\n";
    let answer: serde_json::Value = serde_json::from_str(&exchange(&mut stream, request)).unwrap();
    assert_eq!(answer["ok"]["group"], "db");
}

#[test]
fn a_round_is_asked_for_by_what_becomes_of_mismatches() {
    let world = world("control-verify");
    let mut stream = world.raw();
    let mut ask = |on_mismatch: &str| {
        let request = format!(
            "{{\"version\":1,\"method\":\"verify\",\"params\":{{\"group\":\"db\",\"on_mismatch\":\"{on_mismatch}\"}}}}\n"
        );
        serde_json::from_str::<serde_json::Value>(&exchange(&mut stream, request.as_bytes())).unwrap()
    };
    assert_eq!(ask("repair")["ok"]["number"], 7);
    assert_eq!(ask("report")["error"]["code"], "conflict");
    assert_eq!(ask("guess")["error"]["code"], "bad_request");
}

#[test]
fn deep_nesting_is_refused_and_harms_nobody() {
    let world = world("control-deep");
    let mut request = vec![b'['; 60_000];
    request.push(b'\n');
    let line = exchange(&mut world.raw(), &request);
    assert!(line.contains("recursion limit exceeded"), "{line}");
    Client::connect(&world.path).unwrap().status().unwrap();
}

#[test]
fn a_request_without_end_is_refused_and_the_connection_closed() {
    let world = world("control-long");
    let mut stream = world.raw();
    let line = exchange(&mut stream, &vec![b' '; usize::try_from(server::MAX_REQUEST_BYTES).unwrap() + 1]);
    assert!(line.contains("a request is at most 65536 bytes long"), "{line}");
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_defect_ends_its_connection_and_no_other() {
    let world = world("control-defect");
    for _ in 0..server::MAX_CONNECTIONS + 1 {
        let mut client = Client::connect(&world.path).unwrap();
        client.mount(MountRequest::read_only("db", Point::LATEST)).unwrap();
        let failure = client.points("defect").unwrap_err();
        assert!(failure.what.contains("it closed the connection"), "{failure}");
        world.fake.wait_for_mounts(&[]);
    }
}

#[test]
fn half_a_request_is_not_carried_out() {
    let world = world("control-half");
    let mut stream = world.raw();
    stream.get_mut().write_all(b"{\"version\":1,\"method\":\"status\"}").unwrap();
    stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_mount_ends_with_its_connection_and_a_detached_one_does_not() {
    let world = world("control-held");
    let request = |hold| MountRequest { hold, ..MountRequest::read_only("db", Point::LATEST) };
    let mut client = Client::connect(&world.path).unwrap();
    client.mount(request(Hold::Connection)).unwrap();
    client.mount(request(Hold::UntilUnmount)).unwrap();
    client.mount(request(Hold::Connection)).unwrap();
    world.fake.wait_for_mounts(&[1, 2, 3]);
    drop(client);
    world.fake.wait_for_mounts(&[2]);
}

#[test]
fn more_connections_than_the_limit_are_told_so() {
    let world = world("control-many");
    let mut open: Vec<Client> = (0..server::MAX_CONNECTIONS)
        .map(|_| {
            let mut client = Client::connect(&world.path).unwrap();
            client.status().unwrap();
            client
        })
        .collect();
    let mut line = String::new();
    world.raw().read_line(&mut line).unwrap();
    assert!(line.contains("\"code\":\"busy\""), "{line}");
    // Those that are connected are served on, and a place that is given up can be taken.
    open[0].status().unwrap();
    open.pop();
    while Client::connect(&world.path).unwrap().status().is_err() {}
}

#[test]
fn the_socket_is_private_and_goes_with_the_server() {
    let World { server, path, fake, _scratch } = world("control-private");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // A second server does not take a live socket over.
    let failure = Server::start(&path, Arc::clone(&fake) as Arc<dyn Operator>).err().unwrap();
    assert_eq!(failure.code, Code::Refused);
    let mut client = Client::connect(&path).unwrap();
    client.mount(MountRequest::read_only("db", Point::LATEST)).unwrap();
    drop(server);
    fake.wait_for_mounts(&[]);
    assert!(!path.exists());
    assert_eq!(client.status().unwrap_err().code, Code::Failed);
    let failure = Client::connect(&path).err().unwrap();
    assert_eq!(failure.code, Code::NoDaemon);
}

#[test]
fn a_dead_socket_is_replaced_and_anything_else_is_not() {
    let scratch = Scratch::new("control-dead").unwrap();
    let path = scratch.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = Server::start(&path, Arc::new(Fake::default())).unwrap();
    Client::connect(&path).unwrap().status().unwrap();
    drop(server);
    std::fs::write(&path, "something of value").unwrap();
    assert_eq!(Server::start(&path, Arc::new(Fake::default())).err().unwrap().code, Code::Refused);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "something of value");
}

/// What a newer daemon adds to an answer does not disturb; what it takes away or another version does.
#[test]
fn answers_of_other_daemons_are_judged() {
    for (answer, expected) in [
        (
            "{\"version\":1,\"ok\":{\"group\":\"db\",\"window\":null,\"reigns\":[],\"marks\":[],\"branches\":[],\"new\":1},\"more\":2}\n",
            Ok("db"),
        ),
        ("{\"version\":2,\"ok\":{}}\n", Err("speaks version 2 of the control API")),
        ("{\"version\":1,\"ok\":{}}\n", Err("missing field `group`")),
        ("{\"version\":1}\n", Err("invalid type: null")),
        ("{\"version\":1,\"error\":{\"code\":\"failed\",\"message\":\"no\"}}\n", Err("no")),
        ("{\"version\":1", Err("its answer has no end")),
        ("", Err("it closed the connection")),
        ("nonsense\n", Err("expected ident")),
    ] {
        let scratch = Scratch::new("control-other").unwrap();
        let path = scratch.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let result = Client::connect(&path).unwrap().points("db");
        match (result, expected) {
            (Ok(points), Ok(group)) => assert_eq!(points.group, group),
            (Err(failure), Err(message)) => assert!(failure.what.contains(message), "{failure}"),
            (result, _) => panic!("{answer}: {result:?}"),
        }
        thread.join().unwrap();
    }
}
