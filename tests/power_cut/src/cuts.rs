//! Cuts the power again and again while a writer writes.

use std::time::Duration;

use anyhow::{bail, Context, Result};
use fastrand::Rng;

use crate::check::Ledger;
use crate::child::Helper;
use crate::image::{cut, images_of, Survivors};
use crate::mount::FileSystem;
use crate::rig::Rig;
use crate::scenario::Scenario;
use crate::watchdog::Watchdog;

/// How long the writer may take to report what it had done when the disk stopped.
const STRAGGLERS: Duration = Duration::from_millis(2);
/// A cut comes at one of the next requests, at most this many away, or after [`PATIENCE`].
const REQUESTS: u32 = 40;
const PATIENCE: Duration = Duration::from_millis(300);
/// While the writer has nothing to lose, no image is made, for at most this many moments.
const MOMENTS_WITHOUT_A_WRITE: u32 = 200;

/// The result of one scenario.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) images: usize,
    pub(crate) checked: usize,
    pub(crate) losses: Vec<String>,
    /// Losses where only what was flushed has survived.
    pub(crate) barrier_losses: usize,
    /// Losses where every write has survived.
    pub(crate) all_losses: usize,
}

/// Checks at least `images` images, and always all images of the last moment.
pub(crate) fn cut_during(
    scenario: Scenario,
    kind: FileSystem,
    images: usize,
    rng: &mut Rng,
    watchdog: &Watchdog,
) -> Result<Tally> {
    let rig = Rig::new(kind)?;
    // Ends before the file system that it writes to is unmounted.
    let arguments = ["--writer", scenario.name()].map(Into::into);
    let arguments = [&arguments[..], &[rig.path().as_os_str().to_owned()]].concat();
    let mut writer = Helper::spawn(&arguments)?;
    let mut ledger = Ledger::default();
    let mut tally = Tally::default();
    let mut idle_moments = 0;
    // The control may lose nothing at a few moments by chance, but not at many.
    let is_lucky = |tally: &Tally| scenario == Scenario::Control && tally.barrier_losses == 0;
    while tally.images < images || (is_lucky(&tally) && tally.images < 20 * images) {
        watchdog.pat();
        let frozen = rig.disk.freeze(rng.u32(1..=REQUESTS), PATIENCE);
        for line in writer.lines(STRAGGLERS)? {
            ledger.note(line.parse()?);
        }
        let snapshot = frozen.snapshot();
        drop(frozen);
        if !ledger.promises() {
            idle_moments += 1;
            if idle_moments > MOMENTS_WITHOUT_A_WRITE {
                bail!("the writer acknowledges nothing");
            }
            continue;
        }
        for survivors in images_of(&snapshot, rng) {
            watchdog.pat();
            let image = rig.mount_image(&cut(&snapshot, survivors, rng));
            let image = image.with_context(|| format!("{survivors:?}"))?;
            let findings = ledger.check(image.path());
            drop(image);
            let lost = findings.losses.len();
            match survivors {
                Survivors::Barrier => tally.barrier_losses += lost,
                Survivors::All => tally.all_losses += lost,
                Survivors::Some(_) => {}
            }
            tally.images += 1;
            tally.checked += findings.checked;
            let losses = findings.losses.into_iter();
            tally
                .losses
                .extend(losses.map(|loss| format!("{survivors:?}: {loss}")));
        }
    }
    Ok(tally)
}
