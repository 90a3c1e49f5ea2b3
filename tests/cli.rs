//! The binary as a person or a script meets it: exit codes, what goes to stdout and what to stderr, files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("landfall-cli-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Dir(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a line of arguments in a folder.
fn landfall(dir: &Dir, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_landfall"))
        .args(line.split_whitespace())
        .current_dir(&dir.0)
        .env_remove("LANDFALL_CONFIG")
        .env_remove("LANDFALL_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn expect(output: &Output, code: i32, words: &str) {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{stdout}{stderr}");
    assert!(stdout.contains(words) || stderr.contains(words), "{words}: {stdout}{stderr}");
    if code != 0 && code != 4 {
        assert_eq!(stdout, "", "a command that fails prints no data");
    }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn help_and_version_are_data_and_wrong_usage_is_code_2() {
    let dir = Dir::new();
    let help = landfall(&dir, "--help");
    expect(&help, 0, "Exit status:");
    assert!(text(&help.stdout).contains("failover"));
    expect(&landfall(&dir, "--version"), 0, "landfall 0.1.0");
    expect(&landfall(&dir, ""), 2, "Usage:");
    expect(&landfall(&dir, "failover db --to yesterday"), 2, "is not a recovery point");
}

#[test]
fn init_writes_what_two_nodes_need_once() {
    let dir = Dir::new();
    let east = "init --dir east --name east --peer west=127.0.0.1:10900 --group db --volume data=1GiB";
    expect(&landfall(&dir, east), 0, "landfall.toml");
    assert_eq!(files(&dir.path("east")), ["ca", "certificates", "landfall.toml"]);
    assert_eq!(files(&dir.path("east/ca")), ["ca.key", "ca.pem"]);
    assert_eq!(files(&dir.path("east/certificates")), ["ca.pem", "east.key", "east.pem"]);
    for (file, expected) in [
        ("east/ca/ca.key", 0o600),
        ("east/certificates/east.key", 0o600),
        ("east/certificates", 0o700),
        ("east/landfall.toml", 0o644),
    ] {
        assert_eq!(mode(&dir.path(file)), expected, "{file}");
    }

    // Again: says so, succeeds, changes nothing.
    let before = fs::read(dir.path("east/certificates/east.key")).unwrap();
    let again = landfall(&dir, "init --dir east --json");
    expect(&again, 0, "\"already\": true");
    assert_eq!(fs::read(dir.path("east/certificates/east.key")).unwrap(), before);
    expect(&landfall(&dir, "init --dir east --name north"), 3, "for the node east: nothing was changed");

    // The second node, from the same authority, without its key.
    let west = "init --dir west --name west --join east/ca --peer east --group db";
    expect(&landfall(&dir, west), 0, "landfall.toml");
    assert_eq!(files(&dir.path("west")), ["certificates", "landfall.toml"]);
    assert_eq!(files(&dir.path("west/certificates")), ["ca.pem", "west.key", "west.pem"]);
    let ca = |node: &str| fs::read(dir.path(&format!("{node}/certificates/ca.pem"))).unwrap();
    assert_eq!(ca("east"), ca("west"));
}

/// The authority's key need not leave its place: the identity is issued there and carried over.
#[test]
fn init_takes_an_identity_that_was_issued_elsewhere() {
    let dir = Dir::new();
    expect(&landfall(&dir, "init --dir east --name east"), 0, "ca.key off the nodes");
    expect(&landfall(&dir, "cert issue west --ca east/ca --out west/certificates"), 0, "west.pem");
    let issued = fs::read(dir.path("west/certificates/west.key")).unwrap();
    expect(&landfall(&dir, "init --dir west --name west --peer east --group db"), 0, "landfall.toml");
    assert_eq!(files(&dir.path("west")), ["certificates", "landfall.toml"]);
    assert_eq!(fs::read(dir.path("west/certificates/west.key")).unwrap(), issued);
    // Another node's identity is not taken for one's own: this makes an authority, which the other's `ca.pem` forbids.
    expect(&landfall(&dir, "cert issue west --ca east/ca --out north/certificates"), 0, "west.pem");
    expect(&landfall(&dir, "init --dir north --name north"), 3, "is of another authority");
}

#[test]
fn init_that_was_cut_off_is_finished_and_half_a_pair_is_reported() {
    let dir = Dir::new();
    expect(&landfall(&dir, "init --dir a --name a"), 0, "landfall.toml");
    let key = fs::read(dir.path("a/ca/ca.key")).unwrap();
    fs::remove_file(dir.path("a/landfall.toml")).unwrap();
    expect(&landfall(&dir, "init --dir a --name a"), 0, "landfall.toml");
    assert_eq!(fs::read(dir.path("a/ca/ca.key")).unwrap(), key);

    fs::remove_file(dir.path("a/landfall.toml")).unwrap();
    fs::remove_file(dir.path("a/certificates/a.pem")).unwrap();
    expect(&landfall(&dir, "init --dir a --name a"), 3, "a.key is there, ");
    assert!(!dir.path("a/landfall.toml").exists());
}

#[test]
fn arguments_that_do_not_fit_together_leave_no_file() {
    let dir = Dir::new();
    for (line, words) in [
        ("init --dir x --name x --group db", "has neither a volume nor a peer"),
        ("init --dir x --name x --group db --volume data=1000B", "is not a multiple of 512"),
        ("init --dir x --name x --group db --volume a=1GiB --volume a=1GiB", "two volumes named `a`"),
        ("init --dir x --name x --peer x", "a node is not its own peer"),
        ("init --dir x --name x --peer y=nowhere", "is not an address"),
    ] {
        expect(&landfall(&dir, line), 2, words);
        assert_eq!(files(&dir.path("x")), Vec::<String>::new(), "{line}");
    }
}

#[test]
fn certificates_are_issued_once() {
    let dir = Dir::new();
    expect(&landfall(&dir, "init --dir a --name a"), 0, "landfall.toml");
    expect(&landfall(&dir, "cert issue b --ca a/ca --out b"), 0, "b.pem");
    expect(&landfall(&dir, "cert issue b --ca a/ca --out b --json"), 0, "\"already\": true");
    assert_eq!(mode(&dir.path("b/b.key")), 0o600);
    expect(&landfall(&dir, "cert issue c --ca nowhere --out c"), 1, "nowhere/ca.pem cannot be read");
    expect(&landfall(&dir, "init --dir d --name d --join nowhere"), 1, "nowhere cannot be used");
}

#[test]
fn commands_without_configuration_or_daemon_say_what_to_do() {
    let dir = Dir::new();
    expect(&landfall(&dir, "status"), 2, "write one with `landfall init`");
    expect(&landfall(&dir, "status --config none.toml"), 2, "the configuration none.toml cannot be read");
    expect(&landfall(&dir, "init --name a --peer b=127.0.0.1:1 --group db --volume data=1GiB"), 0, "a.key");
    for line in [
        "status",
        "points list db",
        "failover db --to latest --yes",
        "mount-point db --at latest",
        "unmount 1",
    ] {
        expect(&landfall(&dir, line), 5, "no daemon answers at");
    }
    // A mistaken key is found with its place, by whatever command reads the file.
    let config = fs::read_to_string(dir.path("landfall.toml")).unwrap();
    fs::write(dir.path("wrong.toml"), config.replace("replicas = ", "replica = ")).unwrap();
    let output = landfall(&dir, "status --config wrong.toml");
    expect(&output, 2, "did you mean `replicas`?");
    assert!(text(&output.stderr).contains("wrong.toml:"), "{}", text(&output.stderr));
}

#[test]
fn a_daemon_checks_its_file_and_its_identity_before_it_starts() {
    let dir = Dir::new();
    expect(
        &landfall(&dir, "init --name a --peer b=127.0.0.1:1 --group db --volume data=1GiB"),
        0,
        "landfall.toml",
    );
    expect(&landfall(&dir, "replica"), 2, "start it with `landfall agent`");
    fs::remove_file(dir.path("certificates/a.key")).unwrap();
    expect(&landfall(&dir, "agent"), 1, "a.key cannot be read");
    assert!(!dir.path("data").exists());
}

#[test]
fn the_demo_does_not_touch_a_folder_that_is_in_use() {
    let dir = Dir::new();
    fs::create_dir(dir.path("full")).unwrap();
    fs::write(dir.path("full/file"), "something of value").unwrap();
    expect(&landfall(&dir, "demo --dir full"), 2, "is not empty");
    assert_eq!(files(&dir.path("full")), ["file"]);
    expect(&landfall(&dir, "demo --image none.img"), 1, "none.img cannot be used");
}
