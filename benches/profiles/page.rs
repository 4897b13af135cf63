//! One page with plots, readable in any browser without a network.

use std::fmt::{self, Write};

use crate::driver::Played;
use crate::judge::plain;
use crate::measure::Second;
use crate::report::by_target;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const PANEL: f64 = 110.0;
const TOP: f64 = 40.0;
const GAP: f64 = 36.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:920px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;width:100%;font-size:13px}td,th{padding:3px 8px;border-bottom:1px solid #ddd;text-align:left}\
.met{color:#1a7f37}.missed{color:#b00020;font-weight:600}h2{margin-top:2em}svg{width:100%;height:auto}";

pub(crate) fn page(played: &[Played]) -> String {
    let mut html = String::new();
    // Writing to a `String` cannot fail.
    let _ = write_page(&mut html, played);
    html
}

fn write_page(html: &mut String, played: &[Played]) -> fmt::Result {
    writeln!(
        html,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Capacity documents, run</title><style>{STYLE}</style><h1>Capacity documents, run</h1>\
         <p>Each document on real servers: with the numbers it tells its readers to copy (static), and with none (ours).</p>"
    )?;
    for played in played {
        let profile = &played.profile;
        writeln!(
            html,
            "<h2 id=\"{0}\">{0}: {1}</h2><p>{2}; load average before: {3}.{4}</p>",
            escaped(&profile.name),
            escaped(&profile.title),
            escaped(&profile.scale.to_string()),
            plain(played.load_average),
            if played.quick { " A quick run." } else { "" }
        )?;
        html.push_str(
            "<table><thead><tr><th>target<th>expected<th>static<th>ours</tr></thead><tbody>",
        );
        for (name, expected, cells) in by_target(played) {
            write!(html, "<tr><td>{}<td>{}", escaped(&name), escaped(&expected))?;
            for verdict in cells {
                let (class, text) = match verdict {
                    Some(verdict) => (
                        if verdict.met { "met" } else { "missed" },
                        format!(
                            "{} {}",
                            verdict.measured.map_or_else(|| "–".to_owned(), plain),
                            if verdict.met { "✓" } else { "✗" }
                        ),
                    ),
                    None => ("", "–".to_owned()),
                };
                write!(html, "<td class=\"{class}\">{text}")?;
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table>\n");
        draw(html, played)?;
    }
    html.push_str("</html>\n");
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

type Panel = (&'static str, fn(&Second) -> Option<f64>);

const PANELS: [Panel; 5] = [
    ("goodput, requests a second", |s| Some(s.good as f64)),
    ("P95 of what is served, ms", |s| s.p95_ms),
    ("failed or shed, requests a second", |s| {
        Some(s.failed as f64)
    }),
    ("connections, by the server's count", |s| {
        Some(s.connections as f64)
    }),
    ("requests inside", |s| Some(s.inflight as f64)),
];

fn colour(way: &str) -> &'static str {
    match way {
        "ours" => "#1f6fb2",
        _ => "#c2571a",
    }
}

fn draw(html: &mut String, played: &Played) -> fmt::Result {
    let height = TOP + PANELS.len() as f64 * (PANEL + GAP);
    writeln!(
        html,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, sans-serif\" \
         font-size=\"12\" role=\"img\" aria-label=\"{}: static numbers and ours, second by second\">",
        escaped(&played.profile.name)
    )?;
    let seconds = |run: &crate::driver::Run| run.levels.iter().map(|seen| seen.seconds.len()).sum();
    let end: usize = played.runs.iter().map(seconds).max().unwrap_or(1);
    let x = |second: usize| LEFT + (WIDTH - LEFT - RIGHT) * second as f64 / end.max(2) as f64;
    if let Some(run) = played.runs.first() {
        let mut at = 0;
        for (index, seen) in run.levels.iter().enumerate() {
            let width = x(at + seen.seconds.len()) - x(at);
            writeln!(
                html,
                "<rect x=\"{:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"#555\" opacity=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"16\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
                x(at),
                TOP - 16.0,
                height - TOP,
                if index % 2 == 0 { 0.04 } else { 0.1 },
                x(at) + width / 2.0,
                escaped(&seen.level)
            )?;
            at += seen.seconds.len();
        }
    }
    for (index, (name, value)) in PANELS.into_iter().enumerate() {
        let top = TOP + index as f64 * (PANEL + GAP);
        let all = played.runs.iter().flat_map(|run| &run.levels);
        let values = all.flat_map(|seen| &seen.seconds).filter_map(value);
        let max = values.fold(1.0, f64::max) * 1.05;
        let bottom = top + PANEL;
        writeln!(
            html,
            "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#222\" font-weight=\"600\">{name}</text>\
             <line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{bottom:.1}\" y2=\"{bottom:.1}\" stroke=\"#999\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#666\">{}</text>",
            top - 2.0,
            WIDTH - RIGHT,
            LEFT - 6.0,
            top + 10.0,
            plain(max / 1.05)
        )?;
        for run in &played.runs {
            let seconds = run.levels.iter().flat_map(|seen| &seen.seconds);
            let mut path = String::new();
            let mut command = 'M';
            for (at, second) in seconds.enumerate() {
                match value(second) {
                    Some(value) => {
                        let y = top + PANEL * (1.0 - value / max);
                        write!(path, "{command}{:.1} {y:.1}", x(at))?;
                        command = 'L';
                    }
                    None => command = 'M',
                }
            }
            writeln!(
                html,
                "<path fill=\"none\" stroke-width=\"1.6\" stroke=\"{}\" d=\"{path}\"/>",
                colour(run.way)
            )?;
        }
    }
    html.push_str("</svg>\n<p><span style=\"color:#c2571a\">■ static</span> <span style=\"color:#1f6fb2\">■ ours</span></p>\n");
    Ok(())
}
