// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A migration as a page of its own: remaining bytes, throughput and expected downtime over time, and the summary.
//! No scripts, nothing from elsewhere; readable in light and dark. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use super::Plan;
use super::timeline::{Sample, Timeline};
use crate::units::{float, size, time, whole};

/// The drawing area of one chart, in pixels, and the room for its labels.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 160.0;
const LEFT: f64 = 90.0;
const BELOW: f64 = 24.0;
const ABOVE: f64 = 12.0;
/// A throughput is told over this long at the least.
const SMOOTH: Duration = Duration::from_millis(50);
/// More rows of passes than this nobody reads.
const MOST_PASSES: usize = 200;

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #1f6feb; --limit: #c2410c; --mark: #8b949e; --grid: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --line: #58a6ff; --limit: #fb923c; --grid: #30363d; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 920px; padding: 0 1em; }
h1 { font-size: 1.3em; overflow-wrap: anywhere; } h2 { font-size: 1em; margin: 1.5em 0 0; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.line { fill: none; stroke: var(--line); stroke-width: 1.5; stroke-linejoin: round; }
.grid { stroke: var(--grid); } .mark { stroke: var(--mark); stroke-dasharray: 2 3; }
.over { stroke: var(--limit); } .limit { stroke: var(--limit); stroke-dasharray: 6 4; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .15em 1em .15em 0; text-align: right; }
th { border-bottom: 1px solid var(--grid); } td:first-child, th:first-child { text-align: left; }
";

/// Writing to a String does not fail.
macro_rules! add {
    ($out:expr, $($text:tt)*) => {{ let _ = write!($out, $($text)*); }};
}

/// The whole page.
pub fn render(title: &str, timeline: &Timeline, plan: &Plan) -> String {
    let title = escape(title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Migration: {title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>Migration: {title}</h1>\n"
    );
    summary(&mut page, timeline, plan);
    let samples = &timeline.samples;
    let remaining = points(samples, |sample| Some(float(sample.remaining)));
    chart(
        &mut page,
        timeline,
        "Remaining",
        &remaining,
        None,
        |value| size(whole(value)),
    );
    let speed = throughput(samples);
    let bandwidth = plan.bandwidth.map(float);
    chart(
        &mut page,
        timeline,
        "Throughput",
        &speed,
        bandwidth,
        |value| format!("{}/s", size(whole(value))),
    );
    let expected = points(samples, |sample| {
        let expected = sample
            .expected
            .filter(|expected| *expected != Duration::MAX);
        Some(expected?.as_secs_f64())
    });
    let limit = plan.limit.as_secs_f64();
    chart(
        &mut page,
        timeline,
        "Expected downtime",
        &expected,
        Some(limit),
        seconds,
    );
    passes(&mut page, timeline);
    page.push_str("</body>\n</html>\n");
    page
}

fn summary(page: &mut String, timeline: &Timeline, plan: &Plan) {
    let told = |duration: Option<Duration>| duration.map_or_else(|| "not known".to_owned(), time);
    let outcome = match (timeline.downtime, timeline.switched_over) {
        (Some(_), _) => "migrated",
        (None, Some(_)) => "ended after the switch-over; the source runs on",
        (None, None) => "not switched over; the source runs on",
    };
    let bandwidth = plan.bandwidth.map_or_else(
        || "not limited".to_owned(),
        |bandwidth| crate::units::rate(float(bandwidth)),
    );
    let rows = [
        ("Outcome", outcome.to_owned()),
        ("Moved", size(timeline.moved)),
        ("Passes", timeline.passes.len().to_string()),
        (
            "Time",
            told(
                timeline
                    .ended
                    .or(timeline.samples.last().map(|sample| sample.at)),
            ),
        ),
        ("Bandwidth", bandwidth),
        ("Downtime limit", time(plan.limit)),
        ("Downtime expected", told(timeline.expected)),
        ("Downtime measured", told(timeline.downtime)),
    ];
    page.push_str("<table>\n");
    for (name, value) in rows {
        add!(page, "<tr><td>{name}</td><td>{value}</td></tr>\n");
    }
    page.push_str("</table>\n");
}

fn passes(page: &mut String, timeline: &Timeline) {
    let hidden = timeline.passes.len().saturating_sub(MOST_PASSES);
    page.push_str(
        "<h2>Passes</h2>\n<table>\n<tr><th>Pass</th><th>Moved</th><th>Time</th><th>Left</th>\
         <th>Expected downtime</th></tr>\n",
    );
    for (number, pass) in timeline.passes.iter().enumerate().skip(hidden) {
        let expected = pass.expected.map_or_else(|| "not known".to_owned(), time);
        add!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{expected}</td></tr>\n",
            number + 1,
            size(pass.bytes),
            time(pass.took),
            size(pass.remaining)
        );
    }
    page.push_str("</table>\n");
    if hidden > 0 {
        add!(page, "<p>The first {hidden} passes are not shown.</p>\n");
    }
}

/// Seconds and values; what is not known is left out.
fn points(samples: &[Sample], value: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    let point = |sample: &Sample| Some((sample.at.as_secs_f64(), value(sample)?));
    samples.iter().filter_map(point).collect()
}

/// Bytes a second between samples far enough apart that a chunk more or less does not show.
fn throughput(samples: &[Sample]) -> Vec<(f64, f64)> {
    let Some((first, last)) = samples.first().zip(samples.last()) else {
        return Vec::new();
    };
    let apart = last.at.saturating_sub(first.at) / 150;
    let mut before = first;
    let mut points = Vec::new();
    for sample in samples {
        let took = sample.at.saturating_sub(before.at);
        if took > apart.max(SMOOTH) || (sample == last && !took.is_zero()) {
            let bytes = float(sample.moved.saturating_sub(before.moved));
            points.push((sample.at.as_secs_f64(), bytes / took.as_secs_f64()));
            before = sample;
        }
    }
    points
}

/// One chart: `limit` is a level to be told from the values.
fn chart(
    page: &mut String,
    timeline: &Timeline,
    name: &str,
    points: &[(f64, f64)],
    limit: Option<f64>,
    label: impl Fn(f64) -> String,
) {
    let end = timeline
        .samples
        .last()
        .map_or(0.0, |sample| sample.at.as_secs_f64());
    let end = end.max(1e-6);
    let highest = points.iter().map(|(_, value)| *value);
    let highest = highest.chain(limit).fold(0.0, f64::max).max(1e-9);
    let x = |at: f64| LEFT + (at / end).clamp(0.0, 1.0) * WIDTH;
    let y = |value: f64| ABOVE + HEIGHT - (value / highest).clamp(0.0, 1.0) * HEIGHT;
    let (right, bottom) = (LEFT + WIDTH, ABOVE + HEIGHT);
    let (width, height) = (right + 20.0, bottom + BELOW);
    add!(
        page,
        "<h2>{name}</h2>\n<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{name} over time\">\n"
    );
    for part in [0.0, 0.5, 1.0] {
        let (at, value) = (y(highest * part), label(highest * part));
        add!(
            page,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>\n",
            LEFT - 8.0,
            at + 4.0
        );
        let (at, value) = (x(end * part), seconds(end * part));
        add!(
            page,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>\n",
            bottom + 18.0
        );
    }
    let mut mark = |class: &str, at: Duration, what: &str| {
        let at = x(at.as_secs_f64());
        add!(
            page,
            "<line class=\"{class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{ABOVE}\" y2=\"{bottom}\">\
             <title>{what}</title></line>\n"
        );
    };
    let hidden = timeline.passes.len().saturating_sub(MOST_PASSES);
    for (number, pass) in timeline.passes.iter().enumerate().skip(hidden) {
        mark("mark", pass.at, &format!("end of pass {}", number + 1));
    }
    if let Some(at) = timeline.switched_over {
        mark("over", at, "switch-over");
    }
    if let Some(limit) = limit {
        let at = y(limit);
        add!(
            page,
            "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\">\
             <title>limit</title></line>\n"
        );
    }
    let path = points
        .iter()
        .filter(|(at, value)| at.is_finite() && value.is_finite())
        .map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value)));
    let path = path.collect::<Vec<_>>().join(" ");
    add!(
        page,
        "<polyline class=\"line\" points=\"{path}\"/>\n</svg>\n"
    );
}

fn seconds(value: f64) -> String {
    time(Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::timeline::Pass;
    use super::*;
    use crate::interrupt::Interrupt;

    fn plan() -> Plan {
        Plan {
            bandwidth: Some(1 << 30),
            limit: Duration::from_millis(300),
            strict: true,
            interrupt: Interrupt::default(),
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Every element that is opened is closed, in order.
    fn check_elements(page: &str) {
        let mut open = Vec::new();
        let mut rest = page;
        while let Some(start) = rest.find('<') {
            let end = start + rest[start..].find('>').unwrap();
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            let name = tag.split_whitespace().next().unwrap();
            if tag.ends_with('/') || ["!DOCTYPE", "meta"].contains(&name) {
                continue;
            }
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None => open.push(name),
            }
        }
        assert_eq!(open, Vec::<&str>::new());
    }

    #[test]
    fn a_page_is_whole_and_its_own() {
        let mut timeline = Timeline::new();
        for n in 0..100 {
            timeline.samples.push(Sample {
                at: ms(n * 10),
                moved: n << 20,
                remaining: (100 - n) << 20,
                expected: (n > 0).then(|| ms(1000 - n * 10)),
            });
        }
        timeline.passes.push(Pass {
            at: ms(500),
            bytes: 50 << 20,
            took: ms(500),
            remaining: 50 << 20,
            expected: Some(ms(50)),
        });
        timeline.switched_over = Some(ms(900));
        timeline.ended = Some(ms(990));
        timeline.downtime = Some(ms(90));
        let page = render("/run/<a> \"&\" b", &timeline, &plan());
        check_elements(&page);
        assert_eq!(page.matches("<svg").count(), 3);
        for text in [
            "/run/&lt;a&gt; &quot;&amp;&quot; b",
            "end of pass 1",
            "switch-over",
            "<td>Downtime measured</td><td>90.0 ms</td>",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(text), "{text}");
        }
        for foreign in [
            "<script", "http", "url(", "src=", "href", "@import", "NaN", "inf",
        ] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        let (start, end) = (LEFT, LEFT + WIDTH);
        assert!(
            page.contains(&format!("points=\"{start:.1},")),
            "from the left"
        );
        assert!(page.contains(&format!("{end:.1},")), "to the right");
    }

    #[test]
    fn pages_of_nothing_and_of_extremes_are_whole_too() {
        let mut timeline = Timeline::new();
        check_elements(&render("a", &timeline, &plan()));
        timeline.samples.push(Sample {
            at: Duration::ZERO,
            moved: u64::MAX,
            remaining: u64::MAX,
            expected: Some(Duration::MAX),
        });
        timeline.samples.push(Sample {
            at: Duration::MAX,
            moved: 0,
            remaining: 0,
            expected: None,
        });
        for n in 0..1000 {
            timeline.passes.push(Pass {
                at: ms(n),
                bytes: 0,
                took: Duration::ZERO,
                remaining: 0,
                expected: None,
            });
        }
        let page = render("a", &timeline, &plan());
        check_elements(&page);
        assert!(!page.contains("NaN") && !page.contains("inf"));
        assert!(page.contains("The first 800 passes are not shown"));
    }
}
