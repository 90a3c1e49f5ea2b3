//! Runs of a node on storage that gives way at any moment, and what must be true of whatever they leave behind.
//!
//! A story does its steps until the node fails or cannot be opened; a step that is refused is left out. It notes what
//! it wrote at which LSN, and what it was promised. Whoever opens the folder afterwards must find a prefix of the one
//! that holds all of the other.

use super::{A, Driven, Random, limits, primary_config, replica_config};
use bytes::Bytes;
use engine::guest::Op;
use engine::io::Storage;
use engine::log::ship::Stretch;
use engine::node::config::{Begins, Config, NewVolume, Retention, Start};
use engine::node::open;
use engine::node::work::Lane;
use engine::peer::TakesBack;
use engine::state::Role;
use engine::types::{Checksum, Epoch, Extent, GroupId, Lsn, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const VOLUME_BYTES: u64 = 16 << 10;

type Volumes = [Vec<u8>; 2];

/// The step that could not be done, in words.
pub type Halt = String;

pub fn primary() -> Config {
    let volume = |name: &str| NewVolume { name: name.to_owned(), size: VOLUME_BYTES, begins: Begins::Empty };
    let mut config = primary_config("g");
    config.start = Start::Primary { group: GroupId([7; 16]), volumes: vec![volume("data"), volume("wal")] };
    config.limits = limits();
    config.limits.log.segment_bytes = 16 << 10;
    config.limits.log.log_bytes = 4 << 20;
    config.limits.log.recent_bytes = 8 << 10;
    config
}

pub fn replica() -> Config {
    let mut config = Config { limits: primary().limits, ..replica_config("g") };
    config.retention = Retention { bytes: 40 << 10, age_ns: u64::MAX, ..Retention::default() };
    config
}

/// What was written, and what was promised.
#[derive(Clone)]
pub struct Reference {
    volumes: Volumes,
    at: BTreeMap<Lsn, Volumes>,
    /// Everything up to here was acknowledged, or shipped, as durable.
    pub promised: Lsn,
    /// Everything up to here was answered: it survives the process.
    pub answered: Lsn,
}

impl Default for Reference {
    fn default() -> Reference {
        let blank = || vec![0; VOLUME_BYTES as usize];
        let volumes = [blank(), blank()];
        let at = BTreeMap::from([(Lsn::ZERO, volumes.clone())]);
        Reference { volumes, at, promised: Lsn::ZERO, answered: Lsn::ZERO }
    }
}

impl Reference {
    /// The volumes after the record `lsn`.
    pub fn at(&self, lsn: Lsn) -> &Volumes {
        self.at.range(..=lsn).next_back().expect("it begins at zero").1
    }

    /// The story that goes on from a point of this one.
    pub fn from(&self, lsn: Lsn) -> Reference {
        let volumes = self.at(lsn).clone();
        let at = BTreeMap::from([(Lsn::ZERO, volumes.clone()), (lsn, volumes.clone())]);
        Reference { volumes, at, promised: Lsn::ZERO, answered: Lsn::ZERO }
    }

    /// Forgets what was not kept, which nobody had been promised.
    pub fn rewind(&mut self, lsn: Lsn) {
        assert!(lsn >= self.promised, "LSN {lsn} though {} was promised", self.promised);
        self.volumes = self.at(lsn).clone();
        self.at.split_off(&lsn.next());
        self.answered = self.answered.min(lsn);
    }
}

/// Some bytes at a random place of a random volume.
fn somewhere(random: &mut Random) -> (usize, u64, u64) {
    let len = 512 * (1 + random.below(6));
    (random.below(2) as usize, 512 * random.below((VOLUME_BYTES - len) / 512), len)
}

/// One write or trim. It is noted before it is tried: a write that fails may be in the log or not, if the node failed
/// with it; else it is refused, and has had no effect.
fn write(node: &mut Driven, reference: &mut Reference, random: &mut Random) -> Result<(), Halt> {
    let (volume, offset, len) = somewhere(random);
    let range = offset as usize..(offset + len) as usize;
    let fua = random.below(8) == 0;
    let before = reference.volumes.clone();
    let op = match random.below(6) {
        0 => {
            reference.volumes[volume][range].fill(0);
            Op::Trim(Extent::new(offset, len))
        }
        _ => {
            let data: Vec<u8> = (0..len).map(|_| random.below(255) as u8 + 1).collect();
            reference.volumes[volume][range].copy_from_slice(&data);
            Op::Write { offset, data: Bytes::from(data) }
        }
    };
    let tip = node.node.log().tip().lsn;
    // The first write of an opening that had no room to begin comes behind the record that begins it.
    reference.at.insert(tip.next(), reference.volumes.clone());
    if let Err(refusal) = node.request(VolumeId(volume as u32 + 1), op, fua) {
        if let Some(failed) = node.node.failed() {
            return Err(format!("a write: {refusal}, {}", failed.reason));
        }
        reference.at.remove(&tip.next());
        reference.volumes = before;
        return Ok(());
    }
    let lsn = node.node.log().tip().lsn;
    assert!(lsn == tip.next() || lsn == tip.next().next(), "one request is one record");
    reference.at.remove(&tip.next());
    reference.at.insert(lsn, reference.volumes.clone());
    reference.answered = lsn;
    if fua {
        reference.promised = lsn;
    }
    Ok(())
}

fn flush(node: &mut Driven, reference: &mut Reference) -> Result<(), Halt> {
    let covered = reference.answered;
    match node.request(A, Op::Flush, false) {
        Ok(_) => {
            reference.promised = reference.promised.max(covered);
            Ok(())
        }
        Err(refusal) => match node.node.failed() {
            Some(failed) => Err(format!("a flush: {refusal}, {}", failed.reason)),
            None => Ok(()),
        },
    }
}

fn halted(node: &Driven) -> Result<(), Halt> {
    node.node.failed().map_or(Ok(()), |failed| Err(failed.reason.clone()))
}

/// Background work, and a replica somewhere that takes whatever is durable.
fn work(node: &mut Driven, reference: &mut Reference) -> Result<(), Halt> {
    node.work();
    ship(node, reference);
    node.work();
    halted(node)
}

fn ship(node: &mut Driven, reference: &mut Reference) {
    let durable = node.node.durable();
    if node.node.role() != Role::Primary {
        return;
    }
    let mut next = reference.promised.next();
    while let Stretch::Ready(batch) = node.node.records_from(next, 4 << 10) {
        assert!(batch.last <= durable.lsn, "only what is durable is shipped");
        reference.promised = reference.promised.max(batch.last);
        next = batch.last.next();
    }
    let now = node.now();
    node.node.acknowledged(now, "west", durable);
    reference.promised = reference.promised.max(durable.lsn);
}

/// Opens a node in the middle of a story.
pub fn open(storage: Arc<dyn Storage>, config: Config) -> Result<Driven, Halt> {
    Driven::open(storage, config).map_err(|error| match error {
        open::Error::Log(engine::log::recovery::OpenError::Corrupt { .. }) => {
            panic!("nothing was damaged: {error}")
        }
        open::Error::State(engine::state::Error::Damaged { .. }) | open::Error::StateMissing { .. } => {
            panic!("nothing was damaged: {error}")
        }
        _ => error.to_string(),
    })
}

/// A primary's life: born, written to, flushed, checkpointed, rotated through its files, restarted.
pub fn live_as_primary(storage: Arc<dyn Storage>, reference: &mut Reference, seed: u64) -> Result<(), Halt> {
    let mut random = Random(seed);
    for _ in 0..2 {
        let mut node = open(storage.clone(), primary())?;
        let lived = live_on(&mut node, reference, &mut random);
        assert_reads_are_right(&mut node, reference);
        lived?;
    }
    Ok(())
}

fn live_on(node: &mut Driven, reference: &mut Reference, random: &mut Random) -> Result<(), Halt> {
    for _ in 0..3 {
        for _ in 0..5 {
            write(node, reference, random)?;
        }
        flush(node, reference)?;
        for _ in 0..3 {
            write(node, reference, random)?;
        }
        work(node, reference)?;
    }
    work_late(node, reference, random)?;
    for _ in 0..3 {
        write(node, reference, random)?;
    }
    Ok(())
}

/// Background work whose jobs are out for long: guests write, and files are used up, before each is run.
fn work_late(node: &mut Driven, reference: &mut Reference, random: &mut Random) -> Result<(), Halt> {
    for lane in [Lane::Apply, Lane::Bulk, Lane::Make] {
        node.now.mono.0 += 10_000_000_000;
        node.sync();
        halted(node)?;
        ship(node, reference);
        let Some(job) = node.node.poll_job(node.now, lane) else { continue };
        for _ in 0..8 {
            write(node, reference, random)?;
        }
        flush(node, reference)?;
        let (done, now) = (job.run(), node.now());
        node.node.finish(now, done);
        halted(node)?;
    }
    Ok(())
}

/// A read gives what was written, or an error; on a node that failed in a write, with or without that write.
fn assert_reads_are_right(node: &mut Driven, reference: &Reference) {
    let [Ok(data), Ok(wal)] = [1, 2].map(|id| node.read(VolumeId(id), 0, VOLUME_BYTES)) else { return };
    let now = [data, wal];
    let failed_in_a_write = node.node.failed().is_some() && *reference.at(reference.answered) == now;
    assert!(now == reference.volumes || failed_in_a_write, "a read gives what nobody wrote");
}

/// What a primary's folder must hold after a story that ended anywhere, with the power cut (`kept` is what was
/// promised) or only the process killed (what was answered). Goes on a little, and again from there.
pub fn check_primary(
    storage: Arc<dyn Storage>,
    config: &Config,
    reference: &Reference,
    kept: Lsn,
    story: &str,
) {
    let (mut reference, kept) = (reference.clone(), kept.max(reference.promised));
    for round in 0..3 {
        let (mut node, report) = Driven::open_reporting(storage.clone(), config.clone())
            .unwrap_or_else(|error| panic!("{story}: {error}"));
        let last = Lsn(node.node.state().start.lsn.0 + report.records);
        if round == 0 {
            assert!(last >= kept, "{story}: LSN {last} is the last, though {kept} was promised");
        } else {
            assert_eq!(report.torn, None, "{story}: nothing is torn when the machine stays up");
            assert!(last >= reference.answered, "{story}: an answered write is gone, round {round}");
        }
        // Somebody may have opened the folder in between and begun an incarnation where a torn tail had been.
        let whole = match round {
            0 => find_state(&mut node, &reference, kept, last),
            _ => last,
        };
        reference.promised = reference.promised.min(last);
        reference.rewind(whole);
        assert_volumes(&mut node, reference.at(last), &format!("{story}, round {round}, LSN {last}"));
        let mut random = Random(last.0 * 31 + round + 1);
        for _ in 0..3 {
            write(&mut node, &mut reference, &mut random).unwrap_or_else(|halt| panic!("{story}: {halt}"));
        }
        if round == 1 {
            flush(&mut node, &mut reference).unwrap_or_else(|halt| panic!("{story}: {halt}"));
            work(&mut node, &mut reference).unwrap_or_else(|halt| panic!("{story}: {halt}"));
        }
        assert_volumes(&mut node, &reference.volumes.clone(), story);
    }
}

/// The newest state from `kept` to `last` that the volumes show; `last` if they show none.
fn find_state(node: &mut Driven, reference: &Reference, kept: Lsn, last: Lsn) -> Lsn {
    let [Ok(data), Ok(wal)] = [1, 2].map(|id| node.read(VolumeId(id), 0, VOLUME_BYTES)) else { return last };
    let now = [data, wal];
    let oldest = *reference.at.range(..=kept).next_back().expect("it begins at zero").0;
    let mut states = reference.at.range(oldest..=last).rev();
    states.find(|(_, volumes)| **volumes == now).map_or(last, |(lsn, _)| (*lsn).max(kept))
}

fn assert_volumes(node: &mut Driven, expected: &Volumes, story: &str) {
    for (index, bytes) in expected.iter().enumerate() {
        let read = node.read(VolumeId(index as u32 + 1), 0, VOLUME_BYTES);
        match read {
            Ok(read) => {
                let at = read.iter().zip(bytes).position(|(read, written)| read != written);
                assert_eq!(at, None, "{story}: volume {index} is not what was written");
            }
            // A group that was made, but whose volumes were not yet: there is nothing to read.
            Err(refusal) => assert!(bytes.iter().all(|&byte| byte == 0), "{story}: {refusal}"),
        }
    }
}

/// A log to follow: a node that holds it, and what it means.
pub struct Source {
    pub node: Driven,
    pub reference: Reference,
    checksums: BTreeMap<Lsn, Checksum>,
}

impl Source {
    fn new(node: Driven, reference: Reference) -> Source {
        let mut source = Source { node, reference, checksums: BTreeMap::new() };
        for lsn in 1..=source.node.node.durable().lsn.0 {
            if let Some((tip, ..)) = source.node.node.log().tip_at(Lsn(lsn)).expect("the log can be read") {
                source.checksums.insert(Lsn(lsn), tip.checksum);
            }
        }
        source
    }

    /// A primary with a few segments of log.
    pub fn primary(storage: Arc<dyn Storage>, seed: u64) -> Source {
        let mut node = open(storage, primary()).expect("opened");
        let (mut reference, mut random) = (Reference::default(), Random(seed));
        for _ in 0..12 {
            for _ in 0..4 {
                write(&mut node, &mut reference, &mut random).expect("written");
            }
            flush(&mut node, &mut reference).expect("flushed");
        }
        Source::new(node, reference)
    }

    /// A replica of `of`, promoted at one of its points, that went on from there.
    pub fn promoted(of: &mut Source, storage: Arc<dyn Storage>, at: Lsn, seed: u64) -> Source {
        let mut config = replica();
        config.retention = Retention::default();
        config.replicas = vec!["north".to_owned()];
        let mut node = open(storage, config).expect("opened");
        feed(&mut of.node, &mut node, usize::MAX).expect("fed");
        let now = node.now();
        node.node.promote(now, at, Epoch(2)).expect("promoted");
        let (mut reference, mut random) = (of.reference.clone(), Random(seed));
        (reference.promised, reference.answered) = (at, at);
        reference.rewind(at);
        for _ in 0..4 {
            for _ in 0..4 {
                write(&mut node, &mut reference, &mut random).expect("written");
            }
            flush(&mut node, &mut reference).expect("flushed");
        }
        Source::new(node, reference)
    }
}

/// Sends a replica what follows, in batches. Returns how far it got.
fn feed(source: &mut Driven, replica: &mut Driven, batches: usize) -> Result<Lsn, Halt> {
    let hello = source.node.hello().expect("a primary has something to say");
    let now = replica.now();
    let welcome =
        replica.node.accept(now, &hello, TakesBack::No).map_err(|rebuff| format!("accept: {rebuff}"))?;
    let mut next = welcome.durable.lsn.next();
    for _ in 0..batches {
        let batch = match source.node.records_from(next, 3 << 10) {
            Stretch::UpToDate => break,
            Stretch::Ready(batch) => batch,
            Stretch::OnDisk(read) => read.run().expect("the source's log can be read"),
            Stretch::Gone => panic!("the source keeps its log"),
        };
        next = batch.last.next();
        let now = replica.now();
        replica.node.append(now, batch).map_err(|rebuff| format!("append: {rebuff}"))?;
        replica.sync();
        halted(replica)?;
    }
    Ok(replica.node.acknowledgeable().lsn)
}

/// Feeds a replica, which may refuse for now.
fn feed_some(source: &mut Driven, node: &mut Driven, batches: usize, promised: &mut Lsn) -> Result<(), Halt> {
    let history = source.node.history().len();
    match feed(source, node, batches) {
        Ok(_) => {}
        Err(halt) if node.node.failed().is_some() => return Err(halt),
        Err(_) => node.sync(),
    }
    if node.node.history().len() == history {
        *promised = node.node.acknowledgeable().lsn;
    }
    halted(node)
}

/// What a replica promised: per history, since another history may take away what an older one had.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    /// Following the first source.
    pub first: Lsn,
    /// Following the second.
    pub second: Lsn,
}

/// A replica's life: born, fed, folded, restarted, and handed to a new primary whose history left the old one.
pub fn live_as_replica(
    storage: Arc<dyn Storage>,
    first: &mut Source,
    second: &mut Source,
    promises: &mut Promises,
) -> Result<(), Halt> {
    for _ in 0..2 {
        let mut node = open(storage.clone(), replica())?;
        if node.node.history().len() < 2 {
            for _ in 0..4 {
                feed_some(&mut first.node, &mut node, 5, &mut promises.first)?;
                work(&mut node, &mut Reference::default())?;
            }
        }
        for _ in 0..3 {
            feed_some(&mut second.node, &mut node, 3, &mut promises.second)?;
            work(&mut node, &mut Reference::default())?;
        }
    }
    Ok(())
}

/// What a replica's folder must hold, and that it goes on from there to the end.
pub fn check_replica(
    storage: Arc<dyn Storage>,
    first: &mut Source,
    second: &mut Source,
    promises: &Promises,
    story: &str,
) {
    for round in 0..3 {
        let mut node =
            Driven::open(storage.clone(), replica()).unwrap_or_else(|error| panic!("{story}: {error}"));
        let durable = node.node.durable();
        let (source, promised) = match node.node.history().len() {
            2 => (&*second, promises.second),
            _ => (&*first, promises.first),
        };
        assert!(durable.lsn >= promised, "{story}: LSN {} though {promised} was acknowledged", durable.lsn);
        let expected = source.checksums.get(&durable.lsn).copied().unwrap_or_default();
        assert_eq!(durable.checksum, expected, "{story}: not a prefix at LSN {}", durable.lsn);
        if let Some(window) = node.node.window() {
            let ends = [window.horizon, window.latest];
            for lsn in (window.horizon.0..window.latest.0).step_by(7).map(Lsn).chain(ends) {
                let specs: Vec<_> = node.node.volume_specs().cloned().collect();
                for spec in specs {
                    let read = read_point(&mut node, spec.id, lsn);
                    let expected = &source.reference.at(lsn)[spec.id.0 as usize - 1];
                    assert!(read == *expected, "{story}, round {round}: point {lsn} of {}", spec.name);
                }
            }
        }
        if round == 1 {
            feed(&mut second.node, &mut node, usize::MAX).unwrap_or_else(|halt| panic!("{story}: {halt}"));
            work(&mut node, &mut Reference::default()).unwrap_or_else(|halt| panic!("{story}: {halt}"));
            assert_eq!(node.node.durable(), second.node.node.durable(), "{story}");
        }
    }
}

fn read_point(node: &mut Driven, id: VolumeId, at: Lsn) -> Vec<u8> {
    node.node.pin(at).expect("the point can be selected");
    let plan = node.node.plan_point(id, at, Extent::new(0, VOLUME_BYTES)).expect("the volume is there");
    let bytes = plan.read_all().expect("the point can be read").to_vec();
    node.node.unpin(at);
    bytes
}

/// From a replica to a primary: promoted, written to, its disks filled, restarted.
pub fn live_as_promoted(
    storage: Arc<dyn Storage>,
    at: Lsn,
    reference: &mut Reference,
    seed: u64,
) -> Result<(), Halt> {
    let mut random = Random(seed);
    let mut config = replica();
    config.replicas = vec!["west".to_owned()];
    for round in 0..3_u64 {
        let mut node = open(storage.clone(), config.clone())?;
        let now = node.now();
        if round == 0 {
            let promoted = match node.node.promote(now, at, Epoch(2)) {
                Err(_) if node.node.failed().is_none() => node.node.promote(now, at, Epoch(2)),
                promoted => promoted,
            };
            promoted.map_err(|error| format!("promote: {error}"))?;
            reference.promised = at;
        }
        let lived = live_on_promoted(&mut node, reference, &mut random, round);
        assert_reads_are_right(&mut node, reference);
        lived?;
    }
    Ok(())
}

fn live_on_promoted(
    node: &mut Driven,
    reference: &mut Reference,
    random: &mut Random,
    round: u64,
) -> Result<(), Halt> {
    for _ in 0..2 {
        for _ in 0..4 {
            write(node, reference, random)?;
        }
        flush(node, reference)?;
    }
    if round > 0 {
        work(node, reference)?;
    }
    for _ in 0..2 {
        write(node, reference, random)?;
    }
    if round > 0 {
        work_late(node, reference, random)?;
    }
    Ok(())
}

/// What is left of a promotion that ended anywhere: the replica of before, or the primary of the new epoch.
pub fn check_promoted(
    storage: Arc<dyn Storage>,
    at: Lsn,
    before: &Source,
    after: &Reference,
    kept: Lsn,
    story: &str,
) {
    let mut config = replica();
    config.replicas = vec!["west".to_owned()];
    let mut node =
        Driven::open(storage.clone(), config.clone()).unwrap_or_else(|error| panic!("{story}: {error}"));
    let mut after = after.clone();
    if node.node.role() == Role::Replica {
        assert_eq!(kept, Lsn::ZERO, "{story}: the promotion was answered");
        assert_eq!(node.node.durable().lsn, before.node.node.durable().lsn, "{story}: nothing was cut");
        let now = node.now();
        let promoted = node.node.promote(now, at, Epoch(2));
        promoted.unwrap_or_else(|error| panic!("{story}: promoting again: {error}"));
        after = before.reference.from(at);
        assert_volumes(&mut node, after.at(at), story);
    }
    let story = &format!("{story}, {:?}", node.node.state());
    assert_eq!(node.node.state().branches.len(), 1, "{story}: what lies behind the point is a branch");
    drop(node);
    check_primary(storage, &config, &after, kept, story);
}
