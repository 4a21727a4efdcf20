//! What the VMM needs of the host beside KVM: the terminal, signals, the state directory, working copies of disks,
//! priorities, other processes.

mod base;
pub mod console;
pub mod disks;
pub mod escape;
pub mod heap;
pub mod lock;
pub mod memory;
pub mod patient;
pub mod priority;
pub mod process;
mod qcow2;
pub mod signals;
pub mod state_dir;
pub mod terminal;
