//! The daemon's side of the control socket.
//!
//! Invariants:
//! - the socket is the daemon's user's alone (mode 0600), and removed when the server stops;
//! - at most [`MAX_CONNECTIONS`] connections, one thread each; the next gets `busy` and is closed;
//! - a request is at most [`MAX_REQUEST_BYTES`]; what is longer is refused unread, and the connection closed;
//! - a line that is not a request gets one answer with a [`Fault`], and the connection goes on;
//! - a defect in one request's handling (a panic) ends that connection and no other;
//! - a mount that is held by its connection ends with it, whoever is killed.
//!
//! It does not know what the requests mean: that is the [`Operator`]'s part. It does not lock the data
//! directory: its caller has done that, so that a socket left behind by a killed daemon is known to be dead.

use super::Operator;
use super::api::{Fault, FaultCode, Hold, MountId, MountRequest, Request, VERSION};
use crate::exit::{Context, Failure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Connections at the same time.
pub(crate) const MAX_CONNECTIONS: usize = 32;

/// The longest request.
pub(crate) const MAX_REQUEST_BYTES: u64 = 64 << 10;

/// Mounts that one connection may hold.
pub(crate) const MAX_HELD_MOUNTS: usize = 64;

/// A connection that holds no mount and asks nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// An answer that is not taken for this long closes the connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A running control server; stops when dropped.
pub(crate) struct Server {
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    operator: Arc<dyn Operator>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    next: u64,
    open: BTreeMap<u64, UnixStream>,
}

impl Server {
    /// Listens at `path`. A dead socket there is replaced, a live one is an error.
    pub(crate) fn start(path: &Path, operator: Arc<dyn Operator>) -> Result<Server, Failure> {
        let at = || format!("the control socket {} cannot be made", path.display());
        if UnixStream::connect(path).is_ok() {
            return Err(Failure::refused(format_args!("{}: another daemon answers there", at()))
                .next("stop it first, or set another `control` under [node]"));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                fs::remove_file(path).context(at)?;
            }
            Ok(_) => return Err(Failure::refused(format_args!("{}: something else has that name", at()))),
            Err(err) if err.kind() == ErrorKind::NotFound => {}
            Err(err) => return Err(err).context(at),
        }
        let listener = UnixListener::bind(path).context(at)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).context(at)?;
        let shared = Arc::new(Shared { path: path.to_owned(), operator, state: Mutex::default() });
        let for_thread = Arc::clone(&shared);
        let accept = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || for_thread.accept(&listener))
            .context(at)?;
        Ok(Server { shared, accept: Some(accept) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let open = {
            let mut state = self.shared.lock();
            state.stopping = true;
            std::mem::take(&mut state.open)
        };
        for stream in open.values() {
            // The other side may have closed it already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        // Wakes the thread that waits for connections. If that fails, nobody can reach it any more either.
        if UnixStream::connect(&self.shared.path).is_ok()
            && let Some(accept) = self.accept.take()
        {
            let _ = accept.join();
        }
        if let Err(err) = fs::remove_file(&self.shared.path) {
            tracing::debug!(%err, path = %self.shared.path.display(), "the control socket was gone already");
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing that holds this lock can leave the state by halves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            let stream = match stream {
                Ok(stream) => stream,
                Err(err) => {
                    // Out of descriptors, most likely: waiting is all that can be done.
                    tracing::warn!(%err, "a control connection could not be taken");
                    thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            match self.admit(&stream) {
                Admission::Stopping => return,
                Admission::Full => {
                    let fault = Fault::new(
                        FaultCode::Busy,
                        format_args!("{MAX_CONNECTIONS} control connections are open, which is the limit"),
                    );
                    let _ = stream.set_write_timeout(Some(WRITE_TIMEOUT));
                    let _ = answer(&stream, Err(fault));
                }
                Admission::As(id) => {
                    let shared = Arc::clone(&self);
                    let spawned = thread::Builder::new().name(format!("control-{id}")).spawn(move || {
                        let _gone = Gone { shared: &shared, id };
                        shared.serve(&stream);
                    });
                    if let Err(err) = spawned {
                        tracing::warn!(%err, "a control connection got no thread");
                        self.lock().open.remove(&id);
                    }
                }
            }
        }
    }

    fn admit(&self, stream: &UnixStream) -> Admission {
        let mut state = self.lock();
        if state.stopping {
            return Admission::Stopping;
        }
        if state.open.len() >= MAX_CONNECTIONS {
            return Admission::Full;
        }
        let Ok(copy) = stream.try_clone() else { return Admission::Full };
        let id = state.next;
        state.next += 1;
        state.open.insert(id, copy);
        Admission::As(id)
    }

    fn serve(&self, stream: &UnixStream) {
        let mut held = Held { operator: &*self.operator, mounts: Vec::new() };
        if let Err(err) = self.converse(stream, &mut held) {
            tracing::debug!(%err, "a control connection ended");
        }
    }

    fn converse(&self, stream: &UnixStream, held: &mut Held<'_>) -> std::io::Result<()> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        stream.set_read_timeout(Some(IDLE))?;
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            let room = MAX_REQUEST_BYTES + 1 - line.len() as u64;
            match (&mut reader).take(room).read_until(b'\n', &mut line) {
                Ok(_) if line.last() == Some(&b'\n') => {}
                Ok(_) if line.len() as u64 > MAX_REQUEST_BYTES => {
                    let message = format!("a request is at most {MAX_REQUEST_BYTES} bytes long");
                    return answer(stream, Err(Fault::new(FaultCode::BadRequest, message)));
                }
                // The end, perhaps in the middle of a request, which is then not carried out.
                Ok(_) => return Ok(()),
                Err(err) if err.kind() == ErrorKind::Interrupted => continue,
                Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if held.mounts.is_empty() {
                        return Ok(());
                    }
                    continue;
                }
                Err(err) => return Err(err),
            }
            line.pop();
            let result = read(&line).and_then(|request| self.carry_out(request, held));
            line.clear();
            answer(stream, result)?;
        }
    }

    fn carry_out(&self, request: Request, held: &mut Held<'_>) -> Result<serde_json::Value, Fault> {
        tracing::debug!(?request, "asked");
        let operator = &*self.operator;
        match request {
            Request::Status => value(operator.status()),
            Request::Points(of) => value(operator.points(&of)),
            Request::Mount(request) => value(held.mount(&request)),
            Request::Unmount(of) => {
                held.mounts.retain(|mount| *mount != of.mount);
                value(operator.unmount(of.mount))
            }
            Request::PlanFailover(plan) => value(operator.plan_failover(&plan.group, plan.to)),
            Request::Failover(request) => value(operator.failover(&request)),
            Request::Handover(request) => value(operator.handover(&request.group)),
            Request::Commit(request) => value(operator.commit(&request.group)),
            Request::Reprotect(request) => value(operator.reprotect(&request.group)),
            Request::Branches(request) => value(operator.branches(&request.group)),
            Request::DropBranch(request) => value(operator.drop_branch(&request.group, request.branch)),
            Request::Loss(request) => value(operator.loss(&request.group)),
            Request::Resync(request) => value(operator.resync(&request)),
            Request::Verify(request) => value(operator.verify(&request)),
            Request::Protect(request) => value(operator.protect(&request.group, &request.volume)),
            Request::Seed(request) => value(operator.seed(&request.group, &request.volume)),
            Request::Mark(request) => value(operator.mark(&request)),
            Request::Resize(request) => value(operator.resize(&request)),
            Request::Record(of) => value(operator.record(&of.group, of.lsn)),
        }
    }
}

/// Gives a connection's place back when its thread ends, also by a panic: without it the copy of the socket would
/// keep the other side waiting.
struct Gone<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.shared.lock().open.remove(&self.id) {
            // The other side may have closed it already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

enum Admission {
    Stopping,
    Full,
    As(u64),
}

/// The mounts that end with a connection.
struct Held<'a> {
    operator: &'a dyn Operator,
    mounts: Vec<MountId>,
}

impl Held<'_> {
    fn mount(&mut self, request: &MountRequest) -> Result<super::api::Mount, Fault> {
        if self.mounts.len() >= MAX_HELD_MOUNTS {
            let message = format!("one control connection holds at most {MAX_HELD_MOUNTS} mounts");
            return Err(Fault::new(FaultCode::Busy, message));
        }
        let mount = self.operator.mount(request)?;
        if request.hold == Hold::Connection {
            self.mounts.push(mount.mount);
        }
        Ok(mount)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for mount in self.mounts.drain(..) {
            if let Err(fault) = self.operator.unmount(mount) {
                tracing::debug!(%fault, mount = mount.0, "a mount had ended before its connection");
            }
        }
    }
}

fn value<T: Serialize>(result: Result<T, Fault>) -> Result<serde_json::Value, Fault> {
    serde_json::to_value(result?).map_err(|err| Fault::new(FaultCode::Failed, err))
}

fn answer(mut stream: &UnixStream, result: Result<serde_json::Value, Fault>) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct Answer {
        version: u32,
        #[serde(flatten)]
        result: Body,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Body {
        Ok(serde_json::Value),
        Error(Fault),
    }
    let result = result.map_or_else(Body::Error, Body::Ok);
    let mut line = serde_json::to_vec(&Answer { version: VERSION, result })?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one request. Every field is known or refused.
fn read(line: &[u8]) -> Result<Request, Fault> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Envelope {
        #[serde(rename = "version")]
        _version: u32,
        method: String,
        #[serde(default)]
        params: Option<serde_json::Value>,
    }
    fn params<T: serde::de::DeserializeOwned>(method: &str, params: serde_json::Value) -> Result<T, Fault> {
        serde_json::from_value(params)
            .map_err(|err| Fault::new(FaultCode::BadRequest, format_args!("parameters of `{method}`: {err}")))
    }
    let bad =
        |err: serde_json::Error| Fault::new(FaultCode::BadRequest, format_args!("not a request: {err}"));
    // The version is looked at first: what else a later one holds is not for this program to judge.
    let any: serde_json::Value = serde_json::from_slice(line).map_err(bad)?;
    if !any.is_object() {
        // Serde would take an array as well, field by field.
        return Err(Fault::new(FaultCode::BadRequest, "not a request: a JSON object is expected"));
    }
    match any.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version != u64::from(VERSION) => {
            let message = format!("version {version} is asked for, this daemon speaks version {VERSION}");
            return Err(Fault::new(FaultCode::Version, message));
        }
        _ => {}
    }
    let Envelope { _version: _, method, params: given } = serde_json::from_value(any).map_err(bad)?;
    let absent = given.is_none();
    let given = given.unwrap_or_default();
    match method.as_str() {
        "status" if absent => Ok(Request::Status),
        "status" => Err(Fault::new(FaultCode::BadRequest, "`status` takes no parameters")),
        "points" => params(&method, given).map(Request::Points),
        "mount" => params(&method, given).map(Request::Mount),
        "unmount" => params(&method, given).map(Request::Unmount),
        "plan_failover" => params(&method, given).map(Request::PlanFailover),
        "failover" => params(&method, given).map(Request::Failover),
        "handover" => params(&method, given).map(Request::Handover),
        "commit" => params(&method, given).map(Request::Commit),
        "reprotect" => params(&method, given).map(Request::Reprotect),
        "branches" => params(&method, given).map(Request::Branches),
        "drop_branch" => params(&method, given).map(Request::DropBranch),
        "loss" => params(&method, given).map(Request::Loss),
        "resync" => params(&method, given).map(Request::Resync),
        "verify" => params(&method, given).map(Request::Verify),
        "mark" => params(&method, given).map(Request::Mark),
        "resize" => params(&method, given).map(Request::Resize),
        "protect" => params(&method, given).map(Request::Protect),
        "seed" => params(&method, given).map(Request::Seed),
        "record" => params(&method, given).map(Request::Record),
        _ => Err(Fault::new(FaultCode::BadRequest, format_args!("unknown method `{method}`"))),
    }
}
