//! Marks: setting one, and finding one by its name.

use super::groups::Group;
use crate::control::api::{
    At, Fault, FaultCode, MAX_PERIODIC_MARKS, Mark, MarkKind, MarkRequest, Moment, PeriodicMarks, PointMark,
};
use crate::mark::guard::now_ns;
use crate::point::Which;
use engine::catalog;
use engine::node::mark::MarkError;
use engine::types::Lsn;
use std::sync::Arc;

/// LSNs that are named where a name is not enough.
const MAX_NAMED: usize = 5;

/// What the applications were doing.
pub(super) fn kind_of(kind: catalog::MarkKind) -> MarkKind {
    match kind {
        catalog::MarkKind::Bookmark => MarkKind::CrashConsistent,
        catalog::MarkKind::Application => MarkKind::ApplicationConsistent,
    }
}

/// Sets one.
pub(super) fn mark(group: &Group, request: &MarkRequest) -> Result<Mark, Fault> {
    let kind = match request.kind {
        MarkKind::CrashConsistent => catalog::MarkKind::Bookmark,
        MarkKind::ApplicationConsistent => catalog::MarkKind::Application,
    };
    let marked = group.engine.at_rest(|node, now| {
        // Looked at where nothing comes between this and the record.
        if request.before_ns.is_some_and(|before| now_ns() >= before) {
            return Some(Err(None));
        }
        match node.mark(now, &request.name, kind) {
            Err(MarkError::Busy) => None,
            other => Some(other.map_err(Some)),
        }
    });
    let lsn = marked.map_err(|error| {
        let Some(error) = error else {
            let what =
                format!("group {}: it is too late: the applications have been let go", group.config.name);
            return Fault::new(FaultCode::Failed, what);
        };
        let code = match &error {
            MarkError::NotPrimary(_) | MarkError::HandingOver => FaultCode::Refused,
            MarkError::BadName => FaultCode::BadRequest,
            MarkError::Failed(_) | MarkError::Busy | MarkError::Log(_) => FaultCode::Failed,
        };
        let mut fault = Fault::new(code, format_args!("group {}: {error}", group.config.name));
        if matches!(error, MarkError::NotPrimary(_)) {
            fault.next = Some("mark on the node that is the group's primary".to_owned());
        }
        fault
    })?;
    Ok(Mark { at: group.at(lsn), name: request.name.clone(), kind: request.kind })
}

/// What is marked at a point of the line.
pub(super) fn at(group: &Group, lsn: Lsn) -> Option<PointMark> {
    let mark = group.engine.mark_at(lsn)?;
    Some(PointMark { name: Some(mark.name).filter(|name| !name.is_empty()), kind: kind_of(mark.kind) })
}

/// The periodic marks.
pub(super) fn periodic(group: &Group, all: bool) -> PeriodicMarks {
    let marks = group.engine.periodic_marks();
    let at = |&(lsn, time)| At { lsn, time: Moment(time) };
    let told = if all { marks.len().min(MAX_PERIODIC_MARKS) } else { 0 };
    PeriodicMarks {
        count: marks.len() as u64,
        newest: marks.last().map(at),
        marks: marks[marks.len() - told..].iter().map(at).collect(),
    }
}

/// The LSN of the mark that is meant; 0 if none is.
pub(super) fn resolve(group: &Arc<Group>, which: &Which) -> Result<Lsn, Fault> {
    let name = &group.config.name;
    let refused = |what: String| {
        let mut fault = Fault::new(FaultCode::Refused, format_args!("group {name}: {what}"));
        fault.next = Some(format!("`landfall points list {name}` shows the marks"));
        fault
    };
    let marks = || {
        let kept = group.engine.peek(engine::node::Node::kept_marks).into_iter();
        let kept = kept
            .map(|(mark, _)| (mark.at, catalog::Mark { time: mark.time, kind: mark.kind, name: mark.name }));
        kept.chain(group.engine.marks()).collect::<Vec<_>>()
    };
    match which {
        Which::Mark(wanted) => {
            let found: Vec<Lsn> =
                marks().into_iter().filter(|(_, mark)| mark.name == *wanted).map(|(lsn, _)| lsn).collect();
            match found.as_slice() {
                [] => Err(refused(format!("no point here is marked {wanted}"))),
                [one] => Ok(*one),
                several => {
                    let named: Vec<String> =
                        several.iter().rev().take(MAX_NAMED).map(|lsn| format!("lsn:{lsn}")).collect();
                    Err(refused(format!(
                        "{} points are marked {wanted}, the newest first: {}",
                        several.len(),
                        named.join(", ")
                    )))
                }
            }
        }
        Which::LatestApp => {
            let newest =
                marks().into_iter().rev().find(|(_, mark)| mark.kind == catalog::MarkKind::Application);
            newest.map(|(lsn, _)| lsn).ok_or_else(|| {
                refused("no point here is marked as consistent for the applications".to_owned())
            })
        }
        Which::Latest | Which::Lsn(_) | Which::Time(_) => Ok(Lsn::ZERO),
    }
}
