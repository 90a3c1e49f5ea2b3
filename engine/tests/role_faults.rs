//! Changes of role, and all else that a node does beside its daily work, on storage that fails: each error at each call,
//! once. Either the node stops and says why, or it refuses the step and goes on; in both cases, and after a power cut, the
//! same step can be done again and leads to where it would have led. No file is ever synced again after its sync failed.

mod common;

use common::crash::CrashDisk;
use common::{A, Driven, Random, story};
use engine::event::OnMismatch;
use engine::faulty::{Effect, Errno, Fault, Faulty, Lasting};
use engine::log::ship::Stretch;
use engine::node::config::{Begins, Config, NewVolume, OnFull, Start};
use engine::node::reconsider::Target;
use engine::peer::Rebuff;
use engine::state::Role;
use engine::types::{Epoch, Extent, Lsn, VolumeId};
use std::sync::Arc;

const EAST: usize = 0;
const WEST: usize = 1;
const NAMES: [&str; 2] = ["east", "west"];
/// A volume is four of these.
const PART: usize = 4096;
const OLD: &str = "disks/old.img";

type Step = Result<(), String>;

/// A group in two regions, each on a disk of its own that may fail.
struct Two {
    configs: [Config; 2],
    disks: [CrashDisk; 2],
    faulty: [Faulty; 2],
    nodes: [Driven; 2],
    /// West's points, and what the volume showed at them.
    seen: Vec<(Lsn, [u8; 4])>,
}

fn words(what: impl std::fmt::Display) -> String {
    what.to_string()
}

fn two_of(nodes: &mut [Driven; 2], from: usize) -> (&mut Driven, &mut Driven) {
    let [east, west] = nodes;
    if from == EAST { (east, west) } else { (west, east) }
}

impl Two {
    fn new() -> Two {
        Two::with(|_| {})
    }

    fn with(change: impl Fn(&mut Config)) -> Two {
        let mut configs = [story::primary(), story::replica()];
        configs[WEST].replicas = vec!["east".to_owned()];
        configs.iter_mut().for_each(change);
        let disks = [CrashDisk::new(), CrashDisk::new()];
        let faulty = [0, 1].map(|index| Faulty::new(disks[index].storage()));
        let nodes = [0, 1].map(|index: usize| {
            Driven::open(Arc::new(faulty[index].clone()), configs[index].clone()).expect("opened")
        });
        Two { configs, disks, faulty, nodes, seen: Vec::new() }
    }

    /// With some data that both have.
    fn in_step() -> Two {
        let mut two = Two::new();
        two.write(EAST, [1, 2, 3, 4]);
        two.follow(EAST).expect("in step");
        two
    }

    /// West was promoted in the middle of what it had, and has written since.
    fn promoted() -> Two {
        let mut two = Two::in_step();
        let at = two.nodes[WEST].node.durable().lsn;
        two.seen.push((at, [1, 2, 3, 4]));
        two.write(EAST, [5, 5, 5, 5]);
        two.follow(EAST).expect("in step");
        two.seen.push((two.nodes[WEST].node.durable().lsn, [5, 5, 5, 5]));
        let west = &mut two.nodes[WEST];
        let now = west.now();
        west.node.promote(now, at, Epoch(2)).expect("promoted");
        two.write(WEST, [6, 2, 6, 4]);
        two.nodes[WEST].work();
        two
    }

    /// East has written alone, then west took over, for good.
    fn diverged() -> Two {
        let mut two = Two::in_step();
        two.nodes[EAST].node.link_changed("west", false);
        two.write(EAST, [7, 2, 7, 4]);
        two.nodes[EAST].work();
        two.take_over(WEST, Epoch(2));
        two.write(WEST, [1, 8, 8, 4]);
        two
    }

    /// West has the group by its primary's word, which it has not heard yet.
    fn offered() -> Two {
        let mut two = Two::in_step();
        two.hand_over().expect("decided");
        two
    }

    /// West has missed more than the log holds.
    fn behind() -> Two {
        let mut two = Two::with(|config| {
            config.on_full = OnFull::Track;
            config.limits.log.log_bytes = 8 * config.limits.log.segment_bytes;
        });
        two.write(EAST, [1, 2, 3, 4]);
        two.follow(EAST).expect("in step");
        two.nodes[EAST].node.link_changed("west", false);
        for byte in 10..40 {
            two.write(EAST, [byte; 4]);
            two.nodes[EAST].work();
        }
        assert!(two.nodes[EAST].node.log().first() > two.nodes[WEST].node.durable().lsn, "it is gone");
        two
    }

    fn take_over(&mut self, index: usize, epoch: Epoch) {
        let node = &mut self.nodes[index];
        let (now, at) = (node.now(), node.node.durable().lsn);
        node.node.promote(now, at, epoch).expect("promoted");
        node.node.commit(now).expect("committed");
        node.node.take_back(now).expect("it takes the other back");
        node.work();
    }

    fn write(&mut self, index: usize, parts: [u8; 4]) {
        self.try_to_write(index, parts).expect("written");
    }

    fn try_to_write(&mut self, index: usize, parts: [u8; 4]) -> Step {
        for (part, byte) in parts.into_iter().enumerate() {
            self.nodes[index].write(A, (part * PART) as u64, &[byte; PART]).map_err(words)?;
        }
        self.nodes[index].flush().map_err(words)
    }

    /// Whether a node has failed.
    fn is_well(&self, index: usize) -> Step {
        self.nodes[index].node.failed().map_or(Ok(()), |failed| Err(failed.reason.clone()))
    }

    /// Calls the other node, and sends and copies until it has everything.
    fn follow(&mut self, from: usize) -> Step {
        let name = NAMES[1 - from];
        let mut next = None;
        for _ in 0..100 {
            for index in [EAST, WEST] {
                self.nodes[index].work();
                self.is_well(index)?;
            }
            let (primary, replica) = two_of(&mut self.nodes, from);
            let Some(at) = next else {
                let hello = primary.node.hello().ok_or("it has nothing to say")?;
                let (now, takes_back) = (replica.now(), primary.node.takes_back());
                let welcome = match replica.node.accept(now, &hello, takes_back) {
                    Err(Rebuff::NotYet) => continue,
                    answer => answer.map_err(words)?,
                };
                let needs = replica.node.needs();
                let now = primary.now();
                let jump = primary.node.attach(now, name, &welcome, Some(&needs)).map_err(words)?;
                primary.node.link_changed(name, true);
                next = Some(welcome.durable.lsn.next());
                if let Some(jump) = jump {
                    let now = replica.now();
                    replica.node.jump(now, &jump).map_err(words)?;
                    next = Some(jump.to.lsn.next());
                }
                continue;
            };
            let batch = match primary.node.records_from(at, 8 << 10) {
                Stretch::Ready(batch) => batch,
                Stretch::OnDisk(read) => read.run().map_err(words)?,
                Stretch::Gone => return Err("what it needs is gone".to_owned()),
                Stretch::UpToDate => {
                    let durable = replica.node.acknowledgeable();
                    let now = primary.now();
                    primary.node.acknowledged(now, name, durable);
                    let lacks = primary.node.report(primary.now).replicas[0].lacking.is_some();
                    if durable == primary.node.durable() && !lacks && !replica.node.is_coarse() {
                        return Ok(());
                    }
                    continue;
                }
            };
            next = Some(batch.last.next());
            let now = replica.now();
            replica.node.append(now, batch).map_err(words)?;
            replica.sync();
        }
        Err("it does not come to an end".to_owned())
    }

    /// East gives the group to west.
    fn hand_over(&mut self) -> Step {
        let is_over = |two: &Two| two.nodes[EAST].node.state().handed_over.is_some();
        if !is_over(self) {
            self.follow(EAST)?;
            let [east, west] = &mut self.nodes;
            let now = west.now();
            west.node.ask_for_group(now).map_err(words)?;
            let (_, ask) = west.node.asks()[0];
            let now = east.now();
            east.node.asked(now, "west", ask);
        }
        self.is_well(EAST)?;
        is_over(self).then_some(()).ok_or("it is not decided".to_owned())
    }

    /// West hears of it.
    fn offer(&mut self) -> Step {
        let [east, west] = &mut self.nodes;
        if let Some(hello) = east.node.hello() {
            let now = west.now();
            let answer = west.node.accept(now, &hello, east.node.takes_back()).expect_err("never a welcome");
            let now = east.now();
            east.node.rebuffed(now, "west", &answer);
        }
        self.is_well(WEST)?;
        (self.nodes[WEST].node.role() == Role::Primary).then_some(()).ok_or("not taken".to_owned())
    }

    fn resume(&mut self) -> Step {
        let east = &mut self.nodes[EAST];
        if east.node.role() == Role::Fenced {
            let (now, at, epoch) = (east.now(), east.node.durable().lsn, east.node.next_epoch());
            east.node.promote(now, at, epoch).map_err(words)?;
        }
        Ok(())
    }

    /// West's promotion moves to the point that was seen as the n-th.
    fn reconsider(&mut self, nth: usize) -> Step {
        let west = &mut self.nodes[WEST];
        let at = self.seen[nth].0;
        if west.node.state().epoch() == Epoch(3) {
            return Ok(());
        }
        west.work();
        let left = west.node.state().branches[0];
        let states = match at > left.after.lsn {
            true => Some(west.node.survey_branch(&left).run().map_err(words)?),
            false => None,
        };
        let target = states.as_ref().map_or(Target::Line(at), |states| Target::Branch(states, at));
        let now = west.now();
        west.node.reconsider(now, target, Epoch(3)).map_err(words).map(drop)
    }

    fn resize(&mut self, size: u64) -> Step {
        let east = &mut self.nodes[EAST];
        east.work();
        let now = east.now();
        east.node.resize(now, "data", size).map_err(words).map(drop)
    }

    fn protect(&mut self) -> Step {
        let volume = NewVolume { name: "old".to_owned(), size: PART as u64, begins: Begins::InPlace };
        let east = &mut self.nodes[EAST];
        east.work();
        let now = east.now();
        east.node.add_volume(now, &volume, Some(OLD.to_owned())).map_err(words).map(drop)
    }

    /// Dies, by a kill or a power cut, and is started again.
    fn restart(&mut self, index: usize, left: CrashDisk, story: &str) {
        let faulty = Faulty::new(left.storage());
        let opened = Driven::open(Arc::new(faulty.clone()), self.configs[index].clone());
        let mut node = opened.unwrap_or_else(|error| panic!("{story}: {error}"));
        node.now = self.nodes[index].now;
        (self.nodes[index], self.disks[index], self.faulty[index]) = (node, left, faulty);
        let other = &mut self.nodes[1 - index];
        other.node.link_changed(NAMES[index], false);
    }

    /// What the volume shows.
    #[track_caller]
    fn shows(&mut self, index: usize, parts: [u8; 4], story: &str) {
        let node = &mut self.nodes[index];
        let bytes = match node.node.role() {
            Role::Primary => node.read(A, 0, 4 * PART as u64).expect("read"),
            _ => read_newest(node, A, 4 * PART as u64),
        };
        let expected: Vec<u8> = parts.into_iter().flat_map(|byte| [byte; PART]).collect();
        let found = [0, 1, 2, 3].map(|part| bytes[part * PART]);
        assert!(bytes == expected, "{story}: {} shows {found:?}, not {parts:?}", NAMES[index]);
    }
}

fn read_newest(node: &mut Driven, volume: VolumeId, len: u64) -> Vec<u8> {
    let latest = node.node.window().expect("it has points").latest;
    node.node.pin(latest).expect("it is one");
    let plan = node.node.plan_point(volume, latest, Extent::new(0, len)).expect("it is there");
    let bytes = plan.read_all().expect("read").to_vec();
    node.node.unpin(latest);
    bytes
}

/// A step that one of both takes, on storage that fails.
struct Story {
    name: &'static str,
    begins: fn() -> Two,
    /// Whose storage fails.
    victim: usize,
    step: fn(&mut Two) -> Step,
    check: fn(&mut Two, &str),
}

impl Story {
    fn fault(&self, errno: Errno, effect: Effect, nth: u64) -> bool {
        let story = format!("{}, {errno:?} at call {nth} ({effect:?})", self.name);
        let mut two = (self.begins)();
        let faulty = two.faulty[self.victim].clone();
        faulty.arm(Fault { call: None, nth, errno, effect, lasting: Lasting::Once });
        let done = (self.step)(&mut two);
        let fired = faulty.fired() > 0;
        assert!(fired || done.is_ok(), "{story}: nothing failed, but {done:?}");
        assert_eq!(faulty.resyncs(), 0, "{story}: a file was synced again after its sync had failed");
        faulty.disarm();
        if two.is_well(self.victim).is_err() || nth.is_multiple_of(3) {
            let disk = two.disks[self.victim].clone();
            let left = match nth % 2 {
                0 => disk.killed(),
                // Nothing unsynced survives, or all of it does.
                _ => {
                    let mut outcomes = disk.outcomes(2, &mut Random(nth));
                    let chosen = nth as usize / 2 % outcomes.len();
                    outcomes.swap_remove(chosen)
                }
            };
            two.restart(self.victim, left, &story);
        }
        // What others were told before may be out of date; each try begins with a call.
        for _ in 0..4 {
            if (self.step)(&mut two).is_ok() {
                break;
            }
            two.nodes.iter_mut().for_each(Driven::work);
        }
        let again = (self.step)(&mut two);
        assert_eq!(again, Ok(()), "{story}: the step cannot be done again; it was {done:?}");
        (self.check)(&mut two, &story);
        fired
    }

    fn tell(&self) {
        for (errno, effect) in
            [(Errno::Io, Effect::Nothing), (Errno::Io, Effect::Whole), (Errno::NoSpace, Effect::Half)]
        {
            let calls = (1..).find(|&nth| !self.fault(errno, effect, nth)).expect("a step has an end") - 1;
            assert!(calls > 5, "{}: it makes more than {calls} calls", self.name);
        }
    }
}

#[test]
fn w18_an_old_primary_is_taken_back() {
    let story = Story {
        name: "taking an old primary back",
        begins: Two::diverged,
        victim: EAST,
        step: |two| two.follow(WEST),
        check: |two, story| {
            assert_eq!(two.nodes[EAST].node.role(), Role::Replica, "{story}");
            assert_eq!(two.nodes[EAST].node.branches().len(), 1, "{story}: what it wrote alone is kept");
            two.shows(EAST, [1, 8, 8, 4], story);
        },
    };
    story.tell();
    Story { name: "sending to an old primary", victim: WEST, ..story }.tell();
}

/// The second time it has base images, or its disks serve as such.
#[test]
fn w18_an_old_primary_is_taken_back_again() {
    let begins = || {
        let mut two = Two::diverged();
        two.follow(WEST).expect("taken back");
        two.nodes[WEST].node.link_changed("east", false);
        two.write(WEST, [9, 9, 9, 9]);
        two.take_over(EAST, Epoch(3));
        two.write(EAST, [1, 8, 8, 3]);
        two
    };
    let story = Story {
        name: "taking back with base images",
        begins,
        victim: WEST,
        step: |two| two.follow(EAST),
        check: |two, story| {
            assert_eq!(two.nodes[WEST].node.role(), Role::Replica, "{story}");
            assert_eq!(two.nodes[WEST].node.branches().len(), 1, "{story}: what it wrote alone is kept");
            two.shows(WEST, [1, 8, 8, 3], story);
        },
    };
    story.tell();
}

#[test]
fn w18_a_group_is_handed_over() {
    let check = |two: &mut Two, story: &str| {
        two.offer().unwrap_or_else(|error| panic!("{story}: {error}"));
        two.follow(WEST).unwrap_or_else(|error| panic!("{story}: {error}"));
        assert!(two.nodes[EAST].node.branches().is_empty(), "{story}: nothing was left out");
        two.shows(EAST, [1, 2, 3, 4], story);
        two.write(WEST, [1, 2, 3, 9]);
    };
    let story =
        Story { name: "handing over", begins: Two::in_step, victim: EAST, step: Two::hand_over, check };
    story.tell();
    Story { name: "taking over", begins: Two::offered, victim: WEST, step: Two::offer, check }.tell();
}

#[test]
fn w18_an_old_primary_goes_on() {
    let story = Story {
        name: "going on",
        begins: Two::offered,
        victim: EAST,
        step: Two::resume,
        check: |two, story| {
            two.write(EAST, [1, 2, 3, 5]);
            two.follow(EAST).unwrap_or_else(|error| panic!("{story}: {error}"));
            two.shows(WEST, [1, 2, 3, 5], story);
        },
    };
    story.tell();
}

#[test]
fn w18_a_promotion_is_moved() {
    let onto_the_line = Story {
        name: "moving to a point of the line",
        begins: Two::promoted,
        victim: WEST,
        step: |two| two.reconsider(0),
        check: |two, story| {
            two.shows(WEST, [1, 2, 3, 4], story);
            end_move(two, [9, 2, 3, 4], story);
        },
    };
    onto_the_line.tell();
    let onto_the_branch = Story {
        name: "moving to a point of the branch",
        step: |two| two.reconsider(1),
        check: |two, story| {
            two.shows(WEST, [5, 5, 5, 5], story);
            end_move(two, [9, 5, 5, 5], story);
        },
        ..onto_the_line
    };
    onto_the_branch.tell();
}

/// It is written to, stood by, and its disks are filled.
fn end_move(two: &mut Two, parts: [u8; 4], story: &str) {
    two.write(WEST, parts);
    let west = &mut two.nodes[WEST];
    let now = west.now();
    west.node.commit(now).expect("committed");
    west.work();
    assert!(!west.node.is_hydrating(), "{story}: the disks are whole");
    two.shows(WEST, parts, story);
}

#[test]
fn w18_a_volume_is_resized() {
    let larger = Story {
        name: "a larger volume",
        begins: Two::in_step,
        victim: EAST,
        step: |two| two.resize(8 * PART as u64),
        check: |two, story| {
            two.follow(EAST).unwrap_or_else(|error| panic!("{story}: {error}"));
            check_sizes(two, 8 * PART as u64, story);
            two.shows(WEST, [1, 2, 3, 4], story);
        },
    };
    larger.tell();
    let smaller = Story {
        name: "a smaller volume, and a large one again",
        step: |two| {
            two.resize(2 * PART as u64)?;
            two.resize(4 * PART as u64)
        },
        check: |two, story| {
            two.follow(EAST).unwrap_or_else(|error| panic!("{story}: {error}"));
            check_sizes(two, 4 * PART as u64, story);
            two.shows(EAST, [1, 2, 0, 0], story);
            two.shows(WEST, [1, 2, 0, 0], story);
        },
        ..larger
    };
    smaller.tell();
    let followed = Story {
        name: "following a resize",
        begins: || {
            let mut two = Two::in_step();
            two.resize(2 * PART as u64).expect("resized");
            two.resize(8 * PART as u64).expect("resized");
            two
        },
        victim: WEST,
        step: |two| two.follow(EAST),
        check: |two, story| {
            check_sizes(two, 8 * PART as u64, story);
            two.shows(WEST, [1, 2, 0, 0], story);
        },
    };
    followed.tell();
}

fn check_sizes(two: &Two, size: u64, story: &str) {
    for index in [EAST, WEST] {
        let found = two.nodes[index].node.volume_specs().find(|spec| spec.id == A).expect("it is there").size;
        assert_eq!(found, size, "{story}: on {}", NAMES[index]);
    }
}

#[test]
fn w18_a_disk_joins() {
    let story = Story {
        name: "a disk joins",
        begins: || {
            let mut two = Two::in_step();
            two.disks[EAST].storage().create_dir("disks").expect("made");
            two.disks[EAST].put(OLD, &[0xC; PART]);
            // As the operator has it before.
            two.configs[EAST].backings.insert("old".to_owned(), OLD.to_owned());
            let volume = NewVolume { name: "old".to_owned(), size: PART as u64, begins: Begins::InPlace };
            if let Start::Primary { volumes, .. } = &mut two.configs[EAST].start {
                volumes.push(volume);
            }
            two
        },
        victim: EAST,
        step: Two::protect,
        check: |two, story| {
            two.follow(EAST).unwrap_or_else(|error| panic!("{story}: {error}"));
            let bytes = read_newest(&mut two.nodes[WEST], VolumeId(3), PART as u64);
            assert!(bytes == [0xC; PART], "{story}: the replica has all of it");
            two.shows(WEST, [1, 2, 3, 4], story);
        },
    };
    story.tell();
}

#[test]
fn w18_a_span_makes_up_for_an_outage() {
    let story = Story {
        name: "catching up",
        begins: Two::behind,
        victim: WEST,
        step: |two| two.follow(EAST),
        check: |two, story| two.shows(WEST, [39; 4], story),
    };
    story.tell();
    Story { name: "copying", victim: EAST, ..story }.tell();
}

#[test]
fn w18_a_mark_is_there_or_not() {
    let story = Story {
        name: "a mark",
        begins: Two::in_step,
        victim: EAST,
        step: |two| {
            let east = &mut two.nodes[EAST];
            let now = east.now();
            east.node.mark(now, "noon", engine::catalog::MarkKind::Bookmark).map_err(words)?;
            two.follow(EAST)
        },
        check: |two, story| two.shows(WEST, [1, 2, 3, 4], story),
    };
    story.tell();
}

#[test]
fn w18_a_round_of_verification() {
    let story = Story {
        name: "verification",
        begins: Two::in_step,
        victim: WEST,
        step: |two| {
            let east = &mut two.nodes[EAST];
            let now = east.now();
            // One that is under way goes on.
            let _ = east.node.verify(now, OnMismatch::Repair);
            two.follow(EAST)
        },
        check: |two, story| two.shows(WEST, [1, 2, 3, 4], story),
    };
    story.tell();
}

#[test]
fn w17_a_branch_is_dropped() {
    let story = Story {
        name: "dropping a branch",
        begins: || {
            let mut two = Two::promoted();
            let west = &mut two.nodes[WEST];
            let now = west.now();
            west.node.commit(now).expect("committed");
            two
        },
        victim: WEST,
        step: |two| {
            let west = &mut two.nodes[WEST];
            let now = west.now();
            if let Some(branch) = west.node.branches().first() {
                west.node.drop_branch(now, branch).map_err(words)?;
            }
            two.try_to_write(WEST, [6, 2, 6, 5])?;
            two.nodes[WEST].work();
            two.is_well(WEST)
        },
        check: |two, story| {
            assert!(two.nodes[WEST].node.branches().is_empty(), "{story}");
            two.shows(WEST, [6, 2, 6, 5], story);
        },
    };
    story.tell();
}
