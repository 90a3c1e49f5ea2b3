//! What is written to the target folder of a restore of files.
//!
//! Invariants, whatever the filesystem that is read from says:
//! - nothing is written outside the target: a name is one part of a path and nothing else ([`Name`]); folders are
//!   opened one below the other, and never through a symbolic link;
//! - a file has its name only once it is whole: it is written under another one ([`TEMPORARY`]) and renamed. A kill
//!   leaves at most one such file behind;
//! - what is there is replaced only if that is asked for, by a rename: never written into, and a folder never;
//! - set-user and set-group bits are only given to a file that has its owner back.
//!
//! Nothing is synced but by [`Target::sync`].

use super::filesystem::{Attribute, FileTime, Owner, Stat};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown,
    fsetxattr, futimens, linkat, mkdirat, openat, renameat, renameat_with, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How the name of a file begins that is not whole yet.
const TEMPORARY: &str = ".landfall-restore-";

/// What a filesystem takes as a name, on Linux.
const MAX_NAME_BYTES: usize = 255;

/// What is done with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// It stays.
    Keep,
    /// It is replaced.
    Replace,
}

/// Why something was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Something of that name is there.
    Exists,
    /// A folder is there, or no folder where one is needed.
    InTheWay,
    /// The name is none that may be written.
    Name,
    /// The system would not.
    System(Errno),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        match errno {
            Errno::EXIST => Refusal::Exists,
            Errno::NOTDIR | Errno::LOOP | Errno::ISDIR => Refusal::InTheWay,
            other => Refusal::System(other),
        }
    }
}

impl Refusal {
    /// Whether nothing else can be written either.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Refusal::System(Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::IO | Errno::STALE))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Exists => f.write_str("something of that name is there; --force replaces it"),
            Refusal::InTheWay => f.write_str("something of another kind is there, in the way"),
            Refusal::Name => f.write_str("its name cannot be that of a file"),
            Refusal::System(errno) => std::io::Error::from(*errno).fmt(f),
        }
    }
}

/// A name that is one part of a path.
#[derive(Clone, Copy)]
pub(super) struct Name<'a>(&'a OsStr);

impl<'a> Name<'a> {
    /// Refuses what would be a path, this folder, the one above, or no name at all.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Name<'a>, Refusal> {
        let is_one = !bytes.is_empty()
            && bytes.len() <= MAX_NAME_BYTES
            && bytes != b"."
            && bytes != b".."
            && !bytes.contains(&b'/')
            && !bytes.contains(&0);
        is_one.then(|| Name(OsStr::from_bytes(bytes))).ok_or(Refusal::Name)
    }
}

/// What could not be given to the files, though they are there.
#[derive(Clone, Debug, Default)]
pub(super) struct Lacks {
    /// Files without their owner.
    pub(super) owners: u64,
    /// Extended attributes.
    pub(super) attributes: u64,
    /// Why, the first time.
    pub(super) why: Option<String>,
    /// Files that were names of one file, and are copies now.
    pub(super) links: u64,
}

/// The target.
pub(super) struct Target {
    root: OwnedFd,
    existing: Existing,
    next: u64,
    /// What was lost on the way.
    pub(super) lacks: Lacks,
}

/// A file that has not got its name yet; it goes away with this.
pub(super) struct Unnamed<'a> {
    folder: BorrowedFd<'a>,
    temporary: String,
    /// To be written.
    pub(super) file: File,
}

impl Drop for Unnamed<'_> {
    fn drop(&mut self) {
        // Not there any more, if it has been renamed.
        let _ = unlinkat(self.folder, &self.temporary, AtFlags::empty());
    }
}

impl Target {
    /// The folder at `path`, which is made if it is not there.
    pub(super) fn open(path: &Path, existing: Existing) -> std::io::Result<Target> {
        std::fs::create_dir_all(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Target { root, existing, next: 0, lacks: Lacks::default() })
    }

    /// Its uppermost folder.
    pub(super) fn root(&self) -> Result<OwnedFd, Refusal> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?)
    }

    /// Opens a folder in a folder, which is made if it is not there; says whether it was made.
    pub(super) fn folder(
        &self,
        within: BorrowedFd<'_>,
        name: Name<'_>,
        is_owned: bool,
    ) -> Result<(OwnedFd, bool), Refusal> {
        // Nobody else looks in before it has its own mode.
        let mode = if is_owned { Mode::RWXU } else { Mode::from_raw_mode(0o777) };
        let made = match mkdirat(within, name.0, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(other) => return Err(other.into()),
        };
        Ok((open_folder(within, name)?, made))
    }

    /// Whether `name` may be written in a folder.
    pub(super) fn check_free(&self, within: BorrowedFd<'_>, name: Name<'_>) -> Result<(), Refusal> {
        match statat(within, name.0, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(other) => Err(other.into()),
            Ok(_) if self.existing == Existing::Keep => Err(Refusal::Exists),
            Ok(found) if found.st_mode & 0o170_000 == 0o040_000 => Err(Refusal::InTheWay),
            Ok(_) => Ok(()),
        }
    }

    /// A new file in a folder.
    pub(super) fn file<'a>(
        &mut self,
        within: BorrowedFd<'a>,
        is_owned: bool,
    ) -> Result<Unnamed<'a>, Refusal> {
        let mode = Mode::from_raw_mode(if is_owned { 0o600 } else { 0o666 });
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (temporary, file) = self.under_a_name(|temporary| openat(within, temporary, flags, mode))?;
        Ok(Unnamed { folder: within, temporary, file: File::from(file) })
    }

    /// Gives a file its name.
    pub(super) fn put(&self, file: &Unnamed<'_>, name: Name<'_>) -> Result<(), Refusal> {
        self.rename(file.folder, &file.temporary, name)
    }

    /// A symbolic link.
    pub(super) fn link(
        &mut self,
        within: BorrowedFd<'_>,
        name: Name<'_>,
        target: &[u8],
        stat: &Stat,
    ) -> Result<(), Refusal> {
        self.check_free(within, name)?;
        let target = OsStr::from_bytes(target);
        let (temporary, ()) = self.under_a_name(|temporary| symlinkat(target, within, temporary))?;
        if let Some(owner) = stat.owner {
            let ids = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
            let given = rustix::fs::chownat(within, &temporary, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW);
            if let Err(why) = given.or_else(|why| {
                has_owner(statat(within, &temporary, AtFlags::SYMLINK_NOFOLLOW), owner)
                    .then_some(())
                    .ok_or(why)
            }) {
                self.lack_owner(why);
            }
        }
        if let Some(modified) = stat.modified {
            // Filesystems without times of links are not worth a word.
            let _ = utimensat(within, &temporary, &timestamps(modified), AtFlags::SYMLINK_NOFOLLOW);
        }
        self.rename(within, &temporary, name).inspect_err(|_| {
            let _ = unlinkat(within, &temporary, AtFlags::empty());
        })
    }

    /// Another name of a file that was written before, at `path` in the target.
    pub(super) fn name_again(
        &mut self,
        path: &[u8],
        within: BorrowedFd<'_>,
        name: Name<'_>,
    ) -> Result<(), Refusal> {
        self.check_free(within, name)?;
        let root = rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?;
        let old = OsStr::from_bytes(path);
        let (temporary, ()) =
            self.under_a_name(|temporary| linkat(&root, old, within, temporary, AtFlags::empty()))?;
        let renamed = self.rename(within, &temporary, name);
        // If the name was one of that file already, the rename has done nothing.
        let _ = unlinkat(within, &temporary, AtFlags::empty());
        renamed
    }

    /// Owner, attributes, mode and time, in the order in which none undoes another.
    pub(super) fn adorn(
        &mut self,
        file: BorrowedFd<'_>,
        stat: &Stat,
        attributes: &[Attribute],
    ) -> Result<(), Refusal> {
        let mut mode = None;
        if let Some(owner) = stat.owner {
            mode = Some(owner.mode);
            let given = fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
            if let Err(why) = given
                && !has_owner(rustix::fs::fstat(file), owner)
            {
                self.lack_owner(why);
                mode = Some(owner.mode & 0o1777);
            }
        }
        for attribute in attributes {
            let name = OsStr::from_bytes(&attribute.name);
            if let Err(why) = fsetxattr(file, name, &attribute.value, XattrFlags::empty()) {
                self.lacks.attributes += 1;
                self.lacks.why.get_or_insert_with(|| format!("{}: {why}", name.display()));
            }
        }
        if let Some(mode) = mode {
            fchmod(file, Mode::from_raw_mode(u32::from(mode)))?;
        }
        if let Some(modified) = stat.modified {
            futimens(file, &timestamps(modified))?;
        }
        Ok(())
    }

    /// Makes everything in the target's filesystem durable.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    fn lack_owner(&mut self, why: Errno) {
        self.lacks.owners += 1;
        self.lacks.why.get_or_insert_with(|| format!("the owner: {why}"));
    }

    /// Makes something under a name that nobody has.
    fn under_a_name<T>(
        &mut self,
        mut make: impl FnMut(&str) -> Result<T, Errno>,
    ) -> Result<(String, T), Refusal> {
        const ATTEMPTS: u32 = 1000;
        for _ in 0..ATTEMPTS {
            let temporary = format!("{TEMPORARY}{}-{}", std::process::id(), self.next);
            self.next += 1;
            match make(&temporary) {
                Ok(made) => return Ok((temporary, made)),
                Err(Errno::EXIST) => {}
                Err(other) => return Err(Refusal::System(other)),
            }
        }
        Err(Refusal::System(Errno::EXIST))
    }

    fn rename(&self, within: BorrowedFd<'_>, temporary: &str, name: Name<'_>) -> Result<(), Refusal> {
        match self.existing {
            Existing::Replace => {
                self.check_free(within, name)?;
                Ok(renameat(within, temporary, within, name.0)?)
            }
            Existing::Keep => {
                match renameat_with(within, temporary, within, name.0, RenameFlags::NOREPLACE) {
                    // Not every filesystem can; then nobody else may write there in this moment.
                    Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                        self.check_free(within, name)?;
                        Ok(renameat(within, temporary, within, name.0)?)
                    }
                    other => Ok(other?),
                }
            }
        }
    }
}

/// Opens a folder that is there, and no link to one.
pub(super) fn open_folder(within: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd, Refusal> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(within.as_fd(), name.0, flags, Mode::empty())?)
}

fn has_owner(found: Result<rustix::fs::Stat, Errno>, owner: Owner) -> bool {
    found.is_ok_and(|found| (found.st_uid, found.st_gid) == (owner.uid, owner.gid))
}

fn timestamps(modified: FileTime) -> Timestamps {
    let at = Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanos.into() };
    Timestamps { last_access: at, last_modification: at }
}

/// As many folders as the system lets us have open at once: one for each folder in another.
pub(super) fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without it, what is very deep is listed as not restored.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_part_of_a_path() {
        for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"/etc", b"../a", b"a\0b", &[b'a'; 256]] {
            assert!(matches!(Name::new(bad), Err(Refusal::Name)), "{bad:?}");
        }
        for good in [&b"..."[..], b".a", b"a b\n", b"\xff\xfe", &[b'a'; 255]] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn nothing_is_reached_through_a_link() {
        let scratch = crate::scratch::Scratch::new("write").unwrap();
        let (outside, inside) = (scratch.path().join("outside"), scratch.path().join("inside"));
        std::fs::create_dir(&outside).unwrap();
        let mut target = Target::open(&inside, Existing::Replace).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("door")).unwrap();
        std::fs::write(outside.join("precious"), "old").unwrap();
        std::os::unix::fs::symlink(outside.join("precious"), inside.join("file")).unwrap();
        std::fs::hard_link(outside.join("precious"), inside.join("same")).unwrap();
        let root = target.root().unwrap();
        let door = Name::new(b"door").unwrap();
        assert_eq!(target.folder(root.as_fd(), door, true).unwrap_err(), Refusal::InTheWay);
        for name in [&b"file"[..], b"same"] {
            let file = target.file(root.as_fd(), true).unwrap();
            std::io::Write::write_all(&mut &file.file, b"new").unwrap();
            target.put(&file, Name::new(name).unwrap()).unwrap();
        }
        assert_eq!(std::fs::read(outside.join("precious")).unwrap(), b"old");
        assert_eq!(std::fs::read(inside.join("file")).unwrap(), b"new");
        assert_eq!(std::fs::read(inside.join("same")).unwrap(), b"new");
        // A folder is never replaced, and nothing is without --force.
        std::fs::create_dir(inside.join("folder")).unwrap();
        let file = target.file(root.as_fd(), true).unwrap();
        assert_eq!(target.put(&file, Name::new(b"folder").unwrap()), Err(Refusal::InTheWay));
        target.existing = Existing::Keep;
        assert_eq!(target.put(&file, Name::new(b"file").unwrap()), Err(Refusal::Exists));
        drop(file);
        let names = std::fs::read_dir(&inside).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names = names.collect::<Vec<_>>();
        names.sort();
        assert_eq!(names, ["door", "file", "folder", "same"], "and nothing is left over");
    }
}
