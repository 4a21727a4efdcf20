//! What KVM knows of a machine, as it is kept in a checkpoint: vCPUs, interrupt controllers, timers, clocks.
//!
//! The saved types are KVM's own structures, which are ABI: each stands as its exact bytes, and a payload of another
//! length is refused rather than filled up.

pub mod clock;
pub mod msrs;
pub mod pod;
pub mod vcpu;
pub mod vm;
pub mod xsave;
