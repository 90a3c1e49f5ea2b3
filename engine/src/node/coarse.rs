//! A replica's side of sync spans: which LSNs are no points, and the jump over records that never come.
//!
//! A jump is on record before the log goes on behind it, and with it the stretch of LSNs that are no points. Such a
//! stretch ends with the record that ends the span; what lay before it stays selectable all the while, and is not
//! retired before there is a newer point.

use super::Node;
use crate::event::{FLAG_IN_PLACE, Kind, Spanned, decode_body};
use crate::log::format::Header;
use crate::peer::{Jump, Needs, Rebuff};
use crate::state::{Coarse, Gap, Role};
use crate::types::{Lsn, NodeId, Now};

/// The most stretches on record; beyond that the oldest ones are joined.
const MAX_COARSE: usize = 64;
/// The most gaps of a retained log.
const MAX_GAPS: usize = 256;

/// Whether the states behind a record that another node has written are not whole: it defines a volume whose disk held
/// data already, which a span will bring.
pub(super) fn defines_in_place(header: &Header) -> bool {
    header.kind == Kind::Volume && header.flags & FLAG_IN_PLACE != 0
}

/// Takes note of a volume that was defined by another node with data on its disk, as one of `volumes`.
pub(super) fn await_data(coarse: &mut Vec<Coarse>, header: &Header, volumes: usize) {
    match coarse.last_mut().filter(|last| last.to.is_none()) {
        Some(open) => open.begun = header.lsn.next(),
        None => {
            // Before its first volume a group has nothing that anybody could want.
            let from = if volumes <= 1 { Lsn::ZERO } else { header.lsn };
            coarse.push(Coarse { from, begun: header.lsn.next(), to: None });
        }
    }
    limit(coarse);
}

/// Takes note of a jump over the records behind `after`, up to `to`: a span makes up for them.
pub(super) fn leave_out(coarse: &mut Vec<Coarse>, after: Lsn, to: Lsn) {
    match coarse.last_mut().filter(|last| last.to.is_none()) {
        Some(open) => open.begun = to.next(),
        None => {
            // Before its first record a replica has nothing that anybody could want.
            let from = if after == Lsn::ZERO { after } else { after.next() };
            coarse.push(Coarse { from, begun: to.next(), to: None });
        }
    }
}

fn limit(coarse: &mut Vec<Coarse>) {
    if coarse.len() > MAX_COARSE {
        let first = coarse.remove(0);
        coarse[0].from = first.from;
    }
}

/// Takes note of a record that begins or ends a span for `node`.
///
/// A span that began with no more than its record, at a replica that was whole, changes nothing there: what it copies is
/// what there is. (Its primary had lost sight of what the replica has, or sent again what a scrub had found, which the
/// replica knows of without it.) If that primary does not live to end it, it ends where the next reign begins.
pub(super) fn follow(coarse: &mut Vec<Coarse>, node: NodeId, header: &Header, payload: &[u8]) {
    if header.kind == Kind::Promote
        && let Some(open) = coarse.last_mut().filter(|last| last.to.is_none())
        && open.from == open.begun
        && open.from > Lsn::ZERO
    {
        open.to = Some(header.lsn);
    }
    let is_span = matches!(header.kind, Kind::SpanBegin | Kind::SpanEnd);
    if !is_span || decode_body::<Spanned>(payload).is_none_or(|spanned| spanned.replica != node) {
        return;
    }
    let known = coarse.iter().any(|known| known.covers(header.lsn));
    let open = coarse.last_mut().filter(|last| last.to.is_none());
    match (header.kind, open) {
        (Kind::SpanBegin, None) if !known => {
            coarse.push(Coarse { from: header.lsn, begun: header.lsn, to: None });
        }
        (Kind::SpanEnd, Some(open)) if header.lsn > open.begun => open.to = Some(header.lsn),
        _ => {}
    }
    limit(coarse);
}

impl Node {
    /// Whether a span is under way here.
    #[must_use]
    pub fn is_coarse(&self) -> bool {
        self.coarse.last().is_some_and(|last| last.to.is_none())
    }

    /// The stretches of LSNs that are no points.
    #[must_use]
    pub fn coarse(&self) -> &[Coarse] {
        &self.coarse
    }

    /// What this replica tells its primary that it lacks.
    #[must_use]
    pub fn needs(&self) -> Needs {
        // Of a node that was taken back, the lacks say all, unless it was told to leave records out since.
        let all_told = self.whole_but_for_divergence();
        Needs { coarse: self.is_coarse() && !all_told, lacks: self.diverged_lacks() }
    }

    /// Whether what diverged is all that this replica lacks.
    fn whole_but_for_divergence(&self) -> bool {
        let after = self.state.diverged.map(|diverged| diverged.after);
        let open = self.coarse.last().filter(|last| last.to.is_none());
        self.diverged.is_some() && open.is_some_and(|open| Some(open.begun) == after)
    }

    /// Ends the stretch of LSNs that are no points if the log has brought everything that diverged: where no primary
    /// knows of a span any more, nobody else would.
    ///
    /// # Errors
    /// Of the state.
    pub(super) fn end_divergence(&mut self, now: Now) -> Result<(), crate::state::Error> {
        let is_empty = self.diverged.as_ref().is_some_and(crate::extents::Extents::is_empty);
        if !is_empty || !self.whole_but_for_divergence() {
            return Ok(());
        }
        let mut coarse = self.coarse.clone();
        if let Some(open) = coarse.last_mut() {
            open.to = Some(self.log.durable().lsn);
        }
        self.update_state(now, |state| {
            state.coarse = coarse.clone();
            state.diverged = None;
        })?;
        (self.coarse, self.diverged) = (coarse, None);
        Ok(())
    }

    /// The newest point at or before `lsn`, and the oldest behind it, as far as spans go.
    pub(crate) fn whole_around(&self, lsn: Lsn) -> (Option<Lsn>, Option<Lsn>) {
        let (mut before, mut after) = (Some(lsn), Some(lsn));
        for stretch in self.coarse.iter().rev() {
            if before.is_some_and(|lsn| stretch.covers(lsn)) {
                before = stretch.from.0.checked_sub(1).map(Lsn);
            }
        }
        for stretch in &self.coarse {
            if after.is_some_and(|lsn| stretch.covers(lsn)) {
                after = stretch.to;
            }
        }
        (before.map(|lsn| self.log.floor(lsn)), after)
    }

    /// The primary will not send what lies between this log's end and `jump.to`; a span follows.
    ///
    /// # Errors
    /// [`Rebuff`]: the answer to send; the session ends with it.
    pub fn jump(&mut self, now: Now, jump: &Jump) -> Result<(), Rebuff> {
        let stale = self.stream.is_none_or(|epoch| epoch < self.state.epoch_seen());
        if self.failed.is_some() {
            return Err(Rebuff::Failed);
        }
        if self.state.role != Role::Replica || stale {
            return Err(Rebuff::Superseded { history: self.state.history.clone() });
        }
        self.sync_now(now).map_err(|_| Rebuff::Failed)?;
        let at = self.log.durable().position();
        let fits = jump.from == at && jump.to.lsn > at.lsn && jump.to.epoch == self.epoch_of(jump.to.lsn);
        if !fits || self.state.gaps.len() + self.state.branch_gaps.len() >= MAX_GAPS {
            return Err(Rebuff::Diverged { at });
        }
        let gap = Gap { after: at, to: jump.to };
        let mut coarse = self.coarse.clone();
        leave_out(&mut coarse, at.lsn, jump.to.lsn);
        let recorded = self.update_state(now, |state| {
            state.gaps.push(gap);
            state.coarse = coarse.clone();
        });
        recorded.map_err(|_| Rebuff::Failed)?;
        self.coarse = coarse;
        self.log.jump(jump.to);
        tracing::warn!(
            group = %self.config.name, after = %at.lsn, to = %jump.to.lsn,
            "records that the primary has not kept are left out; a sync span makes up for them"
        );
        Ok(())
    }

    /// What a cut of the log at `lsn` leaves of the stretches.
    pub(crate) fn cut_coarse(lsn: Lsn, coarse: &mut Vec<Coarse>) {
        coarse.retain(|stretch| stretch.from <= lsn);
        for stretch in coarse.iter_mut() {
            if stretch.to.is_some_and(|to| to > lsn) {
                stretch.to = None;
            }
        }
    }
}
