//! Which cases a run measures: not each with each, that would take hours.

use std::time::Duration;

use crate::{
    Table,
    case::{Case, Method, Place, Sweep},
};

/// Checkpoints of one guest, one after the other.
pub(crate) const MANY: usize = 10;
/// Where the first and what others are like is all that is asked.
pub(crate) const FEW: usize = 3;
/// RAM touched above which a checkpoint takes so long that there is time for one only, in MiB.
const LARGE_MIB: u64 = 2048;

/// When no row of a table is begun any more, however slow the machine is: a run takes a quarter of an hour at most.
pub(crate) fn ends_after(table: Table) -> Duration {
    Duration::from_secs(match table {
        Table::Sizes => 440,
        Table::Others => 560,
        Table::Restores => 670,
        Table::Clones | Table::Throughput => 780,
    })
}

/// How many checkpoints one guest has.
pub(crate) fn count(case: Case, method: Method, quick: bool) -> usize {
    match method {
        _ if case.touched_mib > LARGE_MIB => 1,
        Method::Ckvmm if !quick => MANY,
        _ => FEW,
    }
}

/// Whether a case is measured with that method: how long a guest is stopped does not depend on its hot set; and a fork is
/// only what others are compared with.
pub(crate) fn compares(case: Case, method: Method) -> bool {
    if method == Method::CkvmmFork {
        return case.differs_in().is_empty() && matches!((case.touched_mib, case.hot_mib), (512, 16) | (2048, 256));
    }
    method.goes_on() || !matches!((case.touched_mib, case.hot_mib), (512, 256) | (2048, 16))
}

/// RAM touched and hot set.
pub(crate) fn sizes(quick: bool) -> Vec<Case> {
    let sizes: &[(u64, u64)] =
        if quick { &[(512, 16)] } else { &[(512, 16), (512, 256), (2048, 16), (2048, 256), (6144, 256)] };
    sizes.iter().map(|&(touched_mib, hot_mib)| Case::new(touched_mib, hot_mib)).collect()
}

/// The case of one size.
pub(crate) fn only((touched_mib, hot_mib): (u64, u64)) -> Vec<Case> {
    vec![Case::new(touched_mib, hot_mib)]
}

/// RAM touched and hot set, as an argument says them.
pub(crate) fn size(text: &str) -> Result<(u64, u64), String> {
    let size = text.split_once(',').and_then(|(touched, hot)| Some((touched.parse().ok()?, hot.parse().ok()?)));
    size.filter(|(touched, hot)| (1..=*touched).contains(hot))
        .ok_or_else(|| format!("`{text}` is not two numbers, the second not above the first: 2048,256"))
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
    if quick { vec![256] } else { vec![512, 1024, 2048] }
}

/// Clones that are started at once.
pub(crate) fn clones(quick: bool) -> Vec<usize> {
    vec![1, if quick { 10 } else { 50 }]
}

/// Size of an image that `dd` writes too, in MiB.
pub(crate) fn written(quick: bool) -> u64 {
    if quick { 256 } else { 1024 }
}
