//! A volume that the configuration names since the daemon was started.

use super::groups::Group;
use super::seeds;
use crate::config::{Config, Role};
use crate::control::api::{Fault, FaultCode, Protected, Seeded};
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

/// Makes use of a seed that the configuration names since the daemon was started.
pub(super) fn seed(config: &Path, group: &Group, volume: &str) -> Result<Seeded, Fault> {
    let name = &group.config.name;
    let refused = |what: std::fmt::Arguments<'_>| Fault::new(FaultCode::Refused, what);
    let config = Config::load(config).map_err(|failure| refused(format_args!("{}", failure.what)))?;
    let known = config.groups.iter().find(|known| known.name == *name);
    let known = known.and_then(|known| known.volumes.iter().find(|known| known.name == volume));
    let path = known.and_then(|known| known.seed_from.as_ref()).ok_or_else(|| {
        let file = config.path.display();
        Fault::new(
            FaultCode::NotFound,
            format_args!("{file} names no seed of volume {volume} of group {name}"),
        )
    })?;
    let (role, size) = group.engine.peek(|node| {
        let size = node.volume_specs().find(|spec| spec.name == volume).map(|spec| spec.size);
        (node.role(), size)
    });
    if role != engine::state::Role::Replica {
        return Err(refused(format_args!("this node is no replica of group {name}: it takes no copies")));
    }
    let len = seeds::length(path).map_err(|error| refused(format_args!("{}: {error}", path.display())))?;
    group.seeds.put(volume, path);
    Ok(Seeded {
        volume: Config::export(name, volume),
        seed: path.clone(),
        size_bytes: len,
        volume_size_bytes: size,
    })
}
