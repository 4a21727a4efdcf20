//! Which cases a run measures: not each with each, that would take hours.

use crate::case::{Case, Place, Sweep};

/// RAM touched and hot set.
pub(crate) fn sizes(quick: bool) -> Vec<Case> {
    let sizes: &[(u64, u64)] =
        if quick { &[(512, 16)] } else { &[(512, 16), (512, 256), (2048, 16), (2048, 256), (6144, 256)] };
    sizes.iter().map(|&(touched_mib, hot_mib)| Case::new(touched_mib, hot_mib)).collect()
}

/// All else that a case has, one after the other.
pub(crate) fn others(quick: bool) -> Vec<Case> {
    let base = Case::new(512, if quick { 16 } else { 256 });
    let on_disk = Case { place: Place::Disk, ..base };
    let two_vcpus = Case { vcpus: 2, ..base };
    if quick {
        return vec![two_vcpus, on_disk];
    }
    vec![two_vcpus, Case { sweep: Sweep::Read, ..base }, on_disk, Case { busy: true, ..on_disk }]
}

/// RAM touched of guests that are restored, in MiB.
pub(crate) fn restored(quick: bool) -> Vec<u64> {
    if quick { vec![256] } else { vec![512, 2048] }
}

/// Clones that are started at once.
pub(crate) fn clones(quick: bool) -> Vec<usize> {
    vec![1, if quick { 10 } else { 50 }]
}

/// Size of an image that `dd` writes too, in MiB.
pub(crate) fn written(quick: bool) -> u64 {
    if quick { 256 } else { 1024 }
}
