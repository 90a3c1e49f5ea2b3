//! Golden messages for wrong configurations, and the template against the reader.

use super::template::{self, Template};
use super::*;
use crate::exit::Code;
use crate::units::{GIB, MIB};

const GOOD: &str = r#"[node]
name = "east"
data_dir = "data"
ca = "ca.pem"
certificate = "east.pem"
key = "east.key"

[nbd]
tcp = "127.0.0.1:10809"

[link]
heartbeat = "2s"

[[peer]]
name = "west"
address = "west.example.com:10900"

[[peer]]
name = "north"

[[group]]
name = "db"
role = "primary"
replicas = ["west"]
segment = "64MiB"
retention = { time = "72h" }

[[group.volume]]
name = "data"
size = "10GiB"

[[group.volume]]
name = "wal"
size = "1GiB"
backing = "/dev/sdb"
"#;

fn parse(text: &str) -> Result<Config, Failure> {
    Config::parse(Path::new("/etc/landfall/landfall.toml"), text)
}

#[test]
fn a_good_file_is_read_with_defaults_and_paths_beside_it() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.node.data_dir, Path::new("/etc/landfall/data"));
    assert_eq!(config.node.control, Path::new("/etc/landfall/data/control.sock"));
    assert_eq!(config.node.certificates.key, Path::new("/etc/landfall/east.key"));
    assert_eq!(config.link.timeout, Duration::from_secs(10));
    assert_eq!(config.groups[0].replicas[0].address, "west.example.com:10900");
    let group = &config.groups[0];
    assert_eq!((group.role, group.ack, group.on_full), (Role::Primary, Ack::Local, OnFull::Track));
    assert_eq!(group.log_limit, Bytes(16 * GIB));
    assert_eq!(group.segment, Bytes(64 * MIB));
    assert_eq!(group.retention.time, Duration::from_secs(72 * 3_600));
    assert_eq!(group.volumes[0].backing, None);
    assert_eq!(group.volumes[1].backing.as_deref(), Some(Path::new("/dev/sdb")));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn a_relative_file_gives_absolute_paths() {
    let here = std::env::current_dir().unwrap();
    for (file, data) in [("landfall.toml", "data"), ("etc/landfall.toml", "etc/data")] {
        let config = Config::parse(Path::new(file), GOOD).unwrap();
        assert_eq!(config.node.data_dir, here.join(data));
        assert_eq!(config.path, Path::new(file));
    }
}

/// Each case: a line of [`GOOD`], what stands there instead, and the whole message.
#[test]
fn wrong_files_say_where_and_what_was_meant() {
    let cases = [
        (
            "segment = \"64MiB\"",
            "segmnt = \"64MiB\"",
            "25:1: unknown field `segmnt`, expected one of `name`, `role`, `replicas`, `accept`, `ack`, \
             `on_full`, `log_limit`, `segment`, `overlay_limit`, `ship_delay`, `retention`, \
             `keep`, `verify`, `marks`, `pin_limit`, `volume`\n  \
             next: did you mean `segment`?",
        ),
        (
            "[link]",
            "[lnk]",
            "11:2: unknown field `lnk`, expected one of `node`, `nbd`, `link`, `peer`, `group`\n  \
             next: did you mean `link`?",
        ),
        (
            "role = \"primary\"",
            "role = \"primry\"",
            "23:8: unknown variant `primry`, expected `primary` or `replica`\n  next: did you mean `primary`?",
        ),
        ("size = \"10GiB\"", "size = \"10G\"", "30:8: `10G` has no unit known here: did you mean `10GiB`?"),
        (
            "size = \"10GiB\"",
            "size = \"1000B\"",
            "30:8: 1000B is not a multiple of 512\n  next: the next lower one is 512B",
        ),
        (
            "segment = \"64MiB\"",
            "keep = { hours = 200, days = 57 }",
            "25:30: 257 marks are more than can be kept: at most 256 in all",
        ),
        ("size = \"10GiB\"", "size = \"65TiB\"", "30:8: 65TiB is out of range: between 512B and 64TiB"),
        ("size = \"10GiB\"", "size = \"0B\"", "30:8: 0B is out of range: between 512B and 64TiB"),
        ("size = \"10GiB\"", "", "29:8: the volume `data` needs a `size`"),
        ("size = \"10GiB\"", "size = 10", "30:8: invalid type: integer `10`, expected a string"),
        (
            "heartbeat = \"2s\"",
            "heartbeat = \"2\"",
            "12:13: `2` has no unit known here: use ms, s, m, h or d",
        ),
        (
            "heartbeat = \"2s\"",
            "heartbeat = \"5s\"",
            "12:13: `timeout` must be at least three times `heartbeat`: one lost packet is not a lost link",
        ),
        ("heartbeat = \"2s\"", "max_mtu = 9", "12:11: 9 is out of range: between 1200 and 65527"),
        (
            "replicas = [\"west\"]",
            "replicas = [\"wets\"]",
            "24:13: there is no [[peer]] named `wets`\n  next: did you mean `west`?",
        ),
        (
            "replicas = [\"west\"]",
            "replicas = [\"west\", \"west\"]",
            "24:21: there are two replicas named `west`",
        ),
        ("replicas = [\"west\"]", "replicas = [\"east\"]", "24:13: `east` is this node itself"),
        (
            "replicas = [\"west\"]",
            "replicas = [\"north\"]",
            "24:13: the peer `north` has no address, so it cannot be dialled\n  next: give it one under [[peer]]",
        ),
        (
            "replicas = [\"west\"]",
            "ack = \"replica\"",
            "24:7: `ack = \"replica\"` needs at least one of `replicas`",
        ),
        (
            "role = \"primary\"",
            "role = \"replica\"",
            "23:8: a replica needs `accept`: the peers that may write to it",
        ),
        ("name = \"wal\"", "name = \"data\"", "33:8: there are two volumes named `data`"),
        ("name = \"north\"", "name = \"west\"", "19:8: there are two peers named `west`"),
        (
            "name = \"north\"",
            "name = \"North\"",
            "19:8: `North` is not a name for a peer\n  next: use 1 to 64 of a-z, 0-9, `-`, `_` and `.`, beginning \
             with a letter, a digit or `_`",
        ),
        ("segment = \"64MiB\"", "segment = \"1MiB\"", "25:11: 1MiB is out of range: between 64MiB and 1GiB"),
        ("name = \"north\"", "name = \"east\"", "19:8: a node is not its own peer"),
        (
            "name = \"db\"",
            "name = \"a/b\"",
            "22:8: `a/b` is not a name for a group\n  next: use 1 to 64 letters, digits, `-`, `_` and `.`, \
             beginning with a letter, a digit or `_`",
        ),
        (
            "address = \"west.example.com:10900\"",
            "address = \"west.example.com\"",
            "16:11: `west.example.com` is not an address\n  next: write a host and a port, as in \
             `west.example.com:10900`",
        ),
        ("key = \"east.key\"", "", "1:1: missing field `key`"),
        (
            "tcp = \"127.0.0.1:10809\"",
            "tls = \"required\"",
            "9:7: TLS needs `ca`, `certificate` and `key` under [nbd]",
        ),
        (
            "size = \"10GiB\"",
            "size = \"10GiB\"\nbacking = \"/dev/sdb\"",
            "36:11: /dev/sdb is the backing of `db/data` already",
        ),
    ];
    for (line, instead, message) in cases {
        assert!(GOOD.contains(line), "{line}");
        let failure = parse(&GOOD.replacen(line, instead, 1)).unwrap_err();
        assert_eq!(failure.to_string(), format!("/etc/landfall/landfall.toml:{message}"), "{instead}");
        assert_eq!(failure.code, Code::Usage);
    }
}

#[test]
fn text_that_is_not_toml_says_where() {
    let failure = parse("[node]\nname = \"ä\" x").unwrap_err();
    assert!(failure.what.starts_with("/etc/landfall/landfall.toml:2:12: "), "{failure}");
}

#[test]
fn a_socket_path_that_linux_cannot_take_is_found_early() {
    let long = "x".repeat(120);
    let failure = parse(&GOOD.replace("data_dir = \"data\"", &format!("data_dir = \"{long}\""))).unwrap_err();
    assert!(failure.what.contains("has 147 bytes, Linux takes 107"), "{failure}");
}

#[test]
fn open_doors_are_pointed_out() {
    let config = parse(&GOOD.replace("127.0.0.1:10809", "0.0.0.0:10809")).unwrap();
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    let config = parse(&GOOD.replace("replicas = [\"west\"]", "accept = [\"west\"]")).unwrap();
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
}

fn template() -> Template {
    Template {
        name: "east".to_owned(),
        data_dir: "data".into(),
        certificates: "certificates".into(),
        listen: "[::]:10900".parse().unwrap(),
        peers: vec![
            ("west".to_owned(), Some("west.example.com:10900".to_owned())),
            ("north".to_owned(), None),
        ],
        groups: vec![
            template::Group {
                name: "db".to_owned(),
                role: Role::Primary,
                replicas: vec!["west".to_owned()],
                accept: vec!["west".to_owned(), "north".to_owned()],
                volumes: vec![
                    ("data".to_owned(), 10 * GIB, None),
                    ("odd".to_owned(), 512 * 1_000_003, Some("/dev/a \"quoted\" \\ name".into())),
                ],
            },
            template::Group {
                name: "mail".to_owned(),
                role: Role::Replica,
                replicas: Vec::new(),
                accept: vec!["north".to_owned()],
                volumes: Vec::new(),
            },
        ],
    }
}

#[test]
fn verification_is_by_request_unless_a_time_is_given() {
    let verify =
        |text: &str| parse(&GOOD.replace("segment = \"64MiB\"", text)).map(|config| config.groups[0].verify);
    assert_eq!(verify("").unwrap(), Verify { every: None, rate: Bytes(64 << 20) });
    let given = verify("verify = { every = \"7d\", rate = \"1GiB\" }").unwrap();
    assert_eq!(given, Verify { every: Some(Duration::from_secs(7 * 86_400)), rate: Bytes(GIB) });
    let refused = verify("verify = { every = \"5s\" }").unwrap_err().to_string();
    assert!(refused.contains("5s is out of range: between 1m and"), "{refused}");
}

#[test]
fn marks_are_set_by_the_clock_unless_that_is_off() {
    let marks =
        |text: &str| parse(&GOOD.replace("segment = \"64MiB\"", text)).map(|config| config.groups[0].marks);
    assert_eq!(marks("").unwrap(), Some(Duration::from_secs(5)));
    assert_eq!(marks("marks = \"1m\"").unwrap(), Some(Duration::from_secs(60)));
    assert_eq!(marks("marks = \"off\"").unwrap(), None);
    let refused = marks("marks = \"1ms\"").unwrap_err().to_string();
    assert!(refused.contains("1ms is out of range: between 1s and 1d"), "{refused}");
    let refused = marks("marks = \"never\"").unwrap_err().to_string();
    assert!(refused.contains("`never`"), "{refused}");
}

#[test]
fn the_template_is_read_back() {
    let config = parse(&template().render()).unwrap();
    assert_eq!(config.groups[0].volumes[0].size, Some(Bytes(10 * GIB)));
    assert_eq!(config.groups[0].volumes[1].size, Some(Bytes(512 * 1_000_003)));
    assert_eq!(config.groups[0].volumes[1].backing.as_deref(), Some(Path::new("/dev/a \"quoted\" \\ name")));
    assert_eq!(config.groups[1].role, Role::Replica);
    assert_eq!(config.peers.len(), 2);
    let empty = Template { peers: Vec::new(), groups: Vec::new(), ..template() };
    assert_eq!(parse(&empty.render()).unwrap().groups, Vec::new());
}

/// A key that is commented out as `#key` shows its default, so putting them all in changes nothing. The three
/// files of TLS have no default: they only count with `tls`.
#[test]
fn the_template_shows_the_defaults() {
    let text = template().render();
    let all: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let mut with_all = parse(&all).unwrap();
    assert_eq!(with_all.nbd.tcp.take(), Some("127.0.0.1:10809".parse().unwrap()));
    assert_eq!(with_all, parse(&text).unwrap());
    for key in [
        "control",
        "socket",
        "tcp",
        "tls",
        "ca",
        "certificate",
        "key",
        "max_connections",
        "window",
        "heartbeat",
        "timeout",
        "max_backoff",
        "max_mtu",
        "ack",
        "ship_delay",
        "log_limit",
        "segment",
        "on_full",
        "overlay_limit",
        "retention",
        "verify",
        "marks",
        "pin_limit",
        "name",
        "size",
        "role",
        "accept",
        "replicas",
        "address",
        "listen",
        "data_dir",
    ] {
        assert!(all.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
    }
}
