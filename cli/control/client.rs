//! The commands' side of the control socket: one connection, one question at a time.

use super::api::{
    Branch, Committed, Failover, Fault, FaultCode, Loss, Mark, MarkRequest, Mount, MountId, MountRequest,
    OfBranch, OfGroup, OfMount, OfRecord, OfVolume, Plan, PlanRequest, Points, PointsRequest, Promotion,
    Protected, Record, Reprotected, Request, Resize, Resized, Resync, Round, Seeded, Status, VERSION, Verify,
};
use crate::exit::{Code, Failure};
use crate::point::{BranchId, Point};
use engine::types::Lsn;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest answer that is read.
pub(crate) const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// How long an answer is waited for. A failover rebuilds its index from the log before it answers.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// A connection to a daemon.
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

#[derive(Serialize)]
struct Envelope<'a> {
    version: u32,
    #[serde(flatten)]
    request: &'a Request,
}

#[derive(serde::Deserialize)]
struct Answer {
    version: u32,
    ok: Option<serde_json::Value>,
    error: Option<Fault>,
}

impl Client {
    /// Connects; code 5 if no daemon answers there.
    pub(crate) fn connect(path: &Path) -> Result<Client, Failure> {
        let stream = UnixStream::connect(path).map_err(|err| {
            let what = format!("no daemon answers at {}: {err}", path.display());
            let failure = Failure::new(Code::NoDaemon, what);
            match err.kind() {
                ErrorKind::PermissionDenied => failure.next("run the command as the user that the daemon runs as"),
                _ => failure.next(
                    "start it with `landfall agent` or `landfall replica`, or name its configuration with `--config`",
                ),
            }
        })?;
        let set = |stream: &UnixStream| {
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(Duration::from_secs(10)))
        };
        set(&stream).map_err(|err| broken(path, &err))?;
        Ok(Client { stream: BufReader::new(stream), path: path.to_owned() })
    }

    /// [`super::Operator::status`].
    pub(crate) fn status(&mut self) -> Result<Status, Failure> {
        self.call(&Request::Status)
    }

    /// [`super::Operator::points`].
    pub(crate) fn points(&mut self, group: &str) -> Result<Points, Failure> {
        self.call(&Request::Points(PointsRequest { group: group.to_owned(), all_marks: false }))
    }

    /// The same, with the periodic marks one by one.
    pub(crate) fn all_points(&mut self, group: &str) -> Result<Points, Failure> {
        self.call(&Request::Points(PointsRequest { group: group.to_owned(), all_marks: true }))
    }

    /// [`super::Operator::mount`].
    pub(crate) fn mount(&mut self, request: MountRequest) -> Result<Mount, Failure> {
        self.call(&Request::Mount(request))
    }

    /// [`super::Operator::unmount`].
    pub(crate) fn unmount(&mut self, mount: MountId) -> Result<(), Failure> {
        self.call(&Request::Unmount(OfMount { mount }))
    }

    /// [`super::Operator::plan_failover`].
    pub(crate) fn plan_failover(&mut self, group: &str, to: Point) -> Result<Plan, Failure> {
        self.call(&Request::PlanFailover(PlanRequest { group: group.to_owned(), to }))
    }

    /// [`super::Operator::failover`].
    pub(crate) fn failover(&mut self, request: Failover) -> Result<Promotion, Failure> {
        self.call(&Request::Failover(request))
    }

    /// [`super::Operator::handover`].
    pub(crate) fn handover(&mut self, group: &str) -> Result<Promotion, Failure> {
        self.call(&Request::Handover(OfGroup { group: group.to_owned() }))
    }

    /// [`super::Operator::commit`].
    pub(crate) fn commit(&mut self, group: &str) -> Result<Committed, Failure> {
        self.call(&Request::Commit(OfGroup { group: group.to_owned() }))
    }

    /// [`super::Operator::reprotect`].
    pub(crate) fn reprotect(&mut self, group: &str) -> Result<Reprotected, Failure> {
        self.call(&Request::Reprotect(OfGroup { group: group.to_owned() }))
    }

    /// [`super::Operator::branches`].
    pub(crate) fn branches(&mut self, group: &str) -> Result<Vec<Branch>, Failure> {
        self.call(&Request::Branches(OfGroup { group: group.to_owned() }))
    }

    /// [`super::Operator::drop_branch`].
    pub(crate) fn drop_branch(&mut self, group: &str, branch: BranchId) -> Result<(), Failure> {
        self.call(&Request::DropBranch(OfBranch { group: group.to_owned(), branch }))
    }

    /// [`super::Operator::loss`].
    pub(crate) fn loss(&mut self, group: &str) -> Result<Loss, Failure> {
        self.call(&Request::Loss(OfGroup { group: group.to_owned() }))
    }

    /// [`super::Operator::resync`].
    pub(crate) fn resync(&mut self, request: Resync) -> Result<(), Failure> {
        self.call(&Request::Resync(request))
    }

    /// [`super::Operator::verify`].
    pub(crate) fn verify(&mut self, request: Verify) -> Result<Round, Failure> {
        self.call(&Request::Verify(request))
    }

    /// [`super::Operator::seed`].
    pub(crate) fn seed(&mut self, request: OfVolume) -> Result<Seeded, Failure> {
        self.call(&Request::Seed(request))
    }

    /// [`super::Operator::protect`].
    pub(crate) fn protect(&mut self, request: OfVolume) -> Result<Protected, Failure> {
        self.call(&Request::Protect(request))
    }

    /// [`super::Operator::mark`].
    pub(crate) fn mark(&mut self, request: MarkRequest) -> Result<Mark, Failure> {
        self.call(&Request::Mark(request))
    }

    /// [`super::Operator::resize`].
    pub(crate) fn resize(&mut self, request: Resize) -> Result<Resized, Failure> {
        self.call(&Request::Resize(request))
    }

    /// [`super::Operator::record`].
    pub(crate) fn record(&mut self, group: &str, lsn: Lsn) -> Result<Record, Failure> {
        self.call(&Request::Record(OfRecord { group: group.to_owned(), lsn }))
    }

    fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, Failure> {
        let mut line = serde_json::to_vec(&Envelope { version: VERSION, request })
            .map_err(|err| Failure::failed(format_args!("the request cannot be written as JSON: {err}")))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|err| broken(&self.path, &err))?;
        let mut answer = Vec::new();
        let limited = &mut (&mut self.stream).take(MAX_ANSWER_BYTES);
        limited.read_until(b'\n', &mut answer).map_err(|err| broken(&self.path, &err))?;
        if answer.last() != Some(&b'\n') {
            let why = if answer.is_empty() { "it closed the connection" } else { "its answer has no end" };
            return Err(broken(&self.path, &why));
        }
        let answer: Answer = serde_json::from_slice(&answer).map_err(|err| broken(&self.path, &err))?;
        match answer {
            Answer { error: Some(fault), .. } => Err(fault.into()),
            Answer { version, .. } if version != VERSION => Err(Fault::new(
                FaultCode::Version,
                format_args!(
                    "the daemon at {} speaks version {version} of the control API, this program {VERSION}",
                    self.path.display()
                ),
            )
            .into()),
            Answer { ok, .. } => {
                serde_json::from_value(ok.unwrap_or_default()).map_err(|err| broken(&self.path, &err))
            }
        }
    }
}

fn broken(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format_args!("the daemon at {} did not answer: {why}", path.display()))
        .next("its own log says more; `landfall status` tells whether it is still there")
}
