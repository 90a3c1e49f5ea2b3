//! The catalog of a group kept up with its log: a thread's work, once in a while.
//!
//! It reads durable records and nothing else, so what it holds can be thrown away at any time and comes again;
//! nothing waits for it.

use crate::catalog::{Catalog, Entry, Error, Mark, MarkKind, Projector};
use crate::event::{Kind, Marked, Promoted, decode_body};
use crate::log::format::{HEADER_BYTES, Header, Seed};
use crate::log::ship::Stretch;
use crate::node::Node;
use crate::os::catalog::{self, DiskCatalog, Found};
use crate::types::{Epoch, Lsn, Timestamp};
use std::path::Path;

/// Bytes of log projected at a time.
const STEP_BYTES: usize = 4 << 20;

/// Shows the node, for a moment, to whatever is given.
pub type Look<'a> = dyn Fn(&mut dyn FnMut(&Node)) + 'a;

/// A catalog, and how far it has come.
pub struct Projection {
    catalog: DiskCatalog,
    projector: Projector,
    /// The reign that it was projected under: a new one may have cut the log below.
    epoch: Epoch,
}

impl Projection {
    /// Opens the catalog in `path`, or makes an empty one, for a log that is durable up to an LSN of an epoch.
    ///
    /// # Errors
    /// [`Error`]; the group goes on without.
    pub fn open(path: &Path, durable: Lsn, epoch: Epoch) -> Result<Projection, Error> {
        let (mut catalog, found) = catalog::open(path)?;
        if let Found::Unusable(error) = &found {
            tracing::warn!(path = %path.display(), %error, "the catalog could not be used, and is made anew");
        }
        let projector = Projector::open(&mut catalog, durable)?;
        Ok(Projection { catalog, projector, epoch })
    }

    /// Projects one more stretch. `look` gives access to the node for a moment. Whether there may be more.
    ///
    /// # Errors
    /// [`Error`]; the catalog is to be given up.
    pub fn step(&mut self, look: &Look<'_>) -> Result<bool, Error> {
        let mut found = None;
        look(&mut |node| {
            let state = node.state();
            let cut = state.history.last().filter(|reign| reign.epoch > self.epoch);
            let cut = cut.map(|reign| (reign.epoch, reign.branch.lsn));
            let next = self.projector.next();
            let from = cut.map_or(next, |(_, branch)| next.min(branch.next())).max(node.log().first());
            found = Some((cut, from, state.horizon, node.log().seed(), node.log().read(from, STEP_BYTES)));
        });
        let Some((cut, from, horizon, seed, stretch)) = found else { return Ok(false) };
        if let Some((epoch, branch)) = cut {
            self.projector = Projector::open(&mut self.catalog, branch)?;
            self.epoch = epoch;
        }
        if from > self.projector.next() {
            // The log does not hold what lies between any more.
            self.catalog.set_projected_through(from.prev())?;
            self.projector = Projector::open(&mut self.catalog, from.prev())?;
        }
        self.catalog.forget_before(horizon)?;
        let batch = match stretch {
            Stretch::Ready(batch) => batch,
            Stretch::OnDisk(read) => match read.run() {
                Ok(batch) => batch,
                // The file was used again meanwhile; the next step begins further on.
                Err(_) => return Ok(false),
            },
            Stretch::UpToDate | Stretch::Gone => return Ok(false),
        };
        for piece in &batch.bytes {
            self.project(seed, piece)?;
        }
        Ok(true)
    }

    fn project(&mut self, seed: Seed, records: &[u8]) -> Result<(), Error> {
        let mut at = 0;
        while let Ok(header) = Header::decode(seed, &records[at..]) {
            let payload = &records[at + HEADER_BYTES..at + HEADER_BYTES + header.payload_len as usize];
            let (mark, reign);
            let entry = match header.kind {
                Kind::Mark => match decode_body::<Marked>(payload) {
                    Some(Marked { name }) => {
                        mark = Mark { time: header.time, kind: MarkKind::Bookmark, name };
                        Entry::Mark(&mark)
                    }
                    None => Entry::Other,
                },
                Kind::Promote => match decode_body::<Promoted>(payload) {
                    Some(promoted) => {
                        reign = promoted.reign;
                        Entry::Reign(&reign)
                    }
                    None => Entry::Other,
                },
                _ => Entry::Other,
            };
            if header.lsn >= self.projector.next() {
                self.projector.project(&mut self.catalog, header.lsn, header.time, entry)?;
            }
            at += header.record_len();
        }
        Ok(())
    }

    /// The marks from `horizon` on, oldest first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn marks(&self, horizon: Lsn) -> Result<Vec<(Lsn, Mark)>, Error> {
        self.catalog.marks(horizon..=Lsn(u64::MAX))
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
