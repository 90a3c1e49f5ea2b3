//! The scenarios that come with Landfall.

/// Their names.
pub const NAMES: [&str; 18] = [
    "asymmetric-partition",
    "clock-skew",
    "double-failure",
    "drill-under-load",
    "failover-during-failback",
    "failover-during-resync",
    "flapping-link",
    "long-outage",
    "long-outage-log-full",
    "planned-failover",
    "ransomware",
    "region-outage",
    "region-outage-then-return",
    "replica-loss",
    "rolling-restart",
    "slow-replica-disk",
    "split-brain-attempt",
    "split-longer-than-the-log",
];

/// The text of one.
#[must_use]
pub fn shipped(name: &str) -> Option<&'static str> {
    Some(match name {
        "asymmetric-partition" => include_str!("../../scenarios/asymmetric-partition.toml"),
        "clock-skew" => include_str!("../../scenarios/clock-skew.toml"),
        "double-failure" => include_str!("../../scenarios/double-failure.toml"),
        "drill-under-load" => include_str!("../../scenarios/drill-under-load.toml"),
        "failover-during-failback" => include_str!("../../scenarios/failover-during-failback.toml"),
        "failover-during-resync" => include_str!("../../scenarios/failover-during-resync.toml"),
        "flapping-link" => include_str!("../../scenarios/flapping-link.toml"),
        "long-outage" => include_str!("../../scenarios/long-outage.toml"),
        "long-outage-log-full" => include_str!("../../scenarios/long-outage-log-full.toml"),
        "planned-failover" => include_str!("../../scenarios/planned-failover.toml"),
        "ransomware" => include_str!("../../scenarios/ransomware.toml"),
        "region-outage" => include_str!("../../scenarios/region-outage.toml"),
        "region-outage-then-return" => include_str!("../../scenarios/region-outage-then-return.toml"),
        "replica-loss" => include_str!("../../scenarios/replica-loss.toml"),
        "rolling-restart" => include_str!("../../scenarios/rolling-restart.toml"),
        "slow-replica-disk" => include_str!("../../scenarios/slow-replica-disk.toml"),
        "split-brain-attempt" => include_str!("../../scenarios/split-brain-attempt.toml"),
        "split-longer-than-the-log" => include_str!("../../scenarios/split-longer-than-the-log.toml"),
        _ => return None,
    })
}
