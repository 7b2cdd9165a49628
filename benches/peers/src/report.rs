//! Prints the result of a figure: one line for each target, as text and as JSON.

use std::fmt;

use serde_json::{json, Value};

/// One measured pair, with its target.
pub(crate) struct Line {
    name: String,
    unit: Unit,
    ours: f64,
    /// The value that ours is compared with, and its name; `None` if ours alone is the figure.
    other: Option<(f64, &'static str)>,
    goal: Goal,
}

/// The kind of a value.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Nanoseconds,
    /// A factor, such as the gain from a second core.
    Times,
    Count,
}

/// The target, which also decides the direction of the printed ratio.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// Ours is at most this many times the other: `ours / other`.
    AtMost(f64),
    /// Ours is at least this many times as fast: `other / ours`.
    Faster(f64),
    /// Ours is at least this part of the other, where more is better: `ours / other`.
    Share(f64),
    /// Nothing; the line informs, as `ours / other`.
    Slowdown,
    /// Nothing; the line informs, as `other / ours`.
    Speedup,
}

impl Line {
    /// A comparison of two times, in nanoseconds.
    pub(crate) fn times(
        name: impl Into<String>,
        ours: f64,
        other: f64,
        peer: &'static str,
        goal: Goal,
    ) -> Self {
        let unit = Unit::Nanoseconds;
        Self {
            name: name.into(),
            unit,
            ours,
            other: Some((other, peer)),
            goal,
        }
    }

    /// A comparison of two factors.
    pub(crate) fn factors(
        name: impl Into<String>,
        ours: f64,
        other: f64,
        peer: &'static str,
        goal: Goal,
    ) -> Self {
        Self {
            name: name.into(),
            unit: Unit::Times,
            ours,
            other: Some((other, peer)),
            goal,
        }
    }

    /// A count of ours that must not exceed a limit.
    pub(crate) fn count(name: impl Into<String>, ours: u64, limit: u64) -> Self {
        Self {
            name: name.into(),
            unit: Unit::Count,
            ours: ours as f64,
            other: None,
            goal: Goal::AtMost(limit as f64),
        }
    }

    /// The name, and which direction is better.
    pub(crate) fn title(&self) -> String {
        let better = match self.unit {
            Unit::Nanoseconds | Unit::Count => "less is better",
            Unit::Times => "more is better",
        };
        format!("{} ({better})", self.name)
    }

    /// The two bars of a chart: the name, the length and the label of each.
    pub(crate) fn bars(&self) -> Option<[(&'static str, f64, String); 2]> {
        let (other, peer) = self.other?;
        Some([
            ("mmap-io", self.ours, self.unit.format(self.ours)),
            (peer, other, self.unit.format(other)),
        ])
    }

    /// The ratio and the target in words, `None` for a line without a target.
    pub(crate) fn verdict(&self) -> Option<String> {
        let (sign, bound) = self.goal.bound()?;
        let met = if self.is_met()? { "ok" } else { "SHORT" };
        let ratio = self
            .other
            .map(|_| format!("ratio={} ", short(self.ratio())));
        Some(format!(
            "{}target{sign}{bound:?} {met}",
            ratio.unwrap_or_default()
        ))
    }

    fn is_met(&self) -> Option<bool> {
        Some(match self.goal.bound()? {
            ("<=", bound) => self.ratio() <= bound,
            (_, bound) => self.ratio() >= bound,
        })
    }

    /// The value that is compared with the target.
    fn ratio(&self) -> f64 {
        match (self.other, self.goal) {
            (None, _) => self.ours,
            (Some((other, _)), Goal::Faster(_) | Goal::Speedup) => other / self.ours,
            (Some((other, _)), _) => self.ours / other,
        }
    }

    fn json(&self, figure: &str) -> Value {
        json!({
            "figure": figure,
            "name": self.name,
            "unit": self.unit.name(),
            "ours": self.ours,
            "other": self.other.map(|(value, _)| value),
            "peer": self.other.map(|(_, peer)| peer),
            "ratio": self.ratio(),
            "target": self.goal.bound().map(|(sign, bound)| format!("{sign}{bound:?}")),
            "ok": self.is_met(),
        })
    }
}

/// `read_64B_rw ours=7.9ns other=6.1ns (memmap2) ratio=1.30 target<=2.0 ok`
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ours={}", self.name, self.unit.format(self.ours))?;
        if let Some((other, peer)) = self.other {
            write!(f, " other={} ({peer})", self.unit.format(other))?;
        }
        match self.verdict() {
            Some(verdict) => write!(f, " {verdict}"),
            None => write!(f, " ratio={} no target", short(self.ratio())),
        }
    }
}

impl Goal {
    /// The sign and the number, as they are printed after `target`.
    fn bound(self) -> Option<(&'static str, f64)> {
        match self {
            Self::AtMost(bound) => Some(("<=", bound)),
            Self::Faster(bound) | Self::Share(bound) => Some((">=", bound)),
            Self::Slowdown | Self::Speedup => None,
        }
    }

    /// The same direction, for a line that is printed beside the one with the target.
    pub(crate) fn without_target(self) -> Self {
        match self {
            Self::AtMost(_) | Self::Share(_) | Self::Slowdown => Self::Slowdown,
            Self::Faster(_) | Self::Speedup => Self::Speedup,
        }
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Times => "times",
            Self::Count => "count",
        }
    }

    fn format(self, value: f64) -> String {
        match self {
            Self::Nanoseconds if value < 1e3 => format!("{}ns", short(value)),
            Self::Nanoseconds if value < 1e6 => format!("{}us", short(value / 1e3)),
            Self::Nanoseconds if value < 1e9 => format!("{}ms", short(value / 1e6)),
            Self::Nanoseconds => format!("{}s", short(value / 1e9)),
            Self::Times => format!("{}x", short(value)),
            Self::Count => format!("{value}"),
        }
    }
}

/// All lines of all figures as one JSON array.
pub(crate) fn json(results: &[(&str, Vec<Line>)]) -> String {
    let lines = results
        .iter()
        .flat_map(|(id, lines)| lines.iter().map(|line| line.json(id)));
    format!("{:#}\n", Value::Array(lines.collect()))
}

/// Rounds to about three digits.
fn short(value: f64) -> String {
    match value {
        v if v < 0.1 => format!("{v:.4}"),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}
