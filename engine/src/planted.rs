//! Mistakes on purpose: the simulator has to find each of them, or it proves nothing.
//!
//! Only with the feature `planted`, which no production build has; without it `planted!` is the word `false`, and
//! nothing of this is compiled. A mistake is made by the thread that [`plant`]ed it, and by no other.

use std::cell::Cell;

/// What can be done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mistake {
    /// A flush is answered when its records are appended.
    AcknowledgeBeforeSync,
    /// Records are shipped when they are appended.
    ShipBeforeDurable,
    /// Writes are applied to the backing before they are durable.
    ApplyBeforeDurable,
    /// A record of the right number is taken for the next one, whatever it continues.
    SkipChainCheck,
    /// A primary of an older epoch is let in.
    AcceptOlderEpoch,
    /// The base image is written before its points are retired.
    FoldBeforeRetiring,
    /// A sync that failed is tried again.
    RetryFailedSync,
    /// The name of a new segment file is not made durable.
    ForgetDirectorySync,
    /// A replica appends all of a batch but its last record.
    DropLastOfBatch,
    /// After a cut the numbers go on where they had been.
    RenumberAfterCut,
    /// A point that is in use is retired.
    PrunePinned,
    /// What is written to a point goes to the base image.
    DrillReachesBase,
    /// A point shows what is newest.
    MovingPoint,
    /// A point inside a sync span is offered.
    PointInsideSpan,
    /// A volume that was protected in place is taken for an empty one.
    SkipInPlace,
    /// What changes while a replica is lost is not noted.
    ForgetTracked,
    /// A sync span's copy goes into the log over what a guest wrote since it was read.
    CopyOverWrites,
    /// The log is given up for a replica before what it lacks is on record.
    FreeBeforeNoted,
    /// A node that was taken back does not tell what diverged on its disks.
    ForgetDiverged,
    /// What an old primary wrote alone is not kept.
    DropBranch,
    /// A primary hands over before the replica has everything.
    HandOverEarly,
    /// A scrub tells of what was read, though a guest has written there since.
    ScrubOverWrites,
    /// A part that a replica wants again is forgotten once its span has begun.
    ForgetRepair,
    /// What a kept mark needs of a base image is overwritten without being saved.
    ForgetSaved,
    /// A volume's earlier size is forgotten when it gets another one.
    ForgetSize,
    /// What a volume loses when it gets smaller stays where it is.
    KeepLostBytes,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Mistake; 26] = [
        Mistake::AcknowledgeBeforeSync,
        Mistake::ShipBeforeDurable,
        Mistake::ApplyBeforeDurable,
        Mistake::SkipChainCheck,
        Mistake::AcceptOlderEpoch,
        Mistake::FoldBeforeRetiring,
        Mistake::RetryFailedSync,
        Mistake::ForgetDirectorySync,
        Mistake::DropLastOfBatch,
        Mistake::RenumberAfterCut,
        Mistake::PrunePinned,
        Mistake::DrillReachesBase,
        Mistake::MovingPoint,
        Mistake::PointInsideSpan,
        Mistake::SkipInPlace,
        Mistake::ForgetTracked,
        Mistake::CopyOverWrites,
        Mistake::FreeBeforeNoted,
        Mistake::ForgetDiverged,
        Mistake::DropBranch,
        Mistake::HandOverEarly,
        Mistake::ScrubOverWrites,
        Mistake::ForgetRepair,
        Mistake::ForgetSaved,
        Mistake::ForgetSize,
        Mistake::KeepLostBytes,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// From now on this thread makes that mistake, or none.
pub fn plant(mistake: Option<Mistake>) {
    PLANTED.set(mistake);
}

/// Whether this thread makes that mistake.
pub(crate) fn is(mistake: Mistake) -> bool {
    PLANTED.get() == Some(mistake)
}
