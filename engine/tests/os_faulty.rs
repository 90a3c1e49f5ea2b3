//! The storage that fails on demand, around a real one: that it fails where it should, and only there.
#![cfg(feature = "os")]

use engine::faulty::{Call, Effect, Errno, Fault, Faulty, Lasting};
use engine::io::{OpenMode, Storage};
use engine::os::disk::Disk;
use std::io::{ErrorKind, IoSlice, Result};
use std::path::PathBuf;
use std::sync::Arc;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("landfall-faulty-{}-{name}", std::process::id()));
        // A run that was killed may have had the same process number.
        std::fs::remove_dir_all(&path).ok();
        Folder(path)
    }

    fn storage(&self) -> Faulty {
        Faulty::new(Arc::new(Disk::new(&self.0).expect("a folder")))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Something that makes every kind of call at least once.
fn job(storage: &Faulty) -> Result<()> {
    let _guard = storage.lock("lock")?;
    storage.create_dir("folder")?;
    let file = storage.open("folder/new", OpenMode::Create)?;
    file.allocate(1 << 16)?;
    file.write_at(&[IoSlice::new(b"some"), IoSlice::new(b"thing")], 0)?;
    file.zero(4, 5)?;
    file.set_len(1 << 15)?;
    file.sync()?;
    storage.rename("folder/new", "folder/file")?;
    storage.sync_dir("folder")?;
    let mut content = [0; 9];
    file.read_at(&mut content, 0)?;
    assert_eq!(&content, b"some\0\0\0\0\0");
    match file.read_cached_at(&mut content, 0) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => other?,
    }
    assert_eq!(file.len()?, 1 << 15);
    file.next_data(0)?;
    assert_eq!(storage.list("folder")?, ["file"]);
    storage.remove("folder/file")
}

/// W15, W17, W18: every error at every call, and the run after them passes.
#[test]
fn w18_each_error_at_each_call_until_the_run_passes() {
    for errno in Errno::ALL {
        let lasting = if errno == Errno::NoSpace { Lasting::UntilDisarmed } else { Lasting::Once };
        let mut calls = 0;
        for nth in 1.. {
            let folder = Folder::new("each");
            let storage = folder.storage();
            storage.arm(Fault { call: None, nth, errno, effect: Effect::Nothing, lasting });
            let result = job(&storage);
            if storage.fired() == 0 {
                result.expect("nothing failed");
                assert_eq!(storage.total(), nth - 1);
                break;
            }
            let error = result.expect_err("a call failed");
            assert_eq!(error.raw_os_error(), Some(errno as i32));
            // The job stops at the first error, so the failing call is the last.
            assert_eq!((storage.total(), storage.fired(), storage.resyncs()), (nth, 1, 0));
            calls += 1;
        }
        assert_eq!(calls, Call::ALL.len());
    }
}

#[test]
fn each_kind_is_counted_and_can_fail_alone() {
    for call in Call::ALL {
        let folder = Folder::new("kind");
        let storage = folder.storage();
        let fault = Fault {
            call: Some(call),
            nth: 1,
            errno: Errno::Io,
            effect: Effect::Nothing,
            lasting: Lasting::Once,
        };
        storage.arm(fault);
        job(&storage).expect_err("the call failed");
        assert_eq!((storage.count(call), storage.fired()), (1, 1), "{call:?}");
        storage.arm(Fault { nth: 2, ..fault });
        std::fs::remove_dir_all(&folder.0).expect("removed");
        job(&folder.storage()).expect("no second call");
    }
}

#[test]
fn a_short_transfer_leaves_half_of_it_behind() {
    let folder = Folder::new("half");
    let storage = folder.storage();
    let file = storage.open("file", OpenMode::Create).expect("created");
    file.write_at(&[IoSlice::new(&[1; 8])], 0).expect("written");
    let fault = Fault {
        call: Some(Call::Write),
        nth: 1,
        errno: Errno::NoSpace,
        effect: Effect::Half,
        lasting: Lasting::Once,
    };
    storage.arm(fault);
    let slices = [IoSlice::new(&[2; 3]), IoSlice::new(&[3; 3])];
    let error = file.write_at(&slices, 0).expect_err("the first write");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let mut content = [0; 8];
    file.read_at(&mut content, 0).expect("read");
    assert_eq!(content, [2, 2, 2, 1, 1, 1, 1, 1]);
    storage.arm(Fault { effect: Effect::Whole, ..fault });
    file.write_at(&slices, 0).expect_err("the first write again");
    file.read_at(&mut content, 0).expect("read");
    assert_eq!(content, [2, 2, 2, 3, 3, 3, 1, 1]);
    storage.arm(Fault { call: Some(Call::Zero), effect: Effect::Half, ..fault });
    file.zero(0, 8).expect_err("the first zeroing");
    file.read_at(&mut content, 0).expect("read");
    assert_eq!(content, [0, 0, 0, 0, 3, 3, 1, 1]);
    storage.arm(Fault { call: Some(Call::Read), effect: Effect::Half, ..fault });
    content.fill(9);
    file.read_at(&mut content, 0).expect_err("the first read");
    assert_eq!(content, [0, 0, 0, 0, 9, 9, 9, 9]);
}

/// W16: whoever asks again after a failed sync is found out, under any handle, until the process begins anew.
#[test]
fn w16_a_second_sync_after_a_failed_one_is_counted() {
    let folder = Folder::new("resync");
    let storage = folder.storage();
    let file = storage.open("file", OpenMode::Create).expect("created");
    let other = storage.open("other", OpenMode::Create).expect("created");
    storage.arm(Fault {
        call: Some(Call::Sync),
        nth: 2,
        errno: Errno::Io,
        effect: Effect::Nothing,
        lasting: Lasting::Once,
    });
    file.sync().expect("the first");
    file.sync().expect_err("the second");
    other.sync().expect("another file");
    assert_eq!(storage.resyncs(), 0);
    file.sync().expect("the fault is gone, and the kernel would say the same");
    storage.open("file", OpenMode::Write).expect("opened").sync().expect("likewise");
    assert_eq!(storage.resyncs(), 2);
    storage.disarm();
    file.sync().expect("anew");
    assert_eq!((storage.resyncs(), storage.total(), storage.fired()), (0, 1, 0));
}
