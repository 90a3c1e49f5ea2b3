//! From the files of a group to a [`Node`], whatever ended the last one.
//!
//! What a crash leaves behind at each step of making a group, and why the next start gets over it:
//!
//! 1. the state file: not whole, so there is no group yet, and it is made again;
//! 2. the backing files: they are there and hold nothing, which is what a new volume's backing must be;
//! 3. the first records: those that are missing are appended at the next start.
//!
//! Writes that the backing may lack are loaded from the log into the overlay; reads are right at once, and the
//! backing follows by the same path as ever, once they are durable.

use super::config::{Begins, Config, NewVolume, Start};
use super::disks::{
    Presence, backing_path, check_new_backing, check_new_backings, make_disk, open_backing, open_in_place,
    open_kept,
};
use super::keep::Candidate;
use super::resize::{Sizes, gain_of, lengthen, sizes_of};
use super::span::Lack;
use super::{Follower, Node, Volume, coarse, work::Work};
use crate::event::{
    FLAG_AGAIN, FLAG_COPY, FLAG_IN_PLACE, FLAG_NO_HOLE, Kind, Opened, Promoted, VolumeDefined, VolumeSpec,
    decode_body, encode_body,
};
use crate::extents::Extents;
use crate::index::{Index, Source};
use crate::io::{Storage, make_dir};
use crate::kept::KeptMarks;
use crate::lacks;
use crate::log::chain::Tip;
use crate::log::format::Header;
use crate::log::recovery::{Known, OpenError, Report};
use crate::log::{self, Draft, Log, Place};
use crate::overlay::{Content, Overlay};
use crate::state::{Keeps, Lost, Role, State, StateFile};
use crate::types::{Epoch, Extent, GroupId, Incarnation, Lsn, Now, Position, Reign, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;

/// The largest volume, in bytes: 64 TiB.
pub const MAX_VOLUME_BYTES: u64 = 64 << 40;
/// Volume sizes are multiples of this.
pub const VOLUME_UNIT_BYTES: u64 = 512;
/// The most volumes of a group: their definitions fit the state file.
pub const MAX_VOLUMES: usize = 256;
/// The longest name of a volume, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// Why a group cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("{dir} is in use by another process; stop it first (a process that died leaves no lock behind)")]
    Locked {
        /// The group's folder.
        dir: String,
    },
    /// Of the files.
    #[error("{path}: {error}")]
    Io {
        /// File or folder.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Of the state.
    #[error(transparent)]
    State(#[from] crate::state::Error),
    /// Of the log.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// There is a log, but no state.
    #[error("{dir} holds a log but no state file: restore the file `state`, or move the folder away")]
    StateMissing {
        /// The group's folder.
        dir: String,
    },
    /// A backing is not there any more.
    #[error("volume {volume}: its disk {path} is gone; Landfall does not make a new one in its place")]
    BackingMissing {
        /// The volume.
        volume: String,
        /// Where it was.
        path: String,
    },
    /// A backing is too small.
    #[error("volume {volume}: its disk {path} has {len} bytes, the volume {size}")]
    BackingTooSmall {
        /// The volume.
        volume: String,
        /// The disk.
        path: String,
        /// Its length.
        len: u64,
        /// What is needed.
        size: u64,
    },
    /// A new volume's backing already holds data.
    #[error(
        "volume {volume}: {path} already holds data (at byte {offset}); a new volume starts empty. Give it an \
         empty disk, or protect the data where it is"
    )]
    BackingNotEmpty {
        /// The volume.
        volume: String,
        /// The disk.
        path: String,
        /// The first byte that is not zero.
        offset: u64,
    },
    /// There is nothing to protect in place.
    #[error("volume {volume}: there is no disk {path} whose data could be protected in place")]
    NothingThere {
        /// The volume.
        volume: String,
        /// Where it should be.
        path: String,
    },
    /// Limits that cannot be.
    #[error("{reason}")]
    BadLimits {
        /// What is wrong.
        reason: String,
    },
    /// Not now.
    #[error("the group is busy; try again in a moment")]
    Busy,
    /// This node cannot take a new volume.
    #[error("this node takes no new volume: {reason}")]
    NotNow {
        /// Why.
        reason: String,
    },
    /// The log does not take the first records.
    #[error("the log takes no records: {0}")]
    Append(#[from] log::Error),
    /// A definition that cannot be.
    #[error("volume {volume}: {reason}")]
    BadVolume {
        /// The volume.
        volume: String,
        /// What is wrong.
        reason: String,
    },
}

pub(super) fn io(path: &str) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |error| Error::Io { path, error }
}

impl Node {
    /// Opens a group: takes its lock, reads its state and its log, and, on a primary, begins a new incarnation.
    ///
    /// # Errors
    /// [`Error`]; nothing that was there is lost or changed then.
    pub fn open(now: Now, storage: Arc<dyn Storage>, config: Config) -> Result<(Node, Report), Error> {
        let dir = config.dir.clone();
        make_dir(&*storage, &dir).map_err(io(&dir))?;
        if let Some(reason) = config.limits.log.fault() {
            return Err(Error::BadLimits { reason });
        }
        let lock = storage.lock(&format!("{dir}/lock")).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => Error::Locked { dir: dir.clone() },
            _ => Error::Io { path: format!("{dir}/lock"), error },
        })?;
        let state_path = format!("{dir}/state");
        let file = match StateFile::open(&*storage, &state_path)? {
            Some(file) => Some(file),
            None => {
                refuse_log_without_state(&*storage, &dir)?;
                match &config.start {
                    Start::Primary { group, .. } => {
                        check_new_backings(&*storage, &config)?;
                        let state = first_state(*group, &config);
                        Some(StateFile::create(&*storage, &dir, &state_path, state)?)
                    }
                    Start::Replica => None,
                }
            }
        };
        let state = match &file {
            // Whatever an earlier opening left behind a torn tail is older than this, from here on.
            Some(file) => file.update(|state| state.incarnation.0 += 1)?,
            None => unborn_state(config.node),
        };
        let (mut node, report) = load(storage, config, file.map(Arc::new), state, Arc::from(lock))?;
        if node.state.role == Role::Primary {
            node.check_volumes()?;
            match node.begin(now) {
                // It can be read, and written again once there is room.
                Err(error) if error.is_no_space() => {
                    tracing::warn!(group = %node.config.name, %error, "no write is taken until there is room");
                }
                begun => begun?,
            }
            match node.define_new_volumes(now) {
                Err(Error::Append(error)) if error.is_no_space() => {
                    tracing::warn!(group = %node.config.name, %error, "new volumes are made once there is room");
                }
                defined => defined?,
            }
        }
        Ok((node, report))
    }

    /// Whether the node belongs to a group yet: a new replica does once its primary has called.
    #[must_use]
    pub fn is_born(&self) -> bool {
        self.file.is_some()
    }

    /// Makes an unborn replica a member of `group`.
    pub(crate) fn be_born(&mut self, group: GroupId, history: Vec<Reign>) -> Result<(), Error> {
        assert!(!self.is_born(), "a node is born once");
        let path = self.path("state");
        let state = State { group, history, ..unborn_state(self.config.node) };
        let file = StateFile::create(&*self.storage, &self.config.dir, &path, state.clone())?;
        let lock = self._lock.clone();
        let (node, _) = load(self.storage.clone(), self.config.clone(), Some(Arc::new(file)), state, lock)?;
        *self = node;
        tracing::info!(group = %self.config.name, id = %group, "became a replica");
        Ok(())
    }

    /// Makes sure that the first record of this opening is in the log. Called before anything else is appended.
    ///
    /// # Errors
    /// Of the log. For want of space it may be tried again.
    pub(crate) fn begin(&mut self, now: Now) -> Result<(), log::Error> {
        if self.begun {
            return Ok(());
        }
        let epoch = self.state.epoch();
        let node = self.config.node;
        let (kind, body) = match self.state.history.last() {
            // We died between deciding the promotion and recording it.
            Some(&reign) if reign.epoch > self.log.tip().epoch && reign.epoch > Epoch(1) => {
                (Kind::Promote, encode_body(&Promoted { reign }))
            }
            _ => (Kind::Open, encode_body(&Opened { node })),
        };
        self.append_control(now, epoch, kind, VolumeId(0), &body)?;
        self.begun = true;
        Ok(())
    }

    pub(crate) fn append_control(
        &mut self,
        now: Now,
        epoch: Epoch,
        kind: Kind,
        volume: VolumeId,
        body: &[u8],
    ) -> Result<(), log::Error> {
        self.append_flagged(now, epoch, kind, 0, volume, body)
    }

    pub(crate) fn append_flagged(
        &mut self,
        now: Now,
        epoch: Epoch,
        kind: Kind,
        flags: u16,
        volume: VolumeId,
        body: &[u8],
    ) -> Result<(), log::Error> {
        let draft = Draft { kind, flags, volume, extent: Extent::default(), payload: body };
        let (_, error) = self.log.append(now.wall, epoch, &[draft]);
        match error {
            None => {
                self.appended(now);
                Ok(())
            }
            Some(error) => {
                self.log_refused(now, &error);
                Err(error)
            }
        }
    }

    /// Makes the volumes for which there was no room in the log when this node was opened.
    pub(super) fn define_late(&mut self, now: Now) {
        let Start::Primary { volumes, .. } = &self.config.start else { return };
        let is_known = |new: &NewVolume| self.volumes.values().any(|known| known.spec.name == new.name);
        if self.state.role != Role::Primary || volumes.iter().all(is_known) {
            return;
        }
        if let Err(error) = self.define_new_volumes(now) {
            tracing::warn!(group = %self.config.name, %error, "new volumes cannot be made yet");
        }
    }

    /// Whether the volumes of the configuration can be served: nothing is written before that is known.
    fn check_volumes(&self) -> Result<(), Error> {
        let Start::Primary { volumes, .. } = &self.config.start else { return Ok(()) };
        for (index, volume) in volumes.iter().enumerate() {
            let known = self.volumes.values().find(|known| known.spec.name == volume.name);
            let Some(known) = known else {
                let spec = VolumeSpec { id: VolumeId(0), name: volume.name.clone(), size: volume.size };
                check_spec(&spec, self.volumes.len().max(index))?;
                self.check_in_place(volume, &spec)?;
                if volume.begins == Begins::Empty && !self.state.stale_disks.contains(&spec.name) {
                    check_new_backing(&*self.storage, &self.config, &spec)?;
                }
                continue;
            };
            // The log says what it is: it may have been resized by another node since this was written.
            if known.spec.size != volume.size {
                tracing::warn!(
                    group = %self.config.name, volume = volume.name, size = known.spec.size, configured = volume.size,
                    "the volume has another size than the configuration says; `landfall resize` changes it"
                );
            }
        }
        Ok(())
    }

    fn define_new_volumes(&mut self, now: Now) -> Result<(), Error> {
        let Start::Primary { mut volumes, .. } = self.config.start.clone() else { return Ok(()) };
        // Those that hold data first: before that has come over, a replica has nothing that anybody could want.
        volumes.sort_by_key(|volume| volume.begins == Begins::Empty);
        for volume in volumes {
            if self.volumes.values().all(|known| known.spec.name != volume.name) {
                self.define(now, &volume)?;
            }
        }
        Ok(())
    }

    /// The next volume that is defined.
    pub(super) fn next_volume(&self, volume: &NewVolume) -> VolumeSpec {
        let next = self.volumes.keys().next_back().map_or(1, |id| id.0 + 1);
        VolumeSpec { id: VolumeId(next), name: volume.name.clone(), size: volume.size }
    }

    /// Whether a volume can be protected where it is, if that is asked for.
    pub(super) fn check_in_place(&self, volume: &NewVolume, spec: &VolumeSpec) -> Result<(), Error> {
        if volume.begins == Begins::Empty {
            return Ok(());
        }
        if self.state.keeps() != Keeps::Nothing {
            let reason =
                "data is protected in place where the group began; this node has been a replica. Make a \
                          group of its own for it"
                    .to_owned();
            return Err(Error::BadVolume { volume: spec.name.clone(), reason });
        }
        open_in_place(&*self.storage, &self.config, spec).map(drop)
    }

    /// Defines a volume.
    ///
    /// If we die in here the definition is missing, or not durable, and the next start makes it anew: no guest has
    /// written to it by then that anybody was told of, and data that is protected in place is where it was.
    pub(super) fn define(&mut self, now: Now, volume: &NewVolume) -> Result<(), Error> {
        let spec = self.next_volume(volume);
        check_spec(&spec, self.volumes.len())?;
        self.check_in_place(volume, &spec)?;
        let in_place = volume.begins == Begins::InPlace;
        let kept = open_kept(&*self.storage, &self.config, &self.state, &spec, Presence::Any)?;
        let (backing, base) = match self.state.keeps() {
            Keeps::Disks => (None, kept),
            Keeps::Nothing if in_place => (Some(open_in_place(&*self.storage, &self.config, &spec)?), kept),
            Keeps::Images | Keeps::Nothing => {
                (Some(make_disk(&*self.storage, &self.config, &self.state, &spec)?), kept)
            }
        };
        let body = encode_body(&VolumeDefined { name: spec.name.clone(), size: spec.size });
        let epoch = self.state.epoch();
        self.begin(now)?;
        let flags = if in_place { FLAG_IN_PLACE } else { 0 };
        self.append_flagged(now, epoch, Kind::Volume, flags, spec.id, &body)?;
        let defined = self.log.tip().lsn;
        let (active, frozen) = (Overlay::default(), None);
        let resizes = Vec::new();
        let volume = Volume { spec, defined, in_place, resizes, backing, base, active, frozen };
        let (id, whole) = (volume.spec.id, Extent::new(0, volume.spec.size));
        self.volumes.insert(id, volume);
        // Whoever is away lacks all of it.
        self.note_change(id, whole);
        Ok(())
    }
}

/// Reads the log and opens the disks.
pub(super) fn load(
    storage: Arc<dyn Storage>,
    config: Config,
    file: Option<Arc<StateFile>>,
    mut state: State,
    lock: Arc<dyn Send + Sync>,
) -> Result<(Node, Report), Error> {
    let keeps = state.keeps();
    let mut index = (keeps != Keeps::Nothing).then(|| Index::new(state.base));
    let mut specs: BTreeMap<VolumeId, VolumeSpec> =
        state.volumes.iter().map(|spec| (spec.id, spec.clone())).collect();
    let mut defined: BTreeMap<VolumeId, Lsn> = BTreeMap::new();
    let mut in_place: BTreeSet<VolumeId> = BTreeSet::new();
    let mut sizes = Sizes::default();
    let mut marks = BTreeMap::new();
    let mut overlays: BTreeMap<VolumeId, Overlay> = BTreeMap::new();
    let mut coarse = state.coarse.clone();
    let (mut lacks, mut diverged) = read_lacks(&*storage, &config, &state)?;
    // A fenced primary's disk is brought up to date as well: what it logged is what it holds.
    let replays = state.role != Role::Replica && state.hydration.is_none();
    let headers_through = if replays { state.applied.min(state.durable) } else { state.durable };
    let (log, report) = {
        let own = |epoch: Epoch| state.wrote(epoch);
        let known = Known {
            group: state.group,
            history: &state.history,
            branches: &state.branches,
            gaps: &state.gaps,
            own: &own,
            start: state.start,
            // What was folded had been durable before: a log that ends below it has lost records.
            // So had what stands before a gap.
            durable: state
                .gaps
                .iter()
                .map(|gap| gap.after.lsn)
                .fold(state.durable.max(state.horizon), Lsn::max),
            headers_through,
            incarnation: state.incarnation,
        };
        let mut visit = |header: &Header, place: Place, payload: &[u8]| {
            let is_again = header.flags & FLAG_AGAIN != 0 && specs.contains_key(&header.volume);
            if header.kind == Kind::Volume && !is_again {
                defined.insert(header.volume, header.lsn);
                if coarse::defines_in_place(header) {
                    in_place.insert(header.volume);
                }
            }
            if header.lsn > headers_through {
                coarse::follow(&mut coarse, state.node, header, payload);
            }
            if header.kind == Kind::Volume && header.lsn > headers_through && !is_again {
                let spec = spec_of(header, payload).ok_or(ErrorKind::InvalidData)?;
                // The state tells the newest size that it knows.
                if header.lsn > state.durable || !specs.contains_key(&spec.id) {
                    specs.insert(spec.id, spec);
                }
                if coarse::defines_in_place(header) && !state.wrote(header.epoch) {
                    coarse::await_data(&mut coarse, header, specs.len());
                }
            }
            if header.kind == Kind::Mark && index.is_some() && header.lsn > state.base {
                marks.insert(header.lsn, Candidate::of(header));
            }
            let mut gone = None;
            if header.kind == Kind::Resize {
                let (mut before, behind) = sizes_of(header);
                if header.lsn > state.durable
                    && let Some(spec) = specs.get_mut(&header.volume)
                {
                    // Another change may have been left out before this one.
                    before = std::mem::replace(&mut spec.size, behind);
                }
                gone = sizes.note(header, &state.sizes, Some((before, behind)));
                for (_, extents) in lacks.iter_mut().filter(|(lost, _)| header.lsn > lost.through) {
                    gain_of(header).into_iter().for_each(|extent| extents.insert(header.volume, extent));
                }
            }
            if is_again {
                // The record that changed its size may have been left out.
                let mut known_sizes = None;
                if header.lsn > state.durable
                    && let Some(known) = specs.get_mut(&header.volume)
                {
                    let spec = spec_of(header, payload).ok_or(ErrorKind::InvalidData)?;
                    known_sizes = (spec.size != known.size).then_some((known.size, spec.size));
                    known.size = spec.size;
                }
                gone = sizes.note(header, &state.sizes, known_sizes);
            }
            if let (Some(index), Some(gone)) = (&mut index, gone)
                && header.lsn > state.base
            {
                index.insert(header.volume, header.lsn, gone, Source::Zero);
            }
            if header.kind.changes_bytes() {
                for (lost, extents) in &mut lacks {
                    if header.lsn > lost.through && header.flags & FLAG_COPY == 0 {
                        extents.insert(header.volume, header.extent);
                    }
                }
                if let (Some(diverged), Some(noted)) = (&mut diverged, state.diverged)
                    && header.lsn > noted.through
                {
                    let size = specs.get(&header.volume).map_or(0, |spec| spec.size);
                    diverged.remove(header.volume, header.extent, size);
                }
                if let Some(index) = &mut index
                    && header.lsn > state.base
                {
                    index_record(index, header, place);
                }
                if replays && header.lsn > state.applied {
                    overlays
                        .entry(header.volume)
                        .or_default()
                        .insert(header.extent, content_of(header, payload.to_vec().into()));
                }
            }
            Ok(())
        };
        Log::open(storage.clone(), &format!("{}/log", config.dir), config.limits.log, &known, &mut visit)?
    };
    if let Some(torn) = &report.torn {
        tracing::warn!(
            group = %config.name, lsn = %torn.lsn, slot = torn.slot, offset = torn.offset,
            records_behind = torn.records_behind, found = %torn.stop,
            "a power cut tore the tail off the log; nothing that had been durable is missing"
        );
    }
    let mut volumes = BTreeMap::new();
    for (id, spec) in specs {
        let backing = match replays {
            true => Some(open_backing(&*storage, &config, &spec)?),
            false => None,
        };
        let presence = match state.volumes.iter().any(|known| known.id == id && known.name == spec.name) {
            true => Presence::Expected,
            false => Presence::Any,
        };
        let base = open_kept(&*storage, &config, &state, &spec, presence)?;
        let active = overlays.remove(&id).unwrap_or_default();
        let defined = defined.get(&id).copied().unwrap_or_default();
        let in_place = in_place.contains(&id);
        let resizes = sizes.take(id);
        if let (Some(base), Some(known)) = (&base, state.volumes.iter().find(|known| known.id == id)) {
            // It may have died between the record of a larger size and the disk.
            // Not behind what was folded: then the disk was long enough, and holds what was written there.
            let through = state.durable.max(state.horizon);
            let next = resizes.iter().find(|resized| resized.at > through);
            let known = known.size.max(next.map_or(spec.size, |resized| resized.before));
            let on_record = resizes.iter().filter(|resized| resized.at <= through);
            let largest = on_record.map(|resized| resized.before).fold(known, u64::max);
            if spec.size > largest {
                lengthen(&**base, &spec.name, &backing_path(&config, &spec.name), largest, spec.size)?;
            }
        }
        volumes.insert(id, Volume { spec, defined, in_place, resizes, backing, base, active, frozen: None });
    }
    let (kept, whole) = KeptMarks::open(&*storage, &config.dir, &state.kept).map_err(io(&config.dir))?;
    if let (Some(file), true) = (&file, whole.len() < state.kept.len()) {
        state = file.update(|state| state.kept = whole)?;
    }
    let followers = config
        .replicas
        .iter()
        .map(|name| {
            let known = state.acknowledged.iter().find(|(known, _)| known == name);
            let acknowledged = known.map_or(Lsn::ZERO, |&(_, lsn)| lsn);
            let lack = lacks.iter().position(|(lost, _)| lost.replica == *name).map(|index| {
                let (lost, extents) = lacks.swap_remove(index);
                Lack::recorded(extents, &lost)
            });
            (name.clone(), Follower { acknowledged, held: acknowledged, lack, ..Follower::default() })
        })
        .collect();
    if coarse.last().is_none_or(|last| last.to.is_some()) {
        diverged = None;
    }
    let applied = if replays { state.applied } else { log.tip().lsn };
    let mut work = Work::new(applied);
    // What was found in the log goes on record before the log is freed.
    work.lacks_changed = !state.lost.is_empty() || state.diverged.is_some();
    let mut node = Node {
        work,
        verify: super::verify::Verify::default(),
        checks: super::check::Checks::default(),
        reread: super::reread::Reread::default(),
        config,
        storage,
        file,
        state,
        log,
        index,
        volumes,
        followers,
        diverged,
        brought: VecDeque::new(),
        coarse,
        failed: None,
        kept: Arc::new(kept),
        marks,
        pins: BTreeMap::new(),
        waiters: VecDeque::new(),
        answers: Vec::new(),
        next_ticket: 1,
        drain: None,
        wish: None,
        unsynced_since: None,
        last_primary: None,
        stream: None,
        begun: false,
        _lock: lock,
    };
    node.prepare_hydration()?;
    Ok((node, report))
}

/// What replicas lacked when the node was last at work; those that have everything since are known by the log.
/// And what this node's own disks lack, if it was taken back.
#[expect(clippy::type_complexity, reason = "read by the one caller below")]
fn read_lacks(
    storage: &dyn Storage,
    config: &Config,
    state: &State,
) -> Result<(Vec<(Lost, Extents)>, Option<Extents>), Error> {
    let dir = &config.dir;
    lacks::remove_others(storage, dir, state.lacks_file).map_err(io(dir))?;
    let mut known = match state.lacks_file {
        0 => Vec::new(),
        number => match lacks::read(storage, dir, number) {
            Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound) => {
                tracing::warn!(
                    group = %config.name, %error,
                    "what the replicas lack is not known any more: they get a copy of everything"
                );
                Vec::new()
            }
            read => read.map_err(io(dir))?,
        },
    };
    let everything = || {
        let mut extents = Extents::default();
        state.volumes.iter().for_each(|spec| extents.insert(spec.id, Extent::new(0, spec.size)));
        extents
    };
    let found = state.lost.iter().map(|lost| {
        let index = known.iter().position(|lacks| lacks.replica == lost.replica);
        let extents = index.map_or_else(everything, |index| known.swap_remove(index).extents);
        (Lost { owed: lost.owed || index.is_none(), ..lost.clone() }, extents)
    });
    let found = found.collect();
    let diverged = state.diverged.map(|_| {
        let index = known.iter().position(|lacks| lacks.replica == lacks::OWN);
        index.map_or_else(everything, |index| known.swap_remove(index).extents)
    });
    Ok((found, diverged))
}

/// A log record as a version in the index.
pub(crate) fn index_record(index: &mut Index, header: &Header, place: Place) {
    let source = match header.kind {
        Kind::Write => Source::Payload(place),
        _ => Source::Zero,
    };
    index.insert(header.volume, header.lsn, header.extent, source);
}

/// A log record as an overlay's content.
pub(crate) fn content_of(header: &Header, payload: bytes::Bytes) -> Content {
    match header.kind {
        Kind::Write => Content::Bytes(payload),
        _ => Content::Zero { no_hole: header.flags & FLAG_NO_HOLE != 0 },
    }
}

/// A volume's definition, if the record holds a sane one.
pub(crate) fn spec_of(header: &Header, payload: &[u8]) -> Option<VolumeSpec> {
    let defined: VolumeDefined = decode_body(payload)?;
    let spec = VolumeSpec { id: header.volume, name: defined.name, size: defined.size };
    check_spec(&spec, 0).is_ok().then_some(spec)
}

pub(super) fn check_spec(spec: &VolumeSpec, others: usize) -> Result<(), Error> {
    let bad = |reason: String| Err(Error::BadVolume { volume: spec.name.clone(), reason });
    if spec.size == 0 || !spec.size.is_multiple_of(VOLUME_UNIT_BYTES) || spec.size > MAX_VOLUME_BYTES {
        return bad(format!(
            "a size of {} bytes is not a multiple of {VOLUME_UNIT_BYTES} from {VOLUME_UNIT_BYTES} to 64 TiB",
            spec.size
        ));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts_well = spec.name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || spec.name.len() > MAX_NAME_BYTES || !spec.name.chars().all(plain) {
        return bad(format!(
            "a name is 1 to {MAX_NAME_BYTES} letters, digits, dots, dashes and underscores, and starts with a \
             letter or digit"
        ));
    }
    if others >= MAX_VOLUMES {
        return bad(format!("a group has at most {MAX_VOLUMES} volumes"));
    }
    Ok(())
}

fn first_state(group: GroupId, config: &Config) -> State {
    let reign = Reign { epoch: Epoch(1), branch: Position::default(), node: config.node };
    State {
        group,
        role: Role::Primary,
        history: vec![reign],
        own: vec![reign.epoch],
        ..unborn_state(config.node)
    }
}

fn unborn_state(node: crate::types::NodeId) -> State {
    State {
        group: GroupId::default(),
        node,
        role: Role::Replica,
        history: Vec::new(),
        own: Vec::new(),
        fenced_by: Vec::new(),
        incarnation: Incarnation(0),
        start: Tip::default(),
        durable: Lsn::ZERO,
        applied: Lsn::ZERO,
        base: Lsn::ZERO,
        horizon: Lsn::ZERO,
        hydration: None,
        volumes: Vec::new(),
        branches: Vec::new(),
        acknowledged: Vec::new(),
        gaps: Vec::new(),
        branch_gaps: Vec::new(),
        sizes: Vec::new(),
        coarse: Vec::new(),
        lost: Vec::new(),
        lacks_file: 0,
        keeps: None,
        diverged: None,
        uncommitted: None,
        takes_back: false,
        stale_disks: Vec::new(),
        handed_over: None,
        kept: Vec::new(),
    }
}

fn refuse_log_without_state(storage: &dyn Storage, dir: &str) -> Result<(), Error> {
    let log = format!("{dir}/log");
    let names = match storage.list(&log) {
        Ok(names) => names,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(&log)(error)),
    };
    match names.iter().any(|name| name.ends_with(".seg")) {
        true => Err(Error::StateMissing { dir: dir.to_owned() }),
        false => Ok(()),
    }
}

/// A group's folder as it is on disk, read whole and left as it is.
pub struct Examined {
    /// The state on record.
    pub state: State,
    /// The log, or why it would not open.
    pub log: Result<crate::log::recovery::Verified, OpenError>,
}

/// Reads all of a group's folder and changes nothing in it: for `log inspect` and `log verify`.
///
/// # Errors
/// [`Error::Locked`] while a process has the group open; [`Error::StateMissing`] if no group is there.
pub fn examine(storage: Arc<dyn Storage>, dir: &str) -> Result<Examined, Error> {
    let missing = || Error::StateMissing { dir: dir.to_owned() };
    let file = StateFile::open(&*storage, &format!("{dir}/state"))?.ok_or_else(missing)?;
    let _lock = storage.lock(&format!("{dir}/lock")).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => Error::Locked { dir: dir.to_owned() },
        _ => Error::Io { path: format!("{dir}/lock"), error },
    })?;
    let state = file.get();
    let own = |epoch: Epoch| state.wrote(epoch);
    let known = Known {
        group: state.group,
        history: &state.history,
        branches: &state.branches,
        gaps: &state.gaps,
        own: &own,
        start: state.start,
        durable: state.durable,
        headers_through: Lsn::ZERO,
        incarnation: state.incarnation,
    };
    let log = Log::verify(storage, &format!("{dir}/log"), crate::log::Limits::default(), &known);
    Ok(Examined { state: state.clone(), log })
}
