//! The replay, of journals that `debugfs` has written: escaped content, revoked blocks, torn and damaged ends.

use super::Ext;
use crate::restore::source::tests::Memory;
use crate::restore::source::{Source, Window};
use crate::scratch::Scratch;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

const BLOCK: usize = 1024;

/// Where in the filesystem the transactions write.
const REVOKED: usize = 3000;
const PLAIN: usize = 3001;
const ESCAPED: usize = 3002;

fn run(name: &str, build: impl FnOnce(&mut Command)) -> Option<String> {
    let mut command = Command::new(name);
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    build(&mut command);
    let Ok(output) = command.output() else {
        eprintln!("skipped: needs {name}");
        return None;
    };
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A block that begins with the journal's own magic number, and has something else behind it.
fn magic_block() -> Vec<u8> {
    let mut block = vec![0x5a; BLOCK];
    block[..4].copy_from_slice(&super::journal::MAGIC.to_be_bytes());
    block
}

/// A filesystem of 4 MiB whose journal holds three transactions: one writes two blocks, one revokes the first of them,
/// one writes a third.
pub(in super::super) fn with_journal(dir: &Path, options: &[&str], open: &str) -> Option<Vec<u8>> {
    let (image, blocks, steps) = (dir.join("image"), dir.join("blocks"), dir.join("steps"));
    std::fs::File::create(&image).and_then(|file| file.set_len(4 << 20)).unwrap();
    run("mke2fs", |command| {
        command.args(["-q", "-F", "-b", "1024", "-J", "size=1"]).args(options).arg(&image);
    })?;
    std::fs::write(&blocks, [magic_block(), vec![0x11; BLOCK]].concat()).unwrap();
    let (first, third) = (format!("jw -b {REVOKED},{PLAIN}"), format!("jw -b {ESCAPED}"));
    let path = blocks.display();
    std::fs::write(&steps, format!("{open}\n{first} {path}\njw -r {REVOKED}\n{third} {path}\njc\n")).unwrap();
    run("debugfs", |command| {
        command.arg("-w").arg("-f").arg(&steps).arg(&image);
    })?;
    Some(std::fs::read(&image).unwrap())
}

fn open(disk: &[u8]) -> Ext {
    Ext::open(Window::whole(Rc::new(Memory(disk.to_vec())))).unwrap().expect("it is one")
}

fn block(ext: &Ext, block: usize) -> Vec<u8> {
    ext.volume.read_vec((block * BLOCK) as u64, BLOCK).unwrap()
}

/// Where a block of the journal is: of this kind, of this transaction.
fn journal_at(disk: &[u8], kind: u8, transaction: u8) -> usize {
    let magic = super::journal::MAGIC.to_be_bytes();
    let mut blocks = disk.chunks(BLOCK).enumerate();
    let found = blocks.find(|(_, block)| block[..4] == magic && block[7] == kind && block[11] == transaction);
    found.expect("it is there").0 * BLOCK
}

const TAGS: u8 = 1;
const COMMIT: u8 = 2;
const SUPERBLOCK: u8 = 4;

#[test]
fn what_was_committed_counts_and_what_was_revoked_does_not() {
    let scratch = Scratch::new("journal").unwrap();
    let kinds: [(&[&str], &str); 4] = [
        (&["-t", "ext4"], "jo -c"),
        (&["-t", "ext4"], "jo -c -v 2"),
        (&["-t", "ext4", "-O", "^64bit,^metadata_csum"], "jo"),
        (&["-t", "ext3"], "jo"),
    ];
    for (options, how) in kinds {
        let what = format!("{options:?} {how}");
        let Some(disk) = with_journal(scratch.path(), options, how) else { return };
        let zeros = vec![0; BLOCK];
        assert_eq!(disk[PLAIN * BLOCK..][..BLOCK], zeros, "{what}: only the journal has it");
        let ext = open(&disk);
        assert_eq!(block(&ext, REVOKED), zeros, "{what}");
        assert_eq!(block(&ext, PLAIN), vec![0x11; BLOCK], "{what}");
        assert_eq!(block(&ext, ESCAPED), magic_block(), "{what}: its first bytes are put back");
        // Parts of a block, and over the edge of two.
        let at = (ESCAPED * BLOCK) as u64;
        assert_eq!(ext.volume.read_vec(at + 2, 4), Ok(magic_block()[2..6].to_vec()));
        assert_eq!(ext.volume.read_vec(at - 2, 4).unwrap(), [&[0x11, 0x11], &magic_block()[..2]].concat());
        assert!(ext.notes[0].contains("3 transactions (2 blocks)"), "{what}: {:?}", ext.notes);

        let mut torn = disk.clone();
        torn[journal_at(&disk, COMMIT, 3)..][..BLOCK].fill(0);
        let ext = open(&torn);
        assert_eq!(block(&ext, ESCAPED), zeros, "{what}: not committed");
        assert_eq!(block(&ext, PLAIN), vec![0x11; BLOCK], "{what}");
        let mut early = disk.clone();
        early[journal_at(&disk, COMMIT, 2)..][..BLOCK].fill(0);
        let ext = open(&early);
        assert_eq!(block(&ext, REVOKED), magic_block(), "{what}: the revocation was not committed");
        assert_eq!(block(&ext, ESCAPED), zeros, "{what}: nor was what came behind it");
        if !how.contains("-c") {
            continue;
        }
        let mut damaged = disk.clone();
        damaged[journal_at(&disk, TAGS, 3) + BLOCK + 100] ^= 1;
        let ext = open(&damaged);
        assert_eq!(block(&ext, ESCAPED), zeros, "{what}: its content is damaged");
        assert!(
            ext.notes.iter().any(|note| note.contains("content for block 3002 is damaged")),
            "{:?}",
            ext.notes
        );
        for kind in [TAGS, COMMIT] {
            let mut damaged = disk.clone();
            damaged[journal_at(&disk, kind, 3) + 100] ^= 1;
            let ext = open(&damaged);
            assert_eq!(block(&ext, ESCAPED), zeros, "{what}: kind {kind} is damaged");
            assert_eq!(ext.notes.len(), 2, "{what}: {:?}", ext.notes);
        }
        let mut damaged = disk.clone();
        damaged[journal_at(&disk, SUPERBLOCK, 0) + 0x18] ^= 1;
        assert!(open(&damaged).notes[0].contains("was not replayed"), "{what}");
    }
}
