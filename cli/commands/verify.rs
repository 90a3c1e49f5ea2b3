//! `landfall verify`: begins a round of verification on the primary, and waits for its end if asked to.
//!
//! The primary knows how many parts differ on which replica; which they are, the replica's own `status` shows.

use crate::args::{self, Global};
use crate::control::Client;
use crate::control::api::{OnMismatch, Round, Verdict, Verify};
use crate::exit::Failure;
use crate::human::{self, Table};
use crate::progress::Progress;
use crate::units::{Bytes, count};
use std::time::Duration;

/// How often a round is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::Verify) -> Result<(), Failure> {
    let args::Verify { group, no_repair, wait } = arguments;
    let mut client = global.connect()?;
    let on_mismatch = if *no_repair { OnMismatch::Report } else { OnMismatch::Repair };
    let mut round = client.verify(Verify { group: group.clone(), on_mismatch })?;
    if *wait {
        round = wait_for(&mut client, group, round)?;
    }
    human::answer(global.form(), &round, text)?;
    judge(group, &round)
}

fn wait_for(client: &mut Client, group: &str, mut round: Round) -> Result<Round, Failure> {
    let mut progress = Progress::bytes("verifying", round.total_bytes);
    let (mut done, mut waits) = (0, false);
    while round.ended.is_none() {
        std::thread::sleep(LOOK_EVERY);
        let status = client.status()?;
        let shown = status.groups.into_iter().find(|shown| shown.name == group);
        let now = shown.and_then(|shown| shown.round).filter(|now| now.number == round.number);
        round = now.ok_or_else(|| {
            Failure::failed(format_args!(
                "group {group}: the round ended before it was done; a round does not outlive the daemon, or its reign"
            ))
            .next("begin another")
        })?;
        progress.add(round.done_bytes.saturating_sub(done));
        done = done.max(round.done_bytes);
        if round.waits && !waits {
            human::say("no replica is connected and whole: the round waits for one");
        }
        waits = round.waits;
    }
    Ok(round)
}

fn text(round: &Round) -> String {
    let mut out = match round.ended {
        Some(_) => format!("round {}: {} of volumes compared", round.number, Bytes(round.total_bytes)),
        None => format!(
            "round {} is under way, {} of {}",
            round.number,
            Bytes(round.done_bytes),
            Bytes(round.total_bytes)
        ),
    };
    for (bytes, why) in [
        (round.busy_bytes, "left out, because guests wrote there all the time"),
        (round.unreadable_bytes, "could not be read on the primary"),
    ] {
        if bytes > 0 {
            out.push_str(&format!("; {} {why}", Bytes(bytes)));
        }
    }
    out.push('\n');
    let mut table = Table::new(&["REPLICA", "SAME", "DIFFERENT", "SKIPPED", "NOT LOOKED AT"])
        .right(&[1, 2, 3, 4])
        .indent(2);
    for Verdict { replica, same, mismatched, skipped, unchecked } in &round.replicas {
        table.row(&[
            replica.as_str(),
            &count(*same),
            &count(*mismatched),
            &count(*skipped),
            &count(*unchecked),
        ]);
    }
    out.push_str(&table.render());
    out
}

/// What the exit status says of a round that has ended.
fn judge(group: &str, round: &Round) -> Result<(), Failure> {
    if round.ended.is_none() {
        return Ok(());
    }
    let sum = |of: fn(&Verdict) -> u64| round.replicas.iter().map(of).sum::<u64>();
    let (different, left) =
        (sum(|verdict| verdict.mismatched), sum(|verdict| verdict.skipped + verdict.unchecked));
    if different > 0 {
        let what = match round.on_mismatch {
            OnMismatch::Repair => "they are sent again",
            OnMismatch::Report => "nothing was sent again",
        };
        return Err(Failure::corrupt(format_args!("group {group}: {different} parts differ; {what}"))
            .next("`landfall status` on the replica shows which, and what became of them"));
    }
    if left > 0 || round.busy_bytes > 0 || round.unreadable_bytes > 0 {
        return Err(Failure::failed(format_args!("group {group}: not everything could be compared"))
            .next("begin another round when the replicas are whole and guests are quieter"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Moment;
    use crate::exit::Code;
    use engine::types::Timestamp;

    fn round(verdict: Verdict) -> Round {
        Round {
            number: 7,
            on_mismatch: OnMismatch::Repair,
            begun: Moment(Timestamp(0)),
            ended: Some(Moment(Timestamp(1))),
            done_bytes: 10 << 30,
            total_bytes: 10 << 30,
            records: 10_240,
            busy_bytes: 4096,
            unreadable_bytes: 0,
            waits: false,
            replicas: vec![verdict],
        }
    }

    fn verdict(same: u64, mismatched: u64) -> Verdict {
        Verdict { replica: "west".to_owned(), same, mismatched, skipped: 0, unchecked: 0 }
    }

    #[test]
    fn a_round_reads_well() {
        let expected = "\
round 7: 10 GiB of volumes compared; 4 KiB left out, because guests wrote there all the time
  REPLICA    SAME  DIFFERENT  SKIPPED  NOT LOOKED AT
  west     10,239          1        0              0
";
        assert_eq!(text(&round(verdict(10_239, 1))), expected);
    }

    #[test]
    fn the_exit_status_tells_same_from_different_from_unknown() {
        let code = |round: &Round| judge("db", round).map_err(|failure| failure.code);
        assert_eq!(code(&round(verdict(10_239, 1))), Err(Code::Corrupt));
        assert_eq!(code(&round(verdict(10_240, 0))), Err(Code::Failed), "some was left out");
        assert_eq!(code(&Round { busy_bytes: 0, ..round(verdict(10_240, 0)) }), Ok(()));
        let unchecked = Verdict { unchecked: 1, ..verdict(10_239, 0) };
        assert_eq!(code(&Round { busy_bytes: 0, ..round(unchecked) }), Err(Code::Failed));
        assert_eq!(code(&Round { ended: None, ..round(verdict(0, 1)) }), Ok(()), "it goes on");
    }
}
