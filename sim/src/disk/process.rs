//! One life of one program on the machine: the implementation of `engine::io`.
//!
//! Every call goes through one gate, in this order: is the program alive; count; power cut before; fault; time;
//! the call itself; power cut after.

use super::fault::{Blemish, Call, Errno, Fault, Overlay, strike};
use super::inode::{Inode, Kind};
use super::names::{Ino, normal};
use super::{Disk, ProcessId, Side, State};
use engine::io::{File, OpenMode, SECTOR, Storage};
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::ops::Range;
use std::sync::Arc;

/// A program's view of the disk; it is the engine's storage.
#[derive(Clone, Debug)]
pub struct Process {
    disk: Disk,
    id: ProcessId,
}

/// Why a call of a dead program fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// The machine lost power.
    #[error("the machine is off")]
    Off,
    /// The program was killed.
    #[error("the program was killed")]
    Killed,
}

/// Whether an error means that the caller is dead, and whatever it does or reports now never happened.
#[must_use]
pub fn is_gone(error: &Error) -> Option<Gone> {
    error.get_ref().and_then(|inner| inner.downcast_ref()).copied()
}

impl Process {
    pub(super) fn new(disk: Disk, id: ProcessId) -> Process {
        Process { disk, id }
    }

    /// Its number, to kill it.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// The disk that it runs on.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.disk.state().processes.contains(&self.id)
    }

    /// The gate that every call goes through.
    fn call<T>(
        &self,
        call: Call,
        path: &str,
        bytes: u64,
        act: impl FnOnce(&mut State, Option<Fault>) -> Result<T>,
    ) -> Result<T> {
        let state = &mut *self.disk.state();
        if !state.processes.contains(&self.id) {
            return Err(Error::other(if state.powered { Gone::Killed } else { Gone::Off }));
        }
        if state.observed && !call.changes() {
            return act(state, None);
        }
        state.counts.count(call);
        let cut = state.cut.filter(|(at, _)| call.changes() && *at <= state.counts.changes());
        if let Some((_, side)) = cut {
            state.inject(cut_name(call, side));
        }
        if matches!(cut, Some((_, Side::Before))) {
            state.power_off();
            return Err(Error::other(Gone::Off));
        }
        let mut fault = strike(&mut state.rules, call, path, &mut state.rng);
        if let Some(injected) = fault {
            state.inject(name_of(call, injected));
        }
        state.elapsed.0 += state.latency.of(call, bytes, &mut state.rng).0;
        if let Some(Fault::Stall(span)) = fault {
            state.elapsed.0 += span.0;
            fault = None;
        }
        let result = match fault {
            Some(Fault::Fail(errno)) if !matches!(call, Call::Write | Call::Sync) => Err(errno.into()),
            _ => act(state, fault),
        };
        if cut.is_some() {
            state.power_off();
            return Err(Error::other(Gone::Off));
        }
        result
    }

    fn handle(&self, path: &str, ino: Ino, mode: OpenMode) -> Arc<dyn File> {
        *self.disk.state().open.entry(ino).or_default() += 1;
        Arc::new(Handle {
            process: self.clone(),
            path: path.to_owned(),
            ino,
            writable: mode != OpenMode::Read,
        })
    }
}

/// The name under which a power cut at a call is counted.
fn cut_name(call: Call, side: Side) -> &'static str {
    match (call, side) {
        (Call::Create, Side::Before) => "power cut before a file is made",
        (Call::Create, Side::After) => "power cut after a file was made",
        (Call::Remove, Side::Before) => "power cut before a removal",
        (Call::Remove, Side::After) => "power cut after a removal",
        (Call::Rename, Side::Before) => "power cut before a rename",
        (Call::Rename, Side::After) => "power cut after a rename",
        (Call::SyncDir, Side::Before) => "power cut before a sync of a folder",
        (Call::SyncDir, Side::After) => "power cut after a sync of a folder",
        (Call::Write, Side::Before) => "power cut before a write",
        (Call::Write, Side::After) => "power cut after a write",
        (Call::Sync, Side::Before) => "power cut before a sync",
        (Call::Sync, Side::After) => "power cut after a sync",
        (Call::Allocate, Side::Before) => "power cut before an allocation",
        (Call::Allocate, Side::After) => "power cut after an allocation",
        (Call::Zero, Side::Before) => "power cut before zeros are written",
        (Call::Zero, Side::After) => "power cut after zeros were written",
        (_, Side::Before) => "power cut before another call",
        (_, Side::After) => "power cut after another call",
    }
}

/// The name under which an injected fault is counted.
fn name_of(call: Call, fault: Fault) -> &'static str {
    match (fault, call) {
        (Fault::Stall(_), _) => "stall",
        (Fault::Misdirect(_), _) => "misdirected write",
        (Fault::Lose, _) => "lost write",
        (Fault::Fail(Errno::Enospc | Errno::Edquot), _) => "no space",
        (Fault::Fail(_), Call::Sync) => "failed sync",
        (Fault::Fail(_), Call::Write | Call::Zero) => "failed write",
        (Fault::Fail(_), Call::Read) => "failed read",
        (Fault::Fail(_), Call::Open | Call::Create | Call::Lock) => "failed open",
        (Fault::Fail(_), Call::Remove | Call::Rename | Call::CreateDir | Call::SyncDir | Call::List) => {
            "failed change of names"
        }
        (Fault::Fail(_), Call::SetLen | Call::Allocate | Call::Inquire) => "failed change of length",
    }
}

/// Damage goes when its sector is written or cut off.
fn forget(overlay: &mut Overlay, range: Range<(Ino, u64)>) {
    if !overlay.is_empty() && range.start < range.end {
        let gone: Vec<_> = overlay.range(range).map(|(place, _)| *place).collect();
        gone.iter().for_each(|place| drop(overlay.remove(place)));
    }
}

impl Storage for Process {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn File>> {
        let path = normal(path);
        let call = if mode == OpenMode::Create { Call::Create } else { Call::Open };
        let ino = self.call(call, path, 0, |state, _| {
            if mode != OpenMode::Create {
                return state.names.file(path);
            }
            let ino = state.new_ino();
            state.names.create(path, ino)?;
            state.inodes.insert(ino, Inode::new(Kind::Regular, 0));
            Ok(ino)
        })?;
        Ok(self.handle(path, ino, mode))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.call(Call::List, dir, 0, |state, _| state.names.list(normal(dir)))
    }

    fn create_dir(&self, dir: &str) -> Result<()> {
        self.call(Call::CreateDir, dir, 0, |state, _| state.names.create_folder(normal(dir)))
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.call(Call::Remove, path, 0, |state, _| state.names.remove(normal(path)))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.call(Call::Rename, from, 0, |state, _| state.names.rename(normal(from), normal(to)))
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.call(Call::SyncDir, dir, 0, |state, _| {
            state.names.sync(normal(dir))?;
            state.collect();
            Ok(())
        })
    }

    fn lock(&self, path: &str) -> Result<Box<dyn Send + Sync>> {
        let path = normal(path);
        let number = self.call(Call::Lock, path, 0, |state, _| {
            if state.locks.contains_key(path) {
                return Err(ErrorKind::WouldBlock.into());
            }
            if state.names.file(path).is_err() {
                let ino = state.new_ino();
                state.names.create(path, ino)?;
                state.inodes.insert(ino, Inode::new(Kind::Regular, 0));
            }
            state.next_lock += 1;
            state.locks.insert(path.to_owned(), (self.id, state.next_lock));
            Ok(state.next_lock)
        })?;
        Ok(Box::new(Lock { process: self.clone(), path: path.to_owned(), number }))
    }
}

/// A lock's guard.
struct Lock {
    process: Process,
    path: String,
    number: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.process.disk.state();
        // After a kill the lock may have another holder already.
        if state.locks.get(&self.path) == Some(&(self.process.id, self.number)) {
            state.locks.remove(&self.path);
        }
    }
}

/// An open file.
struct Handle {
    process: Process,
    path: String,
    ino: Ino,
    writable: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.process.disk.state();
        if let Some(count) = state.open.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                state.open.remove(&self.ino);
            }
        }
    }
}

impl Handle {
    fn call<T>(
        &self,
        call: Call,
        bytes: u64,
        act: impl FnOnce(&mut State, Option<Fault>) -> Result<T>,
    ) -> Result<T> {
        self.process.call(call, &self.path, bytes, act)
    }

    /// A call that changes the file.
    fn change<T>(
        &self,
        call: Call,
        bytes: u64,
        act: impl FnOnce(&mut State, Option<Fault>) -> Result<T>,
    ) -> Result<T> {
        if !self.writable {
            return Err(Error::new(ErrorKind::PermissionDenied, "the file is open for reading only"));
        }
        self.call(call, bytes, act)
    }

    /// Writes that never fail: from here on only the sectors count.
    fn put(&self, state: &mut State, bytes: &[u8], offset: u64, fault: Option<Fault>) {
        let sectors = offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR);
        let Some(inode) = state.inodes.get_mut(&self.ino) else { return };
        let before: Vec<_> = match fault {
            Some(Fault::Misdirect(_) | Fault::Lose) => {
                sectors.clone().map(|sector| Box::new(*inode.sector(sector))).collect()
            }
            _ => Vec::new(),
        };
        inode.write(bytes, offset);
        let range = (self.ino, sectors.start)..(self.ino, sectors.end);
        forget(&mut state.overlay, range.clone());
        forget(&mut state.hidden, range);
        for (sector, old) in sectors.clone().zip(before) {
            state.hidden.insert((self.ino, sector), Blemish::Shows(old));
        }
        if let Some(Fault::Misdirect(by)) = fault {
            for sector in sectors {
                let elsewhere = sector.checked_add_signed(by).filter(|sector| sector * SECTOR < inode.len);
                if let Some(elsewhere) = elsewhere {
                    let bytes = Box::new(*inode.sector(sector));
                    state.hidden.insert((self.ino, elsewhere), Blemish::Shows(bytes));
                }
            }
        }
    }

    fn read(&self, state: &State, buf: &mut [u8], offset: u64) -> Result<()> {
        // Nothing is there to be read anywhere, also behind the end.
        if buf.is_empty() {
            return Ok(());
        }
        let inode = &state.inodes[&self.ino];
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= inode.len);
        let end = end.ok_or(ErrorKind::UnexpectedEof)?;
        inode.read(buf, offset);
        let sectors = (self.ino, offset / SECTOR)..(self.ino, end.div_ceil(SECTOR));
        for ((_, sector), blemish) in state.overlay.range(sectors) {
            let mut shown = *inode.sector(*sector);
            match blemish {
                Blemish::Unreadable => return Err(Errno::Eio.into()),
                Blemish::Rot { bit } => shown[usize::from(bit / 8)] ^= 1 << (bit % 8),
                Blemish::Shows(bytes) => shown = **bytes,
            }
            let start = sector * SECTOR;
            let (from, to) = (start.max(offset), (start + SECTOR).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&shown[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }
}

impl File for Handle {
    fn len(&self) -> Result<u64> {
        self.call(Call::Inquire, 0, |state, _| Ok(state.inodes[&self.ino].len))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.call(Call::Read, buf.len() as u64, |state, _| self.read(state, buf, offset))
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.call(Call::Read, 0, |state, _| {
            if !state.observed && state.rng.chance(state.uncached_ppm) {
                state.inject("uncached read");
                return Err(ErrorKind::WouldBlock.into());
            }
            self.read(state, buf, offset)
        })
    }

    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        let len = bytes.len() as u64;
        self.change(Call::Write, len, |state, fault| {
            let inode = &state.inodes[&self.ino];
            let end = offset.checked_add(len).ok_or(Error::from(Errno::Efbig))?;
            let failed = match fault {
                Some(Fault::Fail(errno)) => Some(errno),
                _ if inode.kind == Kind::Device && end > inode.len => Some(Errno::Enospc),
                _ if state.capacity_pages.is_some() && !state.has_room(inode.would_charge(offset, len)) => {
                    state.inject("disk full");
                    Some(Errno::Enospc)
                }
                _ => None,
            };
            let Some(errno) = failed else {
                self.put(state, &bytes, offset, fault);
                return Ok(());
            };
            // Any leading part of a failed write may have happened, as far as there was room for it.
            let part = (state.rng.below(len.div_ceil(SECTOR) + 1) * SECTOR).min(len);
            let inode = &state.inodes[&self.ino];
            let fits = inode.kind == Kind::Regular || offset.saturating_add(part) <= inode.len;
            if fits && part > 0 && state.has_room(inode.would_charge(offset, part)) {
                self.put(state, &bytes[..part as usize], offset, None);
            }
            Err(errno.into())
        })
    }

    fn sync(&self) -> Result<()> {
        self.change(Call::Sync, 0, |state, fault| {
            let inode = state.inodes.get_mut(&self.ino).ok_or(ErrorKind::NotFound)?;
            if let Some(Fault::Fail(errno)) = fault {
                inode.sync_failed();
                return Err(errno.into());
            }
            inode.sync();
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.change(Call::SetLen, 0, |state, _| {
            let inode = state.inodes.get_mut(&self.ino).ok_or(ErrorKind::NotFound)?;
            if inode.kind == Kind::Device {
                return Err(Errno::Einval.into());
            }
            inode.reserved = inode.reserved.min(len);
            inode.set_len(len);
            let beyond = (self.ino, len.div_ceil(SECTOR))..(self.ino, u64::MAX);
            forget(&mut state.overlay, beyond.clone());
            forget(&mut state.hidden, beyond);
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> Result<()> {
        self.change(Call::Allocate, 0, |state, _| {
            let inode = &state.inodes[&self.ino];
            match inode.kind {
                Kind::Device if len <= inode.len => return Ok(()),
                Kind::Device => return Err(Errno::Enospc.into()),
                Kind::Regular => {}
            }
            if state.capacity_pages.is_some() && !state.has_room(inode.would_charge(0, len)) {
                state.inject("disk full");
                return Err(Errno::Enospc.into());
            }
            let inode = state.inodes.get_mut(&self.ino).ok_or(ErrorKind::NotFound)?;
            inode.reserved = inode.reserved.max(len);
            if len > inode.len {
                inode.set_len(len);
            }
            Ok(())
        })
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.change(Call::Zero, 0, |state, _| {
            let inode = state.inodes.get_mut(&self.ino).ok_or(ErrorKind::NotFound)?;
            inode.zero(offset, len);
            let end = offset.saturating_add(len).min(inode.len);
            let range = (self.ino, offset / SECTOR)..(self.ino, end.div_ceil(SECTOR).max(offset / SECTOR));
            forget(&mut state.overlay, range.clone());
            forget(&mut state.hidden, range);
            Ok(())
        })
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.call(Call::Inquire, 0, |state, _| {
            let inode = &state.inodes[&self.ino];
            Ok(match inode.kind {
                Kind::Regular => inode.next_data(offset),
                Kind::Device => (offset < inode.len).then_some((offset, inode.len)),
            })
        })
    }
}
