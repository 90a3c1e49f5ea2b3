//! A volume that gets another size.

use super::groups::Group;
use crate::config::{Config, Role};
use crate::control::api::{Fault, FaultCode, Resize, Resized};
use engine::node::open::Error;
use std::sync::atomic::Ordering;

/// Gives it.
pub(super) fn resize(group: &Group, request: &Resize) -> Result<Resized, Fault> {
    let name = &group.config.name;
    let Resize { volume, size_bytes, .. } = request;
    let size_now = || {
        let specs = group.engine.peek(|node| node.volume_specs().cloned().collect::<Vec<_>>());
        specs.into_iter().find(|spec| spec.name == *volume).map(|spec| spec.size)
    };
    let before_bytes = size_now().ok_or_else(|| {
        Fault::new(FaultCode::NotFound, format_args!("group {name} has no volume {volume}"))
    })?;
    let resized = group.engine.at_rest(|node, now| {
        // A client that connects from here on sees the new size.
        let clients = clients(group, volume);
        if clients > 0 && *size_bytes < before_bytes {
            let mut fault = Fault::new(
                FaultCode::Refused,
                format_args!(
                    "{name}/{volume} has {clients} NBD connections: nobody may use it while it gets smaller"
                ),
            );
            fault.next = Some("make its filesystem smaller, stop what uses it, and ask again".to_owned());
            return Some(Err(fault));
        }
        match node.resize(now, volume, *size_bytes) {
            Err(Error::Busy) => None,
            Err(error) => Some(Err(refusal(group, &error))),
            Ok(spec) => Some(Ok(spec)),
        }
    });
    let spec = resized?;
    Ok(Resized { export: Config::export(name, &spec.name), before_bytes, size_bytes: spec.size })
}

fn clients(group: &Group, volume: &str) -> u32 {
    let connections = group.connections.lock().expect("no holder of the lock panics");
    connections.get(volume).map_or(0, |count| count.load(Ordering::Relaxed))
}

fn refusal(group: &Group, error: &Error) -> Fault {
    let code = match error {
        Error::Io { .. } | Error::Append(_) | Error::State(_) => FaultCode::Failed,
        _ => FaultCode::Refused,
    };
    let mut fault = Fault::new(code, format_args!("group {}: {error}", group.config.name));
    if matches!(error, Error::BackingTooSmall { .. }) {
        fault.next = Some("make the disk larger first".to_owned());
    } else if group.config.role == Role::Replica && code == FaultCode::Refused {
        fault.next = Some("ask the node that is the group's primary".to_owned());
    }
    fault
}
