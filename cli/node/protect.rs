//! A volume that the configuration names since the daemon was started.

use super::groups::Group;
use crate::config::{Config, Role};
use crate::control::api::{Fault, FaultCode, Protected};
use engine::node::config::{Begins, NewVolume};
use engine::node::open::Error;
use std::path::Path;

/// Takes it on.
pub(super) fn protect(config: &Path, group: &Group, volume: &str) -> Result<Protected, Fault> {
    let name = &group.config.name;
    let refused = |what: std::fmt::Arguments<'_>| Fault::new(FaultCode::Refused, what);
    let config = Config::load(config).map_err(|failure| refused(format_args!("{}", failure.what)))?;
    let known = config.groups.iter().find(|known| known.name == *name);
    let known = known.and_then(|known| known.volumes.iter().find(|known| known.name == volume));
    let known = known.ok_or_else(|| {
        let file = config.path.display();
        Fault::new(FaultCode::NotFound, format_args!("{file} names no volume {volume} of group {name}"))
    })?;
    let size = known.size.ok_or_else(|| refused(format_args!("volume {volume} has no `size`")))?.0;
    let begins = if known.in_place { Begins::InPlace } else { Begins::Empty };
    let new = NewVolume { name: volume.to_owned(), size, begins };
    let backing = known.backing.as_ref().map(|path| path.to_string_lossy().into_owned());
    let added = group.engine.at_rest(|node, now| match node.add_volume(now, &new, backing.clone()) {
        Err(Error::Busy) => None,
        other => Some(other),
    });
    let spec = added.map_err(|error| match error {
        Error::Io { .. } | Error::Append(_) | Error::State(_) => {
            Fault::new(FaultCode::Failed, format_args!("group {name}: {error}"))
        }
        other => {
            let mut fault = refused(format_args!("group {name}: {other}"));
            if group.config.role == Role::Replica {
                fault.next = Some("ask the node that is the group's primary".to_owned());
            }
            fault
        }
    })?;
    Ok(Protected {
        export: Config::export(name, &spec.name),
        size_bytes: spec.size,
        replicas: group.config.replicas.len(),
    })
}
