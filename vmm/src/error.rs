//! What can go wrong in the VMM, each with the thing's name and, where there is one, the mend.

use std::{io, path::PathBuf};

use crate::{api::SocketError, config::ConfigError};

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the VMM. Its text is one line: the thing, what is wrong with it, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` cannot be used.
    #[error("/dev/kvm: {source}; {mend}")]
    NoKvm {
        /// What `open` or the first ioctl said.
        source: kvm_ioctls::Error,
        /// What to do about it.
        mend: &'static str,
    },
    /// A KVM ioctl failed.
    #[error("KVM: {what}: {source}; `ckvmm doctor` says what this host's KVM can do")]
    Kvm {
        /// Which call, for what.
        what: &'static str,
        /// The errno.
        source: kvm_ioctls::Error,
    },
    /// `KVM_GET_MSRS` or `KVM_SET_MSRS` stopped at an MSR.
    #[error("vCPU {vcpu}: KVM did not {verb} MSR {msr:#x}; this host's KVM cannot hold the guest's state")]
    Msr {
        /// vCPU number.
        vcpu: u32,
        /// "read" or "write".
        verb: &'static str,
        /// Index of the first MSR that was not done.
        msr: u32,
    },
    /// This host's KVM lacks something that ckvmm needs.
    #[error("KVM: {what} is not supported by this host's KVM; `ckvmm doctor` lists what is needed")]
    Unsupported {
        /// The capability's name.
        what: String,
    },
    /// RAM could not be had.
    #[error("memory: {bytes} bytes of guest RAM cannot be mapped: {source}; give the VM less memory")]
    Ram {
        /// Bytes asked for.
        bytes: u64,
        /// What `mmap` said.
        source: io::Error,
    },
    /// RAM cannot be protected against writing.
    #[error("checkpoint: guest RAM cannot be protected: {source}; use mode \"auto\", or see docs/checkpoints.md")]
    Protect {
        /// Why.
        source: io::Error,
    },
    /// Guest RAM could not be accessed where the VMM itself put something.
    #[error("memory: {what}: {source}")]
    RamAccess {
        /// What was being written or read.
        what: &'static str,
        /// The failure.
        source: vm_memory::GuestMemoryError,
    },
    /// The configuration, or something that it names, cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file or socket of the VMM's own cannot be used.
    #[error("{}: {what}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// The failure.
        source: io::Error,
    },
    /// Another VM runs on this state directory.
    #[error("{}: a VM runs on this state directory (pid {pid}); stop it, or give another directory with --state", path.display())]
    Busy {
        /// The state directory.
        path: PathBuf,
        /// Who has it.
        pid: String,
    },
    /// A call to the operating system failed.
    #[error("{what}: {source}")]
    Os {
        /// What was being done.
        what: &'static str,
        /// The failure.
        source: io::Error,
    },
    /// A checkpoint cannot be continued on this host.
    #[error("checkpoint {}: {reason}", path.display())]
    Restore {
        /// The checkpoint directory.
        path: PathBuf,
        /// Why not, and the mend.
        reason: String,
    },
    /// The image that the VM runs from is damaged.
    #[error("{line}")]
    Corrupt {
        /// File, chunk and mend.
        line: String,
    },
    /// A virtual machine state that the image holds does not fit.
    #[error("state: {what}")]
    State {
        /// What does not fit.
        what: String,
    },
    /// The guest stopped in a way the VMM cannot continue from.
    #[error("vCPU {vcpu}: {reason}")]
    Guest {
        /// vCPU number.
        vcpu: u32,
        /// The exit and the registers.
        reason: String,
    },
    /// A supervisor that has ended has left VMs in a network's state directory.
    #[error(
        "{}: the VM of {node} runs there, and its supervisor has ended; take the network over with \
         `ckvmm network adopt --state {}`, or give another directory with --state", path.display(), path.display()
    )]
    LeftBehind {
        /// The directory.
        path: PathBuf,
        /// One of them.
        node: String,
    },
    /// A node of a network cannot be used.
    #[error("node {name}: {reason}")]
    Node {
        /// The node.
        name: String,
        /// Why not, and the mend.
        reason: String,
    },
    /// A socket of the VM's cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An error of the image.
    #[error(transparent)]
    Snapshot(#[from] ckvmm_snapshot::Error),
    /// An error of a device.
    #[error(transparent)]
    Device(#[from] ckvmm_devices::Error),
    /// An error of a network link.
    #[error(transparent)]
    Net(#[from] ckvmm_net::Error),
}

impl Error {
    /// For `map_err` on a KVM ioctl.
    pub fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |source| Error::Kvm { what, source }
    }

    /// For `map_err` on a system call.
    pub fn os<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Os { what, source: source.into() }
    }
}
