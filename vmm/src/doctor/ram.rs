//! What the speed of RAM and the settings of huge pages mean for a VM.

use std::io;

use super::{Check, Speed, read_small};
use crate::cli::output::bytes;

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Huge pages that are not this much faster at the first touch (in percent) are not there.
const FASTER_PERCENT: u64 = 130;

pub(super) fn check(small: Option<Speed>, huge: Option<Speed>) -> Vec<Check> {
    vec![speed(small, huge), thp(read_small(THP).as_deref()), protection(ckvmm_snapshot::can_protect())]
}

fn speed(small: Option<Speed>, huge: Option<Speed>) -> Check {
    let name = "RAM";
    let (Some(small), Some(huge)) = (small, huge) else {
        return Check::warning(name, "too little is free to measure it", "end what you do not need");
    };
    let rate = |n| format!("{}/s", bytes(n));
    let found = format!(
        "first touch {} in 4 KiB pages, {} in huge pages; fill {} and {}",
        rate(small.first_touch_bytes_per_second),
        rate(huge.first_touch_bytes_per_second),
        rate(small.fill_bytes_per_second),
        rate(huge.fill_bytes_per_second),
    );
    let enough = u128::from(small.first_touch_bytes_per_second) * u128::from(FASTER_PERCENT) / 100;
    if u128::from(huge.first_touch_bytes_per_second) >= enough {
        Check::ok(name, found)
    } else {
        let mend = "huge pages bring little here: see the setting below; memory may be fragmented \
                    (echo 1 | sudo tee /proc/sys/vm/compact_memory)";
        Check::warning(name, found, mend)
    }
}

fn thp(setting: Option<&str>) -> Check {
    let name = "transparent huge pages";
    let mend = format!("echo madvise | sudo tee {THP}");
    match setting {
        None => Check::warning(name, "not in this kernel", "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE"),
        Some(text) if text.contains("[never]") => Check::warning(name, "never: guests get 4 KiB pages", mend),
        Some(text) => {
            let chosen = text.split(['[', ']']).nth(1).unwrap_or(text);
            Check::ok(name, chosen)
        }
    }
}

fn protection(tried: io::Result<()>) -> Check {
    let name = "protecting RAM";
    let fork = "checkpoints fork, and their guests wait longer";
    match tried {
        Ok(()) => Check::ok(name, "yes: checkpoints cost the guest least"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Check::warning(
            name,
            format!("not allowed: {fork}"),
            "run as root, or get access to /dev/userfaultfd (sudo setfacl -m u:$USER:rw /dev/userfaultfd)",
        ),
        Err(error) => Check::warning(name, format!("{error}: {fork}"), "use Linux 6.7 or later"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn at(first_touch: u64) -> Option<Speed> {
        Some(Speed { first_touch_bytes_per_second: first_touch, fill_bytes_per_second: 1 << 33 })
    }

    #[test]
    fn huge_pages_must_be_faster() {
        assert_eq!(speed(at(1 << 30), at(3 << 30)).level, Level::Ok);
        assert_eq!(speed(at(1 << 30), at(1 << 30)).level, Level::Warning);
        assert_eq!(speed(None, None).level, Level::Warning);
    }

    #[test]
    fn what_forbids_to_protect_ram_has_its_mend() {
        let mend = |errno| protection(Err(io::Error::from_raw_os_error(errno))).mend.unwrap();
        assert!(mend(libc::EPERM).contains("/dev/userfaultfd"));
        assert!(mend(libc::ENOTTY).contains("Linux 6.7"));
        assert_eq!(protection(Ok(())).level, Level::Ok);
    }

    #[test]
    fn the_setting_is_read() {
        assert_eq!(thp(Some("always [madvise] never")), Check::ok("transparent huge pages", "madvise"));
        assert_eq!(thp(Some("always madvise [never]")).level, Level::Warning);
        assert_eq!(thp(None).level, Level::Warning);
    }
}
