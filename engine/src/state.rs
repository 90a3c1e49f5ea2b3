//! What a node must know before it can read its log: one small file with two places that hold the same.
//!
//! - It never needs space: both places are reserved when the file is made.
//! - An update is written to one place and synced, then to the other and synced. If we die in it, one of them is
//!   whole, and holds the state before or the state after. Once it has returned, either place may rot and the
//!   other one still has *this* state: an older one is no help, because log files were used again since.
//! - After a failed write or sync nothing is written to the file any more (guarantee 8).
//! - Everything goes through [`StateFile::update`], one at a time, so that no writer can put back what another
//!   has changed.
//!
//! This is not a projection of the log but its root: where the log begins, whose reign it is, and up to where
//! the backing devices and the base images reflect it.

use crate::io::{File, OpenMode, Storage};
use crate::log::chain::Tip;
use crate::log::format::SegmentHeader;
use crate::types::{Epoch, GroupId, Incarnation, Lsn, NodeId, Position, Reign, VolumeId};
use bincode::{Decode, Encode};
use std::io::IoSlice;
use std::sync::{Arc, Mutex};

/// What a node does for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Role {
    /// Receives the log.
    Replica,
    /// Serves the volumes and writes the log.
    Primary,
    /// Was primary, and knows of a newer one: serves no write, sends nothing.
    Fenced,
}

impl Role {
    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Replica => "replica",
            Role::Primary => "primary",
            Role::Fenced => "fenced",
        }
    }
}

/// Records that a promotion left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Branch {
    /// Their reign.
    pub epoch: Epoch,
    /// The last record that the branch shares with the main line.
    pub after: Position,
    /// The branch's last record.
    pub last: Lsn,
}

impl Branch {
    /// Whether a segment that is not part of the main line may hold records of it, by what its header says.
    #[must_use]
    pub fn may_need(&self, header: &SegmentHeader) -> bool {
        (self.after.epoch..=self.epoch).contains(&header.epoch) && header.first <= self.last
    }
}

/// The disk of a promoted node being filled from the point it was promoted at.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hydration {
    /// The point.
    pub at: Lsn,
    /// Bytes done, of each volume.
    pub done: Vec<(VolumeId, u64)>,
}

/// Records that will never come: the primary had not kept them, and a sync span makes up for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Gap {
    /// The last record before.
    pub after: Position,
    /// Where the log goes on: the tip before the first record behind.
    pub to: Tip,
}

/// A stretch of LSNs that are no recovery points: a sync span was under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Coarse {
    /// The first of them.
    pub from: Lsn,
    /// The span's end is behind this.
    pub begun: Lsn,
    /// The first LSN that is whole again; `None` while the span goes on.
    pub to: Option<Lsn>,
}

impl Gap {
    /// Whether it is part of the line that a history tells of, and not of a branch: so it was told before version 4, which
    /// keeps them apart.
    fn is_of(&self, history: &[Reign]) -> bool {
        let reign = history.iter().rev().find(|reign| reign.branch.lsn < self.to.lsn);
        reign.is_some_and(|reign| reign.epoch == self.to.epoch)
    }
}

impl Coarse {
    /// Whether an LSN is within.
    #[must_use]
    pub fn covers(&self, lsn: Lsn) -> bool {
        self.from <= lsn && self.to.is_none_or(|to| lsn < to)
    }
}

/// Where a node keeps the state that its log goes on from, for its recovery points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Keeps {
    /// Nowhere: it keeps no points, and its disks are those of the volumes.
    Nothing,
    /// In base images of its own.
    Images,
    /// On the volumes' disks: it was a primary without base images, and was taken back as a replica.
    Disks,
}

/// What the disks of a node that was taken back hold and the main line never had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Diverged {
    /// The last LSN that it shares with the main line.
    pub after: Lsn,
    /// What the file does not know of yet stands in the log behind this.
    pub through: Lsn,
}

/// A replica that lacks more than the records which the log holds for it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lost {
    /// Its name.
    pub replica: String,
    /// Some of what it lacks was never in the log that is held for it.
    pub owed: bool,
    /// What the file does not know of yet stands in the log behind this.
    pub through: Lsn,
    /// A replica that stands below this lacks more than is known.
    pub since: Lsn,
}

/// A volume's size before a record that says only what it is from there on: the record that changed it was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SizeBefore {
    /// The volume.
    pub volume: VolumeId,
    /// The record; only where the log holds exactly this one does it count.
    pub at: Position,
    /// Bytes.
    pub before: u64,
    /// From here on it is zeros behind the record, whatever it held: at some time in between it was no longer.
    pub kept: u64,
}

/// A mark that stays a point behind the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Kept {
    /// Its LSN. Above `base` it is one that a fold goes to, and not kept yet.
    pub at: Lsn,
    /// The number of its file.
    pub number: u64,
    /// Bytes of the file that are durable.
    pub bytes: u64,
}

/// The state of one group on one node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// The group.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// What it does.
    pub role: Role,
    /// The reigns of the main line, oldest first.
    pub history: Vec<Reign>,
    /// The reigns that this node wrote itself.
    pub own: Vec<Epoch>,
    /// The history that fenced this node, if one did.
    pub fenced_by: Vec<Reign>,
    /// The highest incarnation ever begun here.
    pub incarnation: Incarnation,
    /// Where the retained log begins.
    pub start: Tip,
    /// A position that was durable when this was written.
    pub durable: Lsn,
    /// The backing devices hold everything up to here.
    pub applied: Lsn,
    /// The base images hold everything up to here.
    pub base: Lsn,
    /// The oldest selectable point; never above what was listed, never below `base`.
    pub horizon: Lsn,
    /// Filling the disks of a promoted node; `None` once they are whole.
    pub hydration: Option<Hydration>,
    /// The volumes defined so far.
    pub volumes: Vec<crate::event::VolumeSpec>,
    /// What promotions left behind.
    pub branches: Vec<Branch>,
    /// The highest acknowledgement of each replica, by its name.
    pub acknowledged: Vec<(String, Lsn)>,
    /// What the main line leaves out.
    pub gaps: Vec<Gap>,
    /// Which LSNs are no points.
    pub coarse: Vec<Coarse>,
    /// The replicas whose lacks stand in the file of that number.
    pub lost: Vec<Lost>,
    /// See [`crate::lacks`]; 0 for none.
    pub lacks_file: u64,
    /// See [`State::keeps`]; `None` while it follows from the other fields.
    pub keeps: Option<Keeps>,
    /// What the disks hold and the main line does not, if this node was taken back: in the file of that number.
    pub diverged: Option<Diverged>,
    /// The point of a promotion that the operator has not committed yet.
    pub uncommitted: Option<Lsn>,
    /// Old primaries are taken back as replicas.
    pub takes_back: bool,
    /// Volumes that only a branch has defined, whose disks or base images are there all the same.
    pub stale_disks: Vec<String>,
    /// The last record of a primary that handed the group over to the replica which its `fenced_by` names, until that has
    /// taken it.
    pub handed_over: Option<Lsn>,
    /// What branches leave out.
    pub branch_gaps: Vec<Gap>,
    /// Sizes that volumes had before a sync span brought another one.
    pub sizes: Vec<SizeBefore>,
    /// The marks that are kept, oldest first.
    pub kept: Vec<Kept>,
}

/// The fields that versions 2 to 6 have added at the end. All of them are zero bytes as long as they are not used.
const ADDED_FIELDS: [usize; 5] = [4, 6, 1, 1, 1];

impl State {
    /// Where the state is kept that the log goes on from.
    #[must_use]
    pub fn keeps(&self) -> Keeps {
        // The first primary never had base images.
        let derived = match self.role == Role::Replica || self.own.iter().all(|&epoch| epoch > Epoch(1)) {
            true => Keeps::Images,
            false => Keeps::Nothing,
        };
        self.keeps.unwrap_or(derived)
    }

    /// The oldest version of the format that can say all of it.
    fn version(&self) -> u8 {
        let spans =
            !self.gaps.is_empty() || !self.coarse.is_empty() || !self.lost.is_empty() || self.lacks_file != 0;
        let returns = self.keeps.is_some()
            || self.diverged.is_some()
            || self.uncommitted.is_some()
            || self.takes_back
            || !self.stale_disks.is_empty()
            || self.handed_over.is_some();
        match (returns, spans) {
            _ if !self.kept.is_empty() => 6,
            _ if !self.sizes.is_empty() => 5,
            _ if !self.branch_gaps.is_empty() => 4,
            (true, _) => 3,
            (false, true) => 2,
            (false, false) => 1,
        }
    }

    /// What a cut of the main line at `lsn` leaves of its gaps: those behind it are the branch's from now on, and stay so
    /// even if the line comes to have the same epoch again.
    pub fn cut_gaps(&mut self, lsn: Lsn) {
        self.branch_gaps.extend(self.gaps.extract_if(.., |gap| gap.after.lsn >= lsn));
    }

    /// Whether the main line's reign of that epoch was written here: a rival may have begun another one of the same, and
    /// what a node wrote before it lost its disk was not written on this one.
    #[must_use]
    pub fn wrote(&self, epoch: Epoch) -> bool {
        let is_own = |reign: &Reign| reign.epoch == epoch && reign.node == self.node;
        self.own.contains(&epoch) && self.history.iter().any(is_own)
    }

    /// The newest epoch that this node knows of.
    #[must_use]
    pub fn epoch_seen(&self) -> Epoch {
        let newest = |history: &[Reign]| history.last().map_or(Epoch(0), |reign| reign.epoch);
        newest(&self.history).max(newest(&self.fenced_by))
    }

    /// The reign of the main line's end.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.history.last().map_or(Epoch(0), |reign| reign.epoch)
    }
}

/// Bytes of one of the two places.
const PLACE_BYTES: usize = 64 << 10;
const PLACES: u64 = 2;
const HEADER_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"LFSTAT\x1a\n";
/// The newest version of the file's format.
pub const VERSION: u8 = 6;

const BODY: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<{ PLACE_BYTES - HEADER_BYTES }>,
> = bincode::config::standard().with_limit::<{ PLACE_BYTES - HEADER_BYTES }>();

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of the file.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Neither place is whole.
    #[error("{path} is damaged in both of its places; restore the node's folder, or make a new replica")]
    Damaged {
        /// The file.
        path: String,
    },
    /// A newer Landfall wrote it.
    #[error("{path}: format version {version} is newer than this program understands")]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        version: u8,
    },
    /// More reigns or volumes than one place holds.
    #[error("{path}: the state has outgrown its file")]
    TooLarge {
        /// The file.
        path: String,
    },
}

struct Current {
    state: State,
    sequence: u64,
    /// The place that was found whole, or written first: the other one is written first the next time.
    place: u64,
    /// A write or sync failed.
    failed: Option<String>,
}

impl Current {
    fn new(state: State, sequence: u64, place: u64) -> Mutex<Current> {
        Mutex::new(Current { state, sequence, place, failed: None })
    }
}

/// The file, and the state that it holds.
pub struct StateFile {
    path: String,
    file: Arc<dyn File>,
    current: Mutex<Current>,
}

impl StateFile {
    /// Reads the state; `None` if none was ever made (or its making was cut off).
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(storage: &dyn Storage, path: &str) -> Result<Option<StateFile>, Error> {
        let io = |error| Error::Io { path: path.to_owned(), error };
        let file = match storage.open(path, OpenMode::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let len = file.len().map_err(io)?;
        let mut newest: Option<(State, u64, u64)> = None;
        let mut blank = [true; PLACES as usize];
        for place in 0..PLACES {
            let at = place * PLACE_BYTES as u64;
            let mut bytes = vec![0; len.saturating_sub(at).min(PLACE_BYTES as u64) as usize];
            if !bytes.is_empty() {
                file.read_at(&mut bytes, at).map_err(io)?;
            }
            blank[place as usize] = bytes.iter().all(|&byte| byte == 0);
            match decode(&bytes) {
                Ok(Some((state, sequence))) if newest.as_ref().is_none_or(|newest| newest.1 < sequence) => {
                    newest = Some((state, sequence, place));
                }
                Ok(_) => {}
                Err(version) => return Err(Error::Newer { path: path.to_owned(), version }),
            }
        }
        match newest {
            Some((state, sequence, place)) => Ok(Some(StateFile {
                path: path.to_owned(),
                file,
                current: Current::new(state, sequence, place),
            })),
            // Made, but never written, or the first write was cut off, which comes once the file has its length; the
            // second place is only written once the first is durable. We died before anything could depend on it.
            None if blank[1] && (blank[0] || len == PLACES * PLACE_BYTES as u64) => Ok(None),
            None => Err(Error::Damaged { path: path.to_owned() }),
        }
    }

    /// Makes the file, durably, with a first state. Replaces one that [`StateFile::open`] found empty.
    ///
    /// # Errors
    /// [`Error`].
    pub fn create(storage: &dyn Storage, dir: &str, path: &str, state: State) -> Result<StateFile, Error> {
        let io = |error| Error::Io { path: path.to_owned(), error };
        let file = match storage.open(path, OpenMode::Create) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                storage.open(path, OpenMode::Write).map_err(io)?
            }
            opened => opened.map_err(io)?,
        };
        file.allocate(2 * PLACE_BYTES as u64).map_err(io)?;
        let zeros = vec![0; 2 * PLACE_BYTES];
        file.write_at(&[IoSlice::new(&zeros)], 0).map_err(io)?;
        file.sync().map_err(io)?;
        storage.sync_dir(dir).map_err(io)?;
        // As if the second place had been written last: the first is the first to be written.
        let current = Current::new(state.clone(), 0, 1);
        let made = StateFile { path: path.to_owned(), file, current };
        made.update(|current| *current = state)?;
        Ok(made)
    }

    /// The state as it was last made durable.
    ///
    /// # Panics
    /// If another thread panicked in [`StateFile::update`].
    #[must_use]
    pub fn get(&self) -> State {
        self.current.lock().expect("no update panics").state.clone()
    }

    /// Changes the state, durably, and returns it. After an error the state on disk is the one before or the one
    /// after, and [`StateFile::get`] tells the one before.
    ///
    /// # Errors
    /// [`Error`]. A failed write or sync is final: every later update fails as well, and the caller must stop the
    /// group (guarantee 8). [`Error::TooLarge`] changes nothing.
    ///
    /// # Panics
    /// If another thread panicked in here.
    pub fn update(&self, change: impl FnOnce(&mut State)) -> Result<State, Error> {
        let mut current = self.current.lock().expect("no update panics");
        let mut state = current.state.clone();
        change(&mut state);
        let io = |error| Error::Io { path: self.path.clone(), error };
        if let Some(failed) = &current.failed {
            return Err(io(std::io::Error::other(format!("failed before: {failed}"))));
        }
        let sequence = current.sequence + 1;
        let bytes = encode(&state, sequence).ok_or_else(|| Error::TooLarge { path: self.path.clone() })?;
        let first = (current.place + 1) % PLACES;
        for place in [first, current.place] {
            let written = self.file.write_at(&[IoSlice::new(&bytes)], place * PLACE_BYTES as u64);
            if let Err(error) = written.and_then(|()| self.file.sync()) {
                current.failed = Some(error.to_string());
                return Err(io(error));
            }
        }
        (current.state, current.sequence, current.place) = (state.clone(), sequence, first);
        Ok(state)
    }
}

/// ```text
/// 0  8  magic   8  1  version   9  3  zero   12  4  checksum of all the rest   16  8  sequence
/// 24 4  length of the body      28  4  zero  32  .  body (bincode)
/// ```
fn encode(state: &State, sequence: u64) -> Option<Vec<u8>> {
    let mut body = bincode::encode_to_vec(state, BODY).ok()?;
    // An older program understands what has nothing new in it.
    let version = state.version();
    let unused: usize = ADDED_FIELDS[usize::from(version) - 1..].iter().sum();
    body.truncate(body.len() - unused);
    let mut place = vec![0; HEADER_BYTES];
    place[0..8].copy_from_slice(&MAGIC);
    place[8] = version;
    place[16..24].copy_from_slice(&sequence.to_le_bytes());
    place[24..28].copy_from_slice(&u32::try_from(body.len()).ok()?.to_le_bytes());
    place.extend_from_slice(&body);
    let checksum = checksum(&place);
    place[12..16].copy_from_slice(&checksum.to_le_bytes());
    (place.len() <= PLACE_BYTES).then_some(place)
}

fn checksum(place: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(1);
    hasher.update(&place[0..12]);
    hasher.update(&place[16..]);
    hasher.finalize()
}

/// `Ok(None)` if it is not whole, `Err` with the version if it is whole but newer.
fn decode(place: &[u8]) -> Result<Option<(State, u64)>, u8> {
    if place.len() < HEADER_BYTES || place[0..8] != MAGIC {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes(place[at..at + 4].try_into().expect("four bytes"));
    let len = word(24) as usize;
    if len > place.len() - HEADER_BYTES || checksum(&place[..HEADER_BYTES + len]) != word(12) {
        return Ok(None);
    }
    if place[8] == 0 || place[8] > VERSION {
        return Err(place[8]);
    }
    let sequence = u64::from_le_bytes(place[16..24].try_into().expect("eight bytes"));
    let mut body = place[HEADER_BYTES..HEADER_BYTES + len].to_vec();
    let unused: usize = ADDED_FIELDS[usize::from(place[8]) - 1..].iter().sum();
    body.resize(len + unused, 0);
    let decoded = bincode::decode_from_slice::<State, _>(&body, BODY);
    Ok(decoded.ok().filter(|&(_, used)| used == body.len()).map(|(mut state, _)| {
        let State { gaps, branch_gaps, history, .. } = &mut state;
        if place[8] < 4 {
            branch_gaps.extend(gaps.extract_if(.., |gap| !gap.is_of(history)));
        }
        (state, sequence)
    }))
}
