//! A drill's report on one page, for those who were not there: no script, nothing that is fetched, readable on paper.

use super::report::{Outcome, Report, Verdict, rpo_text};
use crate::time;
use crate::units::duration_ms;
use std::fmt::{Display, Write as _};

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; } pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.passed { color: #14692b; font-weight: 600; } .failed { color: #b3141d; font-weight: 600; } .not { color: #6b6b6b; }
</style>
"#;

/// The page.
pub(crate) fn render(report: &Report) -> String {
    let mut out = HEAD.to_owned();
    let verdict_class = if report.verdict == Verdict::Passed { "passed" } else { "failed" };
    let group = escape(&report.group);
    let _ = write!(
        out,
        "<title>Drill of {group}: {verdict}</title>\n</head>\n<body>\n<h1>Drill of {group}: <span \
         class=\"{verdict_class}\">{verdict}</span></h1>\n<table>\n",
        verdict = report.verdict.name(),
    );
    let mut fact = |name: &str, value: &dyn Display| {
        let _ = writeln!(out, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value.to_string()));
    };
    let at = format_args!("LSN {}, {}", report.at.lsn, time::format(report.at.time.0)).to_string();
    fact("Recovery point", &at);
    fact("Node", &report.node);
    fact("Begun", &time::format(report.begun.0));
    fact("Took", &duration_ms(report.took_ms));
    if let Some(rto_ms) = report.rto_ms {
        fact("RTO", &format_args!("{}, to the first byte of every volume", duration_ms(rto_ms)));
    }
    if let Some(rpo) = &report.rpo {
        fact("RPO", &rpo_text(rpo));
        if let Some(heard) = rpo.last_contact {
            fact("Primary last heard", &time::format(heard.0));
        }
    }
    out.push_str("</table>\n<h2>Steps</h2>\n<table>\n<tr><th>Step</th><th class=\"n\">Took</th></tr>\n");
    for step in &report.steps {
        let took = duration_ms(step.took_ms);
        let _ = writeln!(out, "<tr><td>{}</td><td class=\"n\">{took}</td></tr>", escape(&step.what));
    }
    out.push_str(
        "</table>\n<h2>Checks</h2>\n<table>\n<tr><th>Check</th><th>Volume</th><th>Outcome</th><th \
         class=\"n\">Took</th><th>Found</th></tr>\n",
    );
    for check in &report.checks {
        let class = match check.outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::NotChecked => "not",
        };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"{class}\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            check.what.name(),
            escape(check.volume.as_deref().unwrap_or("")),
            check.outcome.name(),
            duration_ms(check.took_ms),
            escape(&check.found),
        );
    }
    out.push_str("</table>\n");
    for check in report.checks.iter().filter(|check| !check.output.is_empty()) {
        let volume = check.volume.as_deref().map_or_else(String::new, |volume| format!(" of {volume}"));
        let name = escape(&format!("{}{volume}", check.what.name()));
        let _ = writeln!(out, "<h2>What {name} said</h2>\n<pre>{}</pre>", escape(&check.output));
    }
    out.push_str("</body>\n</html>\n");
    out
}

/// Text that cannot be markup, without control characters: it comes from other programs.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::report::tests::sample;

    #[test]
    fn the_page_has_everything_and_fetches_nothing() {
        let page = render(&sample());
        for part in
            ["LSN 90", "340ms", "1.25s", "west", "exit status 1", "nbdfuse is not installed", "FAILED"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(
            page.contains("no table &lt;accounts&gt; &amp; more\n\u{fffd}[2J"),
            "what programs say is no markup"
        );
        for fetched in ["src=", "href=", "url(", "@import", "<script", "http:", "https:"] {
            assert!(!page.contains(fetched), "{fetched}");
        }
    }
}
