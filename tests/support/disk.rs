//! A volume as a mounted filesystem where the kernel has no NBD client: `nbdfuse` makes a file of it, a loop
//! device a disk of that, ext4 a filesystem. Needs root.
//!
//! A flush of the filesystem goes all the way: ext4 → loop → fsync of the FUSE file → NBD flush.

use super::{tool, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// What the tests that mount something need.
pub const NEEDS: [&str; 8] =
    ["root", "/dev/fuse", "/dev/loop-control", "nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "nbdcopy"];

const PATIENCE: Duration = Duration::from_secs(30);

/// A loop device over a file.
#[derive(Debug)]
pub struct LoopDisk {
    device: String,
    /// What the kernel had counted before: a device's number is used again and again.
    written_before: u64,
    mounted: Option<PathBuf>,
    /// Only there to be dropped behind the device.
    _fuse: Option<Fuse>,
}

impl LoopDisk {
    /// Over an NBD export. `dir` is made; what is needed on the way lies in it.
    #[track_caller]
    pub fn over_nbd(dir: &Path, uri: &str) -> LoopDisk {
        let fuse = Fuse::start(dir, uri);
        let device = attach(&fuse.file);
        LoopDisk { written_before: written(&device), device, mounted: None, _fuse: Some(fuse) }
    }

    /// Over a plain file.
    #[track_caller]
    pub fn over_file(path: &Path) -> LoopDisk {
        let device = attach(path);
        LoopDisk { written_before: written(&device), device, mounted: None, _fuse: None }
    }

    #[track_caller]
    pub fn format(&self) {
        tool::run("mkfs.ext4", ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", &self.device]);
    }

    /// Bytes that were written to the device so far, as the kernel counts them.
    #[track_caller]
    pub fn written_bytes(&self) -> u64 {
        written(&self.device) - self.written_before
    }

    /// Replays the journal, as a mount would, and then wants a filesystem without a flaw.
    #[track_caller]
    pub fn check(&self, what: &str) {
        let replay = tool::output(tool::command("e2fsck").args(["-y", "-E", "journal_only", &self.device]));
        assert_eq!(replay.status.code(), Some(0), "{what}: the journal: {}", tool::said(&replay));
        let check = tool::output(tool::command("e2fsck").args(["-f", "-n", &self.device]));
        assert_eq!(check.status.code(), Some(0), "{what}: the filesystem: {}", tool::said(&check));
    }

    /// Mounts it at `dir`, which is made.
    #[track_caller]
    pub fn mount(&mut self, dir: &Path) {
        assert!(self.mounted.is_none(), "mounted already");
        std::fs::create_dir_all(dir).expect("a folder for the mount can be made");
        tool::run("mount", [Path::new(&self.device), dir]);
        self.mounted = Some(dir.to_owned());
    }

    /// Unmounts it; a process that has just ended may stand in it for a moment yet.
    #[track_caller]
    pub fn unmount(&mut self) {
        let dir = self.mounted.as_deref().expect("it is mounted");
        wait_until("nobody uses the filesystem", PATIENCE, || {
            let output = tool::output(tool::command("umount").arg(dir));
            let said = tool::said(&output);
            assert!(output.status.success() || said.contains("busy"), "umount {}: {said}", dir.display());
            output.status.success()
        });
        self.mounted = None;
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if let Some(dir) = self.mounted.take() {
            // A test may end in the middle of a freeze: frozen and not mounted, nothing thaws it before the next
            // boot. Mostly it is not frozen, and that is no failure.
            let _ = tool::command("fsfreeze").arg("--unfreeze").arg(&dir).output();
            if !tidy("umount", &[&dir]) {
                // A process still stands in it; what is behind it goes all the same.
                tidy("umount", &[Path::new("-l"), &dir]);
            }
        }
        tidy("losetup", &[Path::new("-d"), Path::new(&self.device)]);
    }
}

#[track_caller]
fn written(device: &str) -> u64 {
    let name = device.rsplit('/').next().expect("a device has a name");
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).expect("the kernel counts");
    let sectors: u64 = stat.split_whitespace().nth(6).and_then(|word| word.parse().ok()).expect("sectors");
    sectors * 512
}

#[track_caller]
fn attach(path: &Path) -> String {
    tool::run("losetup", [Path::new("--find"), Path::new("--show"), path]).trim().to_owned()
}

/// The file that `nbdfuse` shows.
#[derive(Debug)]
struct Fuse {
    child: Child,
    dir: PathBuf,
    file: PathBuf,
}

impl Fuse {
    #[track_caller]
    fn start(dir: &Path, uri: &str) -> Fuse {
        std::fs::create_dir_all(dir).expect("a folder for the mount can be made");
        let file = dir.join("disk");
        let child = tool::command("nbdfuse").arg(&file).arg(uri).stdout(Stdio::null()).spawn();
        let mut fuse = Fuse { child: child.expect("nbdfuse is there"), dir: dir.to_owned(), file };
        wait_until("nbdfuse shows the volume", PATIENCE, || {
            let ended = fuse.child.try_wait().expect("our own child");
            assert_eq!(ended, None, "nbdfuse {uri} ended");
            fuse.file.exists()
        });
        fuse
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if !tidy("umount", &[&self.dir]) {
            tidy("umount", &[Path::new("-l"), &self.dir]);
        }
        // Its end follows from the unmounting; not if the server has left it in the middle of something.
        let start = std::time::Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(2) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Part of leaving nothing behind: says what did not work, and goes on.
fn tidy(name: &str, arguments: &[&Path]) -> bool {
    match tool::command(name).args(arguments).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("{name} {arguments:?}: {}", tool::said(&output).trim());
            false
        }
        Err(err) => {
            eprintln!("{name} {arguments:?}: {err}");
            false
        }
    }
}
