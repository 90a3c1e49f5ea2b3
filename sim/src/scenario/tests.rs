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
