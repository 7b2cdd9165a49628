//! Draws bar charts, as hand-written SVG: for each target our bar above that of the peer, with the
//! longer of the two as wide as the chart. Readable on light and on dark pages.

use std::fmt::Write;

use crate::report::Line;

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 20.0;
const HEADER: f64 = 44.0;
const LABEL: f64 = 190.0;
const VALUE: f64 = 80.0;
const TITLE: f64 = 22.0;
const BAR: f64 = 16.0;
const STEP: f64 = 20.0;
const GAP: f64 = 16.0;
const COLOURS: [&str; 2] = ["#1f6feb", "#a8b1bd"];

/// `F1` is drawn in `f01.svg`, so that a directory lists the charts in order.
pub(crate) fn file_name(id: &str) -> String {
    format!("f{:0>2}.svg", id.trim_start_matches('F'))
}

/// Draws the chart of one figure, without lines that have no target or no peer.
pub(crate) fn svg(id: &str, lines: &[Line]) -> String {
    let groups: Vec<_> = lines
        .iter()
        .filter_map(|line| Some((line.title(), line.verdict()?, line.bars()?)))
        .collect();
    let group = TITLE + 2.0 * STEP + GAP;
    let height = HEADER + groups.len() as f64 * group + MARGIN - GAP;

    let mut svg = Svg::new(WIDTH, height);
    svg.text(MARGIN, 28.0, "h", id);
    for (number, (title, verdict, bars)) in groups.iter().enumerate() {
        let top = HEADER + number as f64 * group;
        svg.text(MARGIN, top + 14.0, "t", title);
        svg.text(WIDTH - MARGIN, top + 14.0, "v", verdict);
        let longest = bars
            .iter()
            .map(|(_, value, _)| *value)
            .fold(f64::MIN_POSITIVE, f64::max);
        for (row, ((label, value, text), colour)) in bars.iter().zip(COLOURS).enumerate() {
            let y = top + TITLE + row as f64 * STEP;
            let width = (WIDTH - 2.0 * MARGIN - LABEL - VALUE) * value / longest;
            svg.text(MARGIN + LABEL - 8.0, y + 12.5, "l", label);
            svg.bar(MARGIN + LABEL, y, width.max(1.0), colour);
            svg.text(MARGIN + LABEL + width + 6.0, y + 12.5, "n", text);
        }
    }
    svg.finish()
}

/// A drawing under construction.
struct Svg(String);

impl Svg {
    fn new(width: f64, height: f64) -> Self {
        Self(format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<style>
text {{ font: 13px system-ui, sans-serif; fill: #1f2328 }}
.h {{ font-size: 18px; font-weight: 600 }}
.t {{ font-weight: 600 }}
.v, .l {{ text-anchor: end; fill: #59636e }}
.page {{ fill: #ffffff }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3 }}
.v, .l {{ fill: #9198a1 }}
.page {{ fill: #0d1117 }}
}}
</style>
<rect class="page" width="{width}" height="{height}" rx="6"/>
"##
        ))
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = text
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        self.line(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#
        ));
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, colour: &str) {
        self.line(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}" rx="2" fill="{colour}"/>"#
        ));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a String can be written to");
    }

    fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}
