//! Every bound of this crate, in one place.
//!
//! A number that comes from a file is compared with its bound before anything is allocated, read or looped over for
//! it, so an arbitrary file costs at most what stands here.

/// Bytes in one chunk of a large file: the unit of digests and of zero detection. The size of an x86-64 huge page.
pub const CHUNK_BYTES: u64 = 2 << 20;

/// Largest `manifest.json`, bytes. A VM's configuration is at most 1 MiB; a host's CPUID some tens of KiB.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// Most files that a manifest may list.
pub const MANIFEST_FILES_MAX: usize = 1024;

/// Largest `state` file, bytes: 254 vCPUs with AMX state are about 25 MiB.
pub const STATE_BYTES_MAX: u64 = 256 << 20;

/// Most bytes of frames in the file of a network card, with what describes them.
pub const NETWORK_BYTES_MAX: u64 = 256 << 20;

/// Most entries in a [`StateMap`](crate::StateMap).
pub const STATE_ENTRIES_MAX: usize = 4096;

/// Longest name or kind of an entry in a [`StateMap`](crate::StateMap), bytes.
pub const STATE_NAME_BYTES_MAX: usize = 255;

/// Largest file described by a chunk map, bytes: guest RAM (at most 1 TiB) or a disk.
pub const IMAGE_FILE_BYTES_MAX: u64 = 16 << 40;

/// Most regions of guest RAM in a memory image. A PC has two: below and above the 32-bit hole.
pub const REGIONS_MAX: usize = 64;

/// Largest chunk map file, bytes: header with key, regions and 33 bytes a chunk of the largest image file.
pub const CHUNK_MAP_BYTES_MAX: u64 = 56 + 24 * REGIONS_MAX as u64 + 33 * (IMAGE_FILE_BYTES_MAX / CHUNK_BYTES);

/// Most layers that a large file of an image has beside the image's own. Each costs a few descriptors, and a name in
/// the image's directory.
pub const LAYERS_MAX: usize = 32;

/// Guest RAM comes in units of this many bytes, the x86-64 base page.
pub const PAGE_BYTES: u64 = 4096;

/// Most runs that [`MemoryImage::plan`](crate::MemoryImage::plan) maps: each costs one mapping, and Linux
/// allows a process 65530 (`vm.max_map_count`).
pub const RUNS_MAX: usize = 16384;

/// Bytes hashed, read or written at a time: small enough to stay in a core's second-level cache between the copy out
/// of guest RAM, the digest and the write; large enough that a system call a piece does not matter.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// Most bytes asked of one copy_file_range(2), so that a signal is not kept waiting for long.
pub(crate) const COPY_BYTES_MAX: u64 = 64 << 20;

/// The unit in which a disk is captured before a guest changes it: what a small write may have to wait for.
pub(crate) const CLUSTER_BYTES: u64 = 64 << 10;

/// Most bytes of a disk that are captured at once: how long a write to them may have to wait.
pub(crate) const SWEEP_BYTES: u64 = 4 << 20;

/// Longest id of a disk, bytes (`[a-z0-9][a-z0-9-]{0,62}`).
pub const ID_BYTES_MAX: usize = 63;

/// Most names looked at in one directory of checkpoints.
pub const STORE_ENTRIES_MAX: usize = 1 << 20;

/// How often a staging directory or a free number is tried for before giving up.
pub(crate) const NAME_TRIES_MAX: usize = 64;

/// Most names listed in one error line.
pub(crate) const NAMES_IN_ERROR_MAX: usize = 8;
