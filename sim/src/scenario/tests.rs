use super::*;

fn complaint(change: impl Fn(&str) -> String) -> String {
    let text = shipped("region-outage").expect("it is shipped");
    Scenario::parse(&change(text)).expect_err("it is wrong").to_string()
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_the_nearest_name() {
    let key = complaint(|text| text.replace("rpo_seconds_max", "rpo_second_max"));
    assert!(key.contains("rpo_second_max") && key.ends_with("(did you mean `rpo_seconds_max`?)"), "{key}");
    let node = complaint(|text| text.replace("node = \"west-1\"", "node = \"wset-1\""));
    assert!(node.ends_with("there is no node `wset-1` (did you mean `west-1`?)"), "{node}");
    let line: usize = node.split(':').next().and_then(|line| line.parse().ok()).expect("a line");
    let text = shipped("region-outage").expect("it is shipped");
    assert!(text.lines().nth(line - 1).is_some_and(|line| line.contains("west-1")), "{node}");
    let word = complaint(|text| text.replace("\"power-cut\"", "\"powercut\""));
    assert!(word.ends_with("(did you mean `power-cut`?)"), "{word}");
    let region =
        complaint(|text| text.replace("region = \"east\"\nfor_seconds", "region = \"esat\"\nfor_seconds"));
    assert!(region.ends_with("(did you mean `east`?)"), "{region}");
    let late = complaint(|text| text.replace("at_seconds = 12.0", "at_seconds = 120.0"));
    assert!(late.ends_with("this is after the scenario's end"), "{late}");
    let alone = complaint(|text| text.replace("[[node]]\nname = \"west-1\"\nregion = \"west\"\n", ""));
    assert!(alone.contains("1 nodes; a group needs 2 to 8"), "{alone}");
    let twice = complaint(|text| text.replace("name = \"west-1\"", "name = \"east-1\""));
    assert!(twice.contains("a second node `east-1`"), "{twice}");
}

#[test]
fn every_shipped_scenario_can_be_read_and_says_what_it_proves() {
    for name in NAMES {
        let text = shipped(name).expect("it is shipped");
        let scenario = Scenario::parse(text).unwrap_or_else(|error| panic!("{name}:{error}"));
        assert_eq!(scenario.name, name);
        assert!(scenario.proves.ends_with('.') && scenario.proves.len() > 40, "{name}");
        assert!(!scenario.options(1).events.is_empty(), "{name}");
    }
    assert_eq!(shipped("none"), None);
}

const RECORDED: &str = concat!(
    r#"{"format":"landfall-workload","version":1,"volumes":[{"name":"data","size":1048576},{"name":"wal","size":65536}]}"#,
    "\n",
    r#"{"lsn":1,"ns":0,"kind":"write","volume":"data","offset":8192,"length":4096}"#,
    "\n",
    r#"{"lsn":2,"ns":20000000,"kind":"write","volume":"wal","offset":512,"length":512}"#,
    "\n",
    r#"{"lsn":3,"ns":24000000,"kind":"flush"}"#,
    "\n",
    r#"{"lsn":4,"ns":36000000,"kind":"zero","volume":"data","offset":0,"length":65536}"#,
    "\n",
    r#"{"lsn":5,"ns":48000000,"kind":"write","volume":"data","offset":0,"length":40960}"#,
    "\n",
);

fn with_recording(workload: &str, recorded: &str) -> Result<Scenario, Error> {
    let text = shipped("region-outage").expect("it is shipped");
    let text = text.replace("[assert]", &format!("[workload]\n{workload}\n[assert]"));
    Scenario::parse_with(&text, &|file| match file {
        "db.trace" => Ok(recorded.to_owned()),
        _ => Err("it is not there".to_owned()),
    })
}

#[test]
fn a_recorded_workload_survives_an_outage_and_repeats_with_its_file_alone() {
    let workload = "kind = \"trace\"\nfile = \"db.trace\"\nvolume_names = [\"wal\", \"data\"]";
    let run = |recorded: &str| {
        let scenario = with_recording(workload, recorded).expect("it is sound");
        let (file, hash) = scenario.recording().expect("it names one");
        assert_eq!((file, hash), ("db.trace", crate::hash::hash_bytes(recorded.as_bytes())));
        let outcome = crate::run::run(scenario.options(3));
        assert!(outcome.verdict.is_clean(), "{}", outcome.verdict);
        assert_eq!(scenario.assertions.broken_by(&outcome), Vec::<String>::new());
        assert!(outcome.figures.writes > 300, "{} writes", outcome.figures.writes);
        outcome.hash
    };
    let hash = run(RECORDED);
    assert_eq!(hash, run(RECORDED));
    assert_ne!(hash, run(&RECORDED.replace("8192", "8704")));
}

#[test]
fn what_is_wrong_with_a_recorded_workload_is_said_where_it_is_named() {
    let trace = "kind = \"trace\"\nfile = \"db.trace\"";
    let cases = [
        ("kind = \"trace\"", RECORDED.to_owned(), "24:1: a workload of the kind `trace` needs `file`"),
        ("file = \"db.trace\"", RECORDED.to_owned(), "25:8: a `file` needs `kind = \"trace\"`"),
        ("kind = \"trace\"\nfile = \"d.trace\"", RECORDED.to_owned(), "26:8: d.trace: it is not there"),
        (
            trace,
            RECORDED.replace("\"version\":1", "\"version\":2"),
            "26:8: db.trace, line 1: it is of version 2, and this reads version 1",
        ),
        (
            "kind = \"trace\"\nfile = \"db.trace\"\nvolume_names = [\"date\", \"wal\"]",
            RECORDED.to_owned(),
            "26:8: db.trace, line 1: the scenario has no volume `data` (did you mean `date`?)",
        ),
        (
            "kind = \"trace\"\nfile = \"db.trace\"\nvolume_names = [\"data\"]",
            RECORDED.to_owned(),
            "27:16: these are not the names of 2 volumes",
        ),
        (
            "kind = \"trace\"\nfile = \"db.trace\"\nvolumes_kib = [1024]",
            RECORDED.to_owned(),
            "26:8: db.trace has 2 volumes, the scenario 1",
        ),
        (
            trace,
            RECORDED.replace("\"offset\":512", "\"offset\":65536"),
            "26:8: db.trace, line 3: it lies outside its volume",
        ),
    ];
    for (workload, recorded, expected) in cases {
        assert_eq!(with_recording(workload, &recorded).expect_err(expected).to_string(), expected);
    }
}
