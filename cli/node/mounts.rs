//! Points that are being served, each by an NBD server of its own.

use super::groups::Group;
use super::show;
use super::volumes::{Point, PointVolumes};
use crate::control::api::{Endpoint, Fault, FaultCode, Mount, MountId, MountRequest, Volume};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use transport::nbd::{Config, Server, Stop, Tls};

/// Points served at a time.
const MAX_MOUNTS: usize = 64;

struct Served {
    shown: Mount,
    server: Server,
    _point: Arc<Point>,
}

/// The mounts of a node.
pub(super) struct Mounts {
    dir: PathBuf,
    served: Mutex<(u64, BTreeMap<MountId, Served>)>,
}

impl Mounts {
    /// Mounts whose sockets, where nobody names one, lie in `dir`.
    pub(super) fn new(dir: PathBuf) -> Mounts {
        Mounts { dir, served: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<MountId, Served>)> {
        self.served.lock().expect("no holder of the lock panics")
    }

    pub(super) fn list(&self) -> Vec<Mount> {
        self.lock().1.values().map(|served| served.shown.clone()).collect()
    }

    pub(super) fn mount(&self, group: &Arc<Group>, request: &MountRequest) -> Result<Mount, Fault> {
        let at = show::resolve(group, request.at)?;
        let mut served = self.lock();
        if served.1.len() >= MAX_MOUNTS {
            return Err(Fault::new(FaultCode::Busy, format_args!("{MAX_MOUNTS} points are mounted already")));
        }
        let point = Point::open(group, at).map_err(|error| show::no_point(group, &error))?;
        let point = Arc::new(point);
        served.0 += 1;
        let id = MountId(served.0);
        let server = Server::new(Arc::new(PointVolumes(point.clone())), Config::default());
        let failed = |place: &dyn std::fmt::Display, error: std::io::Error| {
            Fault::new(FaultCode::Failed, format_args!("the point cannot be served at {place}: {error}"))
        };
        let endpoint = match &request.endpoint {
            Some(Endpoint::Tcp(address)) => {
                let bound = server.bind_tcp(address, Tls::Off).map_err(|error| failed(address, error))?;
                Endpoint::Tcp(bound)
            }
            other => {
                let path = match other {
                    Some(Endpoint::Unix(path)) => path.clone(),
                    _ => {
                        std::fs::create_dir_all(&self.dir)
                            .map_err(|error| failed(&self.dir.display(), error))?;
                        self.dir.join(format!("{}.sock", id.0))
                    }
                };
                server.bind_unix(&path, Tls::Off).map_err(|error| failed(&path.display(), error))?;
                Endpoint::Unix(path)
            }
        };
        let report = group.report();
        let volumes = report.volumes.iter().map(|volume| Volume {
            name: volume.name.clone(),
            size_bytes: volume.size,
            export: Some(crate::config::Config::export(&group.config.name, &volume.name)),
            connections: 0,
        });
        let shown = Mount {
            mount: id,
            group: group.config.name.clone(),
            at: point.group().at(point.at()),
            endpoint,
            volumes: volumes.collect(),
        };
        served.1.insert(id, Served { shown: shown.clone(), server, _point: point });
        Ok(shown)
    }

    pub(super) fn unmount(&self, id: MountId) -> Result<(), Fault> {
        let ended = self.lock().1.remove(&id);
        let ended = ended
            .ok_or_else(|| Fault::new(FaultCode::NotFound, format_args!("there is no mount {}", id.0)))?;
        ended.server.stop(Stop::Refuse);
        Ok(())
    }

    pub(super) fn end_all(&self) {
        let ended = std::mem::take(&mut self.lock().1);
        for served in ended.values() {
            served.server.stop(Stop::Refuse);
        }
    }
}
