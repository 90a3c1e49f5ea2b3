//! What an open point costs: the log that retention would have retired by now if the point were not pinned.

use super::Node;
use crate::types::{Lsn, Now};

impl Node {
    /// Bytes of log that are held beyond retention's limits for a pin at `at`. Whole files, as they are retired; 0 for a
    /// point that retention has not come to, and for a mark that is kept behind the window.
    ///
    /// Where the limit by bytes is about that of the log, log is held as soon as it takes room that new records need.
    #[must_use]
    pub fn held_for(&self, at: Lsn, now: Now) -> u64 {
        if self.is_kept(at) {
            return 0;
        }
        let retention = &self.config.retention;
        let log_bytes = self.config.limits.log.log_bytes;
        let most = retention.bytes.min(log_bytes - log_bytes / 8);
        let segments = self.log.segments();
        let mut left: u64 = segments.iter().map(|segment| segment.end).sum();
        let mut held = 0;
        // The last one is being filled.
        for segment in segments.iter().take(segments.len().saturating_sub(1)) {
            let is_old = segment.last_time.0.saturating_add(retention.age_ns) < now.wall.0;
            if left <= most && !is_old {
                break;
            }
            if segment.last > at {
                held += segment.end;
            }
            left -= segment.end;
        }
        held
    }
}
