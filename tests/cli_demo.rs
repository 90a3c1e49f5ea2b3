//! `landfall demo`, as a user runs it: two processes, SIGKILL, failover, and every check of it. Cases R16, R17, R23.

use std::fs;
use std::process::Command;

#[test]
fn the_demo_passes_and_says_so_in_json() {
    let dir = std::env::temp_dir().join(format!("landfall-demo-of-test-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let image = dir.join("disk.img");
    // Not whole sectors, with a hole.
    let mut bytes: Vec<u8> = (0..3_000_001_u32).map(|at| (at / 7) as u8).collect();
    bytes[1_000_000..2_000_000].fill(0);
    fs::write(&image, &bytes).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_landfall"))
        .args(["demo", "--seconds", "1", "--json", "--image"])
        .arg(&image)
        .arg("--dir")
        .arg(dir.join("nodes"))
        .output()
        .unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{talk}{}", String::from_utf8_lossy(&output.stdout));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 8, "{report:#}");
    assert!(checks.iter().all(|check| check["ok"] == true), "{report:#}");
    assert!(report["writes"].as_u64().unwrap() > 1_000, "{report:#}");
    assert_eq!(fs::read(&image).unwrap(), bytes, "the user's own file is only read");
    fs::remove_dir_all(&dir).unwrap();
}
