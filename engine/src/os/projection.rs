//! The catalog of a group kept up with its log: a thread's work, once in a while.
//!
//! It reads durable records and nothing else, so what it holds can be thrown away at any time and comes again;
//! nothing waits for it.

use crate::catalog::{Catalog, Entry, Error, MAX_MARKS_PER_CALL, Mark, MarkKind, Projector};
use crate::event::{FLAG_APPLICATION, Kind, Marked, Promoted, decode_body};
use crate::log::format::{HEADER_BYTES, Header, Seed};
use crate::log::notes::Note;
use crate::log::ship::Stretch;
use crate::node::Node;
use crate::os::catalog::{self, DiskCatalog, Found};
use crate::types::{Epoch, Lsn, Reign, Timestamp};
use std::path::Path;

/// Bytes of log projected at a time.
const STEP_BYTES: usize = 4 << 20;

/// Shows the node, for a moment, to whatever is given.
pub type Look<'a> = dyn Fn(&mut dyn FnMut(&Node)) + 'a;

/// A catalog, and how far it has come.
pub struct Projection {
    catalog: DiskCatalog,
    projector: Projector,
    /// The reigns that the catalog holds. Where the node's history is another one, the log was cut, or goes on
    /// differently.
    reigns: Vec<Reign>,
}

/// What is to be projected.
enum News {
    /// All there is to know, up to that record.
    Noted(Vec<Note>, Lsn),
    /// Records that were appended before this process began, or long ago.
    Logged(Seed, Stretch),
}

impl Projection {
    /// Opens the catalog in `path`, or makes an empty one, for a log that is durable up to an LSN.
    ///
    /// # Errors
    /// [`Error`]; the group goes on without.
    pub fn open(path: &Path, durable: Lsn) -> Result<Projection, Error> {
        let (mut catalog, found) = catalog::open(path)?;
        if let Found::Unusable(error) = &found {
            tracing::warn!(path = %path.display(), %error, "the catalog could not be used, and is made anew");
        }
        let projector = Projector::open(&mut catalog, durable)?;
        let reigns = catalog.reigns()?;
        Ok(Projection { catalog, projector, reigns })
    }

    /// Up to where the catalog is of this history; `None` if all of it is.
    fn parting(&self, history: &[Reign]) -> Option<Lsn> {
        let through = self.projector.next().prev();
        let stale = self.reigns.iter().filter(|known| !history.contains(known));
        // The first reign has no record that would say so.
        let unseen = history.iter().filter(|reign| {
            reign.epoch > Epoch(1) && reign.branch.lsn < through && !self.reigns.contains(reign)
        });
        stale.chain(unseen).map(|reign| reign.branch.lsn).min()
    }

    /// Projects one more stretch. `look` gives access to the node for a moment. Whether there may be more.
    ///
    /// # Errors
    /// [`Error`]; the catalog is to be given up.
    pub fn step(&mut self, look: &Look<'_>) -> Result<bool, Error> {
        let mut found = None;
        look(&mut |node| {
            let state = node.state();
            let cut = self.parting(&state.history);
            let next = self.projector.next();
            let from = cut.map_or(next, |cut| next.min(cut.next()));
            let from = node.log().ceil(from);
            let durable = node.durable().lsn;
            let source = match node.log().notes().between(from, durable) {
                Some(notes) => News::Noted(notes, durable),
                None => News::Logged(node.log().seed(), node.log().read(from, STEP_BYTES)),
            };
            found = Some((cut, from, state.horizon, source, state.history.clone()));
        });
        let Some((cut, from, horizon, source, history)) = found else { return Ok(false) };
        if let Some(cut) = cut {
            self.projector = Projector::open(&mut self.catalog, cut)?;
            // A reign that another one followed before it had written anything has no record either.
            self.know(history.iter().filter(|reign| reign.branch.lsn <= cut))?;
        }
        if from > self.projector.next() {
            // The log does not hold what lies between any more, nor the records that began reigns there.
            self.know(history.iter().filter(|reign| reign.branch.lsn < from))?;
            self.catalog.set_projected_through(from.prev())?;
            self.projector = Projector::open(&mut self.catalog, from.prev())?;
        }
        self.catalog.forget_before(horizon)?;
        match source {
            News::Noted(notes, durable) => {
                for note in &notes {
                    self.project(note.lsn, note.time, (note.kind, note.flags), &note.body)?;
                }
                self.projector.pass(&mut self.catalog, durable)?;
                Ok(false)
            }
            News::Logged(seed, stretch) => self.read(seed, stretch),
        }
    }

    fn know<'a>(&mut self, reigns: impl Iterator<Item = &'a Reign>) -> Result<(), Error> {
        for reign in reigns.filter(|reign| reign.epoch > Epoch(1)) {
            self.catalog.put_reign(reign)?;
        }
        self.reigns = self.catalog.reigns()?;
        Ok(())
    }

    fn read(&mut self, seed: Seed, stretch: Stretch) -> Result<bool, Error> {
        let batch = match stretch {
            Stretch::Ready(batch) => batch,
            Stretch::OnDisk(read) => match read.run() {
                Ok(batch) => batch,
                // The file was used again meanwhile; the next step begins further on.
                Err(_) => return Ok(false),
            },
            Stretch::UpToDate | Stretch::Gone => return Ok(false),
        };
        for records in &batch.bytes {
            let mut at = 0;
            while let Ok(header) = Header::decode(seed, &records[at..]) {
                let body = &records[at + HEADER_BYTES..at + HEADER_BYTES + header.payload_len as usize];
                self.project(header.lsn, header.time, (header.kind, header.flags), body)?;
                at += header.record_len();
            }
        }
        Ok(true)
    }

    fn project(
        &mut self,
        lsn: Lsn,
        time: Timestamp,
        (kind, flags): (Kind, u16),
        body: &[u8],
    ) -> Result<(), Error> {
        if lsn < self.projector.next() {
            return Ok(());
        }
        let (mark, reign);
        let entry = match kind {
            Kind::Mark => match decode_body::<Marked>(body) {
                Some(Marked { name }) => {
                    let kind = match flags & FLAG_APPLICATION {
                        0 => MarkKind::Bookmark,
                        _ => MarkKind::Application,
                    };
                    mark = Mark { time, kind, name };
                    Entry::Mark(&mark)
                }
                None => Entry::Other,
            },
            Kind::Promote => match decode_body::<Promoted>(body) {
                Some(promoted) => {
                    reign = promoted.reign;
                    Entry::Reign(&reign)
                }
                None => Entry::Other,
            },
            _ => Entry::Other,
        };
        self.projector.project(&mut self.catalog, lsn, time, entry)?;
        if matches!(entry, Entry::Reign(_)) {
            self.reigns = self.catalog.reigns()?;
        }
        Ok(())
    }

    /// The mark at a record.
    ///
    /// # Errors
    /// [`Error`].
    pub fn mark_at(&self, lsn: Lsn) -> Result<Option<Mark>, Error> {
        Ok(self.catalog.marks(lsn..=lsn)?.pop().map(|(_, mark)| mark))
    }

    /// Shows the marks from `horizon` on to somebody, oldest first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn each_mark(&self, horizon: Lsn, mut see: impl FnMut(Lsn, Mark)) -> Result<(), Error> {
        let mut from = horizon;
        loop {
            let marks = self.catalog.marks(from..=Lsn(u64::MAX))?;
            let Some((last, _)) = marks.last().filter(|_| marks.len() == MAX_MARKS_PER_CALL) else {
                marks.into_iter().for_each(|(lsn, mark)| see(lsn, mark));
                return Ok(());
            };
            from = last.next();
            marks.into_iter().for_each(|(lsn, mark)| see(lsn, mark));
        }
    }

    /// About when a record was written: the time of the newest sample at or before it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn projected(&self) -> Result<(Lsn, Option<Timestamp>), Error> {
        let newest = self.catalog.newest_sample()?;
        Ok((self.catalog.projected_through()?, newest.map(|sample| sample.time)))
    }

    /// Makes it durable, for a clean end.
    ///
    /// # Errors
    /// [`Error`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.catalog.flush()
    }
}
