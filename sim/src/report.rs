//! A run on one page: the verdict, the figures, and the timeline drawn. Self-contained, and readable on paper.

use crate::clock::Time;
use crate::options::Options;
use crate::run::{Outcome, Sample};
use crate::trace::{Event, Place};
use std::fmt::Write as _;

/// Which events a person wants to see.
#[must_use]
pub fn matters(event: &Event) -> bool {
    const QUIET: [&str; 17] = [
        "submit",
        "answer",
        "append",
        "ack",
        "acked",
        "durable",
        "sync",
        "apply",
        "checkpoint",
        "fold",
        "make",
        "hydrate",
        "link down",
        "rebuffed",
        "session ended",
        "refused a hello",
        "append refused",
    ];
    !QUIET.contains(&event.kind)
}

/// One line of a timeline in columns: time, node, what, details.
#[must_use]
pub fn line(event: &Event, options: &Options) -> String {
    let place = match event.place {
        Place::World => String::new(),
        Place::Node(node) => options.nodes.get(node as usize).map(|n| n.name.clone()).unwrap_or_default(),
        Place::Link(from, to) => format!("{from} > {to}"),
    };
    let mut text = format!("{}  {place:<10}  {:<22}", event.at, event.kind);
    for (name, value) in &event.fields {
        let _ = match *name {
            "what" => write!(text, "  {value}"),
            name => write!(text, "  {name}={value}"),
        };
    }
    text.trim_end().to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 110.0;
const LANE: f64 = 34.0;
const CURVE: f64 = 90.0;

struct Canvas {
    svg: String,
    end: f64,
}

impl Canvas {
    fn x(&self, at: Time) -> f64 {
        LEFT + (WIDTH - LEFT - 10.0) * (at.0 as f64 / self.end)
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = writeln!(self.svg, r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{}</text>"#, escape(text));
    }
}

/// The page.
#[must_use]
pub fn html(title: &str, proves: &str, options: &Options, outcome: &Outcome, broken: &[String]) -> String {
    let good = outcome.verdict.is_clean() && broken.is_empty();
    let verdict = match broken.first() {
        Some(first) if outcome.verdict.is_clean() => format!("assertion broken: {first}"),
        _ => outcome.verdict.to_string(),
    };
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n",
    );
    let _ = writeln!(page, "<title>{} · seed {}</title>", escape(title), outcome.seed);
    page.push_str(STYLE);
    let _ = writeln!(
        page,
        "</head><body><h1>{}</h1>\n<p>{}</p>\n<p class=\"{}\">{}</p>",
        escape(title),
        escape(proves),
        if good { "good" } else { "bad" },
        escape(&verdict)
    );
    page.push_str(&figures(outcome));
    page.push_str("<h2>Timeline</h2>\n");
    page.push_str(&drawing(options, outcome));
    page.push_str("<h2>Events</h2>\n<pre>");
    for event in outcome.trace.iter().filter(|event| matters(event)).take(400) {
        page.push_str(&escape(&line(event, options)));
        page.push('\n');
    }
    page.push_str("</pre>\n<h2>What happened how often</h2>\n<table>");
    for (name, count) in &outcome.counters {
        let _ = write!(page, "<tr><td>{}</td><td class=\"n\">{count}</td></tr>", escape(name));
    }
    page.push_str("</table>\n</body></html>\n");
    page
}

fn seconds(ns: u64) -> String {
    format!("{:.3} s", ns as f64 / 1e9)
}

fn figures(outcome: &Outcome) -> String {
    let figures = &outcome.figures;
    let span =
        |span: Option<crate::clock::Span>| span.map_or("no failover".to_owned(), |span| seconds(span.0));
    let rows = [
        ("seed", outcome.seed.to_string()),
        ("virtual time", seconds(outcome.time.0)),
        ("answered writes", figures.writes.to_string()),
        ("RPO", span(figures.rpo)),
        ("lost writes", figures.lost_writes.to_string()),
        ("lost bytes", figures.lost_bytes.to_string()),
        ("RTO", span(figures.rto)),
        ("largest lag, bytes of log", figures.max_lag_bytes.to_string()),
        ("bytes over the links", figures.link_bytes.to_string()),
        ("converged after", seconds(figures.converged_after.0)),
        ("trace hash", format!("{:016x}", outcome.hash)),
    ];
    let cells: Vec<String> = rows
        .iter()
        .map(|(name, value)| format!("<tr><td>{name}</td><td class=\"n\">{value}</td></tr>"))
        .collect();
    format!("<table>{}</table>\n", cells.join(""))
}

/// A lane for each node, with its role, its epoch and what struck it; below them the lag.
fn drawing(options: &Options, outcome: &Outcome) -> String {
    let lanes = options.nodes.len() as f64;
    let height = 30.0 + lanes * LANE + 2.0 * (CURVE + 30.0) + 20.0;
    let mut canvas = Canvas { svg: String::new(), end: (outcome.time.0 as f64).max(1.0) };
    let _ = writeln!(
        canvas.svg,
        r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Roles, outages and lag over virtual time">"#
    );
    let bottom = 30.0 + lanes * LANE;
    for tick in 0..=10 {
        let at = Time((canvas.end * f64::from(tick) / 10.0) as u64);
        let x = canvas.x(at);
        let _ = writeln!(
            canvas.svg,
            r#"<line x1="{x:.1}" y1="22" x2="{x:.1}" y2="{}" class="grid"/>"#,
            height - 20.0
        );
        canvas.text(x - 12.0, 16.0, "tick", &format!("{:.1}s", at.0 as f64 / 1e9));
    }
    for (index, node) in options.nodes.iter().enumerate() {
        let y = 30.0 + index as f64 * LANE;
        canvas.text(4.0, y + 16.0, "name", &format!("{} ({})", node.name, node.region));
        lane(&mut canvas, &outcome.samples, index, y, outcome.time);
    }
    for event in outcome.trace.iter().filter(|event| matters(event)) {
        let Place::Node(node) = event.place else { continue };
        let (x, y) = (canvas.x(event.at), 30.0 + f64::from(node) * LANE);
        let class = match event.kind {
            "promoted" => "mark promote",
            "fenced" | "branch kept" => "mark fence",
            "start" | "power on" | "attached" => "mark up",
            _ => "mark fault",
        };
        let _ = writeln!(
            canvas.svg,
            r#"<path d="M{x:.1} {:.1} l4 7 h-8 z" class="{class}"><title>{}</title></path>"#,
            y + 24.0,
            escape(&line(event, options))
        );
    }
    curve(&mut canvas, &outcome.samples, bottom + 20.0, "lag in records", behind);
    curve(&mut canvas, &outcome.samples, bottom + 20.0 + CURVE + 30.0, "points to pick", pickable);
    canvas.svg.push_str("</svg>\n<p class=\"key\"><b class=\"primary\"></b> primary <b class=\"replica\"></b> replica \
        <b class=\"fenced\"></b> fenced <b class=\"down\"></b> down <b class=\"link\"></b> line below a node: its link is up; triangles: events (point at one to read it)</p>\n");
    canvas.svg
}

fn lane(canvas: &mut Canvas, samples: &[Sample], index: usize, y: f64, end: Time) {
    let mut start = 0;
    let mut labelled = None;
    while start < samples.len() {
        let node = samples[start].nodes[index];
        let same = |sample: &Sample| {
            let other = sample.nodes[index];
            (other.up, other.role, other.epoch, other.linked) == (node.up, node.role, node.epoch, node.linked)
        };
        let stop = start + samples[start..].iter().take_while(|sample| same(sample)).count();
        let (from, to) = (samples[start].at, samples.get(stop).map_or(end, |sample| sample.at));
        let class = match (node.up, node.role) {
            (false, _) => "down",
            (true, 1) => "primary",
            (true, 2) => "fenced",
            (true, _) => "replica",
        };
        let (x, width) = (canvas.x(from), canvas.x(to) - canvas.x(from));
        let _ = writeln!(
            canvas.svg,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{:.1}" height="20" class="{class}"/>"#,
            width.max(0.5)
        );
        if node.linked {
            let _ = writeln!(
                canvas.svg,
                r#"<rect x="{x:.1}" y="{:.1}" width="{:.1}" height="3" class="link"/>"#,
                y + 20.0,
                width.max(0.5)
            );
        }
        if node.up && labelled != Some((node.role, node.epoch)) && width > 22.0 {
            labelled = Some((node.role, node.epoch));
            canvas.text(x + 3.0, y + 14.0, "epoch", &format!("e{}", node.epoch));
        }
        start = stop;
    }
}

/// The records between the newest primary and the replica of its epoch that is furthest behind.
fn behind(sample: &Sample) -> Option<u64> {
    let primary =
        sample.nodes.iter().filter(|node| node.up && node.role == 1).max_by_key(|node| node.epoch)?;
    let replicas =
        sample.nodes.iter().filter(|node| node.up && node.role == 0 && node.epoch == primary.epoch);
    replicas.map(|node| primary.durable.saturating_sub(node.durable)).max()
}

/// The most points that a node which is up could be promoted at.
fn pickable(sample: &Sample) -> Option<u64> {
    let replicas = sample.nodes.iter().filter(|node| node.up && node.role == 0 && node.durable > 0);
    replicas.map(|node| (node.durable + 1).saturating_sub(node.horizon.max(1))).max()
}

/// A figure over time; where there is none, the line is broken.
fn curve(
    canvas: &mut Canvas,
    samples: &[Sample],
    top: f64,
    name: &str,
    figure: impl Fn(&Sample) -> Option<u64>,
) {
    let most = samples.iter().filter_map(&figure).max().unwrap_or(0).max(1);
    canvas.text(4.0, top + 12.0, "name", name);
    let digits = most.to_string();
    canvas.text(LEFT - 6.0 - 6.0 * digits.len() as f64, top + CURVE / 2.0, "tick", &digits);
    let mut path = String::new();
    let mut pen = 'M';
    for sample in samples {
        let Some(value) = figure(sample) else {
            pen = 'M';
            continue;
        };
        let y = top + CURVE - CURVE * (value as f64 / most as f64);
        let _ = write!(path, "{pen}{:.1} {y:.1} ", canvas.x(sample.at));
        pen = 'L';
    }
    let _ = writeln!(
        canvas.svg,
        r#"<line x1="{LEFT}" y1="{0:.1}" x2="{1:.1}" y2="{0:.1}" class="grid"/><path d="{path}" class="lag"/>"#,
        top + CURVE,
        WIDTH - 10.0
    );
}

const STYLE: &str = "<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#1a1a1a;background:#fff}
h1{margin-bottom:.2em}h2{margin-top:1.6em;font-size:1.15em}
.good{color:#0a6b2d;font-weight:600}.bad{color:#a3180e;font-weight:600}
table{border-collapse:collapse}td{padding:.1em 1em .1em 0;border-bottom:1px solid #e4e4e4}.n{text-align:right;font-variant-numeric:tabular-nums}
svg{width:100%;height:auto}pre{font-size:12px;overflow-x:auto;line-height:1.4}
.grid{stroke:#d6d6d6;stroke-width:.7}.tick{font-size:10px;fill:#555}.name{font-size:12px;fill:#1a1a1a}.epoch{font-size:11px;fill:#fff}
.primary{fill:#1f5fa8;background:#1f5fa8}.replica{fill:#5b8f5b;background:#5b8f5b}.fenced{fill:#b3722a;background:#b3722a}.down{fill:#c9c9c9;background:#c9c9c9}
.link{fill:#111;background:#111}.mark{stroke:#fff;stroke-width:.6}.promote{fill:#7a1fa8}.fence{fill:#b3722a}.up{fill:#5b8f5b}.fault{fill:#a3180e}
.lag{fill:none;stroke:#1f5fa8;stroke-width:1.5}.key b{display:inline-block;width:1em;height:.8em;margin-left:.8em}
@media print{body{margin:0;max-width:none}pre{white-space:pre-wrap}}
</style>
";
