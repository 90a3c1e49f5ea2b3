//! `landfall resize`: a volume gets another size.
//!
//! The log is what says how large a volume is, so it is told first; then the configuration, for whoever reads it. If this
//! dies in between, the daemon goes by the log, and says at its next start that the configuration says something else.

use crate::args::{self, Global, OfVolume};
use crate::config::edit::Edited;
use crate::control::api::{Resize, Resized};
use crate::exit::Failure;
use crate::human::{self, clean};
use crate::units::{Bytes, exact_bytes};

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::Resize) -> Result<(), Failure> {
    let args::Resize { volume: OfVolume { group, volume }, size, yes } = arguments;
    let mut client = global.connect()?;
    let status = client.status()?;
    let known = status.groups.iter().find(|known| known.name == *group);
    let known = known.and_then(|known| known.volumes.iter().find(|known| known.name == *volume));
    if let Some(known) = known.filter(|known| size.0 < known.size_bytes) {
        human::say(format_args!(
            "{}/{} has {}. What lies behind {} is gone then, but for recovery points from before; its filesystem has to \
             be smaller already.",
            clean(group),
            clean(volume),
            exact_bytes(known.size_bytes),
            exact_bytes(size.0)
        ));
        if !yes {
            human::confirm(&format!("Make {group}/{volume} smaller?"))?;
        }
    }
    let request = Resize { group: group.clone(), volume: volume.clone(), size_bytes: size.0 };
    let resized = client.resize(request)?;
    human::answer(global.form(), &resized, text)?;
    // A node that was a replica names no volumes.
    let config = global.load()?;
    let of_group = config.groups.iter().find(|known| known.name == *group);
    let named = of_group.is_some_and(|known| known.volumes.iter().any(|known| known.name == *volume));
    if named {
        let edited = Edited::with_size(&config.path, group, volume, &exact_bytes(size.0).to_string());
        edited.and_then(|edited| edited.write()).map_err(|failure| {
            failure.next(format_args!("{volume} is resized; put its size into the configuration by hand"))
        })?;
    }
    Ok(())
}

fn text(resized: &Resized) -> String {
    let Resized { export, before_bytes, size_bytes } = resized;
    if before_bytes == size_bytes {
        return format!("{export} has {} already\n", Bytes(*size_bytes));
    }
    format!(
        "{export} has {} now, {} before; NBD clients see that when they connect anew\n",
        Bytes(*size_bytes),
        Bytes(*before_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_reads_well() {
        let resized = Resized { export: "db/data".to_owned(), before_bytes: 10 << 30, size_bytes: 20 << 30 };
        assert_eq!(
            text(&resized),
            "db/data has 20 GiB now, 10 GiB before; NBD clients see that when they connect anew\n"
        );
        let same = Resized { before_bytes: 20 << 30, ..resized };
        assert_eq!(text(&same), "db/data has 20 GiB already\n");
    }
}
