//! `landfall resync`: says what a copy of everything costs, asks, and allows it.

use crate::args::{self, Global};
use crate::control::api::{CatchUp, Resync};
use crate::exit::Failure;
use crate::human;
use crate::units::Bytes;

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::Resync) -> Result<(), Failure> {
    let args::Resync { group, replica, yes } = arguments;
    let mut client = global.connect()?;
    let status = client.status()?;
    let known = status.groups.iter().find(|shown| shown.name == *group);
    let known = known.and_then(|shown| shown.replicas.iter().find(|shown| shown.name == *replica));
    let needs = known.and_then(|shown| shown.catching_up).filter(|needs| needs.state == CatchUp::NeedsCopy);
    if known.is_some() && needs.is_none() {
        // It may come to need one before the request is there, and nobody has agreed to that.
        return Err(Failure::refused(format_args!(
            "group {group}: what {replica} lacks is known; nothing was changed"
        )));
    }
    if let Some(needs) = needs {
        human::say(format!(
            "All of group {group}, at most {}, is copied to {replica}. Production goes on; the points that {replica} \
             has stay as they are; what is written from now on is a point there once the copy is whole.",
            Bytes(needs.bytes)
        ));
        if !yes {
            human::confirm(&format!("Copy everything to {replica}?"))?;
        }
    }
    client.resync(Resync { group: group.clone(), replica: replica.clone() })?;
    human::say(format!("The copy begins when {replica} next calls; `landfall status` shows how far it is."));
    Ok(())
}
