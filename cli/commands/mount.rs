//! `landfall mount-point` and `landfall unmount`: a recovery point as disks, read-only or as writable copies.
//!
//! The mount lives as long as the command's connection to the daemon: Ctrl-C, a closed terminal and SIGKILL all
//! end it, and no pin is left behind that would hold back retention. With `--detach` it lives until `unmount`.

use crate::args::{self, Global};
use crate::commands::taken;
use crate::control::Client;
use crate::control::api::{Access, Endpoint, Hold, Mount, MountId, MountRequest};
use crate::exit::{Context, Failure};
use crate::human::{self, Form, Table, clean};
use crate::signal::Signals;
use crate::time;
use crate::units::Bytes;
use engine::types::Timestamp;
use std::time::Duration;

/// How often it is looked whether the mount was ended from elsewhere.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Carries out `mount-point`.
pub(crate) fn mount(global: &Global, arguments: &args::MountPoint) -> Result<(), Failure> {
    let endpoint = match (&arguments.socket, arguments.tcp) {
        // The daemon runs in a folder of its own.
        (Some(path), _) => Some(Endpoint::Unix(
            std::path::absolute(path).context(|| format!("{} cannot be used", path.display()))?,
        )),
        (None, Some(address)) => Some(Endpoint::Tcp(address)),
        (None, None) => None,
    };
    let hold = if arguments.detach { Hold::UntilUnmount } else { Hold::Connection };
    // Before the mount is made: a Ctrl-C must find somebody who listens.
    let signals = Signals::take()?;
    let mut client = global.connect()?;
    let access = match arguments.writable {
        true => Access::Writable { scratch_bytes: arguments.scratch.0 },
        false => Access::ReadOnly,
    };
    let request = MountRequest::read_only(&arguments.group, arguments.at.clone());
    let mount = client.mount(MountRequest { endpoint, hold, access, ..request })?;
    human::answer(global.form(), &mount, text)?;
    if arguments.detach {
        if global.form() == Form::Text {
            human::say(format_args!("mounted until `landfall unmount {}`", mount.mount.0));
        }
        return Ok(());
    }
    human::say(match access {
        Access::ReadOnly => "serving read-only; Ctrl-C ends it",
        Access::Writable { .. } => {
            "serving a writable copy; Ctrl-C ends it, and throws away what was written to it"
        }
    });
    while signals.wait_for(LOOK_EVERY).is_none() {
        if !is_mounted(&mut client, mount.mount)? {
            human::say(format_args!("mount {} was ended from elsewhere", mount.mount.0));
            return Ok(());
        }
    }
    client.unmount(mount.mount)
}

/// Carries out `unmount`.
pub(crate) fn unmount(global: &Global, arguments: &args::Unmount) -> Result<(), Failure> {
    global.connect()?.unmount(MountId(arguments.mount))?;
    human::answer(global.form(), &serde_json::json!({ "mount": arguments.mount }), |_| {
        format!("mount {} ended\n", arguments.mount)
    })
}

fn is_mounted(client: &mut Client, mount: MountId) -> Result<bool, Failure> {
    Ok(client.status()?.mounts.iter().any(|found| found.mount == mount))
}

/// Where a mount's volumes are.
pub(crate) fn text(mount: &Mount) -> String {
    text_at(mount, time::now())
}

fn text_at(mount: &Mount, now: Timestamp) -> String {
    let taken = taken::text(&mount.at, mount.branch, mount.mark.as_ref(), now);
    let mut out = format!("group {} at {taken}\n", clean(&mount.group));
    let mut table = Table::new(&["VOLUME", "SIZE", "NBD URI"]).right(&[1]).indent(2);
    for volume in &mount.volumes {
        let uri =
            volume.export.as_ref().map_or_else(|| "-".to_owned(), |export| uri(&mount.endpoint, export));
        table.row(&[&volume.name, &Bytes(volume.size_bytes).to_string(), &uri]);
    }
    out.push_str(&table.render());
    out
}

/// The URI that NBD clients take, as the NBD project's `doc/uri.md` defines it.
pub(crate) fn uri(endpoint: &Endpoint, export: &str) -> String {
    match endpoint {
        Endpoint::Unix(path) => {
            format!("nbd+unix:///{}?socket={}", escaped(export), escaped(&path.to_string_lossy()))
        }
        Endpoint::Tcp(address) => format!("nbd://{address}/{}", escaped(export)),
    }
}

/// Percent-encoded, but for what a URI's path and query may hold as it is.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/@:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::tests::sample;

    #[test]
    fn a_mount_reads_well() {
        let mut mount = sample().mounts.remove(0);
        assert_eq!(
            text_at(&mount, Timestamp(1_751_373_296_789_000_000)),
            "group db at LSN 7 (2025-07-01T11:34:56.789Z): crash-consistent, 1h old\n  VOLUME    SIZE  NBD URI\n  data    10 GiB  \
             nbd://127.0.0.1:1234/db/data\n"
        );
        mount.endpoint = Endpoint::Unix("/run/a b.sock".into());
        assert!(text(&mount).ends_with("nbd+unix:///db/data?socket=/run/a%20b.sock\n"));
    }
}
