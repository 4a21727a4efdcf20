//! The disk that a seed comes on: a FAT file system called `cidata`, which cloud-init looks for by that name.
//!
//! Invariant: the same files make the same bytes; no time and no chance is in it.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use super::Files;

/// The whole disk: FAT12, with room for the longest seed.
pub const DISK_BYTES: usize = 1 << 20;
/// The label, of eleven letters.
const LABEL: [u8; 11] = *b"cidata     ";
/// Other disks of the guest have other ones.
const VOLUME_ID: u32 = 0x636b_766d;

/// The bytes of a disk with these files.
///
/// # Errors
/// They do not fit.
pub fn image(files: &Files) -> io::Result<Vec<u8>> {
    let mut bytes = Cursor::new(vec![0; DISK_BYTES]);
    format_volume(&mut bytes, FormatVolumeOptions::new().volume_label(LABEL).volume_id(VOLUME_ID))?;
    let system = FileSystem::new(&mut bytes, FsOptions::new())?;
    for (name, content) in files {
        system.root_dir().create_file(name)?.write_all(content.as_bytes())?;
    }
    system.unmount()?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let files =
            [("meta-data", "{}".to_owned()), ("user-data", "x".repeat(1 << 17)), ("network-config", "n".into())];
        let disk = image(&files).unwrap();
        assert_eq!((disk.len(), &disk), (DISK_BYTES, &image(&files).unwrap()));
        let system = FileSystem::new(Cursor::new(disk), FsOptions::new()).unwrap();
        assert_eq!(system.volume_label(), "cidata");
        let names: Vec<_> = system.root_dir().iter().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, files.each_ref().map(|(name, _)| *name));
        for (name, content) in &files {
            let mut read = String::new();
            system.root_dir().open_file(name).unwrap().read_to_string(&mut read).unwrap();
            assert_eq!(&read, content);
        }
    }

    #[test]
    fn what_has_no_room_is_an_error() {
        let files =
            [("meta-data", "x".repeat(DISK_BYTES)), ("user-data", String::new()), ("network-config", String::new())];
        assert!(image(&files).is_err());
    }
}
