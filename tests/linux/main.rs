//! Stock Debian guests, on hardware or in the lab: what a user does with ckvmm, and what must be true afterwards.
//!
//! Needs root (a network namespace), the guests of `make images`, and a `/dev/kvm` that runs Linux.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod clones;
mod cluster;
mod fifty;
mod generations;
mod life;
mod matrix;
mod network;
mod preemption;
mod stock;
mod survival;
mod traffic;
mod vm;
