//! A run as a picture.

use std::fmt::Write;

use super::{Report, Scenario};

/// A name, a colour, and the points.
type Line<'a> = (&'a str, &'a str, &'a [(f64, f64)]);

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 160.0;

/// Draws goodput, limit and inflight over time as a self-contained SVG.
#[must_use]
pub fn svg(scenario: &Scenario, contender: &str, report: &Report) -> String {
    let lasts: f64 = scenario.phases.iter().map(|phase| phase.lasts).sum();
    let goodput: Vec<_> = report
        .good_by_tenth
        .chunks(5)
        .enumerate()
        .map(|(half, good)| (half as f64 / 2.0, 2.0 * f64::from(good.iter().sum::<u32>())))
        .collect();
    let of = |value: fn(&super::Sample) -> usize| -> Vec<_> {
        report
            .samples
            .iter()
            .map(|sample| (sample.at, value(sample) as f64))
            .collect()
    };
    let (limit, inflight) = (of(|sample| sample.limit), of(|sample| sample.inflight));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"none\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH + 90.0,
        2.0 * HEIGHT + 100.0
    );
    let title = format!("{} / {contender}", scenario.name);
    text(&mut svg, 10.0, 18.0, &title);
    panel(&mut svg, 40.0, lasts, &[("goodput/s", "#1b7837", &goodput)]);
    let lines: [Line<'_>; 2] = [
        ("inflight", "#9ecae1", &inflight),
        ("limit", "#08519c", &limit),
    ];
    panel(&mut svg, 70.0 + HEIGHT, lasts, &lines);
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, top: f64, lasts: f64, lines: &[Line<'_>]) {
    let most = lines
        .iter()
        .flat_map(|line| line.2)
        .map(|point| point.1)
        .fold(1.0, f64::max);
    for (index, (name, colour, points)) in lines.iter().enumerate() {
        let mut path = String::new();
        for (at, value) in *points {
            let x = 10.0 + WIDTH * at / lasts;
            let y = top + HEIGHT * (1.0 - value / most);
            _ = write!(path, "{x:.1},{y:.1} ");
        }
        _ = writeln!(svg, "<polyline stroke=\"{colour}\" points=\"{path}\"/>");
        let label = format!("<tspan fill=\"{colour}\">{name}</tspan>");
        text(svg, WIDTH + 15.0, top + 30.0 + 15.0 * index as f64, &label);
    }
    text(svg, WIDTH + 15.0, top + 10.0, &format!("{most:.0}"));
    text(
        svg,
        10.0,
        top + HEIGHT + 14.0,
        &format!("0 s to {lasts:.0} s"),
    );
}

fn text(svg: &mut String, x: f64, y: f64, text: &str) {
    _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" fill=\"black\">{text}</text>"
    );
}
