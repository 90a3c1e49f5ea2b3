//! A machine's disk and the kernel in front of it, after the crash model of [`engine::io`].
//!
//! - A [`Process`] is one life of one program on the machine. [`Disk::kill`] ends it: its files and locks are
//!   closed, its writes stay. [`Disk::power_off`] ends all, and [`Disk::power_on`] lets a [`Fate`] decide, for
//!   each unsynced sector, length and name on its own, what is found afterwards.
//! - A crash point is a power cut exactly before or after the n-th call that changes anything
//!   ([`Disk::cut_power_at`]). From there on every call fails with an error that [`is_gone`] knows, the engine
//!   unwinds, and whoever runs the machine starts it again. So a cut can be placed in recovery, and in the
//!   recovery from that.
//! - Faults are data, apart from the pristine bytes (module `fault`), and [`Disk::heal`] takes all of them away.
//! - [`Disk::fork`] copies everything at once, cheaply, so that from one moment many fates can be tried;
//!   [`Odometer`] tries all of them.
//!
//! It keeps no time: latency is added up ([`Disk::take_latency`]) for the scheduler.

mod content;
mod fate;
mod fault;
mod inode;
mod names;
mod process;

pub use fate::{Dice, Fate, KeepAll, LoseAll, Odometer};
pub use fault::{Call, Counts, Errno, Fault, Latency, Rule, When};
pub use process::{Gone, Process, is_gone};

use crate::clock::Span;
use crate::hash::Hash64;
use crate::rng::Rng;
use content::PAGE;
use engine::io::SECTOR;
use fault::{Blemish, Overlay};
use inode::{Inode, Kind};
use names::{Ino, Names};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// On which side of a call the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// It has not happened.
    Before,
    /// It has happened, and its caller never hears of it.
    After,
}

/// The number of one life of one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId(pub u64);

/// A machine's disk. Cloning the handle gives another handle; [`Disk::fork`] gives another disk.
#[derive(Clone, Debug)]
pub struct Disk {
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug)]
struct State {
    powered: bool,
    processes: BTreeSet<ProcessId>,
    next_process: u64,
    locks: BTreeMap<String, (ProcessId, u64)>,
    next_lock: u64,
    names: Names,
    inodes: BTreeMap<Ino, Inode>,
    next_ino: u64,
    /// Open files by the number of handles.
    open: BTreeMap<Ino, u64>,
    rules: Vec<Rule>,
    capacity_pages: Option<u64>,
    /// What reads see of the platter's damage.
    overlay: Overlay,
    /// Damage that the page cache still hides.
    hidden: Overlay,
    cut: Option<(u64, Side)>,
    uncached_ppm: u32,
    /// Reads are those of a check.
    observed: bool,
    latency: Latency,
    elapsed: Span,
    counts: Counts,
    injected: BTreeMap<&'static str, u64>,
    rng: Rng,
}

impl Disk {
    /// An empty disk of a machine that is on.
    #[must_use]
    pub fn new(rng: Rng) -> Disk {
        Disk {
            state: Arc::new(Mutex::new(State {
                powered: true,
                processes: BTreeSet::new(),
                next_process: 0,
                locks: BTreeMap::new(),
                next_lock: 0,
                names: Names::default(),
                inodes: BTreeMap::new(),
                next_ino: 0,
                open: BTreeMap::new(),
                rules: Vec::new(),
                capacity_pages: None,
                overlay: Overlay::new(),
                hidden: Overlay::new(),
                cut: None,
                uncached_ppm: 0,
                observed: false,
                latency: Latency::NONE,
                elapsed: Span(0),
                counts: Counts::default(),
                injected: BTreeMap::new(),
                rng,
            })),
        }
    }

    /// The same disk once more, which goes its own way from here. Processes of the original do not see it; those
    /// that were alive stay so for [`Disk::kill`], but it takes a new one to reach the copy.
    #[must_use]
    pub fn fork(&self) -> Disk {
        Disk { state: Arc::new(Mutex::new(self.state().clone())) }
    }

    // -- what is on it from the start

    /// A regular file that has always been there, folders included.
    pub fn plant_file(&self, path: &str, bytes: &[u8]) {
        let mut inode = Inode::new(Kind::Regular, 0);
        inode.write(bytes, 0);
        inode.sync();
        self.state().plant(path, inode);
    }

    /// A block device: of a fixed size, and its name is always there.
    pub fn plant_device(&self, path: &str, size: u64) {
        self.state().plant(path, Inode::new(Kind::Device, size));
    }

    // -- lives and deaths

    /// Starts a program. The machine has to be on.
    #[must_use]
    pub fn start(&self) -> Process {
        let mut state = self.state();
        assert!(state.powered, "no program starts on a machine that is off");
        let id = ProcessId(state.next_process);
        state.next_process += 1;
        state.processes.insert(id);
        drop(state);
        Process::new(self.clone(), id)
    }

    /// Kills a program. What it wrote stays, synced or not, except that sectors whose sync failed may fall out of
    /// the page cache and show what the platter has.
    pub fn kill(&self, id: ProcessId, fate: &mut dyn Fate) {
        let mut state = self.state();
        state.processes.remove(&id);
        state.locks.retain(|_, (holder, _)| *holder != id);
        state.drop_caches(fate);
    }

    /// Lets the page cache forget what it believes to be clean: damage, and what a failed sync did not write,
    /// shows now.
    pub fn drop_caches(&self, fate: &mut dyn Fate) {
        self.state().drop_caches(fate);
    }

    /// Cuts the power. What has survived is settled when it comes back.
    pub fn power_off(&self) {
        self.state().power_off();
    }

    /// Cuts the power at the n-th call from now that changes anything ([`Call::changes`]), counted from 1.
    pub fn cut_power_at(&self, n: u64, side: Side) {
        assert!(n > 0, "calls are counted from 1");
        let mut state = self.state();
        let at = state.counts.changes() + n;
        state.cut = Some((at, side));
    }

    /// Takes a planned power cut back.
    pub fn cancel_cut(&self) {
        self.state().cut = None;
    }

    /// Whether the machine has power.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.state().powered
    }

    /// Gives the machine power again, after `fate` has decided what survived. Cuts it first if it was on.
    pub fn power_on(&self, fate: &mut dyn Fate) {
        let mut state = self.state();
        state.power_off();
        let State { names, inodes, overlay, hidden, .. } = &mut *state;
        names.power_cut(fate);
        let named: BTreeSet<Ino> = names.files().map(|(_, ino)| ino).collect();
        inodes.retain(|ino, _| named.contains(ino));
        inodes.values_mut().for_each(|inode| inode.power_cut(fate));
        overlay.append(hidden);
        overlay.retain(|(ino, _), _| named.contains(ino));
        state.powered = true;
    }

    /// How many sectors and names wait for a sync. What a power cut can leave is at least two to this power.
    #[must_use]
    pub fn unsynced(&self) -> u64 {
        let state = self.state();
        state.names.unsynced_changes() + state.inodes.values().map(Inode::unsynced_sectors).sum::<u64>()
    }

    // -- faults

    /// Adds a rule behind those that there are.
    pub fn add_rule(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Takes all rules away. Damage stays.
    pub fn clear_rules(&self) {
        self.state().rules.clear();
    }

    /// Gives the disk so many bytes of space, or endless space.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_pages = bytes.map(|bytes| bytes / PAGE);
    }

    /// The space in use, in bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state().used_pages() * PAGE
    }

    /// Flips a bit of a file on the platter; false if there is no such file or byte.
    pub fn rot(&self, path: &str, offset: u64, bit: u8) -> bool {
        let bit = (offset % SECTOR) as u16 * 8 + u16::from(bit % 8);
        self.state().blemish("rot", path, offset / SECTOR, Blemish::Rot { bit })
    }

    /// Makes the sector at `offset` unreadable, until it is written again; false if there is no such byte.
    pub fn make_unreadable(&self, path: &str, offset: u64) -> bool {
        self.state().blemish("unreadable", path, offset / SECTOR, Blemish::Unreadable)
    }

    /// Rots a bit of some synced sector with data, of a file whose path begins so; says where.
    pub fn rot_somewhere(&self, path_prefix: &str) -> Option<(String, u64)> {
        let mut state = self.state();
        let settled: Vec<(String, Ino, Vec<u64>)> = state
            .names
            .files()
            .filter(|(path, _)| path.starts_with(path_prefix))
            .map(|(path, ino)| (path.to_owned(), ino, state.inodes[&ino].settled_sectors()))
            .filter(|(_, _, sectors)| !sectors.is_empty())
            .collect();
        if settled.is_empty() {
            return None;
        }
        let (path, ino, sectors) = state.rng.pick(&settled).clone();
        let sector = *state.rng.pick(&sectors);
        let bit = state.rng.below(SECTOR * 8) as u16;
        state.overlay.insert((ino, sector), Blemish::Rot { bit });
        state.inject("rot");
        Some((path, sector * SECTOR + u64::from(bit / 8)))
    }

    /// The share, in parts per million, of `read_cached_at` that would have to wait for the disk.
    pub fn set_uncached(&self, ppm: u32) {
        self.state().uncached_ppm = ppm;
    }

    /// Sets how long calls take.
    pub fn set_latency(&self, latency: Latency) {
        self.state().latency = latency;
    }

    /// The time that calls took since this was last asked.
    #[must_use]
    pub fn take_latency(&self) -> Span {
        std::mem::take(&mut self.state().elapsed)
    }

    /// Takes every fault away: rules, damage, the planned cut, the limit of space. What a failed sync left open
    /// stays open: that is history, not a fault.
    pub fn heal(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.overlay.clear();
        state.hidden.clear();
        state.cut = None;
        state.capacity_pages = None;
        state.uncached_ppm = 0;
    }

    // -- for the checks: no call is counted, no fault applies

    /// Lets a check read through the program itself: until the guard is dropped, calls that change nothing are not
    /// counted, take no time and meet no rule, so that how much is looked at moves nothing in a run. Damage shows.
    #[must_use]
    pub fn observe(&self) -> Observing {
        self.state().observed = true;
        Observing(self.clone())
    }

    /// How often each call was made.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// How often each fault was injected, by name.
    #[must_use]
    pub fn injected(&self) -> BTreeMap<&'static str, u64> {
        self.state().injected.clone()
    }

    /// How many syncs were made to fail.
    #[must_use]
    pub fn failed_syncs(&self) -> u64 {
        self.state().injected.get("failed sync").copied().unwrap_or_default()
    }

    /// The paths of all files.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.state().names.files().map(|(path, _)| path.to_owned()).collect()
    }

    /// A file's pristine bytes as the running machine has them, synced or not.
    #[must_use]
    pub fn peek(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = &state.inodes[&state.names.file(names::normal(path)).ok()?];
        Some(inode.bytes(inode.len))
    }

    /// The first so many of a file's pristine bytes, or as many as there are.
    #[must_use]
    pub fn peek_start(&self, path: &str, len: u64) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = &state.inodes[&state.names.file(names::normal(path)).ok()?];
        Some(inode.bytes(len.min(inode.len)))
    }

    /// A file's pristine bytes as far as no power cut can take them.
    #[must_use]
    pub fn peek_stable(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let (content, len) = state.inodes[&state.names.file(names::normal(path)).ok()?].stable();
        let mut bytes = vec![0; len as usize];
        content.read(&mut bytes, 0);
        Some(bytes)
    }

    /// A hash of all names, lengths and pristine bytes of the files whose path begins so.
    #[must_use]
    pub fn digest(&self, path_prefix: &str) -> u64 {
        let state = self.state();
        let mut hash = Hash64::default();
        for (path, ino) in state.names.files().filter(|(path, _)| path.starts_with(path_prefix)) {
            let inode = &state.inodes[&ino];
            hash.bytes(path.as_bytes());
            hash.word(inode.len);
            let mut at = 0;
            while let Some((start, end)) = inode.next_data(at) {
                let mut page = [0; PAGE as usize];
                let bytes = &mut page[..(end - start).min(PAGE) as usize];
                inode.read(bytes, start);
                // A page of zeros is no different from a hole.
                if bytes.iter().any(|byte| *byte != 0) {
                    hash.word(start);
                    hash.bytes(bytes);
                }
                at = start + bytes.len() as u64;
            }
        }
        hash.value()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under this lock is a failed run already; what the disk holds is still worth a look.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, reads are those of a check ([`Disk::observe`]).
#[derive(Debug)]
pub struct Observing(Disk);

impl Drop for Observing {
    fn drop(&mut self) {
        self.0.state().observed = false;
    }
}

impl State {
    fn plant(&mut self, path: &str, inode: Inode) {
        let ino = self.new_ino();
        self.names.plant(names::normal(path), ino);
        self.inodes.insert(ino, inode);
    }

    fn new_ino(&mut self) -> Ino {
        self.next_ino += 1;
        Ino(self.next_ino)
    }

    /// Forgets files that have no name and no user, and can get neither.
    fn collect(&mut self) {
        let State { names, inodes, open, .. } = self;
        inodes.retain(|ino, _| open.contains_key(ino) || names.refers_to(*ino));
    }

    fn power_off(&mut self) {
        self.powered = false;
        self.cut = None;
        self.processes.clear();
        self.locks.clear();
    }

    fn drop_caches(&mut self, fate: &mut dyn Fate) {
        self.inodes.values_mut().for_each(|inode| inode.evict(fate));
        let State { inodes, overlay, hidden, .. } = self;
        // A dirty sector is not on the platter yet: what happened to its write stays hidden.
        let shown: Vec<(Ino, u64)> = hidden
            .keys()
            .filter(|(ino, sector)| inodes.get(ino).is_some_and(|inode| !inode.is_unsynced(*sector)))
            .copied()
            .collect();
        for place in shown {
            overlay.extend(hidden.remove(&place).map(|blemish| (place, blemish)));
        }
    }

    fn used_pages(&self) -> u64 {
        self.names
            .files()
            .map(|(_, ino)| &self.inodes[&ino])
            .filter(|inode| inode.kind == Kind::Regular)
            .map(Inode::charge)
            .sum()
    }

    /// Whether so many more pages fit.
    fn has_room(&self, pages: u64) -> bool {
        self.capacity_pages.is_none_or(|capacity| pages == 0 || self.used_pages() + pages <= capacity)
    }

    fn blemish(&mut self, name: &'static str, path: &str, sector: u64, blemish: Blemish) -> bool {
        let Ok(ino) = self.names.file(names::normal(path)) else { return false };
        if sector * SECTOR >= self.inodes[&ino].len {
            return false;
        }
        self.overlay.insert((ino, sector), blemish);
        self.inject(name);
        true
    }

    fn inject(&mut self, name: &'static str) {
        *self.injected.entry(name).or_default() += 1;
    }
}

#[cfg(test)]
mod tests;
