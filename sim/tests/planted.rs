//! The test of the tests: a small store with a write-ahead log, explored at every crash point with every legal
//! survivor; and the same store with one mistake at a time, each of which the disk and the reference must expose.
//!
//! The store is not the engine and shares nothing with it: it is here so that the instruments are known to work
//! before they are pointed at the engine. (W13, W14, W15, W22, W27, W39.)

use engine::io::{File, OpenMode, SECTOR, Storage};
use sim::disk::{Call, Disk, Errno, Fault, KeepAll, Odometer, Rule, Side, When};
use sim::reference::{Death, Effect, Operation, Reference};
use sim::rng::Rng;
use std::io::{IoSlice, Result};
use std::sync::Arc;

const VOLUME: &str = "/dev/volume";
const VOLUME_SECTORS: u64 = 4;
const LOG_SECTORS: u64 = 24;
const MAGIC: u64 = 0x7061_6765_6F66_6C67;

/// What can be wrong with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// A flush is answered without a sync.
    FlushWithoutSync,
    /// A write goes to the volume before its record is durable.
    ApplyBeforeDurable,
    /// The folder of a new log is not synced.
    ForgetFolderSync,
    /// A sync that failed is tried again.
    RetrySync,
    /// What stands behind a torn tail is left there.
    KeepTail,
    /// Recovery applies what it read without syncing it first.
    ApplyUnsyncedTail,
}

/// A volume behind a log. A record is a sector with magic, number, place and checksum, and a sector of data.
struct Store {
    log: Arc<dyn File>,
    volume: Arc<dyn File>,
    records: u64,
    waiting: Vec<(u64, [u8; 512])>,
    mistake: Mistake,
}

fn put(file: &dyn File, bytes: &[u8], offset: u64) -> Result<()> {
    file.write_at(&[IoSlice::new(bytes)], offset)
}

fn checksum(number: u64, offset: u64, data: &[u8; 512]) -> u64 {
    let sum = data
        .iter()
        .fold(number ^ offset << 32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    sum | 1
}

impl Store {
    fn open(storage: &dyn Storage, mistake: Mistake) -> Result<Store> {
        let volume = storage.open(VOLUME, OpenMode::Write)?;
        let (log, records) = match storage.open("log/1", OpenMode::Write) {
            Ok(log) if log.len()? == LOG_SECTORS * SECTOR => {
                let records = Store::recover(&*log, &*volume, mistake)?;
                (log, records)
            }
            found => {
                // No log, or one whose making was interrupted: nothing was ever answered.
                if found.is_ok() {
                    storage.remove("log/1")?;
                }
                storage.create_dir("log")?;
                let log = storage.open("log/1", OpenMode::Create)?;
                log.allocate(LOG_SECTORS * SECTOR)?;
                log.sync()?;
                if mistake != Mistake::ForgetFolderSync {
                    storage.sync_dir("log")?;
                    storage.sync_dir("")?;
                }
                (log, 0)
            }
        };
        Ok(Store { log, volume, records, waiting: Vec::new(), mistake })
    }

    fn recover(log: &dyn File, volume: &dyn File, mistake: Mistake) -> Result<u64> {
        let mut whole = vec![0; (LOG_SECTORS * SECTOR) as usize];
        log.read_at(&mut whole, 0)?;
        let mut found = Vec::new();
        for record in whole.as_chunks::<1024>().0 {
            let word = |at: usize| u64::from_le_bytes(record[at * 8..][..8].try_into().expect("eight bytes"));
            let data: [u8; 512] = record[512..].try_into().expect("a sector");
            let (number, offset) = (word(1), word(2));
            let sound = word(0) == MAGIC
                && number == found.len() as u64
                && word(3) == checksum(number, offset, &data);
            if !sound {
                break;
            }
            found.push((offset, data));
        }
        let end = found.len() as u64 * 1_024;
        if mistake != Mistake::KeepTail {
            log.zero(end, LOG_SECTORS * SECTOR - end)?;
        }
        if mistake != Mistake::ApplyUnsyncedTail {
            log.sync()?;
        }
        found.iter().try_for_each(|(offset, data)| put(volume, data, *offset))?;
        volume.sync()?;
        Ok(found.len() as u64)
    }

    fn write(&mut self, offset: u64, data: [u8; 512]) -> Result<()> {
        let mut record = [0; 1_024];
        let words = [MAGIC, self.records, offset, checksum(self.records, offset, &data)];
        words.iter().zip(record.as_chunks_mut::<8>().0).for_each(|(word, bytes)| *bytes = word.to_le_bytes());
        record[512..].copy_from_slice(&data);
        put(&*self.log, &record, self.records * 1_024)?;
        self.records += 1;
        if self.mistake == Mistake::ApplyBeforeDurable {
            return put(&*self.volume, &data, offset);
        }
        self.waiting.push((offset, data));
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        match self.mistake {
            Mistake::FlushWithoutSync => {}
            Mistake::RetrySync => self.log.sync().or_else(|_| self.log.sync())?,
            _ => self.log.sync()?,
        }
        for (offset, data) in self.waiting.drain(..) {
            put(&*self.volume, &data, offset)?;
        }
        self.volume.sync()
    }
}

/// A store, what was asked of it, and what should be true of it.
struct Trial {
    disk: Disk,
    reference: Reference,
    next: u8,
}

impl Trial {
    fn new() -> Trial {
        let disk = Disk::new(Rng::new(1));
        disk.plant_device(VOLUME, VOLUME_SECTORS * SECTOR);
        Trial { disk, reference: Reference::empty(&[VOLUME_SECTORS * SECTOR]), next: 1 }
    }

    fn fork(&self) -> Trial {
        Trial { disk: self.disk.fork(), reference: self.reference.clone(), next: self.next }
    }

    fn open(&self, mistake: Mistake) -> Result<Store> {
        Store::open(&self.disk.start(), mistake)
    }

    /// Writes to these sectors; `None` is a flush.
    fn script(&mut self, store: &mut Store, steps: &[Option<u64>]) -> Result<()> {
        for step in steps {
            let Some(sector) = step else {
                let flush = self.reference.submit_flush();
                store.flush()?;
                self.reference.answer_flush(flush);
                continue;
            };
            let data = [self.next; 512];
            self.next += 1;
            let effect = Effect::Write(data.to_vec().into());
            let operation = Operation { volume: 0, offset: sector * SECTOR, effect };
            let id = self.reference.submit(operation, false);
            store.write(sector * SECTOR, data)?;
            self.reference.answer(id);
        }
        Ok(())
    }

    /// Compares the volume with the reference, and goes on from what was found.
    fn check(&mut self, death: Death) -> std::result::Result<(), String> {
        let image = vec![self.disk.peek(VOLUME).ok_or("the volume is gone")?];
        let prefix = self.reference.check_survivor(&image, death).map_err(|wrong| wrong.to_string())?;
        self.reference.rewind(prefix);
        Ok(())
    }
}

const FIRST: [Option<u64>; 6] = [Some(0), Some(1), None, Some(0), Some(2), Some(0)];
const SECOND: [Option<u64>; 2] = [Some(3), None];

/// Goes on after a power cut: recovers, checks, writes on, is killed, recovers, checks.
fn aftermath(trial: &mut Trial, mistake: Mistake) -> std::result::Result<(), String> {
    let mut store = trial.open(mistake).map_err(|error| format!("recovery: {error}"))?;
    trial.check(Death::Power)?;
    trial.script(&mut store, &SECOND).map_err(|error| format!("afterwards: {error}"))?;
    drop(store);
    trial.open(mistake).map_err(|error| format!("second recovery: {error}"))?;
    trial.check(Death::Process)
}

/// Every crash point of the script times every legal survivor. The error says where it went wrong first; the
/// number says how many ends were looked at.
fn explore(mistake: Mistake) -> std::result::Result<u64, String> {
    let mut ends = 0;
    for failing_sync in 0..3 {
        for cut in 1_u64.. {
            let mut trial = Trial::new();
            if failing_sync > 0 {
                let rule = Rule::new(Call::Sync, When::Nth(failing_sync), Fault::Fail(Errno::Eio));
                trial.disk.add_rule(rule.on("log"));
            }
            let side = if cut % 2 == 0 { Side::After } else { Side::Before };
            trial.disk.cut_power_at(cut.div_ceil(2), side);
            let ran = trial.open(mistake).and_then(|mut store| trial.script(&mut store, &FIRST));
            let reached = !trial.disk.is_on();
            // After its last step, or a failed sync, the power goes anyway.
            trial.disk.heal();
            let mut odometer = Odometer::default();
            loop {
                let mut fork = trial.fork();
                fork.disk.power_on(&mut odometer);
                ends += 1;
                aftermath(&mut fork, mistake).map_err(|wrong| {
                    format!(
                        "cut {cut}, failing sync {failing_sync}, survivors {:?}: {wrong}",
                        odometer.answers()
                    )
                })?;
                if !odometer.advance() {
                    break;
                }
            }
            if !reached {
                assert!(ran.is_ok() || failing_sync > 0, "{ran:?}");
                break;
            }
        }
    }
    Ok(ends)
}

/// A record that was only in the page cache of a killed process: recovered, then the power goes.
fn explore_killed(mistake: Mistake) -> std::result::Result<(), String> {
    let mut base = Trial::new();
    let process = base.disk.start();
    let mut store = Store::open(&process, mistake).map_err(|error| error.to_string())?;
    base.script(&mut store, &[Some(0), Some(1), Some(0), Some(1)]).map_err(|error| error.to_string())?;
    base.disk.kill(process.id(), &mut KeepAll);
    base.open(mistake).map_err(|error| error.to_string())?;
    base.check(Death::Process)?;
    let mut odometer = Odometer::default();
    loop {
        let mut fork = base.fork();
        fork.disk.power_on(&mut odometer);
        aftermath(&mut fork, mistake)?;
        if !odometer.advance() {
            return Ok(());
        }
    }
}

#[test]
fn w13_w27_the_store_without_a_mistake_survives_everything() {
    let ends = explore(Mistake::None).expect("no mistake");
    assert!(ends > 300, "only {ends} ends");
    explore_killed(Mistake::None).expect("no mistake");
}

#[test]
fn w27_recovery_itself_can_be_cut_at_every_point_twice_in_a_row() {
    let mut trial = Trial::new();
    let mut store = trial.open(Mistake::None).unwrap();
    trial.script(&mut store, &FIRST).unwrap();
    let mut rng = Rng::new(5);
    for first in 1..12 {
        for second in 1..12 {
            let mut fork = trial.fork();
            for cut in [first, second] {
                fork.disk.power_on(&mut sim::disk::Dice::new(&mut rng));
                fork.disk.cut_power_at(cut, Side::Before);
                let _cut_short = fork.open(Mistake::None);
            }
            fork.disk.power_on(&mut sim::disk::Dice::new(&mut rng));
            aftermath(&mut fork, Mistake::None).unwrap();
        }
    }
}

#[test]
fn w14_a_flush_without_a_sync_is_caught() {
    let wrong = explore(Mistake::FlushWithoutSync).unwrap_err();
    assert!(wrong.contains("has to be one of") || wrong.contains("no prefix"), "{wrong}");
}

#[test]
fn w13_a_write_applied_before_it_is_durable_is_caught() {
    let wrong = explore(Mistake::ApplyBeforeDurable).unwrap_err();
    assert!(wrong.contains("no prefix"), "{wrong}");
}

#[test]
fn w22_a_forgotten_folder_sync_is_caught() {
    let wrong = explore(Mistake::ForgetFolderSync).unwrap_err();
    assert!(wrong.contains("has to be one of") || wrong.contains("no prefix"), "{wrong}");
}

#[test]
fn w15_a_retried_sync_is_caught() {
    let wrong = explore(Mistake::RetrySync).unwrap_err();
    assert!(wrong.contains("failing sync 2"), "{wrong}");
}

#[test]
fn w02_a_tail_that_comes_back_to_life_is_caught() {
    let wrong = explore(Mistake::KeepTail).unwrap_err();
    assert!(wrong.contains("no prefix"), "{wrong}");
}

#[test]
fn w39_a_tail_applied_from_the_page_cache_alone_is_caught() {
    explore_killed(Mistake::ApplyUnsyncedTail).unwrap_err();
}
