//! Prints what was measured, the mapped store's median first, and whether it reaches its target.

use std::time::Duration;

/// Prints two times, and whether ours is at most `target` times the other.
pub(crate) fn at_most(name: &str, [ours, other]: [Duration; 2], target: Option<f64>) {
    let ratio = ours.as_secs_f64() / other.as_secs_f64();
    let verdict = target.map(|target| format!("target<={target} {}", verdict(ratio <= target)));
    line(name, [ours, other], ratio, verdict);
}

/// Prints two times, and whether the other is at least `target` times ours.
pub(crate) fn times_faster(name: &str, [ours, other]: [Duration; 2], target: f64) {
    let ratio = other.as_secs_f64() / ours.as_secs_f64();
    let verdict = format!("target>={target} {}", verdict(ratio >= target));
    line(name, [ours, other], ratio, Some(verdict));
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn verdict(is_met: bool) -> &'static str {
    match is_met {
        true => "ok",
        false => "SHORT",
    }
}

fn line(name: &str, [ours, other]: [Duration; 2], ratio: f64, verdict: Option<String>) {
    println!(
        "F29 {name:24} ours={ours:<9.1?} other={other:<9.1?} ratio={ratio:<5.2} {}",
        verdict.unwrap_or_default()
    );
}
