//! Figures: seconds and bytes.

use serde::{Deserialize, Serialize};

/// What one checkpoint cost.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// The longest gap that the guest saw between two units of its work.
    pub(crate) gap: f64,
    /// Of the guest's work, in time that it takes without a checkpoint.
    pub(crate) lost: f64,
    /// From the request until it is on the disk.
    pub(crate) durable: f64,
    /// The pause as the VMM says it.
    pub(crate) said: Option<f64>,
    /// What the image occupies.
    pub(crate) written: f64,
}

/// The same without a checkpoint: what differs by less is none.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Noise {
    pub(crate) gap: f64,
    /// In as long as a checkpoint is watched, more or less.
    pub(crate) lost: f64,
}

/// Of each figure its own median.
pub(crate) fn medians(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
    Sample {
        gap: of(|s| s.gap),
        lost: of(|s| s.lost),
        durable: of(|s| s.durable),
        said: samples[0].said.map(|_| of(|s| s.said.unwrap_or_default())),
        written: of(|s| s.written),
    }
}

/// The median; of an even number, the mean of the middle two.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    let upper = figures.len() / 2;
    let lower = (figures.len() - 1) / 2;
    (figures[lower] + figures[upper]) / 2.0
}
